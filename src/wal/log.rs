//! The log as others see it.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::committer::Committer;
use super::error::WalError;
use super::frame::FRAME_HEADER;
use super::queue::{Barrier, Done, Queue};
use super::reader::Reader;
use super::recovery::{self, Recovered};
use super::routes::Routes;
use super::shared::{Shared, Trouble, View};
use super::space::Space;
use super::state::Pending;
use super::storage::Storage;
use super::workers::Stepper;
use super::{EntryRef, Lsn, Options, Settled, record, round_up};
use crate::forked::Maker;
use crate::message::{Outgoing, Route};

/// An append-only log of messages, and of what became of them.
///
/// Two threads serve it: one writes, one prepares segments. Dropping it without [`close`](Self::close) stops them
/// where they are, as a crash would; appends that wait get their error.
pub struct Wal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    maker: Maker,
}

/// Room in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Bytes that prepared segments can still take, at worst.
    pub usable: u64,
    /// Segments in use, or on their way out of it.
    pub segments: usize,
    /// Segments that are ready to be used.
    pub prepared: usize,
    /// Segments there may be.
    pub max_segments: u32,
    /// Why the last segment could not be prepared.
    pub last_error: Option<Trouble>,
}

/// What the log says, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The LSN behind the last durable one.
    pub next_lsn: Lsn,
    /// Everything up to here is settled.
    pub settled_prefix: Lsn,
    /// Settled ranges beyond it.
    pub ranges: usize,
    /// What is pending, a route.
    pub routes: Vec<(Route, Pending)>,
}

impl Wal {
    /// Opens the log in a directory, which must exist, and starts its threads.
    ///
    /// # Errors
    /// An option out of bounds; a segment that cannot be read by the system, is of a newer format, or belongs to
    /// another outbox. Nothing was written. Damage is no error: [`Recovered`] tells of it.
    pub fn open(storage: Arc<dyn Storage>, directory: &Path, options: Options) -> Result<(Self, Recovered), WalError> {
        let (wal, recovered, stepper) = Self::open_stepped(storage, directory, options)?;
        for work in stepper.into_workers() {
            let thread = work.start().map_err(WalError::io("start a thread for", directory))?;
            wal.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok((wal, recovered))
    }

    /// Opens the log without threads: whoever holds the [`Stepper`] does their work.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_stepped(
        storage: Arc<dyn Storage>,
        directory: &Path,
        options: Options,
    ) -> Result<(Self, Recovered, Stepper), WalError> {
        options.check()?;
        let found = recovery::recover(&*storage, directory, &options)?;
        let recovered = found.recovered;
        let contents = recovered.state.contents(found.segments.len() + 1);
        let overhead = contents.to_come().room(options.frame_bytes);
        let most_route_bytes = options.most_route_bytes(contents.segments, contents.ranges);
        let routes = Routes::new(recovered.state.routes.keys(), most_route_bytes);
        let view = View {
            segments: found.segments,
            state: recovered.state.clone(),
            tail: std::collections::VecDeque::new(),
            tail_bytes: 0,
            broken: None,
            panicked: None,
        };
        let space = Space::new(&view, &found.free, found.discard, found.next_number, overhead);
        let shared = Arc::new(Shared {
            storage,
            directory: directory.to_path_buf(),
            options,
            queue: Mutex::new(Queue::new(recovered.next_lsn, routes)),
            work: Condvar::new(),
            view: Mutex::new(view),
            space: Mutex::new(space),
            prepare: Condvar::new(),
            ready: Condvar::new(),
            durable: AtomicU64::new(found.last_acked),
        });
        let committer = Committer::new(Arc::clone(&shared), found.next_number);
        let wal = Self { shared: Arc::clone(&shared), threads: Mutex::new(Vec::new()), maker: Maker::this() };
        Ok((wal, recovered, Stepper::new(shared, committer)))
    }

