//! A disk whose writes wait while a test wants it: the log is asked to record what it cannot.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use outlast::internals::wal::{DiskStorage, File, Storage};

use crate::shows::LONG;

/// Writes wait while it is shut.
#[derive(Clone, Default)]
pub struct Turnstile(Arc<(Mutex<Inside>, Condvar)>);

#[derive(Default)]
struct Inside {
    shut: bool,
    waiting: usize,
}

impl Turnstile {
    /// From now on writes wait, or all of them go on.
    pub fn shut(&self, shut: bool) {
        self.0.0.lock().unwrap().shut = shut;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let (inside, changed) = &*self.0;
        let mut inside = inside.lock().unwrap();
        inside.waiting += 1;
        changed.notify_all();
        inside = changed.wait_while(inside, |inside| inside.shut).unwrap();
        inside.waiting -= 1;
    }

    /// Returns once a write waits.
    pub fn wait_until_held(&self) {
        let (inside, changed) = &*self.0;
        let (inside, timeout) =
            changed.wait_timeout_while(inside.lock().unwrap(), LONG, |inside| inside.waiting == 0).unwrap();
        assert!(!timeout.timed_out(), "the log never wrote: {}", inside.waiting);
    }
}

/// The disk, behind the turnstile.
pub struct Slow(pub Turnstile);

struct SlowFile(Arc<dyn File>, Turnstile);

impl Slow {
    fn behind(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(SlowFile(file, self.0.clone()))
    }
}

impl Storage for Slow {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.behind(DiskStorage.create_new(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.behind(DiskStorage.open(path)?))
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        DiskStorage.open_read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStorage.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        DiskStorage.unlink(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        DiskStorage.list(directory)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        DiskStorage.sync_directory(directory)
    }
}

impl File for SlowFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.pass();
        self.0.write_at(bytes, offset)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn forget_pages(&self) -> io::Result<()> {
        self.0.forget_pages()
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}
