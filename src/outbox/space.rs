//! Space in the outbox, reserved before a message is handed to the broker, so that a failed first attempt always
//! finds room.
//!
//! Reserved means: in segments that are allocated. What is stored first may not use the last segment, so that a
//! backlog leaves room for the first attempts of healthy lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wal::Wal;

/// Whom space is reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// A first attempt: it may use all there is.
    FirstAttempt,
    /// A message that is stored at once: it leaves one segment to first attempts.
    Stored,
}

/// Why nothing could be reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The outbox or the disk is full for now.
    Full,
    /// The disk does not work.
    Broken(String),
}

/// Space that is kept free for one message, until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    bytes: u64,
    reserved: Arc<AtomicU64>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The account.
#[derive(Debug)]
pub struct Space {
    reserved: Arc<AtomicU64>,
    /// What stored messages leave to first attempts; also prepared ahead of need.
    share: u64,
}

impl Space {
    /// Nothing is reserved; `share` bytes are for first attempts alone.
    pub fn new(share: u64) -> Self {
        Self { reserved: Arc::new(AtomicU64::new(0)), share }
    }

    /// Bytes reserved at any time.
    pub fn reserved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.reserved)
    }

    /// Asks for what first attempts may take to be made ready. True: it is not yet, and nothing stands in its way.
    pub fn prepare(&self, wal: &Wal) -> bool {
        let space = wal.space();
        if space.usable >= self.share {
            return false;
        }
        wal.request(self.share);
        let is_full = space.segments >= space.max_segments as usize;
        !is_full && space.last_error.is_none() && wal.health().is_none()
    }

    /// Reserves `bytes`, or asks for more to be prepared and says why there is none yet.
    pub fn reserve(&self, wal: &Wal, bytes: u64, share: Share) -> Result<Reservation, NoRoom> {
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        // Dropped on the way out, this gives the bytes back.
        let reservation = Reservation { bytes, reserved: Arc::clone(&self.reserved) };
        let wanted = before + bytes;
        let usable = wal.usable();
        if wanted + self.share > usable {
            wal.request(wanted + self.share);
        }
        let limit = match share {
            Share::FirstAttempt => usable,
            Share::Stored => usable.saturating_sub(self.share),
        };
        if wanted <= limit {
            return Ok(reservation);
        }
        // The slow way: only when there is no room yet.
        let space = wal.space();
        let can_grow = space.last_error.is_none() && space.segments + space.prepared < space.max_segments as usize;
        if share == Share::Stored && can_grow && wanted <= usable {
            return Ok(reservation);
        }
        // A full disk is waited for, as a full outbox is; a broken one is not.
        match wal.health().or(space.last_error).filter(|fault| !fault.no_space) {
            Some(fault) => Err(NoRoom::Broken(fault.reason)),
            None => Err(NoRoom::Full),
        }
    }
}
