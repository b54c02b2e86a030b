//! Putting a damaged outbox in order: what cannot be read is set aside once and for all, what lies in the wrong place is
//! put back, and what does not belong there is moved out of the way.
//!
//! It does nothing that the drainer would not do on its way: a range that cannot be read is copied to `damaged/` and
//! settled with the mark *damaged*. It assumes that what a frame's checksum does not cover cannot be trusted: a damaged
//! frame is set aside whole, with all of its messages, because the checksum is over all of them together. It refuses to
//! work beside a producer, to delete anything, and to touch what a later release wrote.
//!
//! Each step leaves an outbox that can be opened, or repaired again; after a kill the next repair looks anew and goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::AdminError;
use super::check::{Concerned, Finding, FindingKind, Log, Looked, Report, Severity, look};
use crate::file_size;
use crate::outbox::{DirectoryError, Inspected, MISPLACED, Mender, Outbox, OutboxOptions};
use crate::wal::{self, Audit, Damage};

/// What a [`Step`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Writes `IDENTITY` anew, as the segments have it.
    WriteIdentity,
    /// Gives a segment its own name back; if that is taken by the segment itself, the copy goes to `damaged/`.
    PutBack,
    /// Moves a file to `damaged/`.
    MoveAside,
    /// Copies a range that cannot be read to `damaged/`, and settles its messages as damaged.
    SetAside,
    /// Has the log move on to a new segment, so that it does not depend on a damaged one.
    MoveOn,
}

/// One thing that a repair does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// What.
    pub action: Action,
    /// The file, relative to the outbox's directory.
    pub path: PathBuf,
    /// The LSNs concerned.
    pub lsns: Concerned,
    /// Messages, or dead letters, that are given up with it.
    pub lost: u64,
    /// Why.
    pub why: String,
}

/// What a repair would do, or did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// Its steps, in their order. Empty if there is nothing to do.
    pub steps: Vec<Step>,
    /// Whether they were done.
    pub done: bool,
    /// What nothing here can be done about; the outbox was not opened if one of them stops its start.
    pub remaining: Vec<Finding>,
    /// How the outbox is now.
    pub report: Report,
}

/// Says what [`repair`] would do, and changes nothing.
///
/// # Errors
/// There is no outbox, a producer has it open, or it cannot be listed.
pub fn plan_repair(directory: impl AsRef<Path>) -> Result<Repair, AdminError> {
    plan_repair_with(directory, Duration::ZERO)
}

/// As [`plan_repair`], and waits up to `lock_wait` for a producer that has the outbox open to close it.
///
/// # Errors
/// As `plan_repair`; a producer has it open for longer than that.
pub fn plan_repair_with(directory: impl AsRef<Path>, lock_wait: Duration) -> Result<Repair, AdminError> {
    let looked = free(directory.as_ref(), lock_wait)?;
    Ok(planned(looked.report.clone(), &looked))
}

/// Puts an outbox in order; what is taken out of its place lies in `damaged/` afterwards, with a line in `MANIFEST` there.
/// Doing it again, also after a kill in the middle, does what is left.
///
/// # Errors
/// There is no outbox, a producer has it open, or the disk refused a step: what was done before stays done.
pub fn repair(directory: impl AsRef<Path>) -> Result<Repair, AdminError> {
    repair_with(directory, Duration::ZERO)
}

/// As [`repair`], and waits up to `lock_wait` for a producer that has the outbox open to close it.
///
/// # Errors
/// As `repair`; a producer has it open for longer than that.
pub fn repair_with(directory: impl AsRef<Path>, lock_wait: Duration) -> Result<Repair, AdminError> {
    let directory = directory.as_ref();
    file_size::shielded(|| repair_here(directory, lock_wait))
}

