//! Opening an outbox: directory, logs, ledger.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::damaged;
use super::directory::{Directory, DirectoryError, DirectoryOptions};
use super::guard::Guarded;
use super::ledger::{Ledger, LedgerOptions};
use super::settling::Settling;
use super::sizes::{LogSize, Sizes, most_message};
use super::space::Space;
use super::totals::Totals;
use super::{Found, Outbox};
use crate::wal::{self, DiskStorage, Recovered, Storage, Wal, WalError};
use crate::{clock, file_size};

/// What an outbox is opened with.
#[derive(Clone)]
pub struct OutboxOptions {
    /// The directory, made if it is not there.
    pub directory: PathBuf,
    /// How long to wait for another process to let go of it.
    pub lock_wait: Duration,
    /// The size of a segment; where this is the default and `max_bytes` is open, the log's segments keep theirs.
    pub segment_bytes: u32,
    /// The outbox's size; by default 16 GiB or 80 % of the free space.
    pub max_bytes: Option<u64>,
    /// The largest message.
    pub max_message_bytes: usize,
    /// Segments, and the largest message, as the logs have them already, if they have any: for tools, whose defaults are
    /// not the producer's settings.
    pub as_found: bool,
    /// The ledger's settings.
    pub ledger: LedgerOptions,
    /// Where the log's bytes go.
    pub storage: Arc<dyn Storage>,
}

impl OutboxOptions {
    /// The defaults, on a disk.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            lock_wait: Duration::ZERO,
            segment_bytes: crate::config::SEGMENT_BYTES,
            max_bytes: None,
            max_message_bytes: crate::config::MAX_MESSAGE_BYTES,
            as_found: false,
            ledger: LedgerOptions::default(),
            storage: Arc::new(DiskStorage),
        }
    }
}

/// Why an outbox could not be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The directory is not fit to hold an outbox.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is no room on the disk for even one message with these settings. No message was accepted.
    #[error(
        "the disk of {} is too small: {free} of {total} bytes are free, and with segment_bytes {segment_bytes} and \
         max_message_bytes {max_message_bytes} an outbox needs {needed}; use a larger disk{}",
        directory.display(), settings(fitting)
    )]
    TooSmall {
        /// The outbox.
        directory: PathBuf,
        /// Bytes that are free, or the outbox's already.
        free: u64,
        /// Bytes of the file system.
        total: u64,
        /// Bytes that the outbox needs.
        needed: u64,
        /// The size of a segment, as it follows from the settings.
        segment_bytes: u32,
        /// The largest message of the settings.
        max_message_bytes: usize,
        /// The longest segment that would fit.
        fitting: Option<u32>,
    },
    /// The log cannot be opened.
    #[error("outbox {}: {source}", directory.display())]
    Log {
        /// The outbox.
        directory: PathBuf,
        /// What the log says.
        source: WalError,
    },
}

fn settings(fitting: &Option<u32>) -> String {
    fitting.map_or_else(String::new, |segment| {
        let message = most_message(segment);
        format!(", or set segment_bytes to {segment} at most, and max_message_bytes to {message} at most")
    })
}

impl Outbox {
    /// Opens the outbox in a directory, or makes one.
    ///
    /// # Errors
    /// The directory is unfit, held by another process, or its log cannot be read. Damage is no reason: it is set
    /// aside, and reported in [`found`](Self::found).
    pub fn open(options: &OutboxOptions) -> Result<Self, OutboxError> {
        file_size::shielded(|| Self::open_here(options))
    }

