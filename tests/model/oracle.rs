//! What the outside world knows of an outbox, and what must therefore hold.
//!
//! It learns of acknowledgements, refusals and settlements as a caller does, and never looks at the log's own idea of
//! them.

use std::collections::{BTreeMap, BTreeSet};

use outlast::internals::outbox::Outbox;
use outlast::internals::wal::{Damage, DeadLetter, Lsn, Pending, StoredRecord};
use outlast::{Outgoing, Route};

/// What is wrong, as a claim that does not hold.
pub type Verdict = Result<(), String>;

/// Fails the seed with a claim that does not hold.
macro_rules! ensure {
    ($holds:expr, $($said:tt)*) => {
        if !$holds {
            return Err(format!($($said)*));
        }
    };
}
pub(crate) use ensure;

/// Whether somebody said that a message is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Settled {
    #[default]
    No,
    /// And it may be forgotten by a crash.
    Said,
    /// And the log brought it to the disk.
    Durable,
}

/// What is known of an LSN.
#[derive(Debug, Default)]
pub struct Slot {
    /// The messages that were ever given it; more than one only if it was never acknowledged.
    given: Vec<usize>,
    pub acked: Option<usize>,
    refused: Vec<usize>,
    pub settled: Settled,
    /// It was found after a sync had failed somewhere, and nobody had been told that it is there. A kernel that dropped
    /// the page may show it, and say yes to the sync of the open, until the power is cut.
    unpromised: bool,
    /// That it is settled was found so, likewise, and not written again since.
    doubtful: bool,
}

/// A message that was given up.
#[derive(Debug)]
pub struct Burial {
    letter: DeadLetter,
    message: usize,
    acked: bool,
    unpromised: bool,
    changed: Settled,
    /// A requeue was begun and its end is not known.
    requeueing: bool,
}

/// See the module.
#[derive(Default)]
pub struct Oracle {
    pub messages: Vec<Outgoing>,
    pub slots: BTreeMap<Lsn, Slot>,
    pub burials: Vec<Burial>,
    /// How often a message may turn up at an LSN nobody was told of.
    requeues: BTreeMap<usize, u32>,
    /// A sync of a file failed.
    pub sync_failed: bool,
    /// Something was set aside, so that nobody knows what it takes off the routes.
    inexact: bool,
    pub acknowledged: u64,
}

/// What an open outbox shows.
pub struct Shown {
    pub records: Vec<StoredRecord>,
    pub damage: Vec<Damage>,
    pub dead: Vec<DeadLetter>,
}

impl Oracle {
    pub fn given(&mut self, lsn: Lsn, message: usize) -> Verdict {
        let last = self.last_acked();
        ensure!(lsn > last, "LSN {lsn} is given out, and {last} was acknowledged");
        self.slots.entry(lsn).or_default().given.push(message);
        Ok(())
    }

    pub fn answered(&mut self, lsn: Lsn, message: usize, accepted: bool) -> Verdict {
        let slot = self.slots.entry(lsn).or_default();
        ensure!(slot.given.contains(&message), "{lsn} is answered for {message}, which was never given to it");
        if !accepted {
            slot.refused.push(message);
            return Ok(());
        }
        ensure!(slot.acked.is_none() || slot.unpromised, "LSN {lsn} is acknowledged twice");
        *slot = Slot { acked: Some(message), given: std::mem::take(&mut slot.given), ..Slot::default() };
        self.acknowledged += 1;
        Ok(())
    }

    pub fn said(&mut self, lsn: Lsn) {
        if let Some(slot) = self.slots.get_mut(&lsn) {
            slot.settled = slot.settled.max(Settled::Said);
        }
    }

    /// All that was said is on the disk.
    pub fn recorded(&mut self) {
        for slot in self.slots.values_mut().filter(|slot| slot.settled == Settled::Said && !slot.doubtful) {
            slot.settled = Settled::Durable;
        }
    }

