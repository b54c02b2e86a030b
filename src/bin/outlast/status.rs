//! `outlast status`: what is pending in an outbox, and why.

use outlast::admin::{self, Inspection};

use crate::args::Status;
use crate::exit::{Exit, Problem};
use crate::output::{self, age, bytes, count};

/// Looks, changes nothing; works beside a running producer.
pub fn run(args: &Status) -> Result<Exit, Problem> {
    let inspection = admin::inspect(&args.outbox).map_err(Problem::failed)?;
    if args.json {
        output::json(&inspection)?;
    } else {
        for line in in_words(&inspection) {
            output::line(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn in_words(inspection: &Inspection) -> Vec<String> {
    let mut lines = Vec::new();
    lines.push(match inspection.holder {
        Some(pid) => format!("held by process {pid}"),
        None => "not in use".into(),
    });
    let mut pending = format!("pending: {} messages", count(inspection.pending));
    if inspection.pending > 0 {
        pending.push_str(&format!(", {}", bytes(inspection.pending_bytes)));
        if let Some(oldest) = inspection.oldest {
            pending.push_str(&format!(", the oldest for {}", age(oldest)));
        }
    }
    lines.push(pending);
    for route in &inspection.routes {
        lines.push(format!("  {}: {} messages, {}", route.route, count(route.pending), bytes(route.pending_bytes)));
    }
    let mut dead = format!("dead letters: {}", count(inspection.dead));
    if inspection.dead > 0 {
        dead.push_str(&format!(", {}", bytes(inspection.dead_bytes)));
    }
    lines.push(dead);
    if inspection.set_aside > 0 {
        lines.push(format!("set aside, unreadable: {} messages", count(inspection.set_aside)));
    }
    lines.extend(inspection.reasons.iter().cloned());
    lines
}
