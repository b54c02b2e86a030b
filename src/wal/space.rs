//! Segments made ready before they are needed, and used ones made ready again.
//!
//! A prepared segment is a file of full length whose blocks the file system has set aside, synced, under a `free-`
//! name whose directory was synced: what is reserved does not depend on a counter. One thread prepares; the committer
//! takes, and makes one itself if there is none. This is the account of it; what is done is in `prepare.rs`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::error::WalError;
use super::prepare::{self, Done, Undone};
use super::shared::{Shared, Trouble, View};
use super::storage::File;
use super::{BLOCK, Options};

/// Used segments kept beyond what was asked for: rotation takes them while the next are still pending. Without them the
/// place of each would be taken by a new one before it comes free, and its written blocks be thrown away.
const KEEP: usize = 2;
/// Segments for settlements alone, beyond the limit. A settlement that cannot be written keeps every segment from being
/// recycled, so it must get through, and each start needs a new segment for it. The two newest are never recycled; when
/// they hold nothing that is pending, moving on to a third frees one of them. So three go round for ever, however full
/// the log and the disk are, and however often the process is started.
const FOR_CONTROLS: usize = 3;
/// Segments without which a log takes no message: those for settlements, and one.
pub const LEAST_PREPARED: u32 = FOR_CONTROLS as u32 + 1;
/// Of these, what messages never take.
const LAST: usize = 1;
/// Files that wait to be removed, at most: while the disk does not let them go, no new ones are made.
const MOST_LEFTOVERS: usize = 4;

/// A segment that is ready to be used.
pub(super) struct Prepared {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
}

#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Nothing in the segment is needed any more. Written blocks are worth keeping, unless the disk failed on them. `whole`:
    /// it was made in this run, so that it has the length of the others.
    Recycle { number: u64, failed: bool, whole: bool },
    /// A file that never became a segment.
    Discard(PathBuf),
    /// A `free-` file: found when the log was opened, or a segment that has got that name and no more. `whole` as above.
    Adopt { number: u64, whole: bool },
}

impl Job {
    /// Whether it ends with a segment that is ready to be used.
    pub fn makes_ready(&self) -> bool {
        matches!(self, Self::Recycle { failed: false, .. } | Self::Adopt { .. })
    }

    /// Whether the segment has its blocks already, so that it can be promised.
    fn is_sure(&self) -> bool {
        matches!(self, Self::Recycle { failed: false, whole: true, .. } | Self::Adopt { whole: true, .. })
    }

    fn is_adoption(&self) -> bool {
        matches!(self, Self::Adopt { .. })
    }
}

/// What there is, and what is wanted.
#[derive(Default)]
pub(super) struct Space {
    pub prepared: Vec<Prepared>,
    /// Segment files that are neither prepared, nor to be adopted, nor gone.
    in_use: usize,
    pub making: usize,
    /// Usable bytes wanted.
    target: u64,
    /// Bytes that somebody was promised.
    promised: Arc<AtomicU64>,
    pub jobs: VecDeque<Job>,
    /// Jobs in progress that end with a segment; and those of them that are sure to.
    doing: (usize, usize),
    /// Jobs that could not be done, one after the other.
    pub failures: usize,
    pub last_error: Option<Trouble>,
    pub retry_at: Option<Instant>,
    next_free: u64,
    /// The number of the first segment of this run.
    first_number: u64,
    /// What header and checkpoint of the next segment take, at most.
    overhead: u64,
    /// What the current segment still has.
    room: u64,
    /// Of the two newest segments those that moving on will free: see [`FOR_CONTROLS`].
    coming_free: usize,
    /// A segment was taken to be the current one, and its room is not known yet.
    opening: bool,
    pub closing: bool,
}

impl Space {
    pub fn new(view: &View, free: &[u64], discard: Vec<PathBuf>, first_number: u64, overhead: u64) -> Self {
        let mut jobs: VecDeque<Job> = free.iter().map(|&number| Job::Adopt { number, whole: false }).collect();
        let in_use = view.segments.len() + discard.len();
        jobs.extend(discard.into_iter().map(Job::Discard));
        let next_free = free.iter().max().map_or(1, |last| last.saturating_add(1));
        let coming_free = view.coming_free(None);
        Self { in_use, jobs, next_free, first_number, overhead, coming_free, ..Self::default() }
    }

