//! Who holds an outbox's lock.
//!
//! `LOCK` names the process that took it. But an advisory lock of `flock(2)` belongs to the open file, which a fork
//! inherits: it is held for as long as one process has that file open, its taker or another. So where the named process has
//! ended, or has let go, the kernel is asked: `/proc/PID/fdinfo` has the locks of each open file, `/proc/locks` has who took
//! them. Nothing is decided by the answer, which is for people.
//!
//! Assumes nothing of what can be seen: other users' processes, and those of other pid namespaces, cannot.

use std::fmt;
use std::fs::File;

/// Who holds an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, if one is known; in its own pid namespace where it cannot be seen from here.
    pub pid: Option<u32>,
    /// How it is known.
    pub known: Known,
}

/// How a holder is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// `LOCK` or `/proc/locks` names it, and nothing speaks against it.
    Named,
    /// It is a fork of the process that took the lock: `from`, if `LOCK` has it. So many others have inherited it, too.
    Inherited {
        /// The process that took the lock.
        from: Option<u32>,
        /// Other processes that hold it.
        others: usize,
    },
    /// `LOCK` names a process that does not hold it, and no other that does can be seen.
    Unseen,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(pid) = self.pid else { return f.write_str("another process") };
        match self.known {
            Known::Named if pid == std::process::id() => write!(f, "this very process (pid {pid})"),
            Known::Named => write!(f, "the process with pid {pid}"),
            Known::Inherited { from, others } => {
                write!(f, "the process with pid {pid}")?;
                match others {
                    0 => {}
                    1 => write!(f, " and one more")?,
                    _ => write!(f, " and {others} more")?,
                }
                match from {
                    Some(from) => write!(f, ", a fork that inherited it from pid {from}, which has let go or ended"),
                    None => write!(f, ", a fork that inherited it"),
                }
            }
            Known::Unseen => {
                write!(f, "a process that cannot be seen from here (LOCK names pid {pid}, which does not hold it here)")
            }
        }
    }
}

/// Finds out who holds the lock on a file that could not be locked; `named` is the process that it names.
#[cfg(target_os = "linux")]
pub(super) fn find(file: &File, named: Option<u32>) -> Holder {
    use proc::{Holds, holders, holds, taker};

    let known_by_name = Holder { pid: named, known: Known::Named };
    let Ok(id) = file.metadata().map(|metadata| super::guard::FileId::of(&metadata)) else { return known_by_name };
    let of_named = named.map_or(Holds::No, |pid| holds(pid, id));
    if matches!(of_named, Holds::Yes { .. }) {
        return known_by_name;
    }
    let holders = holders(id);
    // Where the taker itself holds it, it had no time, or no room, to write its pid.
    if let Some((pid, _)) = holders.iter().find(|(pid, taker)| pid == taker) {
        return Holder { pid: Some(*pid), known: Known::Named };
    }
    if let Some((pid, _)) = holders.first() {
        return Holder { pid: Some(*pid), known: Known::Inherited { from: named, others: holders.len() - 1 } };
    }
    match (of_named, taker(id)) {
        (Holds::CannotTell, _) => known_by_name,
        (_, Some(taker)) if holds(taker, id) == Holds::CannotTell => Holder { pid: Some(taker), known: Known::Named },
        _ => Holder { pid: named, known: if named.is_some() { Known::Unseen } else { Known::Named } },
    }
}

/// The process that the file names: elsewhere nothing else is known.
#[cfg(not(target_os = "linux"))]
pub(super) fn find(_file: &File, named: Option<u32>) -> Holder {
    Holder { pid: named, known: Known::Named }
}

/// What the kernel says (`proc(5)`).
#[cfg(target_os = "linux")]
mod proc {
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::path::Path;

    use rustix::fs::{major, minor};

    use crate::outbox::guard::FileId;

    /// Whether a process holds a lock.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Holds {
        /// It does; the lock was taken by this process, 0 if that has ended and was of another pid namespace.
        Yes { taker: u32 },
        /// It does not, or there is no such process.
        No,
        /// Another user's: its files cannot be seen.
        CannotTell,
    }

    /// Whether a process has the file open with a lock on it.
    pub fn holds(pid: u32, id: FileId) -> Holds {
        match taken_by(pid, id) {
            Ok(Some(taker)) => Holds::Yes { taker },
            Ok(None) => Holds::No,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Holds::CannotTell,
            Err(_) => Holds::No,
        }
    }

    fn taken_by(pid: u32, id: FileId) -> io::Result<Option<u32>> {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            // By its name first: to look at a file on a server that does not answer would take for ever.
            let is_named = |link: &Path| link.to_string_lossy().trim_end_matches(" (deleted)").ends_with("/LOCK");
            if !fs::read_link(&path).is_ok_and(|link| is_named(&link)) {
                continue;
            }
            let Some(number) = path.file_name() else { continue };
            let is_it = fs::metadata(&path).is_ok_and(|metadata| FileId::of(&metadata) == id);
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(number);
            if is_it && let Some(taker) = fs::read_to_string(info).ok().and_then(|info| taker_of(&info)) {
                return Ok(Some(taker));
            }
        }
        Ok(None)
    }

    /// `lock: 1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`, a line for each lock of the open file.
    pub fn taker_of(info: &str) -> Option<u32> {
        info.lines().find_map(|line| match line.strip_prefix("lock:")?.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "FLOCK", _, "WRITE", pid, ..] => pid.parse().ok(),
            _ => None,
        })
    }

    /// All processes that do, as far as they can be seen, and who took the lock.
    pub fn holders(id: FileId) -> Vec<(u32, u32)> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let holding = |pid| match holds(pid, id) {
            Holds::Yes { taker } => Some((pid, taker)),
            Holds::No | Holds::CannotTell => None,
        };
        let mut holders: Vec<(u32, u32)> = pids.filter_map(holding).collect();
        holders.sort_unstable();
        holders
    }

    /// The process that took the lock, which may have ended since.
    pub fn taker(id: FileId) -> Option<u32> {
        let (device, inode) = id.numbers();
        let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
        taker_in(&fs::read_to_string("/proc/locks").ok()?, &file)
    }

    /// `1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`; those who wait have an arrow behind the number.
    pub fn taker_in(locks: &str, file: &str) -> Option<u32> {
        locks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "FLOCK", _, "WRITE", pid, of, ..] if of == file => pid.parse().ok(),
            _ => None,
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::proc::{taker_in, taker_of};

    #[test]
    fn the_kernels_lists_are_read() {
        let locks = "1: FLOCK  ADVISORY  WRITE 21840 fe:00:5423684 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 7 fe:00:5423684 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 8 fe:00:602 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 9 fe:00:602 0 EOF\n";
        assert_eq!(taker_in(locks, "fe:00:5423684"), Some(21_840));
        assert_eq!(taker_in(locks, "fe:00:602"), None, "another kind of lock, and one that tools take for a moment");
        let info = "pos:\t32\nflags:\t02100002\nmnt_id:\t29\nino:\t11691\n";
        assert_eq!(taker_of(info), None);
        let locked = format!("{info}lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF\n");
        assert_eq!(taker_of(&locked), Some(359));
        assert_eq!(taker_of(&locked.replace("WRITE", "READ")), None, "of a tool, for a moment");
    }
}
