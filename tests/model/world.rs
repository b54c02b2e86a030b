//! Does what a case says, life after life, and asks the oracle after each restart.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use outlast::internals::outbox::ledger::Ledger;
use outlast::internals::outbox::{Directory, NoRoom, Share};
use outlast::internals::wal::{Fault, Mark, ModelStorage, Operation, Place, WalError};

use super::case::{Begin, Case, End, Limits, Op};
use super::faults::Faults;
use super::life::{Clock, Life, Told};
use super::messages::outgoing;
use super::oracle::{Oracle, Verdict, ensure};

/// What came to pass, so that a run can be seen to have been about something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub lives: u64,
    pub acknowledged: u64,
    /// The last segment's number.
    pub segments: u64,
    /// Messages there was no room for.
    pub full: u64,
}

impl Seen {
    pub fn add(&mut self, more: &Self) {
        self.lives += more.lives;
        self.acknowledged += more.acknowledged;
        self.segments += more.segments;
        self.full += more.full;
    }
}

/// See the module.
pub struct World<'a> {
    directory: &'a Arc<Directory>,
    ledger: &'a dyn Fn() -> Ledger,
    limits: Limits,
    storage: ModelStorage,
    storage_seed: u64,
    faults: Arc<Mutex<Faults>>,
    clock: Clock,
    dice: fastrand::Rng,
    /// Where segments have another length in each life: draws it.
    lengths: Option<fastrand::Rng>,
    life: Option<Life>,
    /// Space that was kept for settlements may be gone: something failed in some life; an operator requeued, who has
    /// nothing reserved; or a process began on a full disk, and took the segment that was kept.
    unreserved: bool,
    /// There is only so much room on the disk.
    limited: bool,
    pub oracle: Oracle,
    pub seen: Seen,
}

/// The last life holds on to its own threads' work, and with it to the whole disk: a million seeds would not fit into memory.
impl Drop for World<'_> {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            self.storage.stop();
            life.end();
        }
    }
}

impl<'a> World<'a> {
    pub fn new(directory: &'a Arc<Directory>, ledger: &'a dyn Fn() -> Ledger, case: &Case) -> Self {
        let mut dice = fastrand::Rng::with_seed(case.dice);
        let storage_seed = dice.u64(..);
        Self {
            directory,
            ledger,
            limits: case.limits.clone(),
            storage: ModelStorage::new(storage_seed).without_trace(),
            storage_seed,
            faults: Arc::default(),
            clock: Clock::default(),
            dice,
            // Drawn apart, so that a case is otherwise the same.
            lengths: case.dice.is_multiple_of(4).then(|| fastrand::Rng::with_seed(case.dice / 4)),
            life: None,
            unreserved: false,
            limited: false,
            oracle: Oracle::default(),
            seen: Seen::default(),
        }
    }

    /// The calls to the disk since the last power cut are noted.
    pub fn traced(mut self) -> Self {
        self.storage = ModelStorage::new(self.storage_seed);
        self
    }

    /// They.
    pub fn trace(&self) -> Vec<Operation> {
        self.storage.trace()
    }

    /// All files, with their bytes.
    pub fn disk(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = self.storage.paths().into_iter();
        paths.filter_map(|path| Some((path.clone(), self.storage.bytes(&path)?))).collect()
    }

