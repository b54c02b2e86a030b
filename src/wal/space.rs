//! Segments made ready before they are needed, and used ones made ready again.
//!
//! A prepared segment is a file of full length whose blocks the file system has set aside, synced, under a `free-`
//! name whose directory was synced: what is reserved does not depend on a counter. One thread prepares; the committer
//! takes, and makes one itself if there is none.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::WalError;
use super::log::Turn;
use super::segment;
use super::shared::{Shared, Trouble, View};
use super::storage::File;
use super::{BLOCK, Options};

/// After a failure, how long until it is tried again: the disk may have room by then.
const RETRY: Duration = Duration::from_secs(1);
/// Used segments kept beyond what was asked for: rotation takes them while the next are still pending. Without them the
/// place of each would be taken by a new one before it comes free, and its written blocks be thrown away.
const KEEP: usize = 2;
/// Segments for settlements alone, beyond the limit. A settlement that cannot be written keeps every segment from being
/// recycled, so it must get through, and each start needs a new segment for it. The two newest are never recycled; when
/// they hold nothing that is pending, moving on to a third frees one of them. So three go round for ever, however full
/// the log and the disk are, and however often the process is started.
const FOR_CONTROLS: usize = 3;
/// Files that wait to be removed, at most: while the disk does not let them go, no new ones are made.
const MOST_LEFTOVERS: usize = 4;

/// A segment that is ready to be used.
pub(super) struct Prepared {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
}

enum Job {
    /// Nothing in the segment is needed any more. Written blocks are worth keeping, unless the disk failed on them.
    Recycle { number: u64, failed: bool },
    /// A file that never became a segment.
    Discard(PathBuf),
    /// A `free-` file found when the log was opened.
    Adopt(u64),
}

impl Job {
    /// Whether it ends with a segment that is ready to be used.
    fn makes_ready(&self) -> bool {
        matches!(self, Self::Recycle { failed: false, .. } | Self::Adopt(_))
    }
}

/// What there is, and what is wanted.
#[derive(Default)]
pub(super) struct Space {
    prepared: Vec<Prepared>,
    /// Segment files that are neither prepared nor gone.
    in_use: usize,
    making: usize,
    /// Usable bytes wanted.
    target: u64,
    jobs: VecDeque<Job>,
    pub last_error: Option<Trouble>,
    retry_at: Option<Instant>,
    next_free: u64,
    /// What header and checkpoint of the next segment take, at most.
    overhead: u64,
    /// What the current segment still has.
    room: u64,
    /// Of the two newest segments those that moving on will free: see [`FOR_CONTROLS`].
    coming_free: usize,
    pub closing: bool,
}

