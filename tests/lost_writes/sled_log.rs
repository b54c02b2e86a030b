//! The log that DESIGN.md decided against, built as well as it can be in a page: a message is a row of sled, its key
//! the next number, and is acknowledged once `flush` returned; it is delivered in the order of the keys, then removed.
//!
//! What sled is known to stumble over is moved out of its way: the half-written snapshot that a kill during `open`
//! leaves behind, and which would keep it from opening for good, is removed first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What is done for durability behind each `flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Nothing: sled's word is taken for it.
    Flush,
    /// `fdatasync` of every file of its, and of its directories.
    Fdatasync,
}

pub struct SledLog {
    database: sled::Db,
    path: PathBuf,
    sync: Sync,
    next: u64,
}

impl SledLog {
    pub fn open(path: &Path, sync: Sync) -> sled::Result<Self> {
        for entry in fs::read_dir(path).into_iter().flatten() {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "generating") {
                fs::remove_file(file)?;
            }
        }
        let database = sled::Config::new().path(path).cache_capacity(16 << 20).open()?;
        let next = database.last()?.map_or(1, |(key, _)| number(&key) + 1);
        let mut log = Self { database, path: path.to_owned(), sync, next };
        // The name of the database's directory, once.
        if let (Sync::Fdatasync, Some(parent)) = (sync, path.parent()) {
            File::open(parent)?.sync_all()?;
        }
        log.make_durable()?;
        Ok(log)
    }

    /// Stores a group. Acknowledge it when this returned.
    pub fn append(&mut self, payloads: &[String]) -> sled::Result<()> {
        for payload in payloads {
            self.database.insert(self.next.to_be_bytes(), payload.as_bytes())?;
            self.next += 1;
        }
        self.make_durable()
    }

    fn make_durable(&mut self) -> sled::Result<()> {
        self.database.flush()?;
        match self.sync {
            Sync::Flush => Ok(()),
            Sync::Fdatasync => Ok(sync_all_in(&self.path)?),
        }
    }

    pub fn reader(&self) -> Reader {
        Reader(self.database.clone())
    }
}

/// Delivers and removes.
pub struct Reader(sled::Db);

impl Reader {
    /// The oldest message, if there is one, handed to `deliver` and removed.
    pub fn next(&self, deliver: impl FnOnce(&[u8])) -> sled::Result<bool> {
        let Some((key, payload)) = self.0.first()? else { return Ok(false) };
        deliver(&payload);
        self.0.remove(key)?;
        Ok(true)
    }
}

fn number(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

fn sync_all_in(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all_in(&entry.path())?;
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) => file.sync_data()?,
            // A snapshot that was replaced meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(directory)?.sync_all()
}