    pub fn segments(&self) -> usize {
        self.in_use
    }

    pub fn prepared(&self) -> usize {
        self.prepared.len()
    }

    pub fn set_target(&mut self, usable: u64) {
        // A disk that failed just now is left alone all the same: whoever waits for space asks again and again.
        self.target = usable;
    }

    pub fn set_promised(&mut self, promised: Arc<AtomicU64>) {
        self.promised = promised;
    }

    pub fn next_free(&mut self) -> u64 {
        let free = self.next_free;
        self.next_free += 1;
        free
    }

    /// A job is taken up, to keep what it is about or not.
    pub fn begin(&mut self, job: &Job, keep: bool) {
        let makes = job.makes_ready() && keep;
        self.doing.0 += usize::from(makes);
        self.doing.1 += usize::from(makes && job.is_sure());
    }

    /// What came of it.
    pub fn end(&mut self, job: &Job, keep: bool, outcome: Result<Done, Undone>) -> Result<(), WalError> {
        let makes = job.makes_ready() && keep;
        self.doing.0 -= usize::from(makes);
        self.doing.1 -= usize::from(makes && job.is_sure());
        let (still_in_use, outcome) = match outcome {
            Ok(Done::Ready(prepared)) => {
                self.prepared.push(prepared);
                (false, Ok(()))
            }
            Ok(Done::Gone) => (false, Ok(())),
            Err(Undone { error, again }) => {
                let in_use = !again.is_adoption();
                self.jobs.push_back(again);
                (in_use, Err(error))
            }
        };
        self.failures = if outcome.is_err() { self.failures + 1 } else { 0 };
        if !job.is_adoption() && !still_in_use {
            self.in_use = self.in_use.saturating_sub(1);
        }
        outcome
    }

    pub fn set_room(&mut self, room: u64, overhead: u64, coming_free: usize) {
        self.room = room;
        self.overhead = overhead;
        self.coming_free = coming_free;
        self.opening = false;
    }

    pub fn recycle(&mut self, number: u64, failed: bool) {
        let whole = number >= self.first_number;
        self.jobs.push_back(Job::Recycle { number, failed, whole });
    }

    pub fn discard(&mut self, path: PathBuf) {
        self.opening = false;
        self.jobs.push_back(Job::Discard(path));
    }

    /// What one prepared segment is good for at worst: the last record that did not fit wastes less than its footprint.
    fn each(&self, options: &Options) -> u64 {
        let waste = u64::from(options.record_bytes - BLOCK) + u64::from(BLOCK);
        u64::from(options.segment_bytes).saturating_sub(self.overhead + waste)
    }

    /// Prepared segments that messages leave to settlements.
    fn kept_back(&self) -> usize {
        FOR_CONTROLS - self.coming_free
    }

    /// Segments that have their blocks and are not needed any more, but not yet their free name.
    fn coming(&self) -> usize {
        self.jobs.iter().filter(|job| job.is_sure()).count() + self.doing.1
    }

    /// What can be promised to messages.
    pub fn usable(&self, options: &Options) -> u64 {
        let Some(promised) = (self.prepared.len() + self.coming()).checked_sub(self.kept_back()) else { return 0 };
        let current = self.room.saturating_sub(u64::from(options.record_bytes - BLOCK));
        promised as u64 * self.each(options) + current
    }

    /// The same for somebody who comes while the log moves on: what it moves on to is neither prepared nor current.
    pub fn usable_meanwhile(&self, options: &Options) -> u64 {
        if !self.opening {
            return self.usable(options);
        }
        let segments = (self.prepared.len() + self.coming() + 1).saturating_sub(self.kept_back());
        segments as u64 * self.each(options)
    }

    /// Whether the limit leaves a segment to messages; those for settlements do not count.
    fn has_place_for_messages(&self, options: &Options) -> bool {
        let adopted = self.jobs.iter().filter(|job| job.is_adoption()).count();
        let in_use = (self.in_use + adopted + self.making).saturating_sub(self.coming() + self.coming_free);
        in_use + self.prepared.len().saturating_sub(self.kept_back()) < options.max_segments as usize
    }

