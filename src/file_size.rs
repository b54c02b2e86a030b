//! The process's limit on the size of a file (`RLIMIT_FSIZE`, `ulimit -f`), met as an error.
//!
//! A write beyond the limit fails with `EFBIG`, but before that the kernel sends the writing thread a SIGXFSZ, which by
//! default ends the process. A thread that blocks the signal sees the error alone, which the log takes for a full disk
//! (`setrlimit(2)`). So each thread that writes files for an outbox blocks it, and sled's threads inherit the mask.
//!
//! The application's threads keep their masks, and no signal's disposition is changed: its own writes end as ever.

use std::cell::Cell;
use std::io;
use std::panic::resume_unwind;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

thread_local! {
    /// Whether this is a thread of ours that blocks the signal.
    static BLOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Blocks SIGXFSZ for the calling thread, which must be one that this library has started, and for those it starts.
pub fn block_signal() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    match signals.thread_block() {
        Ok(()) => BLOCKED.set(true),
        // `pthread_sigmask(3)` knows only one error: a first argument that does not exist.
        Err(error) => tracing::warn!(%error, "SIGXFSZ could not be blocked"),
    }
}

/// Does work that writes files on a thread that blocks SIGXFSZ, and returns what it returns. Not on the caller's with its
/// mask changed for a while: the signal would stay pending there, and arrive when the mask is put back.
pub fn shielded<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if BLOCKED.get() {
        return work();
    }
    // What the caller logs to, which may be this thread's alone.
    let log = tracing::dispatcher::get_default(Clone::clone);
    let (mut work, mut value) = (Some(work), None);
    let ended = thread::scope(|scope| {
        let (work, value) = (&mut work, &mut value);
        let shielded = move || {
            block_signal();
            tracing::dispatcher::with_default(&log, || *value = work.take().map(|work| work()));
        };
        let thread = thread::Builder::new().name("outlast-files".into()).spawn_scoped(scope, shielded);
        thread.map(thread::ScopedJoinHandle::join)
    });
    match (ended, work, value) {
        (Ok(Err(panic)), ..) => resume_unwind(panic),
        (_, _, Some(value)) => value,
        // No thread could be started: unshielded, as there is no other way.
        (_, Some(work), None) => work(),
        (_, None, None) => unreachable!("work that was taken has returned or panicked"),
    }
}

/// Whether there is no room: on the disk, in a quota, or below the limit on the size of a file. It passes by itself once
/// there is.
pub fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull)
}

/// What to do about an error, if it is the limit on the size of a file; to stand behind what the system says.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::FileTooLarge => "; raise the process's limit on the size of a file (RLIMIT_FSIZE, ulimit -f)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> bool {
        SigSet::thread_get_mask().expect("a mask").contains(Signal::SIGXFSZ)
    }

    #[test]
    fn work_is_shielded_and_the_callers_mask_stays() {
        assert!(!blocks());
        let inner = shielded(|| (blocks(), thread::spawn(blocks).join().expect("it returns"), shielded(blocks)));
        assert_eq!(inner, (true, true, true), "here, in a thread started here, and once more");
        assert!(!blocks());
    }

    #[test]
    fn a_panic_passes_through() {
        let panic = std::panic::catch_unwind(|| shielded(|| panic!("as meant"))).expect_err("it panics");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"as meant"));
    }
}
