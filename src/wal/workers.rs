//! The log's two workers, one of which writes and one of which prepares segments: turn by turn, or on threads.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::committer::Committer;
use super::prepare;
use super::shared::{Shared, Trouble};
use crate::file_size;

/// What a turn of a worker says about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do.
    Again,
    /// Nothing to do until then, unless something arrives.
    Until(Instant),
    /// Nothing to do until something arrives.
    Idle,
    /// Closed.
    Done,
}

/// The work of the log's threads, turn by turn, for tests that must be repeatable.
pub struct Stepper {
    shared: Arc<Shared>,
    committer: Committer,
}

impl Stepper {
    pub(super) fn new(shared: Arc<Shared>, committer: Committer) -> Self {
        Self { shared, committer }
    }

    /// The same work for threads of its own.
    pub(super) fn into_workers(self) -> [Worker; 2] {
        let Self { shared, mut committer } = self;
        let (commit, prepare) = (Arc::clone(&shared), Arc::clone(&shared));
        let commit = move || run_committer(&commit, &mut committer);
        let prepare = move || run_preparer(&prepare);
        [
            Worker { name: "outlast-wal", shared: Arc::clone(&shared), work: Box::new(commit) },
            Worker { name: "outlast-prepare", shared, work: Box::new(prepare) },
        ]
    }

    /// One turn of the committer.
    pub fn commit(&mut self, now: Instant) -> Turn {
        self.committer.tick(now)
    }

    /// One turn of the preparer.
    pub fn prepare(&mut self, now: Instant) -> Turn {
        prepare::tick(&self.shared, now)
    }

    /// Turns of the preparer for a thread of its own.
    #[cfg(test)]
    pub(super) fn preparer(&self) -> impl FnMut(Instant) -> Turn + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move |now| prepare::tick(&shared, now)
    }

    /// The last turn of the committer at a close, whatever may have been submitted since the one before.
    #[cfg(test)]
    pub(super) fn finish(&mut self, now: Instant) {
        self.committer.finish(now);
    }

    /// What [`Wal`]'s drop has the threads do: nothing more is written, and appends that wait get their error.
    pub fn abandon(&mut self, now: Instant) {
        self.shared.queue().abandoned = true;
        self.committer.tick(now);
    }
}

/// One of them, for a thread of its own.
pub(super) struct Worker {
    name: &'static str,
    shared: Arc<Shared>,
    work: Box<dyn FnMut() + Send>,
}

impl Worker {
    /// Starts the thread. Should it panic, nothing is written any more: the log is as after a crash, its health says so,
    /// and nobody is left waiting.
    pub fn start(mut self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(self.name.into()).spawn(move || {
            file_size::block_signal();
            if catch_unwind(AssertUnwindSafe(&mut self.work)).is_err() {
                let reason = format!("the thread {} panicked; open the outbox again", self.name);
                self.shared.view().panicked = Some(Trouble { reason: reason.clone(), no_space: false });
                self.shared.abandon();
                self.shared.changed();
                // If it was the committer, it answers everybody in this turn.
                let again = catch_unwind(AssertUnwindSafe(&mut self.work)).is_err();
                // Last: whoever takes in what is logged is not ours, and may panic.
                tracing::error!(reason, again, "the log has stopped");
            }
        })
    }
}

fn run_committer(shared: &Shared, committer: &mut Committer) {
    loop {
        let until = match committer.tick(Instant::now()) {
            Turn::Again => continue,
            Turn::Done => return,
            Turn::Until(when) => Some(when),
            Turn::Idle => None,
        };
        let queue = shared.queue();
        if queue.wake || queue.abandoned {
            continue;
        }
        match until.map(|when| when.saturating_duration_since(Instant::now())) {
            Some(rest) => drop(shared.work.wait_timeout(queue, rest)),
            None => drop(shared.work.wait(queue)),
        }
    }
}

fn run_preparer(shared: &Shared) {
    loop {
        let until = match prepare::tick(shared, Instant::now()) {
            Turn::Again => continue,
            Turn::Done => return,
            Turn::Until(when) => Some(when),
            Turn::Idle => None,
        };
        let space = shared.space();
        if !space.is_idle(&shared.options, Instant::now()) {
            continue;
        }
        match until.map(|when| when.saturating_duration_since(Instant::now())) {
            Some(rest) => drop(shared.prepare.wait_timeout(space, rest)),
            None => drop(shared.prepare.wait(space)),
        }
    }
}
