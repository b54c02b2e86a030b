//! The outbox's directory: whose it is, what lies in it, and who has it open.
//!
//! ```text
//! LOCK        who has the outbox open            wal/      the log
//! IDENTITY    which outbox it is, its format     dead/     dead letters
//! status      the owner's counts and reasons     ledger/N/ the sled database over the log
//!                                                damaged/  what was set aside
//! ```
//!
//! Assumes that the directory's ancestors are the operator's care. Refuses, before it writes anything, what would
//! let the outbox's bytes go elsewhere, be somebody else's, or be misread; each [`DirectoryError`] names the path,
//! what was found there and what would be right. No message has been accepted when it does.

use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::files::{self, Owner};
use super::guard::Guard;
use super::holder::Holder;
use super::identity::{self, FORMAT_VERSION, Identity, OutboxId};
use super::lock::{self, Lock};

mod error;
mod rights;

pub use error::DirectoryError;
use rights::Way;
pub(super) use rights::is_not_permitted;

/// Where everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Makes the path absolute, so that a later `chdir` moves nothing, and takes off slashes at its end, behind
    /// which a symbolic link would be followed.
    fn new(path: &Path) -> Result<Self, DirectoryError> {
        let root = std::path::absolute(path).map_err(|error| DirectoryError::io(path, "find", error))?;
        Ok(Self { root: root.components().collect() })
    }

    /// The outbox's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The log.
    pub fn wal(&self) -> PathBuf {
        self.root.join("wal")
    }

    /// The dead letters.
    pub fn dead(&self) -> PathBuf {
        self.root.join("dead")
    }

    /// The ledger's directories.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger")
    }

    /// What was set aside.
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// The owner's report.
    pub fn status(&self) -> PathBuf {
        self.root.join("status")
    }

    /// Which outbox it is.
    pub fn identity(&self) -> PathBuf {
        self.root.join("IDENTITY")
    }

    /// Who has it open.
    pub fn lock(&self) -> PathBuf {
        self.root.join("LOCK")
    }

    /// The directories that the outbox makes.
    fn made(&self) -> [PathBuf; 4] {
        [self.wal(), self.dead(), self.ledger(), self.damaged()]
    }
}

/// Names that an outbox without an `IDENTITY` may have in it: one whose making was cut short. `held` is reserved.
/// A file system's own names are nobody's.
pub const OWN_NAMES: [&str; 11] = [
    "LOCK",
    "IDENTITY",
    "IDENTITY.tmp",
    "status",
    "status.tmp",
    "wal",
    "dead",
    "held",
    "ledger",
    "damaged",
    "lost+found",
];

/// Asks the log in a directory for the outbox id.
pub type AskLog<'a> = &'a dyn Fn(&Path) -> Option<OutboxId>;

/// How an outbox is opened.
#[derive(Default)]
pub struct DirectoryOptions<'a> {
    /// How long to wait for another process that has the outbox open: a rolling deployment's successor. Default 0.
    pub lock_wait: Duration,
    /// Called under the lock if `IDENTITY` is lost.
    pub id_from_log: Option<AskLog<'a>>,
}

/// An outbox's directory, open: this process alone has it until this is dropped.
#[derive(Debug)]
pub struct Directory {
    paths: Paths,
    id: OutboxId,
    created: bool,
    lock: Mutex<Option<Lock>>,
    guard: Arc<Guard>,
}

impl Directory {
    /// Opens an outbox's directory, or makes it, and holds its lock. Everything it makes is durable on return.
    ///
    /// # Errors
    /// See [`DirectoryError`].
    pub fn open(path: &Path, options: &DirectoryOptions<'_>) -> Result<Self, DirectoryError> {
        let paths = Paths::new(path)?;
        if exists(paths.root())? {
            inspect_root(&paths)?;
        } else {
            create_with_ancestors(paths.root())?;
        }
        let lock = Lock::acquire(&paths.lock(), options.lock_wait)?;
        // Once more: who had the lock until now may have changed everything.
        let identity = inspect_root(&paths)?;
        rights::check(&paths, Way::TakeAway)?;
        files::create_directory(paths.root())?;
        if identity == Identity::Missing {
            // Whoever began to make it may have died, or failed, before the names that lead here were durable.
            sync_ancestors(paths.root())?;
        }
        let has_log = has_segments(&paths)?;
        for directory in paths.made() {
            files::create_directory(&directory)?;
        }
        let (id, created) = settle_identity(&paths, identity, has_log, options)?;
        files::sync_directory(paths.root())?;
        let guard = Arc::clone(lock.guard());
        Ok(Self { paths, id, created, lock: Mutex::new(Some(lock)), guard })
    }

