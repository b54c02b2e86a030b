//! The file `LOCK`: at most one process owns an outbox.
//!
//! An advisory `flock(2)`, which the kernel releases however the process ends; so a lock left behind by a crash is
//! not there. It belongs to the open file, which forks inherit: the kernel releases it with the last of them, and an
//! explicit unlock in any of them frees it for all. So only the process that took it unlocks it; in a fork a drop closes the
//! file and does no more. The owner's pid lies inside for people to read: nothing is decided by it. The outbox never removes the
//! file, since the next process would then lock one file and a waiting one another; where somebody else does, who waits
//! takes the new file, and who holds the old one finds out (`guard`).
//!
//! Assumes a file system on which `flock` works (on NFS: Linux turns it into a lock the server knows). Refuses to
//! take a lock away from anybody.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::directory::DirectoryError;
use super::files::{self, Owner};
use super::guard::{FileId, Guard};
use super::holder::{self, Holder, Known};
use crate::file_size::is_no_room;
use crate::forked::Maker;

/// How often a held lock is tried again. `flock` knows no deadline; one that blocks could only be ended by a
/// signal, which is not a library's to send.
const POLL: Duration = Duration::from_millis(20);

/// How long a held lock is tried again even if nobody asked to wait: tools hold it for a moment to find out
/// whether anybody does, and must not make a producer's start fail.
const GRACE: Duration = Duration::from_millis(100);

/// Bytes of the pid file that are looked at.
const PID_BYTES: u64 = 32;

/// The held lock; dropped, it is free.
#[derive(Debug)]
pub struct Lock {
    file: File,
    guard: Arc<Guard>,
    taker: Maker,
    /// The taker's pid is in the file.
    named: bool,
}

impl Lock {
    /// Takes the lock, and waits up to `wait` for whoever holds it.
    pub fn acquire(path: &Path, wait: Duration) -> Result<Self, DirectoryError> {
        let begun = Instant::now();
        let mut unseen = false;
        loop {
            // Opened each time: the file may be another one by now.
            let mut file = files::open_or_create(path)?;
            if try_lock(path, &file, FlockOperation::NonBlockingLockExclusive)? {
                let metadata = file.metadata().map_err(|error| DirectoryError::io(path, "look at", error))?;
                let guard = Arc::new(Guard::new(path.into(), FileId::of(&metadata)));
                if guard.is_path() {
                    let named = match write_pid(&mut file, &std::process::id().to_string()) {
                        // Nothing is decided by it, and an outbox on a full disk is to be drained.
                        Err(error) if is_no_room(&error) => false,
                        done => done.map(|()| true).map_err(|error| DirectoryError::io(path, "write", error))?,
                    };
                    return Ok(Self { file, guard, taker: Maker::this(), named });
                }
            }
            let left = wait.max(GRACE).saturating_sub(begun.elapsed());
            if left.is_zero() {
                let named = read_pid(&mut file);
                let holder = holder::find(&file, named);
                if holder.known != Known::Unseen || unseen {
                    return Err(DirectoryError::Held { path: path.into(), holder, waited: wait });
                }
                // It may have ended between the question for the lock and the one for its holder.
                unseen = true;
                continue;
            }
            thread::sleep(POLL.min(left));
        }
    }

    /// Tells whether the lock is still the outbox's.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.taker.is_other() {
            return;
        }
        // Both may fail without harm: a stale pid is only read while the lock is held, and closing the file frees
        // the lock. Unless the process has forked: then the child would keep it, hence the explicit release.
        if self.named {
            let _ = write_pid(&mut self.file, "");
        }
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Who holds the lock, `None` if nobody does.
pub fn holder(path: &Path) -> Result<Option<Holder>, DirectoryError> {
    let Some(mut file) = files::open_existing(path, Owner::Any)? else { return Ok(None) };
    if try_lock(path, &file, FlockOperation::NonBlockingLockShared)? {
        return Ok(None);
    }
    let named = read_pid(&mut file);
    let holder = holder::find(&file, named);
    // It may have ended between the two questions.
    let is_free = holder.known == Known::Unseen && try_lock(path, &file, FlockOperation::NonBlockingLockShared)?;
    Ok((!is_free).then_some(holder))
}

fn try_lock(path: &Path, file: &File, operation: FlockOperation) -> Result<bool, DirectoryError> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(DirectoryError::io(path, "lock", errno.into())),
        }
    }
}

/// Over what is there, never cut short: on a full disk a block that is given back may not be had again.
fn write_pid(file: &mut File, pid: &str) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("{pid:<width$}\n", width = PID_BYTES as usize - 1).as_bytes())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(PID_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
