//! What could not be read is copied to `damaged/` before its segment is used again: nothing is thrown away.
//!
//! Assumes that the outbox's lock is held. Refuses to say that something was kept before its bytes and its name are on
//! the disk: who is told so settles what was damaged.

use std::io;
use std::path::Path;

use super::directory::{DirectoryError, Paths};
use crate::wal::{Damage, File, Storage, segment_path};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// Copies the bytes of a damage, as far as there are any, under a name that says where they were.
pub fn keep(storage: &dyn Storage, paths: &Paths, damage: &Damage) -> Result<(), DirectoryError> {
    let Damage { segment, offset, first_lsn, last_lsn, .. } = damage;
    let directory = paths.damaged();
    // The name alone tells what was lost, also where there are no bytes: a segment that is missing.
    let name = format!("{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}.bytes");
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
        copy(storage, &segment_path(&paths.wal(), *segment), damage, &aside)?;
        storage.rename(&aside, &target).map_err(|error| DirectoryError::io(&target, "replace", error))?;
    }
    // Also where it was there already: the process before may have died between the rename and this.
    storage.sync_directory(&directory).map_err(|error| DirectoryError::io(&directory, "sync", error))
}

fn copy(storage: &dyn Storage, source: &Path, damage: &Damage, target: &Path) -> Result<(), DirectoryError> {
    let from = match storage.open_read(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        opened => Some(opened.map_err(|error| DirectoryError::io(source, "open", error))?),
    };
    let failed = |error| DirectoryError::io(target, "write", error);
    let to = storage.create_new(target).map_err(failed)?;
    if let Some(from) = from {
        let read = |error| DirectoryError::io(source, "read", error);
        let (mut done, length) = (0, damage.length as usize);
        while done < length {
            let bytes =
                chunk(&*from, u64::from(damage.offset) + done as u64, CHUNK.min(length - done)).map_err(read)?;
            if bytes.is_empty() {
                break;
            }
            to.write_at(&bytes, done as u64).map_err(failed)?;
            done += bytes.len();
        }
    }
    to.sync_data().map_err(failed)
}

fn chunk(file: &dyn File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, offset)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// How many messages were set aside, by the names of what was kept.
pub fn count(storage: &dyn Storage, paths: &Paths) -> u64 {
    let Ok(names) = storage.list(&paths.damaged()) else { return 0 };
    let lost = |name: &String| {
        let mut parts = name.strip_suffix(".bytes")?.split('-').skip(2);
        let (first, last): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(last.saturating_add(1).saturating_sub(first))
    };
    names.iter().filter_map(lost).sum()
}