fn repair_here(directory: &Path, lock_wait: Duration) -> Result<Repair, AdminError> {
    let before = free(directory, lock_wait)?;
    let plan = planned(before.report.clone(), &before);
    if plan.steps.is_empty() {
        return Ok(Repair { done: true, ..plan });
    }
    files(&before, &plan.steps)?;
    // What is lost is known once everything that was there is in its place.
    let between = look(directory, &mut |_, _| {})?;
    let mut steps: Vec<Step> = plan.steps.into_iter().filter(|step| !in_log(step)).collect();
    let rest = planned(between.report.clone(), &between);
    if !rest.remaining.iter().any(|finding| finding.stops_start) {
        let more: Vec<Step> = rest.steps.into_iter().filter(in_log).collect();
        if !more.is_empty() {
            logs(&between)?;
            steps.extend(more);
        }
    }
    let after = look(directory, &mut |_, _| {})?;
    let remaining = planned(after.report.clone(), &after).remaining;
    Ok(Repair { steps, done: true, remaining, report: after.report })
}

/// A look at an outbox that is not open; waits up to `lock_wait` for that. Nothing later waits: what was seen here must
/// not grow old behind a producer that took the outbox meanwhile.
fn free(directory: &Path, lock_wait: Duration) -> Result<Looked, AdminError> {
    /// As often as a producer tries the lock.
    const POLL: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        let inspected = Inspected::at(directory)?;
        let Some(holder) = inspected.holder else { return look(directory, &mut |_, _| {}) };
        let left = lock_wait.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let (path, waited) = (inspected.paths.lock(), lock_wait);
            return Err(DirectoryError::Held { path, holder, waited }.into());
        }
        std::thread::sleep(POLL.min(left));
    }
}

fn in_log(step: &Step) -> bool {
    matches!(step.action, Action::SetAside | Action::MoveOn)
}

fn planned(report: Report, looked: &Looked) -> Repair {
    let (mut steps, mut remaining) = (Vec::new(), Vec::new());
    for finding in &report.findings {
        match action(finding, looked) {
            Some(action) => steps.push(Step {
                action,
                path: finding.path.clone(),
                lsns: finding.lsns,
                lost: if action == Action::SetAside { finding.lost } else { 0 },
                why: finding.what.clone(),
            }),
            None if finding.severity == Severity::Damage => remaining.push(finding.clone()),
            None => {}
        }
    }
    // A log moves on once.
    steps.sort_by_key(|step| step.action);
    steps.dedup_by(|a, b| a.action == Action::MoveOn && a.action == b.action && a.path.parent() == b.path.parent());
    Repair { steps, done: false, remaining, report }
}

/// What can be done about a finding; `None` for nothing.
fn action(finding: &Finding, looked: &Looked) -> Option<Action> {
    let known = looked.id.is_some();
    let newest = || is_newest(finding, looked);
    match finding.kind {
        FindingKind::BadIdentity | FindingKind::ForeignOutbox if finding.path == Path::new("IDENTITY") => {
            known.then_some(Action::WriteIdentity)
        }
        FindingKind::Misplaced => Some(Action::PutBack),
        FindingKind::ForeignFile if is_parked(&finding.path) => Some(Action::PutBack),
        FindingKind::ForeignOutbox | FindingKind::InTheWay | FindingKind::BegunSegment => Some(Action::MoveAside),
        FindingKind::Ledger if finding.severity == Severity::Suspicious => Some(Action::MoveAside),
        FindingKind::Truncated if unused(finding, looked) => Some(Action::MoveAside),
        _ if finding.lost > 0 && !finding.stops_start => Some(Action::SetAside),
        FindingKind::BadHeader
        | FindingKind::BadCheckpoint
        | FindingKind::Truncated
        | FindingKind::TornWrite
        | FindingKind::Inconsistent
            if newest() =>
        {
            Some(Action::MoveOn)
        }
        _ => None,
    }
}

fn is_parked(path: &Path) -> bool {
    path.to_string_lossy().ends_with(MISPLACED)
}

fn audit_of<'a>(finding: &Finding, looked: &'a Looked) -> Option<&'a Audit> {
    if finding.path.starts_with(Log::Wal.name()) {
        Some(&looked.wal)
    } else {
        finding.path.starts_with(Log::Dead.name()).then_some(&looked.dead)
    }
}

