//! `outlast doctor`: says whether a producer could start here and keep its promise, and what to do if not.

use std::time::Duration;

use outlast::admin::doctor::{Finding, Report, Severity};
use outlast::{Config, admin};

use crate::args::{Broker, Doctor};
use crate::exit::{Exit, Problem};
use crate::open::{Destination, password_around};
use crate::output::{self, bytes, counted};

/// Looks, changes nothing but for one file that it removes again; works beside a running producer.
pub fn run(args: &Doctor) -> Result<Exit, Problem> {
    let config = match &args.to {
        Some(to) => {
            let broker = Broker { to: to.clone(), password_file: args.password_file.clone() };
            Destination::parse(&broker)?.config(&args.outbox, Duration::ZERO)
        }
        None => Config { outbox: args.outbox.clone(), ..Config::default() },
    };
    let password = password_around()?;
    let report = admin::doctor_with(&config, password.as_deref(), args.timeout).map_err(Problem::usage)?;
    if args.json {
        output::json(&report)?;
    } else {
        for line in report.findings.iter().flat_map(in_words).chain(sum(&report, args.to.is_some())) {
            output::line(&line)?;
        }
    }
    Ok(if report.has_problems() { Exit::Failed } else { Exit::Done })
}

/// Two lines: what it is, and what to do.
fn in_words(finding: &Finding) -> [String; 2] {
    let severity = match finding.severity {
        Severity::Problem => "problem",
        _ => "note",
    };
    let Finding { code, subject, what, advice, .. } = finding;
    [format!("{severity}: {code}: {subject}: {what}"), format!("    {advice}")]
}

/// The place of the outbox, its room, and how many findings there are.
fn sum(report: &Report, asked: bool) -> Vec<String> {
    let mut place = match (report.exists, report.pending) {
        (false, _) => format!("{}: no outbox yet", report.outbox.display()),
        (true, pending) => format!("{}: {} pending", report.outbox.display(), counted(pending, "message")),
    };
    if let (Some(free), Some(least), Some(most)) = (report.free_bytes, report.least_bytes, report.most_bytes) {
        place.push_str(&format!(
            "; {} free, it takes {} from its start, {} at most",
            bytes(free),
            bytes(least),
            bytes(most.max(least))
        ));
    }
    let problems = report.findings.iter().filter(|finding| finding.severity == Severity::Problem).count() as u64;
    let notes = report.findings.len() as u64 - problems;
    let mut end = format!("{}, {}", counted(problems, "problem"), counted(notes, "note"));
    if !asked {
        end.push_str("; no broker was asked (--to)");
    }
    vec![place, end]
}