    fn open_here(options: &OutboxOptions) -> Result<Self, OutboxError> {
        let directory_options = DirectoryOptions { lock_wait: options.lock_wait, id_from_log: Some(&wal::outbox_of) };
        let directory = Directory::open(&options.directory, &directory_options)?;
        if directory.created() {
            tracing::info!(directory = %directory.paths().root().display(), "an outbox is made");
        }
        let incarnation = clock::random_u64();
        let changed = Changed::default();
        let sizes = Sizes::of(options, directory.paths());
        sizes.check_disk(options, directory.paths())?;
        let log_options = |size: LogSize| {
            let changed = Arc::clone(&changed);
            let on_change = Arc::new(move || {
                if let Some(changed) = changed.get() {
                    changed();
                }
            });
            let base = wal::Options::new(*directory.id(), incarnation).with_segment_bytes(size.segment_bytes);
            wal::Options { max_segments: size.segments, record_bytes: size.record_bytes, on_change, ..base }
        };
        let guard = Arc::clone(directory.guard());
        let storage: Arc<dyn Storage> = Arc::new(Guarded { disk: Arc::clone(&options.storage), guard });
        let open = |path: PathBuf, options_of_log: wal::Options| -> Result<Log, OutboxError> {
            let opened = Wal::open(Arc::clone(&storage), &path, options_of_log.clone());
            let (wal, recovered) =
                opened.map_err(|source| OutboxError::Log { directory: options.directory.clone(), source })?;
            Ok(Log { wal, recovered, options: options_of_log })
        };
        let wal = open(directory.paths().wal(), log_options(sizes.wal))?;
        let dead = open(directory.paths().dead(), log_options(sizes.dead))?;
        let ledger = Ledger::open(&directory.paths().ledger(), options.ledger.clone());
        Ok(Self::assemble(Arc::new(directory), storage, wal, dead, ledger, changed))
    }

    /// Opens the outbox without threads and without a ledger, for tests that must be repeatable: the directory is open
    /// already and may be used again and again, and whoever holds the steppers (of the log, of the dead letters) does
    /// the threads' work. What would wait for them calls [`wal::Options::while_waiting`].
    ///
    /// # Errors
    /// As [`open`](Self::open), less the directory's.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_stepped(
        directory: Arc<Directory>,
        storage: Arc<dyn Storage>,
        wal: wal::Options,
        dead: wal::Options,
        ledger: Ledger,
    ) -> Result<(Self, [wal::Stepper; 2]), WalError> {
        let open = |path: PathBuf, options: wal::Options| {
            let (wal, recovered, stepper) = Wal::open_stepped(Arc::clone(&storage), &path, options.clone())?;
            Ok::<_, WalError>((Log { wal, recovered, options }, stepper))
        };
        let (wal, wal_stepper) = open(directory.paths().wal(), wal)?;
        let (dead, dead_stepper) = open(directory.paths().dead(), dead)?;
        let outbox = Self::assemble(directory, storage, wal, dead, ledger, Arc::default());
        Ok((outbox, [wal_stepper, dead_stepper]))
    }

    fn assemble(
        directory: Arc<Directory>,
        storage: Arc<dyn Storage>,
        wal: Log,
        dead: Log,
        ledger: Ledger,
        changed: Changed,
    ) -> Self {
        let record_bytes = u64::from(wal.options.record_bytes);
        let dead_record_bytes = u64::from(dead.options.record_bytes);
        // So that a dead letter finds room on a disk that is full by then.
        dead.wal.request(dead_record_bytes);
        let space = Space::new(u64::from(wal.options.segment_bytes) / 2);
        wal.wal.keep_promised(space.reserved());
        let routes = &wal.recovered.state.routes;
        let mut damage = wal.recovered.damage;
        damage.extend(dead.recovered.damage);
        let found = Found {
            pending: routes
                .iter()
                .filter(|(_, pending)| pending.count > 0)
                .map(|(route, pending)| (route.clone(), *pending))
                .collect(),
            last_lsn: wal.recovered.next_lsn - 1,
            damage,
        };
        Self {
            totals: Mutex::new(Totals::recovered(routes.iter())),
            settling: Mutex::new(Settling::recovered(wal.recovered.state.settled)),
            space,
            numbers: AtomicU64::new(1),
            set_aside: AtomicU64::new(damaged::count(&*storage, directory.paths()).unwrap_or(0)),
            incarnation: wal.options.incarnation,
            directory,
            storage,
            max_ranges: wal.options.max_ranges,
            wal: wal.wal,
            dead: dead.wal,
            dead_settled: dead.recovered.state.settled,
            ledger,
            forgotten: Mutex::default(),
            found,
            changed,
            record_bytes,
            dead_record_bytes,
        }
    }
}

/// A log that was opened.
struct Log {
    wal: Wal,
    recovered: Recovered,
    options: wal::Options,
}

/// Who is told of changes, once there is somebody.
type Changed = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;
