//! Dead letters: appended to a log of their own before the message is settled, and taken out again by an operator.

use std::sync::Arc;
use std::sync::mpsc;

use super::{AppendResult, Outbox, damaged};
use crate::wal::{Damage, DeadLetter, Entry, EntryRef, Lsn, Mark, Place, RouteTotal, Settled, Step, WalError};

/// Dead letters that are purged between two syncs.
const BATCH: usize = 256;
/// Bytes of a reason that are kept: brokers say little, but what they quote may be long, and a dead letter must find room
/// whatever the reason.
pub(super) const MAX_REASON: usize = 4 << 10;

/// Why dead letters could not be changed. What was changed before stays so.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The log of the dead letters cannot be read.
    #[error("the dead letters cannot be read: {0}")]
    Read(#[from] crate::wal::ReadError),
    /// The disk refused.
    #[error("the disk refused: {0}")]
    Write(#[from] Arc<WalError>),
}

/// Cuts a reason between two characters.
fn shorten(reason: &mut String) {
    let cut = (0..=MAX_REASON.min(reason.len())).rev().find(|&at| reason.is_char_boundary(at));
    reason.truncate(cut.unwrap_or(0));
}

impl Outbox {
    /// Appends a dead letter, and settles the message once the disk has it. `done` hears how that went, on the log's
    /// thread; when it failed, the message is still pending. Of the reason the first 4 KiB are kept.
    pub fn bury(self: &Arc<Self>, mut letter: DeadLetter, done: impl FnOnce(AppendResult) + Send + 'static) {
        shorten(&mut letter.reason);
        let outbox = Arc::clone(self);
        let (lsn, outgoing) = (letter.lsn, letter.outgoing.clone());
        self.dead.append(EntryRef::Dead(&letter), move |result| {
            if result.is_ok() {
                outbox.settle(Mark::Dead, lsn, &outgoing);
            }
            done(result);
        });
    }

    /// Sets aside dead letters that cannot be read, by their numbers, as [`set_aside`](Self::set_aside) does with
    /// messages. Says whether they are settled now.
    pub fn set_aside_dead(&self, damage: &Damage) -> bool {
        let open: Vec<(Lsn, Lsn)> = self.dead_settled.gaps_within(damage.first_lsn, damage.last_lsn).collect();
        let lost = open.iter().map(|(first, last)| last - first + 1).sum();
        let kept = damaged::keep(&*self.storage, self.directory.paths(), damaged::From::Dead, damage, lost);
        if let Err(error) = kept {
            tracing::error!(%error, "what was damaged could not be copied to damaged/; it stays where it is");
            return false;
        }
        for range in open {
            self.dead.settle(Settled { mark: Mark::Damaged, ranges: vec![range], totals: Vec::new() });
        }
        true
    }

    /// The same for the dead letters as [`move_on`](Self::move_on) for the log.
    pub fn move_on_dead(&self) {
        self.dead.settle(Settled { mark: Mark::Damaged, ranges: Vec::new(), totals: Vec::new() });
    }

    /// Requeues ([`Mark::Requeued`], in the order in which the messages were stored) or purges the dead letters that
    /// `takes` takes; returns how many.
    pub fn change_dead(&self, mark: Mark, takes: impl Fn(Lsn, &DeadLetter) -> bool) -> Result<u64, DeadError> {
        if mark == Mark::Requeued {
            return self.requeue_dead(false, takes);
        }
        let mut count = 0;
        let mut batch: Vec<(Lsn, DeadLetter)> = Vec::new();
        self.each_dead(|number, letter| {
            if takes(number, &letter) {
                batch.push((number, letter));
            }
            if batch.len() < BATCH {
                return Ok(());
            }
            count += batch.len() as u64;
            self.change_batch(mark, std::mem::take(&mut batch))
        })?;
        count += batch.len() as u64;
        self.change_batch(mark, batch)?;
        Ok(count)
    }

    /// Each dead letter that there was at the opening or that came since, with its number among them.
    pub fn each_dead(&self, mut each: impl FnMut(Lsn, DeadLetter) -> Result<(), DeadError>) -> Result<(), DeadError> {
        self.each_dead_at(|number, _, letter| each(number, letter))
    }

    /// The same with the place of each.
    pub(super) fn each_dead_at(
        &self,
        mut each: impl FnMut(Lsn, Place, DeadLetter) -> Result<(), DeadError>,
    ) -> Result<(), DeadError> {
        let settled = &self.dead_settled;
        let reader = self.dead.reader();
        let mut cursor = reader.seek(settled.prefix() + 1, None)?;
        loop {
            match reader.next(&mut cursor)? {
                Step::Frame { records, .. } => {
                    for record in records {
                        if let Entry::Dead(letter) = record.body
                            && !settled.contains(record.lsn)
                        {
                            each(record.lsn, record.place, letter)?;
                        }
                    }
                }
                // Reported when the outbox was opened.
                Step::Damaged(_) => {}
                Step::End => return Ok(()),
            }
        }
    }

    pub(super) fn change_batch(&self, mark: Mark, mut batch: Vec<(Lsn, DeadLetter)>) -> Result<(), DeadError> {
        let failed = if mark == Mark::Requeued { self.append_again(&mut batch) } else { None };
        for (number, letter) in batch {
            let bytes = letter.outgoing.message.size() as u64;
            let total = RouteTotal { route: letter.outgoing.route, count: 1, bytes };
            self.dead.settle(Settled { mark, ranges: vec![(number, number)], totals: vec![total] });
        }
        self.dead.sync()?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Appends the messages of dead letters anew. Those that are durable in the log, and so may leave the dead letters, stay
    /// in the batch; the others, and why.
    fn append_again(&self, batch: &mut Vec<(Lsn, DeadLetter)>) -> Option<Arc<WalError>> {
        let (sender, appended) = mpsc::channel();
        let lsns: Vec<Lsn> = (0..)
            .zip(&*batch)
            .map(|(at, (_, letter))| {
                let sender = sender.clone();
                self.append(&letter.outgoing, move |result| drop(sender.send((at, result))))
            })
            .collect();
        drop(sender);
        let mut durable = vec![false; batch.len()];
        let mut failed = None;
        while let Some((at, result)) = self.wal.answer::<(usize, AppendResult)>(&appended) {
            match result {
                Ok(_) => durable[at] = true,
                Err(error) => {
                    self.forget(lsns[at], &batch[at].1.outgoing);
                    failed.get_or_insert(error);
                }
            }
        }
        let mut durable = durable.into_iter();
        batch.retain(|_| durable.next().unwrap_or(false));
        failed
    }
}
