//! The place of an outbox: whose it is, on what kind of disk, with how much room.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::Path;

use crate::finding::{Code, Finding};
use crate::outbox::{DirectoryError, Fitness, Room};

/// Files that an outbox in use has at least: directories, segments, the index, a file that takes another's place.
const INODES: u64 = 32;
/// The same where they are there already: a new segment, and a file that takes another's place.
const INODES_MORE: u64 = 4;

/// Why an outbox would not be opened in this directory.
pub fn directory(fitness: &Fitness) -> Option<Finding> {
    fitness.refusal.as_ref().map(refusal)
}

/// What a refused directory is called, and what to do.
pub fn refusal(error: &DirectoryError) -> Finding {
    use DirectoryError as Error;
    let text = error.to_string();
    // The errors say what would be right behind the last semicolon, where they say it.
    let (what, advice) = text.rsplit_once("; ").unwrap_or((&text, ""));
    let (code, path, else_advice) = match error {
        Error::Symlink { path } => (Code::Symlink, path, "name the directory itself"),
        Error::VolumeRoot { path, .. } => (Code::ForeignOwner, path, "name a directory in it"),
        Error::ForeignOwner { path, .. } => (Code::ForeignOwner, path, "run as the owner, or chown -R it"),
        Error::OpenToOthers { path, .. } => (Code::OpenToOthers, path, "chmod 700 it"),
        Error::ReadOnly { path, .. } => (Code::ReadOnly, path, "name a directory on a writable file system"),
        Error::NewerFormat { path, .. } => (Code::NewerFormat, path, "use that release"),
        Error::NotADirectory { path, .. } | Error::NotAnOutbox { path, .. } | Error::Missing { path } => {
            (Code::NotAnOutbox, path, "name another directory")
        }
        Error::NotAPlainFile { path, .. } | Error::HardLink { path, .. } | Error::DamagedIdentity { path, .. } => {
            (Code::NotAnOutbox, path, "see `outlast check`")
        }
        Error::Held { path, .. } => (Code::LockHeld, path, "stop the other producer"),
        Error::Io { path, source, .. } => {
            let code = match source.kind() {
                ErrorKind::PermissionDenied => Code::ReadOnly,
                // On the lock file it is `flock` that is missing.
                ErrorKind::Unsupported if path.ends_with("LOCK") => Code::NoLocks,
                _ => Code::DiskFailed,
            };
            (code, path, "see that this user may do that, and that the disk works")
        }
    };
    let advice = if advice.is_empty() { else_advice } else { advice };
    Finding::problem(code, path.display(), what, advice)
}

/// What kind of file system the outbox lies on: those that forget, and those that promise less.
#[cfg(target_os = "linux")]
pub fn file_system(nearest: &Path) -> Option<Finding> {
    let subject = nearest.display();
    let magic = match rustix::fs::statfs(nearest) {
        // The numbers are 32 bits wide; the field's width and sign depend on the machine.
        Ok(stat) => stat.f_type as u32,
        Err(errno) => return Some(not_checked(subject, "file system", &errno)),
    };
    let (name, text) = match magic {
        0x0102_1994 | 0x8584_58f6 => {
            let name = if magic == 0x0102_1994 { "tmpfs" } else { "ramfs" };
            let what = format!("it is on {name}, in memory: a restart of the machine or the pod loses what is stored");
            return Some(Finding::problem(
                Code::OutboxInMemory,
                subject,
                what,
                "name a directory on a disk that stays",
            ));
        }
        0x794c_7630 => ("overlayfs", "a container's own layer goes with the container: mount a volume there"),
        0x6969 => ("NFS", "a sync is as good as the server's, and locks need its lock service"),
        0xff53_4d42 | 0xfe53_4d42 => ("SMB", "a sync is as good as the server's, and locks are the server's"),
        0x6573_5546 => ("FUSE", "whether a sync reaches the disk is up to the program behind it"),
        0x0102_1997 => ("9p", "whether a sync reaches the disk is up to the host"),
        0x9123_683e | 0x2fc1_2fc1 => {
            let what = "it copies on write, so that reserved space may be missing when the disk is full";
            let advice = "keep a good part of the disk free, or set max_bytes";
            return Some(Finding::note(Code::NoReservation, subject, what, advice));
        }
        _ => return None,
    };
    Some(Finding::note(Code::FileSystem, subject, format!("it is on {name}"), text))
}

/// Elsewhere nothing is known of it.
#[cfg(not(target_os = "linux"))]
pub fn file_system(_: &Path) -> Option<Finding> {
    None
}

/// Whether there is room for what an outbox takes from its start.
pub fn space(room: &Room, nearest: &Path) -> Option<Finding> {
    let Room { free, taken, least, segment, .. } = *room;
    if free.saturating_add(taken) < least {
        let has = if taken > 0 { format!(" beside {taken} that it has") } else { String::new() };
        let what = format!("{free} bytes are free{has}, and an outbox in use takes {least} from its start");
        let advice = "make room, name a larger disk, or set a smaller max_message_bytes and segment_bytes";
        return Some(Finding::problem(Code::NoSpace, nearest.display(), what, advice));
    }
    (free < segment && taken > 0).then(|| {
        let what = format!("{free} bytes are free: the outbox cannot grow by another segment of {segment} bytes");
        Finding::note(Code::NoSpace, nearest.display(), what, "make room before the next long outage")
    })
}

/// Whether there are inodes for its files, where the file system counts them.
pub fn inodes(fitness: &Fitness) -> Option<Finding> {
    let subject = fitness.nearest.display();
    let stat = match rustix::fs::statvfs(&fitness.nearest) {
        Ok(stat) => stat,
        Err(errno) => return Some(not_checked(subject, "number of free inodes", &errno)),
    };
    let needed = if fitness.has_outbox() { INODES_MORE } else { INODES };
    (stat.f_files > 0 && stat.f_favail < needed).then(|| {
        let what = format!("{} inodes are free, and an outbox needs some {needed}", stat.f_favail);
        Finding::problem(Code::NoInodes, subject, what, "remove small files there, or name another disk")
    })
}

/// Something that the system did not say.
pub fn not_checked(subject: impl Display, thing: &str, error: &dyn Display) -> Finding {
    let what = format!("the {thing} could not be read: {error}");
    Finding::note(Code::NotChecked, subject, what, "look at it by hand")
}