impl Space {
    pub fn new(view: &View, free: &[u64], discard: Vec<PathBuf>, overhead: u64) -> Self {
        let mut jobs: VecDeque<Job> = free.iter().map(|&number| Job::Adopt(number)).collect();
        let in_use = view.segments.len() + discard.len();
        jobs.extend(discard.into_iter().map(Job::Discard));
        let next_free = free.iter().max().map_or(1, |last| last.saturating_add(1));
        Self { in_use, jobs, next_free, overhead, coming_free: view.coming_free(None), ..Self::default() }
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

    pub fn set_room(&mut self, room: u64, overhead: u64, coming_free: usize) {
        self.room = room;
        self.overhead = overhead;
        self.coming_free = coming_free;
    }

    pub fn recycle(&mut self, number: u64, failed: bool) {
        self.jobs.push_back(Job::Recycle { number, failed });
    }

    pub fn discard(&mut self, path: PathBuf) {
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
        self.jobs.iter().filter(|job| matches!(job, Job::Recycle { failed: false, .. })).count()
    }

    /// What can be promised to messages.
    pub fn usable(&self, options: &Options) -> u64 {
        let Some(promised) = (self.prepared.len() + self.coming()).checked_sub(self.kept_back()) else { return 0 };
        let current = self.room.saturating_sub(u64::from(options.record_bytes - BLOCK));
        promised as u64 * self.each(options) + current
    }

    /// Whether the limit leaves a segment to messages; those for settlements do not count.
    fn has_place_for_messages(&self, options: &Options) -> bool {
        let in_use = (self.in_use + self.making).saturating_sub(self.coming() + self.coming_free);
        in_use + self.prepared.len().saturating_sub(self.kept_back()) < options.max_segments as usize
    }

    fn wants_more(&self, options: &Options) -> bool {
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

    fn keeps(&self, options: &Options) -> bool {
        let spare = KEEP as u64 * self.each(options);
        self.prepared.len() < KEEP.max(self.kept_back()) || self.usable(options) < self.target + spare
    }
}

/// Takes a prepared segment for the committer, or makes one.
pub(super) fn take(shared: &Shared, has_messages: bool) -> Result<Prepared, WalError> {
    let mut space = shared.space();
    let kept_back = if has_messages { space.kept_back() } else { 0 };
    while space.prepared.len() <= kept_back
        && let Some(at) = space.jobs.iter().position(Job::makes_ready)
        && let Some(job) = space.jobs.remove(at)
    {
        // The preparer has not come to it yet.
        drop(space);
        let ran = run(shared, job, true);
        space = shared.space();
        if ran.is_err() {
            break;
        }
    }
    if space.prepared.len() > kept_back
        && let Some(prepared) = space.prepared.pop()
    {
        space.in_use += 1;
        drop(space);
        shared.prepare.notify_one();
        return Ok(prepared);
    }
    let full = if has_messages {
        !space.has_place_for_messages(&shared.options)
    } else {
        space.jobs.iter().filter(|job| !job.makes_ready()).count() >= MOST_LEFTOVERS
    };
    if full {
        return Err(WalError::Full { max: shared.options.max_segments, path: shared.directory.clone() });
    }
    space.making += 1;
    let number = space.next_free;
    space.next_free += 1;
    drop(space);
    let made = make(shared, number);
    let mut space = shared.space();
    space.making -= 1;
    if made.is_ok() {
        space.in_use += 1;
    }
    made
}

/// Creates a file, sets its blocks aside, and makes that durable.
fn make(shared: &Shared, number: u64) -> Result<Prepared, WalError> {
    let path = segment::free_path(&shared.directory, number);
    let created = shared.storage.create_new(&path).map_err(WalError::io("create", &path))?;
    let ready = ready(shared, &path, &*created);
    if let Err(error) = ready {
        // Half a segment is of no use. If it cannot be removed either, the next open does.
        if let Err(error) = shared.storage.unlink(&path) {
            tracing::warn!(%error, path = %path.display(), "a segment that could not be prepared could not be removed");
        }
        return Err(error);
    }
    Ok(Prepared { path, file: created })
}

fn ready(shared: &Shared, path: &Path, file: &dyn File) -> Result<(), WalError> {
    file.allocate(u64::from(shared.options.segment_bytes)).map_err(WalError::io("allocate", path))?;
    file.sync_data().map_err(WalError::io("sync", path))?;
    shared.storage.sync_directory(&shared.directory).map_err(WalError::io("sync directory", &shared.directory))
}

/// Does the preparer's next piece of work.
pub(super) fn tick(shared: &Shared, now: Instant) -> Turn {
    let mut space = shared.space();
    if space.closing {
        return Turn::Done;
    }
    if let Some(retry) = space.retry_at {
        if retry > now {
            return Turn::Until(retry);
        }
        space.retry_at = None;
    }
    let outcome = if let Some(job) = space.jobs.pop_front() {
        let keep = space.keeps(&shared.options);
        drop(space);
        run(shared, job, keep)
    } else if space.wants_more(&shared.options) {
        space.making += 1;
        let number = space.next_free;
        space.next_free += 1;
        drop(space);
        let made = make(shared, number);
        let mut space = shared.space();
        space.making -= 1;
        made.map(|prepared| space.prepared.push(prepared))
    } else {
        // Nothing is missing that an error could have kept from being made.
        let trouble = space.last_error.take();
        drop(space);
        if trouble.is_some() {
            shared.changed();
        }
        return Turn::Idle;
    };
    let mut space = shared.space();
    match outcome {
        Ok(()) => {
            if space.last_error.take().is_some() {
                tracing::info!("segments can be made ready again");
            }
        }
        Err(error) => {
            if space.last_error.is_none() {
                tracing::warn!(%error, "a segment could not be made ready; it is tried again each second");
            }
            space.last_error = Some(Trouble::from(&error));
            space.retry_at = Some(now + RETRY);
        }
    }
    drop(space);
    shared.changed();
    Turn::Again
}

fn run(shared: &Shared, job: Job, keep: bool) -> Result<(), WalError> {
    let (path, again) = match &job {
        Job::Recycle { number, failed: false } if keep => return recycle(shared, *number),
        Job::Recycle { number, .. } => (segment::path(&shared.directory, *number), job),
        Job::Discard(path) => (path.clone(), job),
        Job::Adopt(number) => return adopt(shared, *number, keep),
    };
    match remove(shared, &path) {
        Ok(()) => {
            let mut space = shared.space();
            space.in_use = space.in_use.saturating_sub(1);
            Ok(())
        }
        Err(error) => {
            shared.space().jobs.push_back(again);
            Err(error)
        }
    }
}

fn remove(shared: &Shared, path: &Path) -> Result<(), WalError> {
    match shared.storage.unlink(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(WalError::io("remove", path)(error)),
        Ok(()) | Err(_) => {}
    }
    shared.storage.sync_directory(&shared.directory).map_err(WalError::io("sync directory", &shared.directory))
}

/// Gives a segment a free name. The directory is synced before the file is used again: otherwise a power cut could
/// leave the new segment's bytes under the old segment's name.
fn recycle(shared: &Shared, number: u64) -> Result<(), WalError> {
    let from = segment::path(&shared.directory, number);
    let free = {
        let mut space = shared.space();
        let free = space.next_free;
        space.next_free += 1;
        free
    };
    let to = segment::free_path(&shared.directory, free);
    if let Err(error) = shared.storage.rename(&from, &to) {
        if error.kind() == io::ErrorKind::NotFound {
            // Somebody removed a segment that was not needed any more.
            let mut space = shared.space();
            space.in_use = space.in_use.saturating_sub(1);
            return Ok(());
        }
        shared.space().jobs.push_back(Job::Recycle { number, failed: false });
        return Err(WalError::io("rename", &from)(error));
    }
    {
        let mut space = shared.space();
        space.in_use = space.in_use.saturating_sub(1);
        space.making += 1;
    }
    let opened = shared
        .storage
        .sync_directory(&shared.directory)
        .map_err(WalError::io("sync directory", &shared.directory))
        .and_then(|()| shared.storage.open(&to).map_err(WalError::io("open", &to)));
    let mut space = shared.space();
    space.making -= 1;
    match opened {
        Ok(file) => {
            space.prepared.push(Prepared { path: to, file });
            Ok(())
        }
        Err(error) => {
            space.in_use += 1;
            space.jobs.push_back(Job::Discard(to));
            Err(error)
        }
    }
}

/// Takes over a free segment found at the start; one of another length, or one too many, is removed.
fn adopt(shared: &Shared, number: u64, keep: bool) -> Result<(), WalError> {
    let path = segment::free_path(&shared.directory, number);
    let whole = u64::from(shared.options.segment_bytes);
    let adopted = shared.storage.open(&path).and_then(|file| {
        let fits = keep && file.length()? == whole;
        if fits {
            // The process before may have died between the allocation and its sync.
            file.allocate(whole)?;
            file.sync_data()?;
        }
        Ok(fits.then_some(file))
    });
    match adopted {
        Ok(Some(file)) => {
            shared
                .storage
                .sync_directory(&shared.directory)
                .map_err(WalError::io("sync directory", &shared.directory))?;
            shared.space().prepared.push(Prepared { path, file });
            Ok(())
        }
        Ok(None) | Err(_) => remove(shared, &path),
    }
}