    /// Where everything lies.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Lets the next process in. Nothing may be written from here on.
    pub fn release(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// In a fork of the process that opened it: closes the lock's file, which the fork has inherited, and lets the parent
    /// keep the lock. Waits for nothing: where a thread of the parent's was about to let go at the fork, it leaves it.
    pub fn disinherit(&self) {
        if let Ok(mut lock) = self.lock.try_lock() {
            lock.take();
        }
    }

    /// Tells whether the outbox is still this process's.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Which outbox it is.
    pub fn id(&self) -> &OutboxId {
        &self.id
    }

    /// Whether it was made just now.
    pub fn created(&self) -> bool {
        self.created
    }
}

/// What can be told of an outbox without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Where everything lies.
    pub paths: Paths,
    /// Which outbox it is, if `IDENTITY` can be read.
    pub id: Option<OutboxId>,
    /// What `IDENTITY` has.
    pub identity: Identity,
    /// Who has it open.
    pub holder: Option<Holder>,
}

impl Inspected {
    /// Looks at an outbox, beside a live owner if there is one, and writes nothing. Whose it is does not matter.
    ///
    /// # Errors
    /// There is none, or one of a newer format; see [`DirectoryError`].
    pub fn at(path: &Path) -> Result<Self, DirectoryError> {
        let paths = Paths::new(path)?;
        let root = paths.root();
        if !exists(root)? {
            return Err(DirectoryError::Missing { path: root.into() });
        }
        files::check_directory(root, &metadata(root)?, Owner::Any)?;
        let identity = identity::read(&paths.identity(), Owner::Any)?;
        let id = match &identity {
            Identity::Known { id, .. } => Some(*id),
            Identity::Damaged => None,
            Identity::Missing if exists(&paths.wal())? => None,
            Identity::Missing => return Err(DirectoryError::Missing { path: root.into() }),
            Identity::Newer { version } => return Err(newer(&paths, *version)),
        };
        Ok(Self { holder: lock::holder(&paths.lock())?, id, identity, paths })
    }
}

/// Whether an outbox could be opened in a directory, as far as can be seen without touching anything.
#[derive(Debug)]
pub struct Fitness {
    /// Where everything lies, or would.
    pub paths: Paths,
    /// The outbox's directory, or the nearest one above it that exists, in which it would be made.
    pub nearest: PathBuf,
    /// Why it would be refused.
    pub refusal: Option<DirectoryError>,
}

impl Fitness {
    /// Looks, with the rights of this process. Whether a process has the outbox open does not matter.
    ///
    /// # Errors
    /// The path cannot be made absolute.
    pub fn of(path: &Path) -> Result<Self, DirectoryError> {
        let paths = Paths::new(path)?;
        for (above, nearest) in paths.root().ancestors().enumerate() {
            let refusal = match exists(nearest) {
                Ok(false) => continue,
                Ok(true) if above == 0 => inspect_root(&paths).err(),
                // A link to a directory will do above the outbox.
                Ok(true) if nearest.is_dir() => None,
                Ok(true) => {
                    let found = "path through a plain file";
                    Some(DirectoryError::NotADirectory { path: nearest.into(), found })
                }
                Err(error) => Some(error),
            };
            return Ok(Self { nearest: nearest.into(), refusal, paths });
        }
        Ok(Self { nearest: PathBuf::from("/"), refusal: None, paths })
    }

    /// Whether there is an outbox already: a directory that is there may be empty.
    pub fn has_outbox(&self) -> bool {
        let is_there = |path: PathBuf| fs::symlink_metadata(path).is_ok();
        is_there(self.paths.identity()) || is_there(self.paths.wal())
    }
}

fn newer(paths: &Paths, found: u32) -> DirectoryError {
    DirectoryError::NewerFormat { path: paths.identity(), found, supported: FORMAT_VERSION }
}

fn metadata(path: &Path) -> Result<Metadata, DirectoryError> {
    fs::symlink_metadata(path).map_err(|error| DirectoryError::io(path, "look at", error))
}

fn exists(path: &Path) -> Result<bool, DirectoryError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            let found = "path through a plain file";
            Err(DirectoryError::NotADirectory { path: path.into(), found })
        }
        Err(error) => Err(DirectoryError::io(path, "look at", error)),
    }
}