    /// Acknowledged and not settled, by LSN.
    pub fn pending(&self) -> impl Iterator<Item = (Lsn, usize)> + '_ {
        let open = self.slots.iter().filter(|(_, slot)| slot.settled == Settled::No);
        open.filter_map(|(&lsn, slot)| Some((lsn, slot.acked?)))
    }

    /// The last LSN that somebody was promised.
    fn last_acked(&self) -> Lsn {
        let promised = self.slots.iter().rev().find(|(_, slot)| slot.acked.is_some() && !slot.unpromised);
        promised.map_or(0, |(&lsn, _)| lsn)
    }

    pub fn buried(&mut self, lsn: Lsn, message: usize) -> DeadLetter {
        let number = self.burials.len();
        let letter = DeadLetter {
            lsn,
            outgoing: self.messages[message].clone(),
            reason: format!("the broker says no, for the {number}th time"),
            attempts: number as u32,
            first_failure: 1,
            last_failure: 2 + number as i64,
        };
        self.burials.push(Burial {
            letter: letter.clone(),
            message,
            acked: false,
            unpromised: false,
            changed: Settled::No,
            requeueing: false,
        });
        letter
    }

    /// The dead letter is on the disk, and the message settled.
    pub fn burial_acked(&mut self, number: usize) {
        self.burials[number].acked = true;
        self.said(self.burials[number].letter.lsn);
    }

    /// A dead letter may be gone from now on; where it is requeued, its message is to be found.
    pub fn changing(&mut self, number: usize, requeue: bool) {
        let burial = &mut self.burials[number];
        burial.changed = burial.changed.max(Settled::Said);
        if requeue {
            burial.requeueing = true;
            *self.requeues.entry(burial.message).or_default() += 1;
        }
    }

    /// Dead letters are gone for good.
    pub fn changed(&mut self, numbers: &[usize]) {
        for &number in numbers {
            self.burials[number].changed = Settled::Durable;
        }
    }

    /// Everything that must hold after a restart; what is found counts as accepted from then on.
    pub fn check(&mut self, outbox: &Outbox, shown: &Shown, exact: bool) -> Verdict {
        self.damage(&shown.damage)?;
        self.acknowledged_are_there(outbox, &shown.records)?;
        self.nothing_is_invented(outbox, &shown.records)?;
        if exact && !self.inexact {
            self.totals(outbox, &shown.records, &outbox.found().pending)?;
        }
        self.dead(outbox, shown)?;
        self.adopt(outbox, &shown.records);
        Ok(())
    }

    /// Nothing is damaged here, so nothing may be reported; but after a sync failed a process may have found, in pages
    /// the kernel had dropped, what was not to last: messages nobody was promised, or that a message is settled, on which
    /// its segment was used again, or which a later frame knows to have been written down.
    fn damage(&mut self, damage: &[Damage]) -> Verdict {
        for lost in damage {
            self.inexact = true;
            let promised = |lsn: &Lsn| {
                let pending = |slot: &Slot| slot.acked.is_some() && !slot.unpromised && slot.settled == Settled::No;
                self.slots.get(lsn).is_some_and(pending)
            };
            let broken = (lost.first_lsn..=lost.last_lsn).find(promised);
            ensure!(broken.is_none() && self.sync_failed, "{lost:?}, but nothing was damaged");
        }
        Ok(())
    }

    fn acknowledged_are_there(&self, outbox: &Outbox, records: &[StoredRecord]) -> Verdict {
        let found: BTreeMap<Lsn, &Outgoing> = records.iter().map(|r| (r.lsn, r.body.outgoing())).collect();
        ensure!(found.len() == records.len(), "an LSN was read twice");
        for (&lsn, slot) in &self.slots {
            let Some(message) = slot.acked else { continue };
            if outbox.is_settled(lsn) {
                ensure!(
                    slot.settled != Settled::No || slot.unpromised,
                    "{lsn} was acknowledged and is settled, and nobody said so"
                );
                continue;
            }
            ensure!(slot.settled != Settled::Durable, "{lsn} was settled, on the disk, and comes back");
            if slot.unpromised {
                continue;
            }
            match found.get(&lsn) {
                // Reported delivered, by a settlement that a later process found in the page cache only, after a sync of it
                // had failed: its segment was used again, and is told of as missing.
                None if slot.settled != Settled::No && self.sync_failed => {}
                None => return Err(format!("{lsn} was acknowledged and is gone")),
                Some(found) if **found != self.messages[message] => {
                    return Err(format!("{lsn} was acknowledged as {:?} and is {found:?}", self.messages[message]));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn nothing_is_invented(&mut self, outbox: &Outbox, records: &[StoredRecord]) -> Verdict {
        let last_acked = self.last_acked();
        for record in records.iter().filter(|record| !outbox.is_settled(record.lsn)) {
            let (lsn, found) = (record.lsn, record.body.outgoing());
            let message = found.id.number() as usize;
            ensure!(self.messages.get(message) == Some(found), "{lsn} holds what was never sent: {found:?}");
            let slot = self.slots.entry(lsn).or_default();
            if !slot.given.contains(&message) {
                let requeues = self.requeues.entry(message).or_default();
                ensure!(*requeues > 0, "{lsn} holds {message}, which was never given to it");
                *requeues -= 1;
                slot.given.push(message);
            }
            ensure!(
                slot.acked == Some(message) || !slot.refused.contains(&message) || last_acked <= lsn,
                "{lsn} was refused, others were accepted after it, and it is there"
            );
        }
        Ok(())
    }

    /// The counts are those of the records.
    pub fn totals(&self, outbox: &Outbox, records: &[StoredRecord], counted: &[(Route, Pending)]) -> Verdict {
        let mut sums: BTreeMap<&Route, (u64, u64)> = BTreeMap::new();
        for record in records.iter().filter(|record| !outbox.is_settled(record.lsn)) {
            let outgoing = record.body.outgoing();
            let sum = sums.entry(&outgoing.route).or_default();
            *sum = (sum.0 + 1, sum.1 + outgoing.message.size() as u64);
        }
        let counted: BTreeMap<&Route, (u64, u64)> = counted.iter().map(|(r, p)| (r, (p.count, p.bytes))).collect();
        ensure!(counted == sums, "the counts {counted:?} are not those of the records, {sums:?}");
        Ok(())
    }

    fn dead(&mut self, outbox: &Outbox, shown: &Shown) -> Verdict {
        let mut seen = BTreeSet::new();
        for letter in &shown.dead {
            let number = letter.attempts as usize;
            let Some(burial) = self.burials.get_mut(number) else {
                return Err(format!("a dead letter that nobody wrote: {letter:?}"));
            };
            let wanted = &burial.letter;
            ensure!(letter == wanted, "the dead letter {wanted:?} is {letter:?}");
            ensure!(seen.insert(number), "the dead letter {number} is there twice");
            ensure!(burial.changed != Settled::Durable, "the dead letter {number} was taken out and comes back");
            burial.unpromised |= !burial.acked && self.sync_failed;
            burial.acked = true;
            burial.changed = Settled::No;
        }
        let pending = shown.records.iter().filter(|record| !outbox.is_settled(record.lsn));
        let pending: BTreeSet<usize> = pending.map(|record| record.body.outgoing().id.number() as usize).collect();
        for (number, burial) in self.burials.iter_mut().enumerate().filter(|(number, _)| !seen.contains(number)) {
            let kept = burial.acked && !burial.unpromised && burial.changed == Settled::No;
            ensure!(!kept, "the dead letter {number} was on the disk and is gone");
            if burial.requeueing && burial.acked && !burial.unpromised {
                ensure!(pending.contains(&burial.message), "the dead letter {number} is gone, and was not requeued");
            }
            burial.changed = if self.sync_failed { Settled::Said } else { Settled::Durable };
        }
        self.burials.iter_mut().for_each(|burial| burial.requeueing = false);
        Ok(())
    }

    /// What was never answered but is there counts as accepted from now on; what was said and forgotten is said again.
    fn adopt(&mut self, outbox: &Outbox, records: &[StoredRecord]) {
        for record in records.iter().filter(|record| !outbox.is_settled(record.lsn)) {
            let message = record.body.outgoing().id.number() as usize;
            let slot = self.slots.entry(record.lsn).or_default();
            if slot.acked != Some(message) {
                slot.unpromised = self.sync_failed;
            }
            slot.acked = Some(message);
            (slot.settled, slot.doubtful) = (Settled::No, false);
            slot.refused.retain(|refused| *refused != message);
        }
        for slot in self.slots.values_mut().filter(|slot| slot.settled == Settled::Said) {
            slot.doubtful = self.sync_failed;
        }
        let found: BTreeSet<Lsn> = records.iter().map(|record| record.lsn).collect();
        for (lsn, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.unpromised) {
            if !found.contains(lsn) || outbox.is_settled(*lsn) {
                slot.acked = None;
            }
        }
    }
}
