//! What other users may do with an outbox: found out, and taken away where the owner may do so.
//!
//! A volume that is mounted with a group of its own (Kubernetes' `fsGroup`) gives the group read and write access to all
//! that lies on it, at each mount. What belongs to this process's user keeps its contents' worth: the group's rights are
//! removed, which is said once, and the outbox opens. Refused is what others may have put there themselves: a file or directory of
//! another owner, a symbolic link, a second hard link; and what every user of the machine could write to.
//!
//! Assumes that the lock is held before anything is changed. Does nothing where the outbox's directory lets no other user in: then
//! the modes below it do not matter.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, OFlags, accessat};

use super::{DirectoryError, Paths};
use crate::outbox::files::{self, Owner};

/// Rights of others to write, and to look for names or run; the group's and everybody's.
const WRITE: u32 = 0o022;
const SEARCH: u32 = 0o011;
const EVERYBODY: u32 = 0o007;

/// Whether anything is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Looks, and refuses what must be.
    Inspect,
    /// The same, and takes away the rights of others. Under the lock.
    TakeAway,
}

/// Of some files or directories, how many, and the first.
#[derive(Debug, Default)]
struct Found {
    count: usize,
    first: Option<(PathBuf, u32)>,
}

impl Found {
    fn add(&mut self, path: &Path, mode: u32) {
        self.count += 1;
        self.first.get_or_insert_with(|| (path.into(), mode));
    }
}

struct Walk {
    way: Way,
    /// What others could write to.
    open: Found,
    /// Of that, what the file system does not let change, and why.
    kept: Found,
    why: String,
}

/// Goes through everything in an outbox that others may get at.
///
/// # Errors
/// Something is refused: nothing was changed by [`Way::Inspect`].
pub(super) fn check(paths: &Paths, way: Way) -> Result<(), DirectoryError> {
    let root = paths.root();
    let mode = mode_of(&super::metadata(root)?);
    if mode & (WRITE | SEARCH) == 0 {
        return Ok(());
    }
    let mut walk = Walk { way, open: Found::default(), kept: Found::default(), why: String::new() };
    // Inspected before: every user may write to it as long as it is empty.
    walk.change(root, mode, files::DIRECTORY_MODE, mode)?;
    let reach = classes(mode & SEARCH);
    let (identity, status) = (paths.identity(), paths.status());
    for path in [&paths.lock(), &files::aside(&identity), &files::aside(&status), &identity, &status] {
        walk.file(path, reach)?;
    }
    for path in [paths.wal(), paths.dead(), paths.ledger(), root.join("held")] {
        walk.directory(&path, reach)?;
    }
    // What lies in there was moved there, whatever it is, and is only ever added to.
    if let Some(reach) = walk.enter(&paths.damaged(), reach)? {
        walk.file(&paths.damaged().join("MANIFEST"), reach)?;
    }
    walk.say(root);
    Ok(())
}

fn mode_of(metadata: &Metadata) -> u32 {
    metadata.permissions().mode() & 0o777
}

/// Refuses what every user may write to; `granted` is what others may do with it, by its mode and those above it.
fn refuse_everybody(path: &Path, mode: u32, granted: u32) -> Result<(), DirectoryError> {
    match granted & WRITE & EVERYBODY {
        0 => Ok(()),
        _ => Err(DirectoryError::OpenToOthers { path: path.into(), mode }),
    }
}

/// All bits of the classes of users, group and everybody, that have one of these.
fn classes(bits: u32) -> u32 {
    [0o070, 0o007].into_iter().filter(|class| bits & class != 0).sum()
}

impl Walk {
    /// A directory and all below it. `reach` has the classes of users that get to it.
    fn directory(&mut self, path: &Path, reach: u32) -> Result<(), DirectoryError> {
        let Some(reach) = self.enter(path, reach)? else { return Ok(()) };
        let names = match super::names(path) {
            // Before the lock is held, its owner may remove an old ledger.
            Err(DirectoryError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for name in names {
            let path = path.join(name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.directory(&path, reach)?,
                Ok(_) => self.file(&path, reach)?,
                // Or it recycles a segment.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(DirectoryError::io(&path, "look at", error)),
            }
        }
        Ok(())
    }

    /// The directory alone; what is returned is who gets at what is in it. `None`: there is none.
    fn enter(&mut self, path: &Path, reach: u32) -> Result<Option<u32>, DirectoryError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DirectoryError::io(path, "look at", error)),
        };
        files::check_directory(path, &metadata, Owner::Checked)?;
        let mode = mode_of(&metadata);
        refuse_everybody(path, mode, mode & reach)?;
        self.change(path, mode, files::DIRECTORY_MODE, mode & reach)?;
        Ok(Some(reach & classes(mode & SEARCH)))
    }

    fn file(&mut self, path: &Path, reach: u32) -> Result<(), DirectoryError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(DirectoryError::io(path, "look at", error)),
        };
        files::check_file(path, &metadata, Owner::Checked)?;
        let mode = mode_of(&metadata);
        refuse_everybody(path, mode, mode & reach)?;
        self.change(path, mode, files::FILE_MODE, mode & reach)
    }

    /// `granted`: what others may do with it.
    fn change(&mut self, path: &Path, mode: u32, private: u32, granted: u32) -> Result<(), DirectoryError> {
        if granted & WRITE != 0 {
            self.open.add(path, mode);
        }
        if self.way == Way::Inspect || mode & 0o077 == 0 {
            return Ok(());
        }
        match set_mode(path, private) {
            Ok(()) => {}
            Err(error) if is_not_permitted(&error) => {
                if granted & WRITE != 0 {
                    self.kept.add(path, mode);
                    self.why = error.to_string();
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(DirectoryError::io(path, "set the mode of", error)),
        }
        Ok(())
    }

    fn say(&self, root: &Path) {
        let outbox = root.display();
        match (self.way, &self.kept.first, &self.open.first) {
            (Way::TakeAway, Some((first, mode)), _) => tracing::warn!(
                %outbox, first = %first.display(), mode = %format_args!("{mode:04o}"), count = self.kept.count,
                reason = self.why, "other users may write to files of the outbox, and the file system does not let that be changed"
            ),
            (Way::TakeAway, None, Some((first, mode))) => tracing::warn!(
                %outbox, first = %first.display(), mode = %format_args!("{mode:04o}"), count = self.open.count,
                "other users could write to files of the outbox; their rights are removed"
            ),
            _ => {}
        }
    }
}

/// Another owner's directory in which this user may make one of its own, and which is no outbox, is most likely the root of
/// a volume.
pub(super) fn of_volume(paths: &Paths, error: DirectoryError) -> DirectoryError {
    let writable = accessat(CWD, paths.root(), Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    let is_outbox = [paths.identity(), paths.wal()].iter().any(|path| fs::symlink_metadata(path).is_ok());
    match error {
        DirectoryError::ForeignOwner { path, owner, .. } if writable && !is_outbox => {
            DirectoryError::VolumeRoot { within: path.join("outbox"), path, owner }
        }
        error => error,
    }
}

/// By the open file, so that no link that others put in its place is followed.
fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    // Without NONBLOCK the open of a FIFO waits for a process at its other end.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file: File = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // Some file systems say yes and keep the mode.
    match file.metadata()?.permissions().mode() & WRITE {
        0 => Ok(()),
        _ => Err(ErrorKind::Unsupported.into()),
    }
}

/// Whether the mode stays as it is because of the file system, or of how it is mounted.
pub(in crate::outbox) fn is_not_permitted(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::Unsupported)
}
