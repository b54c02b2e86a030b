//! Where first attempts are in play.

use std::sync::atomic::{AtomicU64, Ordering};

/// Slots with first attempts in play, so that looking for late ones costs what is in flight and not what there is.
pub struct Busy(Box<[AtomicU64]>);

impl Busy {
    pub fn new(slots: usize) -> Self {
        Self((0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub fn mark(&self, slot: usize) {
        let (word, bit) = (&self.0[slot / 64], 1 << (slot % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Called with the slot's lock held, as `mark` is.
    pub fn unmark(&self, slot: usize) {
        self.0[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::AcqRel);
    }

    pub fn any(&self) -> bool {
        self.0.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    pub fn marked(&self) -> Vec<usize> {
        let bits = |(at, word): (usize, &AtomicU64)| {
            let word = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits).collect()
    }
}
