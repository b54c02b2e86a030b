//! The producer's clock: first attempts that are late, messages that wait for space, the file `status`.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::core::Core;
use crate::file_size;
use crate::outbox::Lifecycle;

/// How late a deadline may be noticed.
const TICK: Duration = Duration::from_millis(50);
/// How often the file `status` is looked after.
const STATUS: Duration = Duration::from_secs(1);
/// How often late first attempts are looked for.
const LATE: Duration = Duration::from_millis(50);

/// Starts the thread. It ends with the last clone of the producer, or when that is closed.
pub(super) fn start(core: &Arc<Core>) -> io::Result<JoinHandle<()>> {
    let bell = Arc::clone(&core.bell);
    let core = Arc::downgrade(core);
    std::thread::Builder::new().name("outlast-clock".into()).spawn(move || {
        file_size::block_signal();
        let mut status = Instant::now();
        let mut late = Instant::now();
        let mut busy = true;
        let mut generation = 0;
        loop {
            bell.wait(if busy { TICK } else { STATUS });
            let Some(core) = Weak::upgrade(&core) else { return };
            if core.stop.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            core.let_in(now);
            if now.duration_since(late) >= LATE {
                late = now;
                core.lines.iter().for_each(|line| line.dispatcher.store_late(Some(now)));
            }
            if now.duration_since(status) >= STATUS {
                status = now;
                core.write_status(Lifecycle::Running);
                core.outbox.forget_settled_entries();
                // Drainers with nothing to do would not see that the ledger was begun anew, nor say that it is whole.
                let known = std::mem::replace(&mut generation, core.outbox.ledger().generation());
                if known != generation {
                    core.lines.iter().for_each(|line| line.dispatcher.mailbox().kick());
                }
            }
            busy = core.waiting_for_space() > 0 || core.lines.iter().any(|line| line.dispatcher.is_busy());
        }
    })
}