    /// Encodes a record, fixes its place in the order, and returns its LSN; never waits for the disk.
    ///
    /// `done` is called exactly once, on the log's thread: `Ok` after the sync that made the record durable, `Err` when
    /// it was not accepted (see [`WalError`]). It must be quick and must not block. Only once the log is closed it is
    /// called within this call. A record beyond [`Options::record_bytes`] takes no LSN: 0 is returned, and `done` gets
    /// [`WalError::TooLarge`]; likewise one of a route for which there is no room beside all that have something pending
    /// ([`WalError::Crowded`]).
    pub fn append(&self, entry: EntryRef<'_>, done: impl FnOnce(Result<Lsn, Arc<WalError>>) + Send + 'static) -> Lsn {
        let (bytes, limit) = (Self::footprint(entry), u64::from(self.shared.options.record_bytes));
        let mut queue = self.shared.queue();
        if queue.closed || queue.closing {
            drop(queue);
            done(Err(Arc::new(WalError::Closed)));
            return 0;
        }
        let done = Done::new(done);
        let admitted = if bytes > limit {
            Err(WalError::TooLarge { bytes, limit })
        } else {
            queue.admit(entry, || self.shared.view().state.routes.keys().cloned().collect())
        };
        let pushed = match admitted {
            Ok(()) => queue.push(entry, self.shared.options.frame_bytes, done),
            Err(error) => Err((done, error)),
        };
        let lsn = pushed.unwrap_or_else(|rejected| {
            queue.rejected.push(rejected);
            0
        });
        self.wake(queue);
        lsn
    }

    /// What a record takes on the disk at worst: a frame of its own, in whole blocks. Cheap; reservations are made in it.
    pub fn footprint(entry: EntryRef<'_>) -> u64 {
        round_up(FRAME_HEADER as u64 + record::encoded_bound(entry))
    }

    /// The same of a message with a reason of so many bytes, among dead letters.
    pub fn dead_footprint(outgoing: &Outgoing, reason: usize) -> u64 {
        round_up(FRAME_HEADER as u64 + record::dead_bound(outgoing, reason))
    }

    /// Records that messages are settled. It rides in the next frame, or in one of its own soon; it counts once that
    /// is synced, and is written again if it could not be. Only what was acknowledged may be settled, and only once.
    pub fn settle(&self, settled: Settled) {
        let mut queue = self.shared.queue();
        if queue.closed {
            return;
        }
        let first = queue.controls_since.is_none();
        queue.settle(settled, (self.shared.options.clock)());
        // The committer has to wake only if its next deadline moved.
        if first {
            self.wake(queue);
        }
    }

    fn wake(&self, mut queue: std::sync::MutexGuard<'_, Queue>) {
        let asleep = !queue.wake;
        queue.wake = true;
        drop(queue);
        if asleep {
            self.shared.work.notify_one();
        }
    }

    /// Bytes encoded and not yet taken to be written.
    pub fn queued_bytes(&self) -> usize {
        self.shared.queue().bytes()
    }

    /// The last acknowledged LSN.
    pub fn durable(&self) -> Lsn {
        self.shared.durable()
    }

    /// LSNs that were settled and whose settlement is not yet written.
    pub fn unlogged_settlements(&self) -> usize {
        self.shared.queue().settlements()
    }

    /// Whether some of them wait for nothing but the disk. Others would make more ranges than there may be, and wait until
    /// what lies between is settled.
    pub fn has_settlements_to_write(&self) -> bool {
        self.shared.queue().writable_settlements() > 0
    }

    /// Returns once all that was submitted before, settlements too, is durable and sealed; or, with an error, once every
    /// record submitted before was answered.
    ///
    /// # Errors
    /// Something could not be written, or, of settlements, has to wait; it may have been submitted by somebody else.
    pub fn sync(&self) -> Result<(), Arc<WalError>> {
        let (told, answer) = channel();
        {
            let mut queue = self.shared.queue();
            if queue.closed || queue.closing {
                return Err(Arc::new(WalError::Closed));
            }
            let (lsn, settlements) = (queue.next_lsn, queue.submitted);
            queue.barriers.push(Barrier { lsn, settlements, failed: None, told });
            self.wake(queue);
        }
        self.answer(&answer).unwrap_or_else(|| Err(Arc::new(WalError::Closed)))
    }