    pub fn wants_more(&self, options: &Options) -> bool {
        let begun = self.in_use > 0 || self.target > 0;
        let ready = self.prepared.len() + self.coming();
        let for_controls = begun && ready < self.kept_back();
        let for_messages = self.usable(options) < self.target && self.has_place_for_messages(options);
        self.making == 0 && (for_controls || for_messages)
    }

    /// Whether there is nothing to do now: looked at under the lock before the preparer sleeps.
    pub fn is_idle(&self, options: &Options, now: Instant) -> bool {
        let waits = self.retry_at.is_some_and(|retry| retry > now);
        !self.closing && (waits || self.jobs.is_empty() && !self.wants_more(options))
    }

    /// Whether one more is worth keeping: whoever was promised room must find it.
    pub fn keeps(&self, options: &Options) -> bool {
        let wanted = self.target.max(self.promised.load(Ordering::Acquire));
        let spare = KEEP as u64 * self.each(options);
        self.prepared.len() + self.doing.1 < KEEP.max(self.kept_back()) || self.usable(options) < wanted + spare
    }

    /// Takes out the job of a file that can be removed at once: one nobody needs, or a used segment that was not promised.
    pub fn take_spare(&mut self, options: &Options) -> Option<Job> {
        let promised = self.promised.load(Ordering::Acquire);
        let spare = self.usable(options) >= promised + self.each(options);
        let removable = |job: &Job| !job.makes_ready() || spare && matches!(job, Job::Recycle { .. });
        let at = self.jobs.iter().position(removable)?;
        self.jobs.remove(at)
    }

    /// A segment that was taken and not used is ready as before.
    pub fn give_back(&mut self, prepared: Prepared) {
        self.opening = false;
        self.in_use = self.in_use.saturating_sub(1);
        self.prepared.push(prepared);
    }

    /// Whether nothing can be made, for a message or for settlements.
    fn is_full(&self, options: &Options, has_messages: bool) -> bool {
        if has_messages {
            return !self.has_place_for_messages(options);
        }
        self.jobs.iter().filter(|job| !job.makes_ready()).count() >= MOST_LEFTOVERS
    }
}

/// Takes a prepared segment for the committer, or makes one.
pub(super) fn take(shared: &Shared, has_messages: bool) -> Result<Prepared, WalError> {
    let mut space = shared.space();
    let mut failed = false;
    loop {
        let kept_back = if has_messages { space.kept_back() } else { 0 };
        if space.prepared.len() > kept_back
            && let Some(prepared) = space.prepared.pop()
        {
            space.in_use += 1;
            space.opening = true;
            drop(space);
            shared.prepare.notify_one();
            return Ok(prepared);
        }
        if !failed
            && let Some(at) = space.jobs.iter().position(Job::makes_ready)
            && let Some(job) = space.jobs.remove(at)
        {
            // The preparer has not come to it yet.
            space.begin(&job, true);
            drop(space);
            let outcome = prepare::run(shared, &job, true);
            space = shared.space();
            if let Err(error) = space.end(&job, true, outcome) {
                drop(space);
                failed = !(error.is_no_space() && prepare::relieve(shared));
                space = shared.space();
            }
        } else if space.closing {
            // Nobody is at it any more.
            return Err(WalError::Closed);
        } else if space.doing.0 + space.making > 0 {
            // The preparer is at it: what was promised may be the one it has in hand.
            space = shared.ready.wait(space).unwrap_or_else(PoisonError::into_inner);
        } else {
            break;
        }
    }
    let made = if space.is_full(&shared.options, has_messages) {
        Err(WalError::Full { max: shared.options.max_segments, path: shared.directory.clone() })
    } else {
        space.making += 1;
        let number = space.next_free();
        drop(space);
        let made = prepare::make(shared, number);
        space = shared.space();
        space.making -= 1;
        made
    };
    // Settlements use what is left of a segment that messages began, and so some of what was promised to those. Where there
    // is no more, they give it back from their own, but for the last.
    let is_promised = space.promised.load(Ordering::Acquire) > 0;
    let gives = match &made {
        Err(WalError::Full { .. }) => is_promised,
        Err(error) => error.is_no_space(),
        Ok(_) => false,
    };
    let ready = if gives && space.prepared.len() > LAST { space.prepared.pop().map(Ok) } else { None };
    let taken = ready.unwrap_or(made);
    space.in_use += usize::from(taken.is_ok());
    space.opening = taken.is_ok();
    taken
}
