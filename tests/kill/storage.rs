//! A disk on which the process kills itself at the n-th call that changes something: before it, after it, or when half
//! of the bytes are written.
//!
//! Assumes that the log reaches the disk through `Storage` alone, which `calls::the_storage_sees_every_call` shows.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast::internals::wal::{DiskStorage, File, Storage};
use rustix::process::{Signal, getpid, kill_process};

/// Where in the call the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    /// A write stops half-way; any other call is as if `Before`.
    Half,
    After,
}

impl When {
    pub const ALL: [Self; 3] = [Self::Before, Self::Half, Self::After];

    pub fn parse(word: &str) -> Self {
        *Self::ALL.iter().find(|when| format!("{when:?}") == word).expect("a moment")
    }
}

/// Which call is the last.
pub struct Fuse {
    calls: AtomicU64,
    at: u64,
    when: When,
    /// Where the call is named before the process dies.
    note: PathBuf,
}

impl Fuse {
    /// `at` is 1 for the first call; 0 never blows.
    pub fn new(at: u64, when: When, note: &Path) -> Arc<Self> {
        Arc::new(Self { calls: AtomicU64::new(0), at, when, note: note.to_path_buf() })
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn call<T>(&self, name: &str, half: impl FnOnce(), whole: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 != self.at {
            return whole();
        }
        std::fs::write(&self.note, name).expect("the oracle's disk works");
        match self.when {
            When::Before => {}
            When::Half => half(),
            When::After => drop(whole()),
        }
        die()
    }
}

/// SIGKILL, as somebody else would send it.
pub fn die() -> ! {
    kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    loop {
        std::thread::park();
    }
}

/// The disk, with the fuse.
pub struct Fused(pub Arc<Fuse>);

struct FusedFile {
    file: Arc<dyn File>,
    fuse: Arc<Fuse>,
}

impl Fused {
    fn fused(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FusedFile { file, fuse: Arc::clone(&self.0) })
    }
}

impl Storage for Fused {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.0.call("create", || {}, || DiskStorage.create_new(path))?;
        Ok(self.fused(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.fused(DiskStorage.open(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.fused(DiskStorage.open_read(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.call("rename", || {}, || DiskStorage.rename(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.0.call("unlink", || {}, || DiskStorage.unlink(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        DiskStorage.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.0.call("sync directory", || {}, || DiskStorage.sync_directory(directory))
    }
}

impl File for FusedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let half = || self.file.write_at(&bytes[..bytes.len() / 2], offset).expect("the disk works");
        self.fuse.call("write", half, || self.file.write_at(bytes, offset))
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let half = || self.file.allocate(length / 2).expect("the disk works");
        self.fuse.call("allocate", half, || self.file.allocate(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fuse.call("sync", || {}, || self.file.sync_data())
    }

    fn forget_pages(&self) -> io::Result<()> {
        self.file.forget_pages()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}
