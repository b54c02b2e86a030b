//! What the audit of a log says, as findings: how bad each is, and what can be done.

use std::path::Path;

use super::finding::{Concerned, Finding, FindingKind, Severity};
use crate::wal::{Audit, Flaw, FlawKind, Lsns};

/// One of the two logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::admin) enum Log {
    /// Messages.
    Wal,
    /// Dead letters.
    Dead,
}

impl Log {
    /// The directory's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Dead => "dead",
        }
    }

    fn records(self) -> &'static str {
        match self {
            Self::Wal => "messages",
            Self::Dead => "dead letters",
        }
    }
}

const REPAIR: &str =
    "`outlast repair` sets it aside; whatever else is there is delivered, by the next producer in any case";
const NOTHING: &str = "nothing: the log goes on without it";

/// The findings of a log.
pub(super) fn findings(log: Log, audit: &Audit, set_aside: u64, live: bool) -> Vec<Finding> {
    // What a live owner is about to write, or to use again: also a segment that has its name, and the bytes of an earlier
    // life still.
    let moving = |flaw: &&Flaw| {
        let ahead = flaw.segment.is_some() && flaw.segment > audit.newest;
        let passing = ahead || matches!(flaw.kind, FlawKind::Torn | FlawKind::Begun | FlawKind::Leftover);
        live && passing && flaw.lost == 0
    };
    let mut findings: Vec<Finding> =
        audit.flaws.iter().filter(|flaw| !moving(flaw)).map(|flaw| finding(log, flaw)).collect();
    if !live && audit.lost() == 0 {
        findings.extend(miscounted(log, audit, set_aside));
    }
    findings
}

fn finding(log: Log, flaw: &Flaw) -> Finding {
    let kind = kind(flaw.kind);
    let unknown = flaw.lsns == Lsns::Unknown;
    let severity = match kind {
        _ if flaw.lost > 0 || flaw.stops_start || unknown || kind == FindingKind::DuplicateLsn => Severity::Damage,
        FindingKind::Leftover | FindingKind::ForeignFile => Severity::Harmless,
        _ => Severity::Suspicious,
    };
    let lsns = match flaw.lsns {
        Lsns::None => Concerned::Nothing,
        Lsns::Unknown => Concerned::Unknown,
        Lsns::Range(first, last) => Concerned::Range { first, last },
    };
    let mut path = Path::new(log.name()).to_path_buf();
    if !flaw.name.is_empty() {
        path.push(&flaw.name);
    }
    Finding {
        severity,
        kind,
        path,
        offset: flaw.offset,
        length: flaw.length,
        lsns,
        lost: flaw.lost,
        stops_start: flaw.stops_start,
        what: flaw.reason.clone(),
        advice: advice(kind, severity, flaw).to_owned(),
    }
}

fn kind(kind: FlawKind) -> FindingKind {
    match kind {
        FlawKind::Header => FindingKind::BadHeader,
        FlawKind::Checkpoint => FindingKind::BadCheckpoint,
        FlawKind::Frame => FindingKind::BadFrame,
        FlawKind::Torn => FindingKind::TornWrite,
        FlawKind::Begun => FindingKind::BegunSegment,
        FlawKind::Missing => FindingKind::Missing,
        FlawKind::Misplaced => FindingKind::Misplaced,
        FlawKind::Foreign => FindingKind::ForeignOutbox,
        FlawKind::Newer => FindingKind::NewerFormat,
        FlawKind::Unreadable => FindingKind::Unreadable,
        FlawKind::Truncated => FindingKind::Truncated,
        FlawKind::Trailing => FindingKind::TrailingBytes,
        FlawKind::Duplicate => FindingKind::DuplicateLsn,
        FlawKind::Inconsistent => FindingKind::Inconsistent,
        FlawKind::Leftover => FindingKind::Leftover,
        FlawKind::Stranger => FindingKind::ForeignFile,
    }
}

fn advice(kind: FindingKind, severity: Severity, flaw: &Flaw) -> &'static str {
    match kind {
        FindingKind::Misplaced => {
            "`outlast repair`, before the next producer: it gives the segment its own name back, or sets the copy aside"
        }
        FindingKind::ForeignOutbox if flaw.stops_start => {
            "the outbox does not open with it; `outlast repair` sets it aside"
        }
        FindingKind::ForeignOutbox => "`outlast repair`, before the next producer, sets it aside",
        FindingKind::NewerFormat => "use the release that wrote it; nothing else can read it",
        FindingKind::Unreadable => {
            "look at the disk and its log; copy the outbox to another one, and check and repair the copy"
        }
        FindingKind::Missing if severity == Severity::Damage => {
            "put the file back if there is a copy, before the next producer; else `outlast repair` gives the messages up"
        }
        FindingKind::DuplicateLsn => "keep a copy of the outbox and report it: no release should write this",
        FindingKind::BegunSegment => {
            "nothing, after a crash; if there was none, it was damaged: keep a copy, `outlast repair` sets it aside"
        }
        FindingKind::Leftover => "nothing: the next producer removes it",
        FindingKind::ForeignFile => "nothing: it is never looked at",
        _ if severity == Severity::Damage => REPAIR,
        _ => NOTHING,
    }
}

/// The log counts what is pending from segment to segment; the records have to say the same. What was set aside
/// stays counted until nothing is pending, since nobody can say which route it was for.
fn miscounted(log: Log, audit: &Audit, set_aside: u64) -> Option<Finding> {
    let total = |of: &std::collections::BTreeMap<_, crate::wal::Pending>| of.values().map(|p| p.count).sum::<u64>();
    let (said, found) = (total(&audit.said), total(&audit.pending));
    if said == found || (said > found && said - found <= set_aside) {
        return None;
    }
    let (name, records) = (log.name(), log.records());
    Some(Finding {
        severity: Severity::Suspicious,
        kind: FindingKind::Inconsistent,
        path: name.into(),
        offset: 0,
        length: 0,
        lsns: Concerned::Nothing,
        lost: 0,
        stops_start: false,
        what: format!("the log counts {said} {records} as pending, {found} are there"),
        advice: "nothing: the count is right again once nothing is pending; please report it".into(),
    })
}
