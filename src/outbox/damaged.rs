//! What could not be read is copied to `damaged/` before its segment is used again: nothing is thrown away.
//!
//! Assumes that the outbox's lock is held. Refuses to say that something was kept before its bytes and its name are on
//! the disk: who is told so settles what was damaged. `MANIFEST` there has a line of JSON for each thing that was put
//! there: what, from where, why and when.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::directory::{DirectoryError, Paths};
use super::files;
use crate::wal::{BLOCK, Damage, DiskStorage, File, Storage, is_unreadable, segment_path};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// How often a block is read before it counts as unreadable.
const TRIES: u32 = 5;

/// The log a damage is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Messages.
    Wal,
    /// Dead letters.
    Dead,
}

/// A line of the manifest. Paths are relative to the outbox's directory.
#[derive(Clone, Debug, Serialize)]
struct Note<'a> {
    /// What was put there.
    kept: &'a Path,
    /// Where it comes from.
    from: &'a Path,
    /// Where in the file it began.
    offset: u64,
    /// How many bytes it has.
    length: u64,
    /// How many of them the disk could not read: they are zero there.
    #[serde(skip_serializing_if = "is_zero")]
    unreadable: u64,
    /// The LSNs that were lost with it, if there are any.
    lsns: Option<(u64, u64)>,
    /// Why it was put there.
    why: &'a str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Adds a line to the manifest; it is durable when this returns. A line that a crash cut short is ended.
fn note(storage: &dyn Storage, paths: &Paths, note: &Note<'_>) -> Result<(), DirectoryError> {
    #[derive(Serialize)]
    struct Line<'a> {
        at: String,
        #[serde(flatten)]
        note: &'a Note<'a>,
    }
    let path = paths.damaged().join("MANIFEST");
    let failed = |error| DirectoryError::io(&path, "write", error);
    let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let line = serde_json::to_string(&Line { at, note }).map_err(|error| failed(error.into()))?;
    let file = match storage.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => storage.create_new(&path),
        opened => opened,
    };
    let file = file.map_err(failed)?;
    let end = file.length().map_err(failed)?;
    let last = chunk(&*file, end.saturating_sub(1), 1).map_err(failed)?;
    let cut = if last.is_empty() || last == b"\n" { "" } else { "\n" };
    file.write_at(format!("{cut}{line}\n").as_bytes(), end).and_then(|()| file.sync_data()).map_err(failed)?;
    // Also where it was there already: the process before may have died before this.
    storage
        .sync_directory(&paths.damaged())
        .map_err(|error| DirectoryError::io(paths.damaged().as_path(), "sync", error))
}

/// Copies the bytes of a damage, as far as there are any, under a name that says where they were, which LSNs were in
/// them, and, if not all of them, how many were lost.
pub fn keep(storage: &dyn Storage, paths: &Paths, log: From, damage: &Damage, lost: u64) -> Result<(), DirectoryError> {
    let Damage { segment, offset, first_lsn, last_lsn, .. } = damage;
    let all = last_lsn.saturating_add(1).saturating_sub(*first_lsn);
    let of_them = if lost == all { String::new() } else { format!("-{lost}") };
    // The name alone tells what was lost, also where there are no bytes: a segment that is missing.
    let (log, name) = match log {
        From::Wal => (paths.wal(), format!("{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}{of_them}.bytes")),
        // Not counted among the messages.
        From::Dead => (paths.dead(), format!("dead-{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}{of_them}.dead")),
    };
    let (directory, source) = (paths.damaged(), segment_path(&log, *segment));
    let (target, aside) = (directory.join(&name), directory.join(format!("{name}.tmp")));
    let names = storage.list(&directory).map_err(|error| DirectoryError::io(&directory, "list", error))?;
    if !names.contains(&name) {
        match storage.unlink(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DirectoryError::io(&aside, "remove", error));
            }
            // A crash may have left one half written.
            Ok(()) | Err(_) => {}
        }
        let Copied { length, unreadable } = copy(storage, &source, damage, &aside)?;
        // Before the name, which says that all of this was done.
        let (kept, from) = (Path::new("damaged").join(&name), source.strip_prefix(paths.root()).unwrap_or(&source));
        let lsns = (first_lsn <= last_lsn).then_some((*first_lsn, *last_lsn));
        let offset = u64::from(*offset);
        note(storage, paths, &Note { kept: &kept, from, offset, length, unreadable, lsns, why: &damage.reason })?;
        storage.rename(&aside, &target).map_err(|error| DirectoryError::io(&target, "replace", error))?;
    }
    // Also where it was there already: the process before may have died between the rename and this.
    storage.sync_directory(&directory).map_err(|error| DirectoryError::io(&directory, "sync", error))
}

