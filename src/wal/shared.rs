//! What the log's threads and handles share.
//!
//! Three mutexes; where two are held, the order is queue, view, space. None is held across a call to the disk or to a
//! callback.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::queue::Queue;
use super::space::Space;
use super::state::{SegmentInfo, State};
use super::storage::Storage;
use super::{Lsn, Options, WalError};
use crate::file_size;

/// A frame that is durable, still in memory.
pub(super) struct TailFrame {
    pub segment: u64,
    pub offset: u32,
    pub bytes: Bytes,
}

/// Why the log cannot write, or cannot make segments ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What the system said.
    pub reason: String,
    /// There is no space: it passes once some is free.
    pub no_space: bool,
}

impl From<&WalError> for Trouble {
    fn from(error: &WalError) -> Self {
        let limit = match error {
            WalError::Io { source, .. } => file_size::advice(source),
            _ => "",
        };
        Self { reason: format!("{error}{limit}"), no_space: error.is_no_space() }
    }
}

/// What is durable, as readers and the status see it.
pub(super) struct View {
    /// The segments in use, by number.
    pub segments: BTreeMap<u64, SegmentInfo>,
    pub state: State,
    pub tail: VecDeque<TailFrame>,
    pub tail_bytes: usize,
    /// Why the log cannot write now.
    pub broken: Option<Trouble>,
    /// A thread of the log panicked: nothing mends that.
    pub panicked: Option<Trouble>,
}

impl View {
    /// How many of the two newest segments will come free by moving on to later ones, whatever these hold. The one that is
    /// being written (`active`) may yet take messages; a failed one is removed, not used again.
    pub fn coming_free(&self, active: Option<u64>) -> usize {
        let newest = self.segments.values().rev().take(2).filter(|segment| Some(segment.number) != active);
        newest.take_while(|segment| !segment.failed && !self.state.needs(segment)).count()
    }

    pub fn push_tail(&mut self, frame: TailFrame, most: usize) {
        self.tail_bytes += frame.bytes.len();
        self.tail.push_back(frame);
        while self.tail_bytes > most
            && let Some(oldest) = self.tail.pop_front()
        {
            self.tail_bytes -= oldest.bytes.len();
        }
    }

    pub fn tail_frame(&self, segment: u64, offset: u32) -> Option<Bytes> {
        let at = self.tail.binary_search_by_key(&(segment, offset), |frame| (frame.segment, frame.offset)).ok()?;
        self.tail.get(at).map(|frame| frame.bytes.clone())
    }
}

/// See the module.
pub(super) struct Shared {
    pub storage: Arc<dyn Storage>,
    pub directory: PathBuf,
    pub options: Options,
    pub queue: Mutex<Queue>,
    /// Something is in the queue.
    pub work: Condvar,
    pub view: Mutex<View>,
    pub space: Mutex<Space>,
    /// The preparer has something to do.
    pub prepare: Condvar,
    /// The preparer has finished something.
    pub ready: Condvar,
    pub durable: AtomicU64,
}

impl Shared {
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    pub fn space(&self) -> MutexGuard<'_, Space> {
        lock(&self.space)
    }

    pub fn durable(&self) -> Lsn {
        self.durable.load(Ordering::Acquire)
    }

    /// Has both workers end where they are; whoever waits is answered.
    pub fn abandon(&self) {
        let mut queue = self.queue();
        queue.abandoned = true;
        queue.wake = true;
        drop(queue);
        self.work.notify_all();
        self.space().closing = true;
        self.prepare.notify_all();
        self.ready.notify_all();
    }

    pub fn changed(&self) {
        (self.options.on_change)();
    }
}

/// A panic elsewhere does not make the data under a lock wrong: no lock here is held across a callback.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
