//! A file of the disk in memory: what the process sees of it, what a power cut would leave, and which write-back errors
//! its handles have yet to hear of.

use std::path::PathBuf;

/// What a disk writes at once, in most cases: see [`TORN`].
pub const SECTOR: usize = 512;
/// What the kernel keeps, and forgets, at once.
const PAGE: usize = 4096;
/// One in so many sectors reaches the disk in part: a power cut in the middle of it.
const TORN: u8 = 16;

/// See the module.
#[derive(Clone)]
pub struct Image {
    /// The name it has, or had last.
    pub path: PathBuf,
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    /// What was written since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Pages may differ from the disk though they count as clean: a write-back failed.
    diverged: bool,
    errors: Errors,
}

/// Write-back errors, as Linux counts them (`errseq_t`): each handle that was open hears of one once, at its next sync,
/// whichever handle wrote; one opened later hears of it only if none has by then.
#[derive(Clone, Copy, Default)]
struct Errors {
    count: u64,
    errno: i32,
    heard: bool,
}

impl Image {
    /// A file that is on the disk.
    pub fn durable(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self {
            path,
            durable: bytes.clone(),
            live: bytes,
            unsynced: Vec::new(),
            diverged: false,
            errors: Errors::default(),
        }
    }

    /// How many errors a handle that is opened now counts as heard.
    pub fn heard(&self) -> u64 {
        let Errors { count, heard, .. } = self.errors;
        if heard { count } else { count.saturating_sub(1) }
    }

    /// The error that a handle has yet to hear of; from now on it has.
    pub fn hear(&mut self, heard: &mut u64) -> Option<i32> {
        let pending = *heard < self.errors.count;
        *heard = self.errors.count;
        self.errors.heard |= pending;
        pending.then_some(self.errors.errno)
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.live, offset, bytes);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    pub fn sync(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            put(&mut self.durable, offset, &bytes);
        }
        self.durable.resize(self.live.len(), 0);
    }

    /// Pages that could not be written back: they are marked clean though not all of them reached the disk; the process
    /// sees them until the kernel forgets them. Each handle hears of it at its next sync.
    pub fn fail_write_back(&mut self, errno: i32, rng: &mut fastrand::Rng) {
        self.tear(rng);
        self.diverged = true;
        self.errors = Errors { count: self.errors.count + 1, errno, heard: false };
    }

    /// Before a read: the kernel may have forgotten clean pages, and reads them from the disk. That makes a difference
    /// only after a write-back that failed.
    pub fn forget(&mut self, rng: &mut fastrand::Rng) {
        if self.diverged && rng.u8(..4) == 0 {
            self.forget_pages(|| rng.bool());
        }
    }

    /// The kernel forgets all clean pages.
    pub fn forget_clean(&mut self) {
        if self.diverged {
            self.forget_pages(|| true);
            self.diverged = !self.unsynced.is_empty();
        }
    }

    fn forget_pages(&mut self, mut forgets: impl FnMut() -> bool) {
        for from in (0..self.live.len()).step_by(PAGE) {
            let to = (from + PAGE).min(self.live.len());
            let is_dirty = self.unsynced.iter().any(|(offset, bytes)| *offset < to && offset + bytes.len() > from);
            if !is_dirty && forgets() {
                // What the disk has no block for reads as zeros.
                let end = self.durable.len().clamp(from, to);
                if end > from {
                    self.live[from..end].copy_from_slice(&self.durable[from..end]);
                }
                self.live[end..to].fill(0);
            }
        }
    }

    /// What a power cut leaves of it.
    pub fn crash(&self, path: PathBuf, rng: &mut fastrand::Rng) -> Self {
        let (durable, unsynced) = (self.durable.clone(), self.unsynced.clone());
        let mut left = Self { unsynced, ..Self::durable(path, durable) };
        left.tear(rng);
        left.live.clone_from(&left.durable);
        left
    }

    /// Some of the unsynced sectors reach the disk, in any order, and a few of them in part.
    fn tear(&mut self, rng: &mut fastrand::Rng) {
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut sectors = Vec::new();
        for (offset, bytes) in &unsynced {
            let mut at = 0;
            while at < bytes.len() {
                let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                sectors.push((offset + at, &bytes[at..end]));
                at = end;
            }
        }
        // All, none, or each by itself: the first two are likely and would be rare otherwise.
        let chance = [0.0, 0.5, 0.9, 1.0][rng.usize(..4)];
        rng.shuffle(&mut sectors);
        for (offset, bytes) in sectors {
            if rng.f64() < chance {
                let (from, to) = if chance < 1.0 && rng.u8(..TORN) == 0 {
                    let cut = rng.usize(..=bytes.len());
                    if rng.bool() { (0, cut) } else { (cut, bytes.len()) }
                } else {
                    (0, bytes.len())
                };
                put(&mut self.durable, offset + from, &bytes[from..to]);
            }
        }
    }
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}
