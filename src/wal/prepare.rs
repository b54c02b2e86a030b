//! What is done to have segments ready: files are made, used ones get a free name, found ones are taken over, others removed.
//!
//! It decides nothing about how many there are to be (`space.rs` does). What fails is tried again; no file is forgotten.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::WalError;
use super::segment;
use super::shared::{Shared, Trouble};
use super::space::{Job, Prepared};
use super::storage::File;
use super::workers::Turn;
use crate::file_size::is_no_room;

/// After a failure, how long until it is tried again: the disk may have room by then.
const RETRY: Duration = Duration::from_secs(1);

/// How a job ended.
pub(super) enum Done {
    Ready(Prepared),
    /// There is no such file any more.
    Gone,
}

/// Why it did not, and what is left to do.
pub(super) struct Undone {
    pub error: WalError,
    pub again: Job,
}

/// Creates a file, sets its blocks aside, and makes that durable.
pub(super) fn make(shared: &Shared, number: u64) -> Result<Prepared, WalError> {
    let path = segment::free_path(&shared.directory, number);
    let created = shared.storage.create_new(&path).map_err(WalError::io("create", &path))?;
    let ready = ready(shared, &path, &*created);
    if let Err(error) = ready {
        // Half a segment is of no use. If it cannot be removed either, the next open does. The sync gives back the blocks it
        // had got: a file system keeps them until its journal has the removal, and a renaming may need one.
        if let Err(error) = remove(shared, &path) {
            tracing::warn!(%error, "a segment that could not be prepared could not be removed");
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
    // What can perhaps never be done must not keep other segments from being made.
    let hopeless = space.failures > space.jobs.len() && space.wants_more(&shared.options);
    let job = if hopeless { None } else { space.jobs.pop_front() };
    let outcome = if let Some(job) = job {
        let keep = space.keeps(&shared.options);
        space.begin(&job, keep);
        drop(space);
        let outcome = run(shared, &job, keep);
        shared.space().end(&job, keep, outcome)
    } else if space.wants_more(&shared.options) {
        space.making += 1;
        let number = space.next_free();
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
    shared.ready.notify_all();
    note(shared, outcome, now);
    shared.changed();
    Turn::Again
}

fn note(shared: &Shared, outcome: Result<(), WalError>, now: Instant) {
    let mut space = shared.space();
    match outcome {
        Ok(()) => {
            if space.failures == 0 && space.last_error.take().is_some() {
                tracing::info!("segments can be made ready again");
            }
        }
        Err(error) => {
            let trouble = Trouble::from(&error);
            if space.last_error.is_none() {
                let error = &trouble.reason;
                tracing::warn!(error, "a segment could not be made ready; it is tried again each second");
            }
            space.last_error = Some(trouble);
            space.retry_at = Some(now + RETRY);
        }
    }
}

/// Does a job; `keep` says whether what it is about is wanted.
pub(super) fn run(shared: &Shared, job: &Job, keep: bool) -> Result<Done, Undone> {
    let path = match *job {
        Job::Recycle { number, failed: false, whole } if keep => return recycle(shared, number, whole),
        Job::Adopt { number, whole } if keep => return adopt(shared, number, whole),
        Job::Recycle { number, .. } => segment::path(&shared.directory, number),
        Job::Adopt { number, .. } => segment::free_path(&shared.directory, number),
        Job::Discard(ref path) => path.clone(),
    };
    remove(shared, &path).map_err(|error| Undone { error, again: job.clone() })
}

fn remove(shared: &Shared, path: &Path) -> Result<Done, WalError> {
    match shared.storage.unlink(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(WalError::io("remove", path)(error)),
        Ok(()) | Err(_) => {}
    }
    named(shared).map(|()| Done::Gone)
}

fn named(shared: &Shared) -> Result<(), WalError> {
    shared.storage.sync_directory(&shared.directory).map_err(WalError::io("sync directory", &shared.directory))
}

/// Gives a segment a free name. The directory is synced before the file is used again: otherwise a power cut could
/// leave the new segment's bytes under the old segment's name.
fn recycle(shared: &Shared, number: u64, whole: bool) -> Result<Done, Undone> {
    let from = segment::path(&shared.directory, number);
    let free = shared.space().next_free();
    match shared.storage.rename(&from, &segment::free_path(&shared.directory, free)) {
        Ok(()) => {}
        // Somebody removed a segment that was not needed any more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Done::Gone),
        Err(error) => {
            let again = Job::Recycle { number, failed: false, whole };
            return Err(Undone { error: WalError::io("rename", &from)(error), again });
        }
    }
    adopt(shared, free, whole)
}

/// Takes over a file with a free name. One of another length (the limits were others when it was made) is given that of
/// this run; one that cannot be is removed.
fn adopt(shared: &Shared, number: u64, whole: bool) -> Result<Done, Undone> {
    let path = segment::free_path(&shared.directory, number);
    let again = |error| Undone { error, again: Job::Adopt { number, whole } };
    named(shared).map_err(again)?;
    let file = match shared.storage.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Done::Gone),
        opened => opened.map_err(|error| again(WalError::io("open", &path)(error)))?,
    };
    match mend(&*file, u64::from(shared.options.segment_bytes), whole) {
        Ok(()) => Ok(Done::Ready(Prepared { path, file })),
        // It cannot grow, but perhaps leave its room to another.
        Err(error) if is_hopeless(&error) => remove(shared, &path).map_err(again),
        Err(error) => Err(again(WalError::io("prepare", &path)(error))),
    }
}

/// Gives a file its length and its blocks. Of one that was made in this run nothing need be done but to look.
fn mend(file: &dyn File, length: u64, whole: bool) -> io::Result<()> {
    let found = file.length()?;
    if whole && found == length {
        return Ok(());
    }
    if found > length {
        file.truncate(length)?;
    }
    // Also where the length is right: the process before may have died between the allocation and its sync.
    file.allocate(length)?;
    file.sync_data()
}

/// On a disk without a free block not even a name can be changed where the directory would have to grow. Removes what
/// nobody was promised, and says whether there was any: with the blocks of one segment it goes on for long.
pub(super) fn relieve(shared: &Shared) -> bool {
    let mut space = shared.space();
    let Some(job) = space.take_spare(&shared.options) else { return false };
    space.begin(&job, false);
    drop(space);
    let outcome = run(shared, &job, false);
    let ended = shared.space().end(&job, false, outcome);
    ended.is_ok()
}

fn is_hopeless(error: &io::Error) -> bool {
    is_no_room(error) || error.kind() == io::ErrorKind::Unsupported
}
