//! A log as it lies there: nothing is synced, nothing can be changed, and files that would stop an open can be left out.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::segment::{self, Name};
use super::super::storage::{DiskStorage, File, Storage};

/// A view of a storage that only reads.
pub(super) struct Still<'a> {
    storage: &'a dyn Storage,
    /// Segments that are not listed.
    pub hidden: BTreeSet<u64>,
}

/// A file whose syncs do nothing: who only looks must not make the disk work, nor need the right to.
struct Unsynced(Arc<dyn File>);

impl<'a> Still<'a> {
    pub fn new(storage: &'a dyn Storage) -> Self {
        Self { storage, hidden: BTreeSet::new() }
    }

    /// A segment in use, to be read.
    pub fn open_segment(&self, directory: &Path, number: u64) -> io::Result<Arc<dyn File>> {
        self.open_read(&segment::path(directory, number))
    }
}

/// The disk, for who only looks at a log that another process may be writing.
pub fn read_only_disk() -> Arc<dyn Storage> {
    static DISK: DiskStorage = DiskStorage;
    Arc::new(Still::new(&DISK))
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Storage for Still<'_> {
    fn create_new(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn open(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        refused()
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Unsynced(self.storage.open_read(path)?)))
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn unlink(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = self.storage.list(directory)?;
        names.retain(|name| !matches!(Name::parse(name), Some(Name::Segment(number)) if self.hidden.contains(&number)));
        Ok(names)
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl File for Unsynced {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn forget_pages(&self) -> io::Result<()> {
        // Another process writes them.
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}
