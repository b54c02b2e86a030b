//! The future of a message that was sent.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::admission::Queued;
use super::core::{Core, Entered};
use crate::drainer::Verdict;
use crate::error::{SendError, SendErrorKind};
use crate::message::{Message, Outgoing};
use crate::receipt::{Delivery, Receipt};

/// Resolves once the message is accepted, or is not.
///
/// # Cancel safety
/// The message took its place when [`send`](crate::Producer::send) returned, polled or not. Dropping the future
/// only stops watching: the message is delivered or stored all the same. The one exception is a message that still
/// waits for space in a full outbox: dropping its future withdraws it, and it was never accepted.
#[must_use = "whether the message was accepted is only known once this is awaited"]
pub struct SendFuture(State);

enum State {
    Refused(Option<SendError>),
    Queued { core: Arc<Core>, message: Arc<Outgoing>, line: usize, ticket: u64, verdict: oneshot::Receiver<Queued> },
    Sent { message: Arc<Outgoing>, verdict: oneshot::Receiver<Verdict> },
    Done,
}

impl SendFuture {
    pub(super) fn refused(error: SendError) -> Self {
        Self(State::Refused(Some(error)))
    }

    pub(super) fn entered(core: &Arc<Core>, entered: Entered) -> Self {
        Self(match entered {
            Entered::Sent { message, verdict } => State::Sent { message, verdict },
            Entered::Queued { message, line, ticket, verdict } => {
                State::Queued { core: Arc::clone(core), message, line, ticket, verdict }
            }
        })
    }
}

impl Future for SendFuture {
    type Output = Result<Receipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match &mut self.0 {
                State::Refused(error) => match error.take() {
                    Some(error) => {
                        self.0 = State::Done;
                        return Poll::Ready(Err(error));
                    }
                    None => State::Done,
                },
                State::Queued { message, verdict, .. } => match ready!(Pin::new(verdict).poll(context)) {
                    Ok(Queued::Sent(verdict)) => State::Sent { message: Arc::clone(message), verdict },
                    Ok(Queued::Rejected(kind, reason)) => {
                        let error = SendError::new(kind, reason, Message::clone(&message.message));
                        State::Refused(Some(error))
                    }
                    Err(_) => State::Refused(Some(gone(message, false))),
                },
                State::Sent { message, verdict } => {
                    let id = message.id;
                    let result = match ready!(Pin::new(verdict).poll(context)) {
                        Ok(Verdict::Delivered(position)) => Ok(Receipt::Delivered { id, position }),
                        Ok(Verdict::Stored(lsn, fate)) => {
                            Ok(Receipt::Stored { id, lsn, delivery: Delivery::new(fate) })
                        }
                        Ok(Verdict::Rejected { kind, reason, possibly_delivered }) => {
                            let error = SendError::new(kind, reason, Message::clone(&message.message));
                            Err(error.maybe_delivered(possibly_delivered))
                        }
                        Err(_) => Err(gone(message, true)),
                    };
                    self.0 = State::Done;
                    return Poll::Ready(result);
                }
                // As `std::future::Ready` and others do: polling a finished future is the caller's mistake.
                State::Done => panic!("a SendFuture was polled after it had resolved"),
            };
            self.0 = next;
        }
    }
}

fn gone(message: &Outgoing, possibly_delivered: bool) -> SendError {
    let reason = "the producer ended before the message's fate was known";
    SendError::new(SendErrorKind::Closed, reason, message.message.clone()).maybe_delivered(possibly_delivered)
}

impl Drop for SendFuture {
    fn drop(&mut self) {
        if let State::Queued { core, line, ticket, verdict, .. } = &mut self.0
            && !core.maker.is_other()
        {
            // Closed first: if it is being let in at this moment, either it is withdrawn or it goes its way.
            verdict.close();
            core.lines[*line].admission.lock().withdraw(*ticket);
        }
    }
}

impl fmt::Debug for SendFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            State::Refused(_) => "refused",
            State::Queued { .. } => "waiting for space",
            State::Sent { .. } => "sent",
            State::Done => "done",
        };
        f.debug_tuple("SendFuture").field(&state).finish()
    }
}
