//! What happens after `send` has returned, as a stream.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::stats::Event;

/// Events as they happen, from the moment this was made.
///
/// At most 1,024 are kept for a slow reader; what is lost then is told by [`Event::Lagged`].
#[derive(Debug)]
pub struct Events(pub(super) broadcast::Receiver<Event>);

impl Events {
    /// The next event; `None` once the producer is gone.
    ///
    /// # Cancel safety
    /// Dropping this future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missing)) => Some(Event::Lagged(missing)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.0.try_recv() {
            Ok(event) => Some(event),
            Err(broadcast::error::TryRecvError::Lagged(missing)) => Some(Event::Lagged(missing)),
            Err(_) => None,
        }
    }
}
