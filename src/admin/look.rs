//! What only reads.

use std::path::{Path, PathBuf};

use super::{AdminError, DeadMessage, Inspection, PendingMessage, RouteInspection, Selection};
use crate::clock;
use crate::message::Outgoing;
use crate::outbox::{Inspected, Lifecycle, Status, StatusFile};
use crate::wal::{self, Entry, Lsn, State, Step, Wal};

/// How often a log that its owner changes meanwhile is read anew.
const TRIES: usize = 5;

/// A log as it is found, without threads and without writing anything.
pub(super) struct Found {
    wal: Wal,
    pub state: State,
    // Keeps what the log shares alive; nobody turns it.
    _stepper: wal::Stepper,
}

pub(super) fn open(inspected: &Inspected, directory: PathBuf) -> Result<Option<Found>, AdminError> {
    if !directory.exists() {
        return Ok(None);
    }
    let id = inspected.id.or_else(|| wal::outbox_of(&directory)).unwrap_or_default();
    let mut tries = 0;
    loop {
        // Nothing of the owner's is synced, nor its page cache touched.
        match Wal::open_stepped(wal::read_only_disk(), &directory, wal::Options::new(id, 0)) {
            Ok((wal, recovered, stepper)) => {
                return Ok(Some(Found { wal, state: recovered.state, _stepper: stepper }));
            }
            // The owner may have taken a segment away between the listing and the look.
            Err(_) if inspected.holder.is_some() && tries < TRIES => tries += 1,
            Err(error) => return Err(AdminError::storage(inspected.paths.root(), error)),
        }
    }
}

/// Calls `each` for every record that is not settled, in order, until it says no more.
pub(super) fn unsettled(
    inspected: &Inspected,
    found: &Found,
    mut each: impl FnMut(Lsn, Entry) -> bool,
) -> Result<(), AdminError> {
    let reader = found.wal.reader();
    let failed = |error| AdminError::storage(inspected.paths.root(), error);
    let mut cursor = reader.seek(found.state.settled.prefix() + 1, None).map_err(failed)?;
    loop {
        match reader.next(&mut cursor).map_err(failed)? {
            Step::Frame { records, .. } => {
                for record in records {
                    if !found.state.settled.contains(record.lsn) && !each(record.lsn, record.body) {
                        return Ok(());
                    }
                }
            }
            Step::Damaged(_) => {}
            Step::End => return Ok(()),
        }
    }
}

/// What is in an outbox: read from its log, with the reasons its owner gives in `status`.
///
/// # Errors
/// There is no outbox, or it cannot be read.
pub fn inspect(directory: impl AsRef<Path>) -> Result<Inspection, AdminError> {
    let inspected = Inspected::at(directory.as_ref())?;
    let mut inspection = Inspection { holder: inspected.holder.and_then(|holder| holder.pid), ..Inspection::default() };
    if let Some(found) = open(&inspected, inspected.paths.wal())? {
        for (route, pending) in found.state.routes.into_iter().filter(|(_, pending)| pending.count > 0) {
            inspection.routes.push(RouteInspection {
                route,
                pending: pending.count,
                pending_bytes: pending.bytes,
                oldest: clock::system_time(pending.oldest),
            });
        }
    }
    inspection.pending = inspection.routes.iter().map(|route| route.pending).sum();
    inspection.pending_bytes = inspection.routes.iter().map(|route| route.pending_bytes).sum();
    inspection.oldest = inspection.routes.iter().filter_map(|route| route.oldest).min();
    if let Some(found) = open(&inspected, inspected.paths.dead())? {
        inspection.dead = found.state.routes.values().map(|dead| dead.count).sum();
        inspection.dead_bytes = found.state.routes.values().map(|dead| dead.bytes).sum();
    }
    // A report that cannot be read is none: the log has the counts.
    if let Ok(Some(status)) = StatusFile::new(inspected.paths.status()).read() {
        inspection.set_aside = status.set_aside;
        inspection.reasons = reasons(&status, &inspection);
    }
    Ok(inspection)
}

/// The reasons of the last report, with the log's counts where the report is not live.
fn reasons(status: &Status, inspection: &Inspection) -> Vec<String> {
    let mut status = status.clone();
    status.routes.retain_mut(|route| {
        let known = inspection
            .routes
            .iter()
            .find(|known| *known.route.transport == *route.transport && *known.route.destination == *route.destination);
        match known {
            Some(known) => {
                route.pending.count = known.pending;
                route.pending.bytes = known.pending_bytes;
                true
            }
            None => inspection.holder.is_some(),
        }
    });
    // Counts of their own.
    status.dead = Default::default();
    status.set_aside = 0;
    if status.state == Lifecycle::Closed && inspection.pending == 0 {
        status.transports.clear();
    }
    status.lines(clock::unix_millis())
}

/// The oldest pending messages, `limit` at most.
///
/// # Errors
/// There is no outbox, or it cannot be read.
pub fn peek(directory: impl AsRef<Path>, limit: usize) -> Result<Vec<PendingMessage>, AdminError> {
    let inspected = Inspected::at(directory.as_ref())?;
    let mut pending = Vec::new();
    if let Some(found) = open(&inspected, inspected.paths.wal())? {
        unsettled(&inspected, &found, |lsn, entry| {
            if pending.len() < limit
                && let Entry::Message(outgoing) = entry
            {
                pending.push(PendingMessage::new(lsn, outgoing));
            }
            pending.len() < limit
        })?;
    }
    Ok(pending)
}

/// All dead letters, oldest first.
///
/// # Errors
/// There is no outbox, or it cannot be read.
pub fn dead_letters(directory: impl AsRef<Path>) -> Result<Vec<DeadMessage>, AdminError> {
    let mut letters = Vec::new();
    each_dead_letter(directory, &Selection::All, |letter| {
        letters.push(letter);
        true
    })?;
    Ok(letters)
}

/// Calls `each` for every selected dead letter, oldest first, until it returns `false`. One of them at a time is in memory,
/// beside what it was written with.
///
/// # Errors
/// There is no outbox, or it cannot be read.
pub fn each_dead_letter(
    directory: impl AsRef<Path>,
    which: &Selection,
    mut each: impl FnMut(DeadMessage) -> bool,
) -> Result<(), AdminError> {
    let inspected = Inspected::at(directory.as_ref())?;
    if let Some(found) = open(&inspected, inspected.paths.dead())? {
        unsettled(&inspected, &found, |number, entry| {
            if let Entry::Dead(letter) = entry
                && which.takes(number, &letter.outgoing)
            {
                let Outgoing { id, route, message, .. } = letter.outgoing;
                let time = |millis| clock::system_time(millis).unwrap_or(std::time::UNIX_EPOCH);
                let wants_more = each(DeadMessage {
                    number,
                    lsn: letter.lsn,
                    id,
                    route,
                    key: message.key.clone(),
                    payload: message.payload_bytes().cloned(),
                    headers: message.headers.clone(),
                    reason: letter.reason,
                    attempts: letter.attempts,
                    first_failure: time(letter.first_failure),
                    last_failure: time(letter.last_failure),
                    message,
                });
                return wants_more && !which.ends_at(number);
            }
            !which.ends_at(number)
        })?;
    }
    Ok(())
}
