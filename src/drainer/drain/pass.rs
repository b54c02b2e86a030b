//! Reading on in the log: what nobody has looked at yet.

use std::sync::Arc;
use std::time::Instant;

use super::catchup::lane_or_own;
use super::{BATCH, Drain, Halt, READ_RETRY, RUN_BYTES};
use crate::drainer::dispatcher::Again;
use crate::outbox::ledger::EntryRow;
use crate::outbox::{ScanError, Scanned};
use crate::wal::Entry;

impl Drain {
    /// Reads on in the log and hands over what is new. True: there is more.
    pub(super) fn pass(&mut self, now: Instant) -> Result<bool, Halt> {
        for _ in 0..BATCH {
            if self.frame.is_empty() && !self.read_frame(now)? {
                self.end_backlog();
                return Ok(false);
            }
            let Some((lsn, place, message)) = self.frame.front().cloned() else { continue };
            let mine = message.route.transport == *self.dispatcher.name();
            if mine && !self.dispatcher.is_owned(lsn) && !self.dispatcher.outbox().is_settled(lsn) {
                let counted = lsn > self.backlog_end;
                if self.behind.contains(&lane_or_own(&message, lsn)) {
                    return Err(Halt::Wait);
                }
                if let Some(key) = self.block_of(&message, lsn) {
                    if !counted {
                        self.dispatcher.passed_over(&message);
                    }
                    self.park(key, lsn, Some(place), &message);
                } else {
                    self.offer(&Again { lsn, message, counted, alone: false }, now)?;
                }
            }
            self.frame.pop_front();
            self.cursor = lsn + 1;
            if self.backlog && self.cursor > self.backlog_end {
                self.end_backlog();
            }
        }
        Ok(true)
    }

    pub(super) fn end_backlog(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.dispatcher.gate().backlog_passed();
            // What the ledger forgot before this start has been walked, and so is known again.
            self.dispatcher.outbox().ledger().rebuilt(self.ledger_generation);
        }
    }

    /// Why the log cannot be read, if it cannot.
    pub fn read_error(&self) -> Option<&ScanError> {
        self.read_error.as_ref().or(self.skipped_error.as_ref()).map(|(error, _)| error)
    }

    fn set_read_error(&mut self, error: Option<(ScanError, Instant)>) {
        self.view_changed |= error.is_some() || self.read_error.is_some();
        self.read_error = error;
    }

    /// What was passed over could not be read, or can be.
    pub(super) fn set_skipped_error(&mut self, error: Option<(ScanError, Instant)>) {
        self.view_changed |= error.is_some() || self.skipped_error.is_some();
        self.skipped_error = error;
    }

    /// When it is tried again to read what could not be read.
    pub(super) fn unreadable_until(&self) -> Option<Instant> {
        let errors = [&self.read_error, &self.skipped_error].into_iter().flatten();
        errors.map(|(_, at)| *at).min()
    }

    /// The time has come to read again what could not be read: also while nothing may be handed over, so that nobody
    /// is told of a disk that works again, however long the broker is away.
    pub(super) fn read_again(&mut self, now: Instant) {
        let is_due = |error: &Option<(ScanError, Instant)>| error.as_ref().is_some_and(|(_, at)| *at <= now);
        if is_due(&self.skipped_error) {
            // Its block is due as well, and tells of it again, unless nothing may be tried: then nobody knows.
            self.set_skipped_error(None);
        }
        if is_due(&self.read_error) && self.frame.is_empty() {
            // An error is noted, and tried again in its time.
            let _ = self.read_frame(now);
        }
    }

    /// Reads the next frame. False: everything durable was read.
    pub(super) fn read_frame(&mut self, now: Instant) -> Result<bool, Halt> {
        if let Some((_, at)) = self.read_error
            && at > now
        {
            return Err(Halt::Until(at));
        }
        let outbox = Arc::clone(self.dispatcher.outbox());
        let scanned = self.scan.advance(|lsn| outbox.hint(lsn));
        if scanned.is_ok() {
            self.set_read_error(None);
        }
        match scanned {
            Ok(Scanned::Frame { place, bytes, time, records }) => {
                if let (true, Some(first)) = (self.run >= RUN_BYTES, records.first()) {
                    self.run = 0;
                    let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                    let row = EntryRow { segment: place.segment, offset: place.offset, count, bytes, time };
                    outbox.ledger().entry(first.lsn, row);
                }
                self.run += bytes;
                self.frame.extend(records.into_iter().filter_map(|record| match record.body {
                    Entry::Message(message) => Some((record.lsn, record.place, Arc::new(message))),
                    Entry::Dead(_) => None,
                }));
                Ok(true)
            }
            Ok(Scanned::Damaged(damage)) => {
                outbox.set_aside(&damage);
                self.cursor = self.cursor.max(damage.last_lsn + 1);
                self.dispatcher.forget_watchers(damage.first_lsn..=damage.last_lsn);
                self.dispatcher.tell(crate::stats::Event::SetAside {
                    first_lsn: damage.first_lsn,
                    last_lsn: damage.last_lsn,
                    reason: damage.reason,
                });
                Ok(true)
            }
            Ok(Scanned::End) => Ok(false),
            Err(error) => {
                if let Some(suppressed) = self.lines.unreadable.admit(now) {
                    tracing::warn!(%error, suppressed, "the outbox cannot be read now; it is tried again");
                }
                self.set_read_error(Some((error, now + READ_RETRY)));
                Err(Halt::Until(now + READ_RETRY))
            }
        }
    }
}
