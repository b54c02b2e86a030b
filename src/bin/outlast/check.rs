//! `outlast check`: reads a whole outbox, and says what is damaged.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use outlast::admin::{self, Concerned, Finding, Report, Severity};

use crate::args::Check;
use crate::exit::{Exit, Problem};
use crate::output::{self, bytes, count};

/// Outboxes smaller than this are read before anybody has seen a bar.
const WORTH_A_BAR: u64 = 1 << 30;

/// Looks, changes nothing; works beside a running producer.
pub fn run(args: &Check) -> Result<Exit, Problem> {
    let bar = ProgressBar::hidden();
    let shown = std::io::stderr().is_terminal();
    let report = admin::check_with(&args.outbox, |done, total| {
        if shown && total >= WORTH_A_BAR {
            if bar.is_hidden() {
                bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                bar.set_style(style());
            }
            bar.set_length(total);
            bar.set_position(done);
        }
    });
    bar.finish_and_clear();
    let report = report.map_err(Problem::failed)?;
    if args.json {
        output::json(&report)?;
    } else {
        for line in report.findings.iter().flat_map(in_words).chain(sum(&report)) {
            output::line(&line)?;
        }
    }
    Ok(if report.is_damaged() { Exit::Failed } else { Exit::Done })
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Two lines: what it is, and what can be done.
pub fn in_words(finding: &Finding) -> [String; 2] {
    let severity = match finding.severity {
        Severity::Damage => "damage",
        Severity::Suspicious => "suspicious",
        Severity::Harmless => "harmless",
        _ => "unknown",
    };
    let mut text = format!("{severity}: {}", finding.path.display());
    if finding.length > 0 {
        text.push_str(&format!(", {} bytes from byte {}", count(finding.length), count(finding.offset)));
    }
    text.push_str(&format!(": {}", finding.what));
    match finding.lsns {
        Concerned::Range { first, last } => text.push_str(&format!("; {}, {}", range(first, last), lost(finding))),
        Concerned::Unknown => text.push_str("; which messages are concerned is unknown"),
        _ => {}
    }
    if finding.stops_start {
        text.push_str("; the outbox does not open");
    }
    [text, format!("    {}", finding.advice)]
}

/// `LSN 5`, `LSNs 5 to 9`.
pub fn range(first: u64, last: u64) -> String {
    if first == last { format!("LSN {first}") } else { format!("LSNs {first} to {last}") }
}

fn lost(finding: &Finding) -> String {
    match finding.lost {
        0 => "none of them pending".into(),
        lost => format!("{} of them pending and lost", count(lost)),
    }
}

/// What was read, and whether all is well.
pub fn sum(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if report.omitted > 0 {
        lines.push(format!("and {} more", count(report.omitted)));
    }
    let mut read = format!(
        "read {} segments, {}: {} messages pending, {} dead letters",
        count(report.segments),
        bytes(report.bytes),
        count(report.pending),
        count(report.dead)
    );
    if report.set_aside > 0 {
        read.push_str(&format!(", {} messages set aside earlier", count(report.set_aside)));
    }
    lines.push(read);
    lines.push(if report.lost > 0 {
        format!("damage: {} messages cannot be read", count(report.lost))
    } else if report.is_damaged() {
        "damage".into()
    } else {
        "no damage".into()
    });
    lines
}
