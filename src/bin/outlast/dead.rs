//! `outlast dead`: messages the broker will never take, and what an operator decides about them.

use std::collections::{HashMap, HashSet};

use outlast::Route;
use outlast::admin::{self, DeadMessage, RequeueOptions, Selection};
use serde_json::{Value, json};

use crate::args::{Dead, DeadChange, DeadCommand, DeadList, DeadRequeue, DeadShow, Which};
use crate::exit::{Exit, Problem};
use crate::output::{self, count, counted};
use crate::peek::{bytes_as_json, content, headers_as_json};

/// Carries out one of the subcommands.
pub fn run(args: &Dead) -> Result<Exit, Problem> {
    match &args.command {
        DeadCommand::List(args) => list(args),
        DeadCommand::Show(args) => show(args),
        DeadCommand::Requeue(DeadRequeue { change: args, restamp }) => {
            let missing = missing(args)?;
            let options = RequeueOptions::default().lock_wait(args.lock.lock_wait).restamp(*restamp);
            let changed =
                admin::requeue_with(&args.outbox, selection(&args.which)?, options).map_err(Problem::failed)?;
            found(changed, &args.which)?;
            output::line(&format!("pending again: {}", counted(changed, "message")))?;
            all_found(&missing)
        }
        DeadCommand::Purge(args) => {
            let missing = missing(args)?;
            let changed = admin::purge_with(&args.outbox, selection(&args.which)?, args.lock.lock_wait)
                .map_err(Problem::failed)?;
            found(changed, &args.which)?;
            output::line(&format!("purged: {}", counted(changed, "dead letter")))?;
            all_found(&missing)
        }
    }
}

/// Nothing to change is not what was asked for, unless all of it was.
fn found(changed: u64, which: &Which) -> Result<(), Problem> {
    match changed {
        0 if !which.all => Err(Problem::failed("there is no such dead letter; what there is: outlast dead list")),
        _ => Ok(()),
    }
}

/// Of the numbers that were named, those that are no dead letter's.
fn missing(args: &DeadChange) -> Result<Vec<u64>, Problem> {
    let named = &args.which.numbers;
    if named.is_empty() {
        return Ok(Vec::new());
    }
    let mut there = HashSet::new();
    admin::each_dead_letter(&args.outbox, &Selection::Numbers(named.clone()), |dead| there.insert(dead.number))
        .map_err(Problem::failed)?;
    Ok(named.iter().copied().filter(|number| !there.contains(number)).collect())
}

/// What was done to the others stays done.
fn all_found(missing: &[u64]) -> Result<Exit, Problem> {
    if missing.is_empty() {
        return Ok(Exit::Done);
    }
    let numbers: Vec<String> = missing.iter().map(u64::to_string).collect();
    let are = if missing.len() == 1 { "is no dead letter" } else { "are no dead letters" };
    Err(Problem::failed(format!("there {are} {}; what there is: outlast dead list", numbers.join(", "))))
}

fn list(args: &DeadList) -> Result<Exit, Problem> {
    let mut printed = Ok(());
    // One at a time: there may be more of them than fit into the memory.
    let read = admin::each_dead_letter(&args.outbox, &Selection::All, |dead| {
        printed = if args.json { output::json(&as_json(&dead)) } else { output::line(&in_one_line(&dead)) };
        printed.is_ok()
    });
    read.map_err(Problem::failed)?;
    printed.map(|()| Exit::Done)
}

fn show(args: &DeadShow) -> Result<Exit, Problem> {
    let mut dead_letters = HashMap::new();
    let selection = Selection::Numbers(args.numbers.clone());
    admin::each_dead_letter(&args.outbox, &selection, |dead| dead_letters.insert(dead.number, dead).is_none())
        .map_err(Problem::failed)?;
    for number in &args.numbers {
        let dead =
            dead_letters.get(number).ok_or_else(|| Problem::failed(format!("there is no dead letter {number}")))?;
        if args.json {
            output::json(&as_json(dead))?;
        } else {
            for line in in_words(dead) {
                output::line(&line)?;
            }
        }
    }
    Ok(Exit::Done)
}

fn selection(args: &Which) -> Result<Selection, Problem> {
    if let Some(id) = args.id {
        return Ok(Selection::Id(id));
    }
    if let Some(route) = &args.route {
        return match route.split_once('/') {
            Some((transport, destination)) if !transport.is_empty() && !destination.is_empty() => {
                Ok(Selection::Route(Route { transport: transport.into(), destination: destination.into() }))
            }
            _ => Err(Problem::usage("--route: expected TRANSPORT/DESTINATION, as in kafka/orders")),
        };
    }
    // clap has made sure that one of them was given.
    Ok(if args.all { Selection::All } else { Selection::Numbers(args.numbers.clone()) })
}

fn in_one_line(dead: &DeadMessage) -> String {
    let (route, reason) = (escaped(&dead.route.to_string()), escaped(&dead.reason));
    format!("{} {} {route}: {reason}", dead.number, dead.id)
}

fn in_words(dead: &DeadMessage) -> Vec<String> {
    let mut lines = vec![
        format!("number {}", dead.number),
        format!("  id        {}", dead.id),
        format!("  to        {}", escaped(&dead.route.to_string())),
        format!("  reason    {}", escaped(&dead.reason)),
        format!("  attempts  {}", count(dead.attempts.into())),
        format!("  failed    {} to {}", rfc3339(dead.first_failure), rfc3339(dead.last_failure)),
        format!("  message  {}", content(&dead.key, &dead.payload)),
    ];
    for header in &dead.headers {
        let value = header.value.as_ref().map_or("(null)".to_owned(), |value| output::excerpt(value, 160));
        lines.push(format!("  header    {}: {value}", escaped(&header.name)));
    }
    lines
}

/// Nothing that an application or a broker chose drives the terminal.
fn escaped(text: &str) -> String {
    output::excerpt(text.as_bytes(), usize::MAX)
}

fn rfc3339(time: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn as_json(dead: &DeadMessage) -> Value {
    json!({
        "number": dead.number,
        "lsn": dead.lsn,
        "id": dead.id,
        "route": dead.route,
        "reason": dead.reason,
        "attempts": dead.attempts,
        "first_failure": rfc3339(dead.first_failure),
        "last_failure": rfc3339(dead.last_failure),
        "key": dead.key.as_ref().map(|key| bytes_as_json(key)),
        "payload": dead.payload.as_ref().map(|payload| bytes_as_json(payload)),
        "headers": headers_as_json(&dead.headers),
    })
}
