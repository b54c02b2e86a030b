//! Opening an outbox: directory, logs, ledger.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::damaged;
use super::directory::{Directory, DirectoryError, DirectoryOptions, Paths};
use super::ledger::{Ledger, LedgerOptions};
use super::settling::Settling;
use super::space::Space;
use super::totals::Totals;
use super::{Found, Outbox};
use crate::clock;
use crate::wal::{self, DiskStorage, Storage, Wal, WalError};

/// What an outbox is opened with.
#[derive(Clone)]
pub struct OutboxOptions {
    /// The directory, made if it is not there.
    pub directory: PathBuf,
    /// How long to wait for another process to let go of it.
    pub lock_wait: Duration,
    /// The size of a segment.
    pub segment_bytes: u32,
    /// The outbox's size; by default 16 GiB or 80 % of the free space.
    pub max_bytes: Option<u64>,
    /// The largest message.
    pub max_message_bytes: usize,
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
    /// The log cannot be opened.
    #[error("outbox {}: {source}", directory.display())]
    Log {
        /// The outbox.
        directory: PathBuf,
        /// What the log says.
        source: WalError,
    },
}

impl Outbox {
    /// Opens the outbox in a directory, or makes one.
    ///
    /// # Errors
    /// The directory is unfit, held by another process, or its log cannot be read. Damage is no reason: it is set
    /// aside, and reported in [`found`](Self::found).
    pub fn open(options: &OutboxOptions) -> Result<Self, OutboxError> {
        let directory_options = DirectoryOptions { lock_wait: options.lock_wait, id_from_log: Some(&wal::outbox_of) };
        let directory = Directory::open(&options.directory, &directory_options)?;
        if directory.created() {
            tracing::info!(directory = %directory.paths().root().display(), "an outbox is made");
        }
        let incarnation = clock::random_u64();
        let changed: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>> = Arc::new(OnceLock::new());
        let max_bytes = options.max_bytes.unwrap_or_else(|| default_max_bytes(directory.paths()));
        // Dead letters count in the whole: an eighth of it is theirs.
        let for_dead = max_bytes / 8;
        let log_options = |segment_bytes: u32, max_bytes: u64| {
            let changed = Arc::clone(&changed);
            let on_change = Arc::new(move || {
                if let Some(changed) = changed.get() {
                    changed();
                }
            });
            let segments = u32::try_from(max_bytes / u64::from(segment_bytes)).unwrap_or(u32::MAX).max(4);
            let base = wal::Options::new(*directory.id(), incarnation).with_segment_bytes(segment_bytes);
            let record_bytes = base.record_bytes.min(record_bytes(options.max_message_bytes));
            wal::Options { max_segments: segments, record_bytes, on_change, ..base }
        };
        let open = |path: PathBuf, log_options: wal::Options| {
            Wal::open(Arc::clone(&options.storage), &path, log_options)
                .map_err(|source| OutboxError::Log { directory: options.directory.clone(), source })
        };
        let wal_options = log_options(options.segment_bytes, max_bytes - for_dead);
        let (max_ranges, record_bytes) = (wal_options.max_ranges, u64::from(wal_options.record_bytes));
        let (wal, recovered) = open(directory.paths().wal(), wal_options)?;
        let dead_options = log_options(dead_segment_bytes(options), for_dead);
        let (dead, recovered_dead) = open(directory.paths().dead(), dead_options)?;
        // So that a dead letter finds room on a disk that is full by then.
        dead.request(record_bytes);
        let ledger = Ledger::open(&directory.paths().ledger(), options.ledger.clone());
        let mut damage = recovered.damage;
        damage.extend(recovered_dead.damage);
        let found = Found {
            pending: recovered
                .state
                .routes
                .iter()
                .filter(|(_, pending)| pending.count > 0)
                .map(|(route, pending)| (route.clone(), *pending))
                .collect(),
            last_lsn: recovered.next_lsn - 1,
            damage,
        };
        Ok(Self {
            totals: Mutex::new(Totals::recovered(recovered.state.routes.iter())),
            settling: Mutex::new(Settling::recovered(recovered.state.settled)),
            space: Space::new(u64::from(options.segment_bytes) / 2),
            numbers: AtomicU64::new(1),
            set_aside: AtomicU64::new(damaged::count(directory.paths())),
            directory,
            incarnation,
            wal,
            dead,
            dead_settled: recovered_dead.state.settled,
            ledger,
            found,
            changed,
            max_ranges,
            record_bytes,
        })
    }
}

/// Dead letters are few: their segments are as small as the largest message allows.
fn dead_segment_bytes(options: &OutboxOptions) -> u32 {
    let least = u32::try_from(options.max_message_bytes * 4).unwrap_or(u32::MAX).next_multiple_of(4096);
    least.max(8 << 20).min(options.segment_bytes)
}

/// 16 GiB or 80 % of the free space, the smaller.
fn default_max_bytes(paths: &Paths) -> u64 {
    let free = rustix::fs::statvfs(paths.root()).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    (free / 10 * 8).min(crate::config::MAX_BYTES)
}

/// What the largest message takes on the disk, with its names, headers and, as a dead letter, its reason.
fn record_bytes(max_message_bytes: usize) -> u32 {
    const AROUND: usize = 64 << 10;
    u32::try_from(max_message_bytes.saturating_add(AROUND)).unwrap_or(u32::MAX - 4095).next_multiple_of(4096)
}
