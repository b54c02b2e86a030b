//! A file of the disk in memory: what the process sees of it, and what a power cut would leave.

use std::path::PathBuf;

/// What a disk writes at once.
pub const SECTOR: usize = 512;

/// See the module.
#[derive(Clone)]
pub struct Image {
    /// The name it has, or had last.
    pub path: PathBuf,
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
    /// What was written since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Image {
    /// A file that is on the disk.
    pub fn durable(path: PathBuf, bytes: Vec<u8>) -> Self {
        Self { path, durable: bytes.clone(), live: bytes, unsynced: Vec::new() }
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

    /// A sync that failed: the pages are marked clean though not all of them reached the disk; the process still sees
    /// them.
    pub fn fail_sync(&mut self, rng: &mut fastrand::Rng) {
        self.tear(rng);
    }

    /// What a power cut leaves of it.
    pub fn crash(&self, path: PathBuf, rng: &mut fastrand::Rng) -> Self {
        let (durable, unsynced) = (self.durable.clone(), self.unsynced.clone());
        let mut left = Self { path, live: Vec::new(), durable, unsynced };
        left.tear(rng);
        left.live.clone_from(&left.durable);
        left
    }

    /// Some of the unsynced sectors reach the disk, in any order.
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
                put(&mut self.durable, offset, bytes);
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