    /// Callers of [`sync`](Self::sync) that the log's thread has not looked at.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.shared.queue().barriers.len()
    }

    /// Waits for what the log's thread sends; `None` if nothing comes any more.
    pub(crate) fn answer<T>(&self, from: &Receiver<T>) -> Option<T> {
        let Some(work) = &self.shared.options.while_waiting else { return from.recv().ok() };
        loop {
            match from.try_recv() {
                Ok(answer) => return Some(answer),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => work(),
            }
        }
    }

    /// Bytes (in [footprints](Self::footprint)) that are sure to find room in segments prepared already, or in the one
    /// that is being opened, unless that fails.
    pub fn usable(&self) -> u64 {
        self.shared.space().usable_meanwhile(&self.shared.options)
    }

    /// Asks for so much to be prepared, as far as the limit of segments allows. [`Options::on_change`] tells when
    /// something changed: then look at [`usable`](Self::usable) again.
    pub fn request(&self, usable: u64) {
        self.shared.space().set_target(usable);
        self.shared.prepare.notify_one();
    }

    /// `bytes` (in footprints) are promised to somebody at any time: so many are not given back to the disk.
    pub fn keep_promised(&self, bytes: Arc<AtomicU64>) {
        self.shared.space().set_promised(bytes);
    }

    /// Room in the log.
    pub fn space(&self) -> SpaceInfo {
        let space = self.shared.space();
        SpaceInfo {
            usable: space.usable(&self.shared.options),
            segments: space.segments(),
            prepared: space.prepared(),
            max_segments: self.shared.options.max_segments,
            last_error: space.last_error.clone(),
        }
    }

    /// What is pending, as logged and durable.
    pub fn state(&self) -> Summary {
        let view = self.shared.view();
        Summary {
            next_lsn: view.state.next_lsn,
            settled_prefix: view.state.settled.prefix(),
            ranges: view.state.settled.len(),
            routes: view.state.routes.iter().map(|(route, pending)| (route.clone(), *pending)).collect(),
        }
    }

    /// LSNs below those of the newest segment that no segment has any more: from one on to below another.
    pub fn holes(&self) -> Vec<(Lsn, Lsn)> {
        let (mut holes, mut next) = (Vec::new(), 1);
        for segment in self.shared.view().segments.values() {
            if segment.first_lsn > next {
                holes.push((next, segment.first_lsn));
            }
            next = next.max(segment.last_lsn + 1);
        }
        holes
    }

    /// Why the log cannot be written, if it cannot; the next append tries again, unless a thread of the log panicked.
    pub fn health(&self) -> Option<Trouble> {
        let view = self.shared.view();
        view.panicked.as_ref().or(view.broken.as_ref()).cloned()
    }

    /// A reader of what is durable.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared))
    }

    /// Writes, syncs and seals everything, and stops the threads. Later appends get [`WalError::Closed`].
    ///
    /// # Errors
    /// The log is broken, or settlements could not be written: these messages will be delivered again.
    pub fn close(&self) -> Result<(), Arc<WalError>> {
        let (told, answer) = channel();
        {
            let mut queue = self.shared.queue();
            if queue.closed {
                return Ok(());
            }
            queue.closing = true;
            queue.barriers.push(Barrier { lsn: 0, settlements: 0, failed: None, told });
            self.wake(queue);
        }
        let answer = self.answer(&answer).unwrap_or_else(|| Err(Arc::new(WalError::Closed)));
        self.stop();
        answer
    }

    fn stop(&self) {
        self.shared.abandon();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A callback may own the last handle; a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if self.maker.is_other() {
            // The threads are the parent's: not even their handles may be looked at, as their stacks are gone.
            let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
            return std::mem::forget(std::mem::take(threads));
        }
        self.stop();
    }
}
