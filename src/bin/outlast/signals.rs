//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use std::task::{Context, Poll};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::exit::Problem;
use crate::output;

/// Tells of the first signal.
pub struct Stop(mpsc::Receiver<()>);

impl Stop {
    /// Starts to listen. From here on the default of these signals, to end at once, holds only for the second.
    pub fn listen() -> Result<Self, Problem> {
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Problem::failed(format!("signals: {e}")))?;
        let (sender, receiver) = mpsc::channel(1);
        let listener = thread::Builder::new().name("signals".into()).spawn(move || {
            for (count, signal) in signals.forever().enumerate() {
                if count == 0 {
                    // Full only if it was told already.
                    let _ = sender.try_send(());
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

    /// Ready once, when the first signal has come; afterwards and otherwise pending.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.poll_recv(cx) {
            Poll::Ready(Some(())) => Poll::Ready(()),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
