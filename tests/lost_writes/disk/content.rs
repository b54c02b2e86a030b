//! The bytes of one file: as its readers see them, as they are after a power cut, and every change in between.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::Loss;

/// What a disk writes at once: a write of more may be torn between any two of these.
const SECTOR: usize = 512;

/// One write that was not synced; or a change of length, of zeros cut off or of nothing.
#[derive(Clone)]
struct Change {
    offset: usize,
    bytes: Vec<u8>,
    /// The file's length after it.
    length: usize,
}

impl Change {
    /// Does it to the bytes that lie in `from..to`.
    fn apply(&self, image: &mut [u8], from: usize, to: usize) {
        let (start, end) = (self.offset.max(from), (self.offset + self.bytes.len()).min(to));
        if start < end {
            image[start..end].copy_from_slice(&self.bytes[start - self.offset..end - self.offset]);
        }
    }
}

/// A file's bytes.
#[derive(Clone, Default)]
pub struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

impl Content {
    /// What lies on a disk after a start: nothing is waiting to be synced.
    fn settled(bytes: Vec<u8>) -> Self {
        Self { live: bytes.clone(), durable: bytes, changes: Vec::new() }
    }

    pub fn length(&self) -> usize {
        self.live.len()
    }

    pub fn read(&self, offset: usize, size: usize) -> &[u8] {
        let start = offset.min(self.live.len());
        &self.live[start..start.saturating_add(size).min(self.live.len())]
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.live.len() {
            self.live.resize(end, 0);
        }
        self.live[offset..end].copy_from_slice(bytes);
        self.changes.push(Change { offset, bytes: bytes.to_vec(), length: self.live.len() });
    }

    /// Cuts the file, or makes it longer by zeros.
    pub fn set_length(&mut self, length: usize) {
        let cut = self.live.len().saturating_sub(length);
        self.live.resize(length, 0);
        self.changes.push(Change { offset: length, bytes: vec![0; cut], length });
    }

    /// A sync that succeeds.
    pub fn sync(&mut self) {
        for change in self.changes.drain(..) {
            let end = (change.offset + change.bytes.len()).max(change.length);
            self.durable.resize(end.max(self.durable.len()), 0);
            change.apply(&mut self.durable, 0, end);
            self.durable.resize(change.length, 0);
        }
    }

    /// A sync that fails, as Linux does it: what should have been written counts as clean. Readers still see it, the
    /// next sync says yes, and it is nowhere.
    pub fn fail_sync(&mut self) {
        self.changes.clear();
    }

    /// What is there after a power cut. Of each sector written since the last sync any one of its versions; of the
    /// lengths any one; each by itself, so writes are torn and come in any order.
    pub fn cut(&self, loss: Loss, rng: &mut Rng) -> Self {
        let kept = match loss {
            Loss::Everything => return Self::settled(self.durable.clone()),
            Loss::Nothing => {
                let mut all = self.clone();
                all.sync();
                return Self::settled(all.durable);
            }
            Loss::Random { kept } => kept,
        };
        let ends = self.changes.iter().map(|change| (change.offset + change.bytes.len()).max(change.length));
        let mut image = self.durable.clone();
        image.resize(ends.max().unwrap_or(0).max(image.len()), 0);
        let mut sectors: BTreeMap<usize, Vec<&Change>> = BTreeMap::new();
        for change in self.changes.iter().filter(|change| !change.bytes.is_empty()) {
            let last = (change.offset + change.bytes.len() - 1) / SECTOR;
            (change.offset / SECTOR..=last).for_each(|sector| sectors.entry(sector).or_default().push(change));
        }
        for (sector, versions) in sectors {
            let version = if rng.f64() < kept { versions.len() } else { rng.usize(..versions.len()) };
            for change in &versions[..version] {
                change.apply(&mut image, sector * SECTOR, (sector + 1) * SECTOR);
            }
        }
        let lengths: Vec<usize> =
            [self.durable.len()].into_iter().chain(self.changes.iter().map(|change| change.length)).collect();
        let length = if rng.f64() < kept { lengths.last().copied() } else { rng.choice(lengths) };
        image.resize(length.unwrap_or(0), 0);
        Self::settled(image)
    }
}