/// Refuses a directory that must not be used, and says what its `IDENTITY` has. Reads only.
fn inspect_root(paths: &Paths) -> Result<Identity, DirectoryError> {
    let root = paths.root();
    let metadata = metadata(root)?;
    files::check_directory(root, &metadata, Owner::Checked).map_err(|error| rights::of_volume(paths, error))?;
    let needed = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(errno) = accessat(CWD, root, needed, AtFlags::EACCESS) {
        return Err(DirectoryError::ReadOnly { path: root.into(), reason: errno.into() });
    }
    let identity = identity::read(&paths.identity(), Owner::Checked)?;
    if let Identity::Newer { version } = identity {
        return Err(newer(paths, version));
    }
    inspect_names(paths, &metadata, identity == Identity::Missing)?;
    for directory in paths.made() {
        if exists(&directory)? {
            files::check_directory(&directory, &self::metadata(&directory)?, Owner::Checked)?;
        }
    }
    for directory in [paths.wal(), paths.dead()] {
        inspect_files(&directory)?;
    }
    rights::check(paths, Way::Inspect)?;
    Ok(identity)
}

fn inspect_names(paths: &Paths, metadata: &Metadata, unknown: bool) -> Result<(), DirectoryError> {
    let root = paths.root();
    let mut empty = true;
    for name in names(root)? {
        // The lock file is made before this is looked at once more, and is checked by itself.
        empty &= matches!(name.as_str(), "LOCK" | "lost+found") || name.starts_with('.');
        if unknown && !OWN_NAMES.contains(&name.as_str()) && !name.starts_with('.') {
            return Err(DirectoryError::NotAnOutbox { path: root.into(), found: name });
        }
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o002 != 0 && !empty {
        return Err(DirectoryError::OpenToOthers { path: root.into(), mode });
    }
    Ok(())
}

/// Every file of a log is plain, has one name, and is ours: segments are written in place.
fn inspect_files(directory: &Path) -> Result<(), DirectoryError> {
    if !exists(directory)? {
        return Ok(());
    }
    for name in names(directory)? {
        let path = directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => files::check_file(&path, &metadata, Owner::Checked)?,
            // The one who holds the lock until now recycles.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(DirectoryError::io(&path, "look at", error)),
        }
    }
    Ok(())
}

fn names(directory: &Path) -> Result<Vec<String>, DirectoryError> {
    let failed = |error| DirectoryError::io(directory, "list", error);
    fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(failed))
        .collect()
}

fn has_segments(paths: &Paths) -> Result<bool, DirectoryError> {
    for directory in [paths.wal(), paths.dead()] {
        if exists(&directory)? && names(&directory)?.iter().any(|name| !name.starts_with("free-")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a directory and those above it that are missing.
fn create_with_ancestors(path: &Path) -> Result<(), DirectoryError> {
    if let Some(parent) = path.parent()
        && !exists(parent)?
    {
        create_with_ancestors(parent)?;
    }
    files::create_directory(path)
}

/// Makes the names that lead to a directory durable. Where this user could have made none, there is none to sync.
fn sync_ancestors(path: &Path) -> Result<(), DirectoryError> {
    for above in path.ancestors().skip(1) {
        match File::open(above).and_then(|directory| directory.sync_all()) {
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {}
            synced => synced.map_err(|error| DirectoryError::io(above, "sync", error))?,
        }
    }
    Ok(())
}

/// The outbox's id, and whether it is new: read, drawn, or (where the file was lost) asked of the log.
fn settle_identity(
    paths: &Paths,
    identity: Identity,
    has_log: bool,
    options: &DirectoryOptions<'_>,
) -> Result<(OutboxId, bool), DirectoryError> {
    let path = paths.identity();
    let found = match identity {
        Identity::Known { id, whole: true } => return Ok((id, false)),
        Identity::Newer { version } => return Err(newer(paths, version)),
        Identity::Known { id, whole: false } => {
            tracing::warn!(path = %path.display(), "one of the two lines of IDENTITY was damaged; both are written anew");
            set_aside(paths)?;
            identity::write(&path, &id)?;
            return Ok((id, false));
        }
        Identity::Missing => "missing",
        Identity::Damaged => "damaged",
    };
    let id = if has_log {
        let asked = options.id_from_log.and_then(|ask| ask(&paths.wal()));
        let id = asked.ok_or_else(|| DirectoryError::DamagedIdentity { path: path.clone(), found })?;
        tracing::warn!(path = %path.display(), found, "IDENTITY is written anew from the log");
        id
    } else {
        identity::draw(&path)?
    };
    if found == "damaged" {
        set_aside(paths)?;
    }
    identity::write(&path, &id)?;
    Ok((id, !has_log))
}

/// Keeps a damaged `IDENTITY` for people to look at.
fn set_aside(paths: &Paths) -> Result<(), DirectoryError> {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let kept = paths.damaged().join(format!("IDENTITY-{millis}"));
    fs::copy(paths.identity(), &kept).map(|_| ()).map_err(|error| DirectoryError::io(&kept, "write", error))
}

#[cfg(test)]
mod tests;
