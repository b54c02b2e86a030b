//! Ctrl-C and SIGTERM: the first asks for an orderly end within a time, the second ends at once. When the time is over the
//! process ends by itself, in whatever call to disk or broker it may hang.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::exit::{Exit, Problem};
use crate::output;

/// What a standard error that is not read may take of the end.
const LAST_WORD: Duration = Duration::from_millis(200);

/// What closing may wait for a broker that may hang, where all of an orderly end may take `timeout`: half of it. The rest is
/// for storing, and for threads of the broker's client, which may take 3 s to end.
pub fn grace(timeout: Duration) -> Duration {
    timeout / 2
}

/// Tells of the first signal.
pub struct Stop(mpsc::Receiver<()>);

impl Stop {
    /// Starts to listen. From here on the default of these signals, to end at once, holds only for the second; after the
    /// first the process ends within `timeout`.
    pub fn listen(timeout: Duration) -> Result<Self, Problem> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Problem::failed(format!("signals: {e}")))?;
        let (sender, receiver) = mpsc::channel(1);
        let listener = thread::Builder::new().name("signals".into()).spawn(move || {
            for (count, signal) in signals.forever().enumerate() {
                if count == 0 {
                    // Full only if it was told already.
                    let _ = sender.try_send(());
                    // Without it a disk that hangs keeps the process; a signal can still end that.
                    let _ = thread::Builder::new().name("stop".into()).spawn(move || end_after(timeout));
                    output::say("stopping; once more to end at once");
                } else {
                    // Whatever was acknowledged is on disk or with the broker: there is nothing to save.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            }
        });
        listener.map_err(|e| Problem::failed(format!("signals: {e}")))?;
        Ok(Self(receiver))
    }

    /// The result of `work`; `None` if the first signal comes before.
    pub async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => work.as_mut().poll(cx).map(Some),
        })
        .await
    }

    /// Ready once, when the first signal has come; afterwards and otherwise pending.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(())) => Poll::Ready(()),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Ends the process, unless it has ended by then. Whatever was acknowledged is on disk or with the broker, as in a kill.
fn end_after(timeout: Duration) {
    thread::sleep(timeout);
    let said = thread::Builder::new().spawn(|| {
        output::say("not done in time (--stop-timeout); ended at once: what was acknowledged is kept, as after a kill");
    });
    let begun = Instant::now();
    while said.as_ref().is_ok_and(|said| !said.is_finished()) && begun.elapsed() < LAST_WORD {
        thread::sleep(Duration::from_millis(5));
    }
    // Not `std::process::exit`, which runs what libraries want to do at the end, and may hang with the rest.
    signal_hook::low_level::exit(Exit::Failed as i32);
}
