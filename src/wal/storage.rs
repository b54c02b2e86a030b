//! The seam between the log and the disk, so that crash images and failing disks can take its place.
//!
//! Assumes of a disk: what [`File::sync_data`] returned `Ok` for is there after a power cut; what was not synced may be
//! there in part, in units of a sector, in any order; a name is there once its directory was synced. Of a failed sync
//! it assumes nothing at all: the log never asks twice about the same bytes.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// An open file.
pub trait File: Send + Sync {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of the bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file this long and has the file system set the blocks aside.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Makes the file this short. What cannot is left out, and the file removed instead.
    fn truncate(&self, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Returns once contents and length are on the disk (`fdatasync`; `F_FULLFSYNC` on macOS).
    fn sync_data(&self) -> io::Result<()>;
    /// Has the kernel forget the pages it holds of the file, as far as they are clean: what is read next comes from the
    /// disk. After a write-back that failed they may hold what the disk does not have. Advice, where the system takes it.
    fn forget_pages(&self) -> io::Result<()>;
    /// The file's length.
    fn length(&self) -> io::Result<u64>;
}

/// A file system, as far as the log needs one.
pub trait Storage: Send + Sync {
    /// Creates a file that must not exist, mode 0600, for reading and writing.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens a file for reading.
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Renames within a directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory; those that are not UTF-8 are none of ours and left out.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Returns once the directory's entries are on the disk.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// Whether the error is about the bytes asked for and may stay: a sector that cannot be read. The numbers are those of
/// `read(2)`, of block devices (`errno(3)`: ENODATA) and of file systems that keep checksums (EBADMSG, EUCLEAN).
pub fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let known = [Errno::IO, Errno::NODATA, Errno::BADMSG];
    let number = error.raw_os_error();
    #[cfg(target_os = "linux")]
    if number == Some(Errno::UCLEAN.raw_os_error()) {
        return true;
    }
    known.iter().any(|errno| number == Some(errno.raw_os_error()))
}

/// The disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskStorage;

impl Storage for DiskStorage {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(fs::OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(fs::File::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        fs::File::open(directory)?.sync_all()
    }
}

impl File for fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        allocate(self, length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    fn forget_pages(&self) -> io::Result<()> {
        Ok(rustix::fs::fadvise(self, 0, None, rustix::fs::Advice::DontNeed)?)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    fn forget_pages(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple"))]
fn allocate(file: &fs::File, length: u64) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
            // On Linux it sets the length as well; elsewhere that is a call of its own.
            Ok(()) if file.metadata()?.len() >= length => return Ok(()),
            Ok(()) => return file.set_len(length),
            Err(Errno::INTR) => {}
            Err(error) if error == Errno::OPNOTSUPP || error == Errno::NOSYS => return fill(file, length),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple")))]
fn allocate(file: &fs::File, length: u64) -> io::Result<()> {
    fill(file, length)
}

/// Sets blocks aside on a file system that cannot promise them: by writing them.
fn fill(file: &fs::File, length: u64) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let zeros = vec![0; CHUNK as usize];
    let mut at = file.metadata()?.len();
    while at < length {
        let take = CHUNK.min(length - at);
        file.write_all_at(&zeros[..take as usize], at)?;
        at += take;
    }
    Ok(())
}
