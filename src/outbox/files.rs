//! The few ways in which the outbox touches files of its own: plain, private to the owner, never through a link.
//!
//! Assumes that the directory they lie in is the owner's alone (0700), so that what was checked stays as it was.
//! Refuses whatever somebody else could have put in a file's place: a symbolic link (the write would land
//! elsewhere), a second hard link (so would it), a FIFO (the open would never return), a file of another owner.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::directory::{DirectoryError, is_not_permitted};

/// Mode of every file.
pub const FILE_MODE: u32 = 0o600;

/// Mode of every directory.
pub const DIRECTORY_MODE: u32 = 0o700;

/// Whether the owner is looked at: not by tools that only read, which root may run on anybody's outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It has to be the process's effective user.
    Checked,
    /// Anybody.
    Any,
}

/// Opens an existing file to read it, `None` if there is none.
pub fn open_existing(path: &Path, owner: Owner) -> Result<Option<File>, DirectoryError> {
    open(path, OpenOptions::new().read(true), owner)
}

/// Opens a file to read and write it, and makes it if there is none.
pub fn open_or_create(path: &Path) -> Result<File, DirectoryError> {
    let file = open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false), Owner::Checked)?
        .ok_or_else(|| DirectoryError::io(path, "create", io::ErrorKind::NotFound.into()))?;
    let mode =
        file.metadata().map_err(|error| DirectoryError::io(path, "look at", error))?.permissions().mode() & 0o777;
    // A strange umask may have taken too much, an earlier owner allowed too much.
    if mode != FILE_MODE {
        settle_mode(path, mode, FILE_MODE, file.set_permissions(fs::Permissions::from_mode(FILE_MODE)))?;
    }
    Ok(file)
}

/// What becomes of a mode that could not be set. Where the file system, or how it is mounted, does not let it be changed,
/// the group may keep its rights, which `directory/rights.rs` has warned of; not every user.
fn settle_mode(path: &Path, mode: u32, wanted: u32, set: io::Result<()>) -> Result<(), DirectoryError> {
    match set {
        Err(error) if is_not_permitted(&error) && mode & wanted == wanted && mode & 0o002 == 0 => Ok(()),
        set => set.map_err(|error| DirectoryError::io(path, "set the mode of", error)),
    }
}

fn open(path: &Path, options: &mut OpenOptions, owner: Owner) -> Result<Option<File>, DirectoryError> {
    // Looked at first for an error that names what is there, and again once open, for certainty.
    match fs::symlink_metadata(path) {
        Ok(metadata) => check_file(path, &metadata, owner)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(DirectoryError::io(path, "look at", error)),
    }
    // Without NONBLOCK the open of a FIFO waits for somebody at its other end.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = match options.mode(FILE_MODE).custom_flags(flags as i32).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DirectoryError::io(path, "open", error)),
    };
    let metadata = file.metadata().map_err(|error| DirectoryError::io(path, "look at", error))?;
    check_file(path, &metadata, owner)?;
    Ok(Some(file))
}

/// Refuses what is not a plain file with one name, of this process's user.
pub fn check_file(path: &Path, metadata: &Metadata, owner: Owner) -> Result<(), DirectoryError> {
    if metadata.is_symlink() {
        return Err(DirectoryError::Symlink { path: path.into() });
    }
    if !metadata.is_file() {
        return Err(DirectoryError::NotAPlainFile { path: path.into(), found: kind(metadata) });
    }
    if owner == Owner::Any {
        return Ok(());
    }
    check_owner(path, metadata)?;
    match metadata.nlink() {
        0 | 1 => Ok(()),
        links => Err(DirectoryError::HardLink { path: path.into(), links }),
    }
}

/// Refuses what is not a directory of this process's user.
pub fn check_directory(path: &Path, metadata: &Metadata, owner: Owner) -> Result<(), DirectoryError> {
    if metadata.is_symlink() {
        return Err(DirectoryError::Symlink { path: path.into() });
    }
    if !metadata.is_dir() {
        return Err(DirectoryError::NotADirectory { path: path.into(), found: kind(metadata) });
    }
    match owner {
        Owner::Checked => check_owner(path, metadata),
        Owner::Any => Ok(()),
    }
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), DirectoryError> {
    let (owner, user) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == user { Ok(()) } else { Err(DirectoryError::ForeignOwner { path: path.into(), owner, user }) }
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        "directory"
    } else if kind.is_file() {
        "plain file"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

/// Makes a directory that is nobody else's under any umask, if it is not there.
pub fn create_directory(path: &Path) -> Result<(), DirectoryError> {
    match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(DirectoryError::io(path, "create", error)),
    }
    let metadata = fs::symlink_metadata(path).map_err(|error| DirectoryError::io(path, "look at", error))?;
    check_directory(path, &metadata, Owner::Checked)?;
    // The umask can only have taken away; what was there before may also allow too much.
    let mode = metadata.permissions().mode() & 0o777;
    if mode != DIRECTORY_MODE {
        let set = fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE));
        settle_mode(path, mode, DIRECTORY_MODE, set)?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<(), DirectoryError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| DirectoryError::io(path, "sync", error))
}

/// Whether a replaced file has to be there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is synced, and so is its name.
    Synced,
    /// It may come back old or empty: it is written again soon.
    Cached,
}

/// Replaces a file as a whole: whoever reads it finds the old contents or the new ones, never a part.
pub fn replace(path: &Path, contents: &[u8], durability: Durability) -> Result<(), DirectoryError> {
    let aside = aside(path);
    let mut file = open_or_create(&aside)?;
    let failed = |error| DirectoryError::io(&aside, "write", error);
    // A crash may have left one half written.
    file.set_len(0).map_err(failed)?;
    file.write_all(contents).map_err(failed)?;
    if durability == Durability::Synced {
        file.sync_data().map_err(failed)?;
    }
    fs::rename(&aside, path).map_err(|error| DirectoryError::io(path, "replace", error))?;
    match (durability, path.parent()) {
        (Durability::Synced, Some(parent)) => sync_directory(parent),
        _ => Ok(()),
    }
}

/// The name under which a file is written before it takes its own.
pub fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}
