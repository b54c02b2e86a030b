//! Tries a disk with one file, where no outbox is yet: what a log does to its segments, in small.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::clock;
use crate::finding::{Code, Finding};
use crate::wal::{BLOCK, DiskStorage, Storage};

/// The file, under the name it has at the moment; removed when this is dropped.
struct Probe(PathBuf);

impl Drop for Probe {
    fn drop(&mut self) {
        // It may never have been made; what cannot be removed is reported by `run`.
        let _ = fs::remove_file(&self.0);
    }
}

/// Creates a file in the directory, gives it a block, writes and syncs it, locks it, renames it, syncs the directory and
/// removes it: through the same calls as the log. At most one finding: the first call that failed.
pub fn run(directory: &Path) -> Option<Finding> {
    // Writing past the limit would be a signal, and the end of the process.
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < u64::from(BLOCK)) {
        let what = "this process may not write a file of one block (ulimit -f), so the disk was not tried";
        return Some(Finding::note(Code::NotChecked, directory.display(), what, "raise the limit, and ask again"));
    }
    attempt(directory).err().map(|(doing, error)| failed(directory, doing, &error))
}

type Step = (&'static str, io::Error);

fn attempt(directory: &Path) -> Result<(), Step> {
    let doing = |what: &'static str| move |error: io::Error| (what, error);
    let name = format!(".outlast-doctor-{}-{:08x}", std::process::id(), clock::random_u64() as u32);
    let mut probe = Probe(directory.join(&name));
    let file = DiskStorage.create_new(&probe.0).map_err(doing("create a file in"))?;
    file.allocate(BLOCK.into()).map_err(doing("set space aside in"))?;
    file.write_at(&[0x5a; BLOCK as usize], 0).map_err(doing("write a file in"))?;
    file.sync_data().map_err(doing("sync a file in"))?;
    lock(&probe.0).map_err(doing("lock a file in"))?;
    let renamed = directory.join(format!("{name}.renamed"));
    DiskStorage.rename(&probe.0, &renamed).map_err(doing("rename a file in"))?;
    probe.0 = renamed;
    DiskStorage.sync_directory(directory).map_err(doing("sync"))?;
    DiskStorage.unlink(&probe.0).map_err(doing("remove a file from"))
}

/// Closing the file gives the lock back.
fn lock(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::INTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

fn failed(directory: &Path, doing: &str, error: &io::Error) -> Finding {
    let what = format!("cannot {doing} {}: {error}", directory.display());
    let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    let (code, advice) = match error.kind() {
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            (Code::ReadOnly, "name a directory that this user may write to, on a writable file system")
        }
        _ if full && has_no_inode(directory) => (Code::NoInodes, "remove small files there, or name another disk"),
        _ if full => (Code::NoSpace, "make room, or name another disk"),
        _ if doing.starts_with("lock") => (Code::NoLocks, "name a directory on a file system that has flock"),
        _ => (Code::DiskFailed, "look at the disk and at the system's log"),
    };
    Finding::problem(code, directory.display(), what, advice)
}

fn has_no_inode(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|stat| stat.f_files > 0 && stat.f_favail == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_works_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run(dir.path()), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_gone_is_a_finding() {
        let dir = tempfile::tempdir().unwrap();
        let found = run(&dir.path().join("none")).unwrap();
        assert_eq!(found.code, Code::DiskFailed);
        assert!(found.what.contains("create a file"), "{found:?}");
    }
}
