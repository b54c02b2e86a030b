//! A disk in memory that is shared by all who look at it, and that nobody can write to.
//!
//! A copy costs a pointer a file, and one flipped bit costs nothing, so that the same image can be opened millions of
//! times. It refuses every change: that an open writes nothing is thereby tested each time.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlast::internals::wal::{File, ModelStorage, Storage};

/// Where the log lies on every disk here.
pub const DIRECTORY: &str = "/wal";

/// The files of a log.
pub type Files = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// One bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    pub segment: u64,
    pub byte: usize,
    pub bit: u8,
}

/// See the module.
#[derive(Clone)]
pub struct Disk {
    pub files: Files,
    pub flipped: Option<Bit>,
}

/// The path of a segment.
pub fn segment_path(number: u64) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{number:016x}.seg"))
}

/// The number of a segment in use, by its path.
pub fn number_of(path: &Path) -> Option<u64> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    if stem.len() == 16 { u64::from_str_radix(stem, 16).ok() } else { None }
}

/// Everything that is on a model disk now.
pub fn files_of(storage: &ModelStorage) -> Files {
    let paths = storage.paths().into_iter();
    paths.filter_map(|path| Some((path.clone(), Arc::new(storage.bytes(&path)?)))).collect()
}

/// A disk with these files that can be written to, and says what was.
pub fn writable(files: &Files, seed: u64) -> ModelStorage {
    let storage = ModelStorage::new(seed);
    for (path, bytes) in files {
        storage.set_bytes(path, bytes.to_vec());
    }
    storage
}

impl Disk {
    pub fn new(files: Files) -> Self {
        Self { files, flipped: None }
    }

    fn refused<T>() -> io::Result<T> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Storage for Disk {
    fn create_new(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        Self::refused()
    }

    fn open(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        Self::refused()
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let bytes = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        let flipped = self.flipped.filter(|bit| segment_path(bit.segment) == path);
        Ok(Arc::new(Opened { bytes: Arc::clone(bytes), flipped }))
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Self::refused()
    }

    fn unlink(&self, _path: &Path) -> io::Result<()> {
        Self::refused()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let inside = self.files.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
}

struct Opened {
    bytes: Arc<Vec<u8>>,
    flipped: Option<Bit>,
}

impl File for Opened {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = self.bytes.len().min(offset as usize);
        let length = buffer.len().min(self.bytes.len() - start);
        buffer[..length].copy_from_slice(&self.bytes[start..start + length]);
        if let Some(Bit { byte, bit, .. }) = self.flipped
            && (start..start + length).contains(&byte)
        {
            buffer[byte - start] ^= 1 << bit;
        }
        Ok(length)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Disk::refused()
    }

    fn allocate(&self, _length: u64) -> io::Result<()> {
        Disk::refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn forget_pages(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}
