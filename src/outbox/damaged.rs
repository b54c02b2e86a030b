//! What could not be read is copied to `damaged/` before its segment is used again: nothing is thrown away.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::directory::{DirectoryError, Paths};
use super::files::{self, Durability};
use crate::wal::{Damage, segment_path};

/// Copies the bytes of a damage, as far as there are any, under a name that says where they were.
pub fn keep(paths: &Paths, damage: &Damage) -> Result<(), DirectoryError> {
    let Damage { segment, offset, first_lsn, last_lsn, .. } = damage;
    // The name alone tells what was lost, also where there are no bytes: a segment that is missing.
    let target = paths.damaged().join(format!("{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}.bytes"));
    if target.exists() {
        return Ok(());
    }
    if damage.length == 0 {
        return files::replace(&target, &[], Durability::Synced);
    }
    let source = segment_path(&paths.wal(), damage.segment);
    let failed = |error| DirectoryError::io(&source, "read", error);
    let mut file = match File::open(&source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return files::replace(&target, &[], Durability::Synced);
        }
        opened => opened.map_err(failed)?,
    };
    file.seek(SeekFrom::Start(u64::from(damage.offset))).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(u64::from(damage.length)).read_to_end(&mut bytes).map_err(failed)?;
    files::replace(&target, &bytes, Durability::Synced)
}

/// How many messages were set aside, by the names of what was kept.
pub fn count(paths: &Paths) -> u64 {
    let Ok(entries) = std::fs::read_dir(paths.damaged()) else { return 0 };
    let lost = |name: &str| {
        let mut parts = name.strip_suffix(".bytes")?.split('-').skip(2);
        let (first, last): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(last.saturating_add(1).saturating_sub(first))
    };
    entries.flatten().filter_map(|entry| lost(entry.file_name().to_str()?)).fold(0, u64::saturating_add)
}
