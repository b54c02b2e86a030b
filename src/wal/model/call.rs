//! What is called, and what goes wrong with it.

use std::path::PathBuf;

/// A call to the storage, by the name the file had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file was created.
    Create(PathBuf),
    /// A file was opened.
    Open(PathBuf),
    /// Bytes were read.
    Read {
        /// The file.
        path: PathBuf,
        /// From where.
        offset: u64,
        /// How many at most.
        length: usize,
    },
    /// Bytes were written.
    Write {
        /// The file.
        path: PathBuf,
        /// To where.
        offset: u64,
        /// How many.
        length: usize,
    },
    /// Blocks were set aside.
    Allocate(PathBuf),
    /// A file was made shorter.
    Truncate(PathBuf),
    /// A file was synced.
    Sync(PathBuf),
    /// A file was renamed.
    Rename(PathBuf, PathBuf),
    /// A file was removed.
    Unlink(PathBuf),
    /// A directory was synced.
    SyncDirectory(PathBuf),
}

impl Operation {
    /// Whether it changes something, or makes a change durable.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Open(_) | Self::Read { .. })
    }
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this `errno`. A write may have been done in part; a sync loses what was dirty.
    Error(i32),
    /// A write is taken, and cannot be written back: the kernel drops the file's dirty pages behind the process's back, and
    /// each handle's next sync fails once with this `errno`. At another call than a write or a sync nothing goes wrong.
    WriteBack(i32),
    /// The process dies: this call and all after it fail, until `ModelStorage::kill` or `ModelStorage::crash`.
    Stop,
}
