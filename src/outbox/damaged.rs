//! What could not be read is copied to `damaged/` before its segment is used again: nothing is thrown away.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::directory::{DirectoryError, Paths};
use super::files::{self, Durability};
use crate::wal::{Damage, segment_path};

/// Copies the bytes of a damage, as far as there are any, under a name that says where they were.
pub fn keep(paths: &Paths, damage: &Damage) -> Result<(), DirectoryError> {
    if damage.length == 0 {
        return Ok(());
    }
    let name = format!("{:016x}-{:08x}.bytes", damage.segment, damage.offset);
    let target = paths.damaged().join(name);
    if target.exists() {
        return Ok(());
    }
    let source = segment_path(&paths.wal(), damage.segment);
    let failed = |error| DirectoryError::io(&source, "read", error);
    let mut file = File::open(&source).map_err(failed)?;
    file.seek(SeekFrom::Start(u64::from(damage.offset))).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(u64::from(damage.length)).read_to_end(&mut bytes).map_err(failed)?;
    files::replace(&target, &bytes, Durability::Synced)
}