/// Whether a finding is about the segment that the next open begins with.
fn is_newest(finding: &Finding, looked: &Looked) -> bool {
    let newest = audit_of(finding, looked).and_then(|audit| audit.newest);
    newest.is_some() && newest == number(&finding.path)
}

/// Whether a finding is about a segment behind that one.
fn unused(finding: &Finding, looked: &Looked) -> bool {
    audit_of(finding, looked).is_some_and(|audit| number(&finding.path) > audit.newest)
}

fn number(path: &Path) -> Option<u64> {
    u64::from_str_radix(path.file_name()?.to_str()?.strip_suffix(".seg")?, 16).ok()
}

/// The steps that need only names.
fn files(looked: &Looked, steps: &[Step]) -> Result<(), AdminError> {
    let mender = Mender::begin(&looked.inspected.paths)?;
    let of = |action: Action| steps.iter().filter(move |step| step.action == action);
    for step in of(Action::MoveAside) {
        mender.move_aside(&step.path, &step.why)?;
    }
    let mut parked: Vec<PathBuf> = Vec::new();
    for step in of(Action::PutBack) {
        if is_parked(&step.path) {
            parked.push(step.path.clone());
        } else if let Some(own) = wal::number_in(&looked.inspected.paths.root().join(&step.path)) {
            parked.push(mender.take_out(&step.path, own)?);
        }
    }
    for path in parked.iter().filter(|path| is_parked(path)) {
        mender.put_back(path)?;
    }
    if let (Some(step), Some(id)) = (of(Action::WriteIdentity).next(), looked.id) {
        mender.identify(&id, &step.why)?;
    }
    Ok(())
}

/// The steps that the outbox itself does: it is opened as by a producer, and closed again.
fn logs(looked: &Looked) -> Result<(), AdminError> {
    let root = looked.inspected.paths.root();
    let failed = |error: &dyn std::fmt::Display| AdminError::storage(root, error);
    let outbox = Outbox::open(&OutboxOptions { as_found: true, ..OutboxOptions::new(root) })?;
    let mut kept = true;
    for (log, audit) in [(Log::Wal, &looked.wal), (Log::Dead, &looked.dead)] {
        for damage in damages(audit) {
            kept &= match log {
                Log::Wal => outbox.set_aside(&damage),
                Log::Dead => outbox.set_aside_dead(&damage),
            };
        }
        let moves_on = |finding: &&Finding| {
            finding.path.starts_with(log.name()) && action(finding, looked) == Some(Action::MoveOn)
        };
        match log {
            Log::Wal if looked.report.findings.iter().any(|finding| moves_on(&finding)) => outbox.move_on(),
            Log::Dead if looked.report.findings.iter().any(|finding| moves_on(&finding)) => outbox.move_on_dead(),
            Log::Wal | Log::Dead => {}
        }
    }
    let closed = outbox.close();
    outbox.release();
    closed.map_err(|error| failed(&error))?;
    if kept { Ok(()) } else { Err(failed(&"what was damaged could not be copied to damaged/, and was not settled")) }
}

/// What is lost in a log, as the drainer would come across it.
fn damages(audit: &Audit) -> impl Iterator<Item = Damage> + '_ {
    let lost = audit.flaws.iter().filter(|flaw| flaw.lost > 0 && !flaw.stops_start);
    lost.filter_map(|flaw| match flaw.lsns {
        wal::Lsns::Range(first_lsn, last_lsn) => Some(Damage {
            segment: flaw.segment.unwrap_or(0),
            offset: u32::try_from(flaw.offset).unwrap_or(u32::MAX),
            length: u32::try_from(flaw.length).unwrap_or(u32::MAX),
            first_lsn,
            last_lsn,
            reason: flaw.reason.clone(),
        }),
        wal::Lsns::None | wal::Lsns::Unknown => None,
    })
}
