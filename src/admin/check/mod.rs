//! Reading a whole outbox and saying what is wrong with it.
//!
//! It changes nothing and syncs nothing, needs no lock, and works beside a live producer, on a read-only disk and on
//! a copy that belongs to somebody else. Beside a producer, which writes and recycles meanwhile, what looks wrong is
//! looked at again, and only what stays wrong is told. It refuses to open the ledger, which even opening changes; the
//! log is the truth, and the ledger can be rebuilt from it.

mod around;
mod finding;
mod logs;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use finding::{Concerned, Finding, FindingKind, Report, Severity};
pub(super) use logs::Log;

use super::AdminError;
use crate::outbox::{Inspected, OutboxId, hex, set_aside_in};
use crate::wal::{Audit, DiskStorage, FlawKind, audit};

/// How often what looks wrong beside a live producer is looked at again. A flaw that is none would have to show at the
/// same place each time.
const AGAIN: usize = 3;
/// How long after: a write that is under way is over by then.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads everything in an outbox, and says what is wrong with it. Nothing is changed; a producer may have it open.
///
/// It reads all segments, at the speed of the disk; memory does not grow with the outbox.
///
/// # Errors
/// There is no outbox, or none that this release knows, or its directory cannot be listed. Everything else is a
/// [`Finding`].
pub fn check(directory: impl AsRef<Path>) -> Result<Report, AdminError> {
    check_with(directory, |_, _| {})
}

/// The same; `progress` is told now and then how many bytes of how many were read.
///
/// # Errors
/// As [`check`].
pub fn check_with(directory: impl AsRef<Path>, mut progress: impl FnMut(u64, u64)) -> Result<Report, AdminError> {
    let directory = directory.as_ref();
    let mut report = look(directory, &mut progress)?.report;
    for _ in 0..AGAIN {
        // The holder may have come, or gone, meanwhile.
        let live = report.holder.is_some() || Inspected::at(directory)?.holder.is_some();
        if !live || report.severity().is_none_or(|severity| severity == Severity::Harmless) {
            break;
        }
        std::thread::sleep(PAUSE);
        let again = look(directory, &mut progress)?.report;
        let stays = |finding: &Finding| again.findings.iter().any(|other| other.is_same(finding));
        let findings = report.findings.into_iter().filter(stays).collect();
        report = Report { findings, ..again };
        report.lost = report.findings.iter().map(|finding| finding.lost).sum();
    }
    Ok(report)
}

/// A report, and what it was made of.
pub(super) struct Looked {
    pub inspected: Inspected,
    /// Whose segments these are.
    pub id: Option<OutboxId>,
    pub wal: Audit,
    pub dead: Audit,
    pub report: Report,
}

/// One look at everything.
pub(super) fn look(directory: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Looked, AdminError> {
    let inspected = Inspected::at(directory)?;
    let live = inspected.holder.is_some();
    let total = log_bytes(&inspected.paths.wal()) + log_bytes(&inspected.paths.dead());
    let mut done = 0;
    let mut read = |bytes| {
        done += bytes;
        progress(done, total.max(done));
    };
    let wal = read_log(&inspected, inspected.paths.wal(), inspected.id, &mut read)?;
    let id = wal.outbox.or(inspected.id);
    let dead = read_log(&inspected, inspected.paths.dead(), id, &mut read)?;
    let id = id.or(dead.outbox);
    let set_aside = set_aside_in(&DiskStorage, &inspected.paths).unwrap_or(0);
    let mut findings = around::findings(&inspected, id);
    findings.extend(logs::findings(Log::Wal, &wal, set_aside, live));
    // Dead letters that were set aside are counted by nobody.
    findings.extend(logs::findings(Log::Dead, &dead, u64::MAX, live));
    // What is no plain file stands in the way, whatever else it is.
    let in_the_way: Vec<PathBuf> = findings
        .iter()
        .filter(|finding| finding.kind == FindingKind::InTheWay)
        .map(|finding| finding.path.clone())
        .collect();
    let stranger = |finding: &Finding| finding.kind == FindingKind::ForeignFile && in_the_way.contains(&finding.path);
    findings.retain(|finding| !stranger(finding));
    let counts = |audit: &Audit| audit.pending.values().map(|pending| pending.count).sum::<u64>();
    let report = Report {
        holder: inspected.holder.map(|holder| holder.pid.unwrap_or(0)),
        outbox: id.map(|id| hex(&id)),
        segments: wal.segments + dead.segments,
        bytes: wal.bytes + dead.bytes,
        records: wal.records + dead.records,
        pending: counts(&wal),
        dead: counts(&dead),
        set_aside,
        findings,
        omitted: wal.omitted.0 + dead.omitted.0,
        lost: wal.lost() + dead.lost(),
    };
    Ok(Looked { inspected, id, wal, dead, report })
}

/// The audit of a log; where every segment says that it is another outbox's than `IDENTITY` does, they are believed.
fn read_log(
    inspected: &Inspected,
    directory: PathBuf,
    id: Option<OutboxId>,
    read: &mut dyn FnMut(u64),
) -> Result<Audit, AdminError> {
    if !directory.is_dir() {
        return Ok(Audit::default());
    }
    let failed = |error| AdminError::storage(inspected.paths.root(), error);
    let audited = audit(&DiskStorage, &directory, id, read).map_err(failed)?;
    let foreign = audited.flaws.iter().filter(|flaw| flaw.kind == FlawKind::Foreign).count() as u64;
    if foreign > 0 && foreign == audited.segments {
        return audit(&DiskStorage, &directory, None, read).map_err(failed);
    }
    Ok(audited)
}

fn log_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let segments = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with("free-"));
    segments.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}
