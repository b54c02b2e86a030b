//! Putting the files of an outbox in order that nobody has open, before it is opened.
//!
//! Holds the lock for as long as it lives. Assumes that whoever calls has looked at everything and decided; it refuses
//! nothing but an outbox that is held or somebody else's. What it takes out of its place it moves to `damaged/`, and
//! each of its steps leaves an outbox that opens, or opens no worse than before.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::damaged;
use super::directory::{DirectoryError, Paths};
use super::files::{self, Owner};
use super::identity::{self, OutboxId};
use super::lock::Lock;
use crate::wal::segment_path;

/// See the module.
pub struct Mender {
    paths: Paths,
    lock: Lock,
}

impl Mender {
    /// Takes the lock.
    ///
    /// # Errors
    /// Somebody has the outbox open, or it is not this user's.
    pub fn begin(paths: &Paths) -> Result<Self, DirectoryError> {
        let root = paths.root();
        let metadata = fs::symlink_metadata(root).map_err(|error| DirectoryError::io(root, "look at", error))?;
        files::check_directory(root, &metadata, Owner::Checked)?;
        let lock = Lock::acquire(&paths.lock(), Duration::ZERO)?;
        match fs::symlink_metadata(paths.damaged()) {
            // Nothing can be moved there as long as something else has the name.
            Ok(metadata) if !metadata.is_dir() => {
                let aside = paths.root().join("damaged.aside");
                fs::rename(paths.damaged(), &aside).map_err(|error| DirectoryError::io(&aside, "rename", error))?;
            }
            Ok(_) | Err(_) => {}
        }
        files::create_directory(&paths.damaged())?;
        files::sync_directory(root)?;
        Ok(Self { paths: paths.clone(), lock })
    }

    /// Moves a file to `damaged/`; the path is relative to the outbox's directory. Returns where it is now.
    ///
    /// # Errors
    /// The disk refused; the file is where it was.
    pub fn move_aside(&self, path: &Path, why: &str) -> Result<PathBuf, DirectoryError> {
        self.check()?;
        damaged::move_aside(&self.paths, path, why)
    }

    /// Gives a segment that lies under another one's name a name of its own that no log looks at, so that names can be
    /// exchanged one after the other.
    ///
    /// # Errors
    /// The disk refused; the file is where it was.
    pub fn take_out(&self, path: &Path, number: u64) -> Result<PathBuf, DirectoryError> {
        let mut parked = segment_path(path.parent().unwrap_or(Path::new("")), number).into_os_string();
        parked.push(MISPLACED);
        let parked = PathBuf::from(parked);
        if self.is_there(&parked)? {
            return self.move_aside(path, "a second copy of a segment under another one's name");
        }
        self.rename(path, &parked)?;
        Ok(parked)
    }

    /// Gives a segment that was taken out its name; if there is a file of that name, it goes to `damaged/`.
    ///
    /// # Errors
    /// The disk refused; the file is where it was.
    pub fn put_back(&self, parked: &Path) -> Result<PathBuf, DirectoryError> {
        let text = parked.to_string_lossy();
        let own = PathBuf::from(text.strip_suffix(MISPLACED).unwrap_or(&text));
        if self.is_there(&own)? {
            return self.move_aside(parked, "a second copy of a segment that lies in its place");
        }
        self.rename(parked, &own)?;
        Ok(own)
    }

    /// Writes `IDENTITY`; what was there is kept.
    ///
    /// # Errors
    /// The disk refused.
    pub fn identify(&self, id: &OutboxId, why: &str) -> Result<(), DirectoryError> {
        if self.is_there(Path::new("IDENTITY"))? {
            self.move_aside(Path::new("IDENTITY"), why)?;
        }
        self.check()?;
        identity::write(&self.paths.identity(), id)
    }

    fn is_there(&self, path: &Path) -> Result<bool, DirectoryError> {
        let path = self.paths.root().join(path);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DirectoryError::io(&path, "look at", error)),
        }
    }

    /// The lock's file may have been replaced, and somebody else have the outbox.
    fn check(&self) -> Result<(), DirectoryError> {
        self.lock.guard().check().map_err(|error| DirectoryError::io(self.paths.root(), "write", error))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DirectoryError> {
        self.check()?;
        let (from, to) = (self.paths.root().join(from), self.paths.root().join(to));
        fs::rename(&from, &to).map_err(|error| DirectoryError::io(&from, "rename", error))?;
        to.parent().map_or(Ok(()), files::sync_directory)
    }
}

/// Behind a segment's name, while names are being exchanged.
pub const MISPLACED: &str = ".misplaced";
