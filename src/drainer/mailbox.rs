//! What the drainer has to know, and what wakes it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::drainer::entry::Entry;
use crate::message::{Lane, Position, Route};
use crate::transport::{Availability, Failure, Outcome};
use crate::wal::Lsn;

/// One thing that happened.
#[derive(Clone)]
pub enum Mail {
    /// A stored message that the transport owned is delivered.
    Settled {
        /// Which.
        lsn: Lsn,
        /// The message.
        entry: Arc<Entry>,
        /// Where it lies.
        position: Position,
    },
    /// A first attempt went well, on a route or partition that was blocked.
    Passed {
        /// The route's hash.
        route: u64,
        /// The partition.
        partition: Option<i32>,
    },
    /// A stored message that the transport owned has failed.
    Returned {
        /// Which.
        lsn: Lsn,
        /// The message.
        entry: Arc<Entry>,
        /// Why.
        failure: Arc<Failure>,
    },
    /// A first attempt failed; the message is on its way to the disk.
    FirstFailed {
        /// The route.
        route: Route,
        /// The partition.
        partition: Option<i32>,
        /// The lane.
        lane: Option<Lane>,
        /// Why.
        failure: Arc<Failure>,
    },
    /// A first attempt has taken too long. The transport still owns it.
    Late {
        /// The message.
        entry: Arc<Entry>,
    },
    /// The transport reported on a message from within `submit`, where the lock of its slot is held.
    Reported {
        /// The message.
        entry: Arc<Entry>,
        /// What became of it.
        outcome: Outcome,
    },
    /// The broker can be reached, or not.
    Available(Availability),
    /// A route is usable again.
    RouteUp(u64),
    /// A dead letter is on the disk, or could not be written.
    Buried {
        /// The message's LSN.
        lsn: Lsn,
        /// The message.
        entry: Arc<Entry>,
        /// Why it was given up.
        reason: String,
        /// Why the dead letter could not be written.
        error: Option<String>,
    },
}

#[derive(Default)]
struct Inside {
    mail: Vec<Mail>,
    kicked: bool,
    stop: bool,
}

/// A queue with a bell. Bounded by what it carries: reports on owned messages, and changes of state.
#[derive(Default)]
pub struct Mailbox {
    inside: Mutex<Inside>,
    bell: Condvar,
}

impl Mailbox {
    /// Puts mail in and rings. Nobody reads it any more once the drainer is to end: then it is dropped.
    pub fn post(&self, mail: Mail) {
        let first = {
            let mut inside = self.lock();
            if inside.stop {
                return;
            }
            inside.mail.push(mail);
            !std::mem::replace(&mut inside.kicked, true)
        };
        if first {
            self.bell.notify_one();
        }
    }

    /// Rings: there may be something to read, or room.
    pub fn kick(&self) {
        let first = !std::mem::replace(&mut self.lock().kicked, true);
        if first {
            self.bell.notify_one();
        }
    }

    /// Asks the drainer to end.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.bell.notify_one();
    }

    /// Takes all mail; false: the drainer is to end.
    pub fn take(&self, into: &mut Vec<Mail>) -> bool {
        let mut inside = self.lock();
        inside.kicked = false;
        into.append(&mut inside.mail);
        !inside.stop
    }

    /// Waits until somebody rings, or until then.
    pub fn wait(&self, until: Option<Instant>) {
        let mut inside = self.lock();
        while !inside.kicked && !inside.stop {
            let Some(until) = until else {
                inside = self.bell.wait(inside).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return;
            }
            inside = self.bell.wait_timeout(inside, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is reported after the end would be kept for ever: it holds the dispatcher, which holds the mailbox.
    #[test]
    fn what_comes_after_the_end_is_not_kept() {
        let (mailbox, mut mail) = (Mailbox::default(), Vec::new());
        mailbox.post(Mail::RouteUp(1));
        mailbox.stop();
        mailbox.post(Mail::RouteUp(2));
        assert!(!mailbox.take(&mut mail));
        assert!(matches!(mail[..], [Mail::RouteUp(1)]), "{}", mail.len());
    }
}
