//! Destroys producers apart from the transport's threads.
//!
//! librdkafka joins its own threads then, and one of them may sit in a name lookup, which nothing can interrupt and
//! which takes as long as the resolver likes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::book::lock;

/// How often it is looked whether the one who lets go has let go.
const LOOK: Duration = Duration::from_millis(1);

/// Counts what is being destroyed.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    dying: Mutex<usize>,
    fewer: Condvar,
}

/// One that is being destroyed.
struct Dying(Arc<Reaper>);

impl Drop for Dying {
    fn drop(&mut self) {
        *lock(&self.0.dying) -= 1;
        self.0.fewer.notify_all();
    }
}

impl Reaper {
    /// Destroys something, of which the caller drops the only other reference at once, in a thread of its own; in the
    /// caller's if there is no thread to be had.
    pub(super) fn destroy<T: Send + Sync + 'static>(self: &Arc<Self>, doomed: Arc<T>) {
        *lock(&self.dying) += 1;
        let dying = Dying(Arc::clone(self));
        let work = move || {
            while Arc::strong_count(&doomed) > 1 {
                std::thread::sleep(LOOK);
            }
            drop(doomed);
            drop(dying);
        };
        if let Err(error) = std::thread::Builder::new().name("outlast-kafka-end".to_owned()).spawn(work) {
            tracing::debug!(%error, "no thread to destroy a producer instance in");
        }
    }

    /// Waits until nothing is being destroyed, for `timeout` at most; says whether it is so.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let waited = self.fewer.wait_timeout_while(lock(&self.dying), timeout, |dying| *dying > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use super::*;

    struct Slow(Mutex<Receiver<()>>);

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = lock(&self.0).recv();
        }
    }

    #[test]
    fn what_takes_long_to_destroy_keeps_nobody() {
        let (release, wait) = channel();
        let (reaper, slow) = (Arc::new(Reaper::default()), Arc::new(Slow(Mutex::new(wait))));
        let begun = Instant::now();
        reaper.destroy(Arc::clone(&slow));
        drop(slow);
        assert!(!reaper.wait(Duration::from_millis(20)) && begun.elapsed() < Duration::from_secs(10));
        release.send(()).unwrap();
        assert!(reaper.wait(Duration::from_secs(60)));
    }
}
