//! What could not be read is copied to `damaged/` before its segment is used again: nothing is thrown away.
//!
//! `MANIFEST` there has a line of JSON for each thing that was put there: what, from where, why and when.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::directory::{DirectoryError, Paths};
use super::files::{self, Durability};
use crate::wal::{Damage, segment_path};

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
pub struct Note<'a> {
    /// What was put there.
    pub kept: &'a Path,
    /// Where it comes from.
    pub from: &'a Path,
    /// Where in the file it began.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
    /// The LSNs that were lost with it, if there are any.
    pub lsns: Option<(u64, u64)>,
    /// Why it was put there.
    pub why: &'a str,
}

/// Adds a line to the manifest; it is durable when this returns. A line that a crash cut short is ended.
pub fn note(paths: &Paths, note: &Note<'_>) -> Result<(), DirectoryError> {
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
    let new = !path.exists();
    let mut file = files::open_or_create(&path)?;
    let cut = if ends_in_a_line(&mut file).map_err(failed)? { "" } else { "\n" };
    file.write_all(format!("{cut}{line}\n").as_bytes()).and_then(|()| file.sync_data()).map_err(failed)?;
    if new { files::sync_directory(&paths.damaged()) } else { Ok(()) }
}

/// Goes to the end of a file, and says whether the last line there is whole.
fn ends_in_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last == [b'\n'])
}

/// Copies the bytes of a damage, as far as there are any, under a name that says where they were, which LSNs were in
/// them, and, if not all of them, how many were lost.
pub fn keep(paths: &Paths, log: From, damage: &Damage, lost: u64) -> Result<(), DirectoryError> {
    let Damage { segment, offset, first_lsn, last_lsn, .. } = damage;
    let all = last_lsn.saturating_add(1).saturating_sub(*first_lsn);
    let of_them = if lost == all { String::new() } else { format!("-{lost}") };
    // The name alone tells what was lost, also where there are no bytes: a segment that is missing.
    let (directory, name) = match log {
        From::Wal => (paths.wal(), format!("{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}{of_them}.bytes")),
        // Not counted among the messages.
        From::Dead => (paths.dead(), format!("dead-{segment:016x}-{offset:08x}-{first_lsn}-{last_lsn}{of_them}.dead")),
    };
    let target = paths.damaged().join(&name);
    if target.exists() {
        return Ok(());
    }
    let source = segment_path(&directory, damage.segment);
    let bytes = read(&source, damage).map_err(|error| DirectoryError::io(&source, "read", error))?;
    // Before the copy, whose name says that all of this was done.
    note(
        paths,
        &Note {
            kept: &Path::new("damaged").join(&name),
            from: source.strip_prefix(paths.root()).unwrap_or(&source),
            offset: u64::from(*offset),
            length: bytes.len() as u64,
            lsns: (first_lsn <= last_lsn).then_some((*first_lsn, *last_lsn)),
            why: &damage.reason,
        },
    )?;
    files::replace(&target, &bytes, Durability::Synced)
}

fn read(source: &Path, damage: &Damage) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if damage.length == 0 {
        return Ok(bytes);
    }
    let mut file = match File::open(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(bytes),
        opened => opened?,
    };
    file.seek(SeekFrom::Start(u64::from(damage.offset)))?;
    file.take(u64::from(damage.length)).read_to_end(&mut bytes)?;
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
    note(paths, &Note { kept: &kept, from, offset: 0, length, lsns: None, why })?;
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
pub fn count(paths: &Paths) -> u64 {
    let Ok(entries) = std::fs::read_dir(paths.damaged()) else { return 0 };
    let lost = |name: &str| {
        let mut parts = name.strip_suffix(".bytes")?.split('-').skip(2);
        let (first, last): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let all = last.saturating_add(1).saturating_sub(first);
        parts.next().map_or(Some(all), |of_them| of_them.parse().ok())
    };
    entries.flatten().filter_map(|entry| lost(entry.file_name().to_str()?)).sum()
}