    /// Does all of it.
    pub fn run(&mut self, ops: &[Op]) -> Verdict {
        self.begin(&Begin::default())?;
        for op in ops {
            self.apply(op)?;
            self.listen()?;
            if self.faults().died {
                let end = if self.dice.bool() { End::Kill } else { End::Crash(self.dice.u64(..)) };
                self.restart(end, &Begin::default())?;
            }
        }
        if self.limits.to_the_end {
            self.settle_all()?;
        }
        let cut = self.dice.u64(..);
        self.restart(End::Crash(cut), &Begin::default())?;
        let names = self.storage.paths();
        let number = |path: &PathBuf| u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok();
        self.seen.segments = names.iter().filter_map(number).max().unwrap_or(0);
        self.seen.acknowledged = self.oracle.acknowledged;
        Ok(())
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Send { count, route, key, size, first, apart } => (0..count).try_for_each(|_| {
                self.send(route, key, size, first)?;
                self.life()?.turns(u8::from(apart), 1);
                Ok(())
            }),
            Op::Step { turns, millis } => {
                self.life()?.turns(turns, millis);
                Ok(())
            }
            Op::Deliver { which, count, early } => self.deliver(which, count, early),
            Op::Flush => {
                self.life()?.outbox.flush_settlements();
                Ok(())
            }
            Op::Bury { which } => self.bury(which),
            Op::Mend { requeue, every } => self.mend(requeue, every),
            Op::Hold { size } => self.hold(size),
            Op::Read { which } => self.read(which),
            Op::Quiet => self.quiet(),
            Op::Fail(failing) => {
                let from = self.storage.calls() + usize::from(failing.after);
                self.faults().failing = Some((from, failing));
                Ok(())
            }
            Op::FailReads { after, many } => {
                let mut faults = self.faults();
                faults.reads = Some((faults.read_calls + usize::from(after), many));
                Ok(())
            }
            Op::Die { after } => {
                let at = self.storage.calls() + usize::from(after);
                self.faults().dies_at = Some(at);
                Ok(())
            }
            Op::Disk { room } => {
                let half = u64::from(self.limits.segment_bytes / 2);
                self.limited = room.is_some();
                self.storage.set_capacity(room.map(|room| self.storage.used() + u64::from(room) * half));
                Ok(())
            }
            Op::Restart(end, ref begin) => self.restart(end, begin),
        }
    }

    fn life(&mut self) -> Result<&mut Life, String> {
        self.life.as_mut().ok_or_else(|| "no process runs".to_owned())
    }

    fn send(&mut self, route: u8, key: u8, size: u16, first: bool) -> Verdict {
        let (message, reserved) = (self.oracle.messages.len(), self.limits.reserved);
        let outgoing = outgoing(message, route, key, size);
        let life = self.life()?;
        let reservation = if reserved {
            let share = if first { Share::FirstAttempt } else { Share::Stored };
            match life.outbox.reserve(&outgoing, share) {
                Ok(reservation) => Some(reservation),
                Err(NoRoom::Full) => {
                    self.seen.full += 1;
                    return Ok(());
                }
                // As the producer does: a broken disk may take it all the same.
                Err(NoRoom::Broken(_)) => None,
            }
        } else {
            None
        };
        let fits = life.outbox.fits(&outgoing);
        let lsn = life.append(message, &outgoing, reservation);
        self.oracle.messages.push(outgoing);
        ensure!((lsn > 0) == fits, "a message that fits gets a place, one that does not gets none: {lsn}");
        if lsn > 0 { self.oracle.given(lsn, message) } else { Ok(()) }
    }

    fn deliver(&mut self, which: u16, count: u8, early: bool) -> Verdict {
        if early {
            let life = self.life()?;
            let waiting = life.in_flight.iter().copied().filter(|lsn| *lsn > 0);
            waiting.skip(usize::from(which)).take(usize::from(count)).for_each(|lsn| life.deliver_early(lsn));
            return Ok(());
        }
        let pending: Vec<_> = self.oracle.pending().collect();
        if pending.is_empty() {
            return Ok(());
        }
        for (lsn, message) in pending.iter().copied().skip(usize::from(which) % pending.len()).take(usize::from(count))
        {
            self.settle(lsn, message)?;
        }
        Ok(())
    }

    fn settle(&mut self, lsn: u64, message: usize) -> Verdict {
        let outgoing = self.oracle.messages[message].clone();
        let outbox = &self.life()?.outbox;
        outbox.settle(Mark::Delivered, lsn, &outgoing);
        // Twice changes nothing.
        outbox.settle(Mark::Delivered, lsn, &outgoing);
        ensure!(outbox.is_settled(lsn), "{lsn} was settled just now, and is not");
        self.oracle.said(lsn);
        Ok(())
    }

    fn bury(&mut self, which: u16) -> Verdict {
        let pending: Vec<_> = self.oracle.pending().collect();
        let Some(&(lsn, message)) = pending.get(usize::from(which) % pending.len().max(1)) else { return Ok(()) };
        let letter = self.oracle.buried(lsn, message);
        self.life()?.bury(letter);
        Ok(())
    }

    /// As the program does it: the outbox is opened, changed, and closed.
    fn mend(&mut self, requeue: bool, every: u8) -> Verdict {
        self.restart(End::Close, &Begin::default())?;
        let (mark, every) =
            if requeue { (Mark::Requeued, usize::from(every)) } else { (Mark::Purged, usize::from(every)) };
        let shown = self.life()?.show().map_err(|error| format!("nothing fails, and {error}"))?;
        let chosen: Vec<usize> = shown.dead.iter().map(|letter| letter.attempts as usize).step_by(every).collect();
        chosen.iter().for_each(|&number| self.oracle.changing(number, requeue));
        self.unreserved |= requeue;
        let changed = self.life()?.outbox.change_dead(mark, |_, letter| chosen.contains(&(letter.attempts as usize)));
        if let Ok(count) = changed {
            ensure!(count == chosen.len() as u64, "{count} of {} dead letters were changed", chosen.len());
            self.oracle.changed(&chosen);
        }
        self.restart(End::Close, &Begin::default())
    }

    fn hold(&mut self, size: u16) -> Verdict {
        let reserved = self.limits.reserved;
        let life = self.life()?;
        if size == 0 || life.held.len() > 8 {
            life.held.clear();
        } else if reserved {
            let outgoing = outgoing(0, 0, 0, size);
            life.held.extend(life.outbox.reserve(&outgoing, Share::FirstAttempt));
        }
        Ok(())
    }

    fn read(&mut self, which: u16) -> Verdict {
        let pending: Vec<_> = self.oracle.pending().collect();
        let Some(&(lsn, message)) = pending.get(usize::from(which) % pending.len().max(1)) else { return Ok(()) };
        let read = self.life()?.outbox.read(lsn, None);
        match read {
            Ok(Some(read)) => ensure!(read == self.oracle.messages[message], "{lsn} is read back as {read:?}"),
            Ok(None) => ensure!(self.oracle.sync_failed, "{lsn} is pending and cannot be found"),
            Err(error) => ensure!(self.faults().fired, "{lsn} cannot be read: {error}"),
        }
        Ok(())
    }

    /// Left alone, with a disk that works, the log brings all it was told to the disk.
    fn quiet(&mut self) -> Verdict {
        let before = self.faults().fired;
        let life = self.life()?;
        let rests = life.quiet();
        let (unrecorded, broken) = (life.outbox.unrecorded(), life.outbox.broken());
        self.listen()?;
        let now = self.faults();
        let well = now.fired == before && !now.died;
        drop(now);
        if rests && well && unrecorded == 0 && broken.is_none() {
            self.oracle.recorded();
        }
        Ok(())
    }

    /// What callers were told since the last time.
    fn listen(&mut self) -> Verdict {
        let (died, failed, fired) = {
            let faults = self.faults();
            (faults.died, faults.sync_failed, faults.fired)
        };
        self.oracle.sync_failed |= failed;
        self.unreserved |= fired;
        let reserved = self.limits.reserved;
        let Some(life) = &mut self.life else { return Ok(()) };
        for told in life.told() {
            match told {
                Told::Appended { lsn: 0, accepted, .. } => ensure!(!accepted, "what has no place was accepted"),
                // A process that died has told nobody what went wrong.
                Told::Appended { accepted: false, .. } | Told::Buried { accepted: false, .. } if died => {}
                Told::Appended { lsn, message, accepted, settled } => {
                    ensure!(accepted || fired || !reserved, "{lsn} had its space reserved and found none");
                    self.oracle.answered(lsn, message, accepted)?;
                    if settled {
                        self.oracle.said(lsn);
                    }
                }
                Told::Buried { number, accepted } => {
                    if accepted {
                        self.oracle.burial_acked(number);
                    }
                }
            }
        }
        Ok(())
    }

    /// The process ends, and the next one begins.
    fn restart(&mut self, end: End, begin: &Begin) -> Verdict {
        self.end(end)?;
        self.begin(begin)
    }

    fn end(&mut self, end: End) -> Verdict {
        let Some(mut life) = self.life.take() else { return Ok(()) };
        life.held.clear();
        let outbox = Arc::clone(&life.outbox);
        self.life = Some(life);
        let closed = matches!(end, End::Close) && !self.faults().died && outbox.close().is_ok();
        self.listen()?;
        if closed && !self.faults().died {
            self.oracle.recorded();
        }
        self.storage.stop();
        drop(outbox);
        if let Some(life) = self.life.take() {
            life.end();
        }
        match end {
            End::Close | End::Kill => self.storage.kill(),
            End::Crash(seed) => self.storage = self.storage.crash(seed),
        }
        Ok(())
    }

    /// Opens the outbox, dying on the way as often as is said, and checks it.
    fn begin(&mut self, begin: &Begin) -> Verdict {
        for &(after, cut) in &begin.dies {
            self.arm(Faults { dies_at: Some(usize::from(after)), ..Faults::default() });
            if let Ok(life) = self.open() {
                self.storage.stop();
                life.end();
            }
            match cut {
                None => self.storage.kill(),
                Some(seed) => self.storage = self.storage.crash(seed),
            }
        }
        let failing = begin.fails.map(|failing| (usize::from(failing.after), failing));
        let reads = begin.reads.map(|(after, many)| (usize::from(after), many));
        self.arm(Faults { failing, reads, ..Faults::default() });
        let opened = self.open();
        let (fired, sync_failed) = {
            let faults = self.faults();
            (faults.fired, faults.sync_failed)
        };
        self.oracle.sync_failed |= sync_failed;
        self.unreserved |= fired || self.limited;
        self.storage.kill();
        let life = match opened {
            Ok(life) => life,
            Err(error) => {
                ensure!(fired, "the outbox does not open: {error}");
                self.open().map_err(|error| format!("the outbox does not open once the disk works again: {error}"))?
            }
        };
        // A settlement that is written in parts takes its counts off with the last.
        let exact = self.limits.max_ranges > 100;
        // What earlier lives parked, before this one's places take their rows.
        let parked = life.parked(|lsn| self.oracle.pending().any(|(pending, _)| pending == lsn));
        let shown = life.show().map_err(|error| format!("what was opened cannot be read: {error}"))?;
        self.oracle.check(&life.outbox, &shown, exact)?;
        self.read_parked(&life, &parked)?;
        self.seen.lives += 1;
        self.life = Some(life);
        self.arm(Faults { fired, ..Faults::default() });
        Ok(())
    }

    /// A place that was parked leads to the very message, whatever else lies there by now.
    fn read_parked(&self, life: &Life, parked: &HashMap<u64, Place>) -> Verdict {
        for (lsn, message) in self.oracle.pending() {
            let Some(&place) = parked.get(&lsn) else { continue };
            match life.outbox.read(lsn, Some(place)) {
                Ok(Some(read)) => {
                    ensure!(
                        read == self.oracle.messages[message],
                        "{lsn}, parked at {place:?}, is read back as {read:?}"
                    );
                }
                Ok(None) => ensure!(self.oracle.sync_failed, "{lsn} is pending, parked at {place:?}, and is not found"),
                Err(error) => return Err(format!("{lsn}, parked at {place:?}, cannot be read: {error}")),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Life, WalError> {
        let salts = self.dice.fork();
        if let Some(lengths) = &mut self.lengths {
            let bytes = [32 << 10, 64 << 10][lengths.usize(..2)];
            // What was promised or kept for settlements may be too short now, and not grow on a full disk.
            self.unreserved |= bytes > self.limits.segment_bytes && self.limited;
            self.limits.segment_bytes = bytes;
        }
        Life::begin(self.directory, &self.storage, &self.limits, &self.clock, salts, (self.ledger)())
    }

    fn arm(&mut self, faults: Faults) {
        *self.faults() = faults;
        let (calls, reads) = (Arc::clone(&self.faults), Arc::clone(&self.faults));
        let locked = |faults: &Mutex<Faults>, f: &mut dyn FnMut(&mut Faults) -> Option<Fault>| {
            f(&mut faults.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.storage.on_call(move |number, operation| locked(&calls, &mut |faults| faults.call(number, operation)));
        self.storage.on_read(move |_, _| locked(&reads, &mut Faults::read));
    }

    fn settle_pending(&mut self) -> Verdict {
        self.quiet()?;
        let pending: Vec<_> = self.oracle.pending().collect();
        for (lsn, message) in pending {
            self.settle(lsn, message)?;
        }
        self.quiet()?;
        let outbox = &self.life()?.outbox;
        let (left, broken) = (outbox.unrecorded(), outbox.broken());
        ensure!(left == 0, "all is delivered, and the log cannot write that down: {left} are left, {broken:?}");
        Ok(())
    }

    /// Everything pending is delivered: a full disk does not keep the log from writing that down, as long as space was
    /// reserved before it was used, nothing else failed, and the process was not begun on a full disk. Then the outbox is
    /// empty, and, with room on the disk, takes messages again.
    fn settle_all(&mut self) -> Verdict {
        let fired = self.faults().fired;
        self.arm(Faults { fired, ..Faults::default() });
        if !self.limits.reserved || self.unreserved {
            self.storage.set_capacity(None);
        }
        self.settle_pending()?;
        self.storage.set_capacity(None);
        self.restart(End::Close, &Begin::default())?;
        if self.oracle.sync_failed || self.oracle.pending().next().is_some() {
            // What a failed sync left unreadable could not be set aside while the disk was full, and what was refused
            // because of a failed call may turn up, if nothing was written since: this life has to do with both.
            self.settle_pending()?;
            self.restart(End::Close, &Begin::default())?;
        }
        let outbox = Arc::clone(&self.life()?.outbox);
        let pending = outbox.found().pending.clone();
        ensure!(pending.is_empty(), "all is delivered, and the counts say {pending:?}");
        let before = self.oracle.acknowledged;
        for _ in 0..20 {
            self.send(0, 0, 100, true)?;
            self.quiet()?;
            if self.oracle.acknowledged > before {
                return Ok(());
            }
        }
        Err(format!("an empty outbox takes no message: {:?}", outbox.broken()))
    }
}
