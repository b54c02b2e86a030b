//! Why an outbox was not opened.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::outbox::holder::Holder;

/// Why an outbox was not opened. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A symbolic link: writes would land wherever it points to tomorrow.
    #[error("{} is a symbolic link; an outbox is used only under its real path: name the directory itself", path.display())]
    Symlink {
        /// What was refused.
        path: PathBuf,
    },
    /// Something else is in a directory's place.
    #[error("{} is a {found}, not a directory; name a directory, or a path where one can be made", path.display())]
    NotADirectory {
        /// What was refused.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Something else is in a file's place.
    #[error("{} is a {found}, where the outbox keeps a plain file; move it away", path.display())]
    NotAPlainFile {
        /// What was refused.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file with a second name: what is written here would change there, too.
    #[error("{} has {links} hard links; writing to it would change the others, too: replace it by a copy of its own", path.display())]
    HardLink {
        /// What was refused.
        path: PathBuf,
        /// How many names the file has.
        links: u64,
    },
    /// Another user's.
    #[error("{} belongs to user {owner}, this process runs as user {user}; run it as user {owner}, or hand the outbox over with chown -R", path.display())]
    ForeignOwner {
        /// What was refused.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
        /// The process's effective user id.
        user: u32,
    },
    /// The root of a volume, as it seems: another user's, and this one may write to it.
    #[error("{} belongs to user {owner}, as the root of a volume does, so it cannot be an outbox itself; name a directory in it, such as {}, which is made if it is not there", path.display(), within.display())]
    VolumeRoot {
        /// What was refused.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
        /// A directory in it that would be right.
        within: PathBuf,
    },
    /// Every user may write to a directory with something in it, or to a file: nothing says what they have put there.
    #[error("{} may be written to by every user (mode {mode:04o}); see that nothing in the outbox is theirs, then take away their rights: chmod -R go-rwx", path.display())]
    OpenToOthers {
        /// What was refused.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No right to write, or a file system that is mounted read-only.
    #[error("{} cannot be written to ({reason}); an outbox needs a directory of mode 0700 on a writable file system", path.display())]
    ReadOnly {
        /// What was refused.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// A directory full of something else.
    #[error("{} is no outbox: it has {found} in it; name an empty directory, or a path where one can be made", path.display())]
    NotAnOutbox {
        /// What was refused.
        path: PathBuf,
        /// A name in it that no outbox has.
        found: String,
    },
    /// There is nothing to look at.
    #[error("there is no outbox at {}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Written by a later version of this library.
    #[error("{} says format {found}, this version of outlast reads up to {supported}; use a newer one", path.display())]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format this library reads.
        supported: u32,
    },
    /// The file `IDENTITY` is lost or unreadable, and the log, which has messages, could not say the id either.
    #[error("{} is {found}, and the log cannot tell which outbox it belongs to; restore the file from a copy", path.display())]
    DamagedIdentity {
        /// The file.
        path: PathBuf,
        /// `missing` or `damaged`.
        found: &'static str,
    },
    /// Somebody has the outbox open.
    #[error("the outbox is in use: {} is held by {holder}{}", path.display(), waited_for(waited))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// By whom.
        holder: Holder,
        /// How long was waited for it.
        waited: Duration,
    },
    /// The system refused a call. Where the outbox was being made, a part of it may be there; opening it again
    /// completes it.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DirectoryError {
    pub(in crate::outbox) fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path: path.into(), reason: source },
            _ => Self::Io { path: path.into(), doing, source },
        }
    }
}

fn waited_for(waited: &Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(" (waited {waited:?})") }
}