/// How many bytes there were, and how many of them could not be read.
struct Copied {
    length: u64,
    unreadable: u64,
}

fn copy(storage: &dyn Storage, source: &Path, damage: &Damage, target: &Path) -> Result<Copied, DirectoryError> {
    let from = match storage.open_read(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened.map_err(|error| DirectoryError::io(source, "open", error))?),
    };
    let failed = |error| DirectoryError::io(target, "write", error);
    let to = storage.create_new(target).map_err(failed)?;
    let (mut done, mut unreadable) = (0, 0);
    if let Some(from) = from {
        let length = damage.length as usize;
        while done < length {
            let (at, most) = (u64::from(damage.offset) + done as u64, CHUNK.min(length - done));
            let (bytes, missing) = readable(&*from, at, most).map_err(|e| DirectoryError::io(source, "read", e))?;
            if bytes.is_empty() {
                break;
            }
            to.write_at(&bytes, done as u64).map_err(failed)?;
            done += bytes.len();
            unreadable += missing;
        }
        if done > 0 && unreadable == done as u64 && !reads_anywhere(&*from).map_err(failed)? {
            // The disk is gone, and may come back.
            let error = io::Error::other("nothing in the file can be read now");
            return Err(DirectoryError::io(source, "read", error));
        }
    }
    to.sync_data().map_err(failed)?;
    Ok(Copied { length: done as u64, unreadable })
}

fn reads_anywhere(file: &dyn File) -> io::Result<bool> {
    const PLACES: u64 = 64;
    let length = file.length()?;
    Ok((0..PLACES).any(|place| chunk(file, length / PLACES * place, 1).is_ok()))
}

/// Bytes of a file, and how many of them the disk cannot read: those are zero. A bad sector is what a damage may be about,
/// and must not keep the rest from being kept.
fn readable(file: &dyn File, offset: u64, length: usize) -> io::Result<(Vec<u8>, u64)> {
    match chunk(file, offset, length) {
        Err(error) if is_unreadable(&error) => {}
        read => return read.map(|bytes| (bytes, 0)),
    }
    let end = file.length()?.saturating_sub(offset).min(length as u64) as usize;
    let (mut bytes, mut missing) = (Vec::new(), 0);
    while bytes.len() < end {
        let most = (BLOCK as usize).min(end - bytes.len());
        let read = || chunk(file, offset + bytes.len() as u64, most);
        match (1..TRIES).find_map(|_| read().ok()).map_or_else(read, Ok) {
            Ok(read) if read.is_empty() => break,
            Ok(read) => bytes.extend_from_slice(&read),
            Err(error) if is_unreadable(&error) => {
                bytes.resize(bytes.len() + most, 0);
                missing += most as u64;
            }
            Err(error) => return Err(error),
        }
    }
    Ok((bytes, missing))
}

fn chunk(file: &dyn File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Moves a file, or whatever stands in a file's place, to `damaged/`, and says so in the manifest before. Returns where
/// it is now, relative to the outbox's directory.
pub fn move_aside(paths: &Paths, from: &Path, why: &str) -> Result<PathBuf, DirectoryError> {
    let flat = from.to_string_lossy().replace('/', "-");
    let names = (0u32..).map(|n| if n == 0 { format!("{flat}.aside") } else { format!("{flat}.{n}.aside") });
    let free = |name: &String| fs::symlink_metadata(paths.damaged().join(name)).is_err();
    let name = names.into_iter().find(free).unwrap_or_default();
    let (source, kept) = (paths.root().join(from), Path::new("damaged").join(&name));
    let length = fs::symlink_metadata(&source).map_err(|error| DirectoryError::io(&source, "look at", error))?.len();
    note(&DiskStorage, paths, &Note { kept: &kept, from, offset: 0, length, unreadable: 0, lsns: None, why })?;
    let target = paths.root().join(&kept);
    fs::rename(&source, &target).map_err(|error| DirectoryError::io(&source, "move aside", error))?;
    // Its new name first: a power cut in between leaves two names, not none.
    files::sync_directory(&paths.damaged())?;
    if let Some(parent) = source.parent() {
        files::sync_directory(parent)?;
    }
    Ok(kept)
}

/// How many messages were set aside, by the names of what was kept.
pub fn count(storage: &dyn Storage, paths: &Paths) -> io::Result<u64> {
    let names = storage.list(&paths.damaged())?;
    let lost = |name: &String| {
        let mut parts = name.strip_suffix(".bytes")?.split('-').skip(2);
        let (first, last): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let all = last.saturating_add(1).saturating_sub(first);
        parts.next().map_or(Some(all), |of_them| of_them.parse().ok())
    };
    Ok(names.iter().filter_map(lost).fold(0, u64::saturating_add))
}
