//! Whether the outbox is still this process's, asked at each step that could do harm if it were not.
//!
//! The lock is on a file, and a file can be removed or replaced beneath its holder: by hand, by a restored backup, by
//! moving the whole outbox away while the process is stopped. The next process then locks another file and takes the
//! outbox over. So the holder looks, each time, whether `LOCK` still names the file it locked; if not, it stops for
//! good: nothing is written any more, nothing acknowledged, and whoever sends gets the disk's error.
//!
//! Whoever takes over does so after `LOCK` was replaced, and reads what is on the disk then. Hence the order:
//!
//! - **after a sync, before it counts**: what was acknowledged was synced while nobody else could have begun to read, so
//!   the new owner finds it;
//! - **before a write, a creation, a renaming, a removal**: nothing of the new owner's is touched. Only a process that
//!   is stopped between the question and the call can still do one such call; recovery takes its frame for a torn or
//!   an unacknowledged one, as long as the segment was not used again meanwhile;
//! - **after a read**: a segment that another process uses anew is no damage, and nothing is set aside.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::wal::{File, Storage};

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of an open file, or of a path.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Device and inode, as the kernel lists them.
    #[cfg(target_os = "linux")]
    pub(super) fn numbers(self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// The file that was locked, and whether it is still the outbox's `LOCK`.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    locked: FileId,
    lost: AtomicBool,
}

impl Guard {
    /// `locked` stays open, so that its number is given to no other file.
    pub(super) fn new(path: PathBuf, locked: FileId) -> Self {
        Self { path, locked, lost: AtomicBool::new(false) }
    }

    /// Whether the path names that file now.
    pub(super) fn is_path(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|metadata| FileId::of(&metadata) == self.locked)
    }

    /// Looks whether the outbox is still this process's. Once it was not, it never is again.
    ///
    /// # Errors
    /// It is not, or it cannot be told now.
    pub fn check(&self) -> io::Result<()> {
        if !self.lost.load(Ordering::Acquire) {
            match fs::symlink_metadata(&self.path) {
                Ok(metadata) if FileId::of(&metadata) == self.locked => return Ok(()),
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
            if !self.lost.swap(true, Ordering::AcqRel) {
                tracing::error!(path = %self.path.display(), "{}", self.reason());
            }
        }
        Err(io::Error::other(self.reason()))
    }

    fn reason(&self) -> String {
        format!(
            "{} was removed or replaced while this process held it, so another one may own the outbox: nothing is \
             written to it any more until a restart",
            self.path.display()
        )
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A storage on which only the outbox's owner does anything.
pub(super) struct Guarded {
    pub disk: Arc<dyn Storage>,
    pub guard: Arc<Guard>,
}

struct GuardedFile {
    file: Arc<dyn File>,
    guard: Arc<Guard>,
}

impl Guarded {
    fn guarded(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(GuardedFile { file, guard: Arc::clone(&self.guard) })
    }
}

impl Storage for Guarded {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.guard.check()?;
        self.disk.create_new(path).map(|file| self.guarded(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.guard.check()?;
        self.disk.open(path).map(|file| self.guarded(file))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let opened = self.disk.open_read(path);
        self.guard.check()?;
        opened.map(|file| self.guarded(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.guard.check()?;
        self.disk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.guard.check()?;
        self.disk.unlink(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_directory(directory)?;
        self.guard.check()
    }
}

impl File for GuardedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buffer, offset)?;
        self.guard.check()?;
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.allocate(length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.guard.check()?;
        self.file.truncate(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.guard.check()
    }

    fn forget_pages(&self) -> io::Result<()> {
        self.file.forget_pages()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::DiskStorage;

    fn guarded(directory: &Path) -> Guarded {
        let path = directory.join("LOCK");
        fs::write(&path, "").expect("write");
        let locked = FileId::of(&fs::metadata(&path).expect("there"));
        Guarded { disk: Arc::new(DiskStorage), guard: Arc::new(Guard::new(path, locked)) }
    }

    #[test]
    fn whoever_lost_the_lock_file_does_nothing_any_more() {
        let temp = tempfile::tempdir().expect("tempdir");
        let storage = guarded(temp.path());
        let (one, two) = (temp.path().join("one"), temp.path().join("two"));
        let file = storage.create_new(&one).expect("it is ours");
        file.write_at(b"ours", 0).expect("it is ours");
        let lock = &storage.guard.path;
        fs::rename(lock, temp.path().join("old")).expect("rename");
        assert!(file.sync_data().is_err(), "what is synced now, the next owner may not have read");
        fs::rename(temp.path().join("old"), lock).expect("rename");
        assert!(file.write_at(b"theirs", 0).is_err() && file.allocate(9).is_err(), "not even if it comes back");
        assert!(storage.rename(&one, &two).is_err() && storage.unlink(&one).is_err());
        assert!(storage.create_new(&two).is_err() && storage.open(&one).is_err() && storage.open_read(&one).is_err());
        assert!(storage.sync_directory(temp.path()).is_err() && file.read_at(&mut [0; 4], 0).is_err());
        assert_eq!(fs::read(&one).expect("there"), b"ours");
    }

    #[test]
    fn another_file_of_that_name_is_not_ours() {
        let temp = tempfile::tempdir().expect("tempdir");
        let storage = guarded(temp.path());
        let other = temp.path().join("other");
        fs::write(&other, "").expect("write");
        fs::rename(&other, &storage.guard.path).expect("rename");
        let reason = storage.guard.check().expect_err("replaced").to_string();
        assert!(reason.contains("LOCK was removed or replaced"), "{reason}");
    }
}
