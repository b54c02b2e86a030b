//! Reports that a transport makes from within `submit`, where the lock of a slot is held.
//!
//! The contract forbids them, but a ticket that `submit` drops, or panics with, makes one all the same. That the message
//! itself failed is as good as a refusal, and is one. Whatever else was reported is left to the drainer.

use std::cell::RefCell;
use std::sync::Arc;

use crate::drainer::entry::Entry;
use crate::drainer::mailbox::Mail;
use crate::transport::{Failure, Outcome};

/// The message that is being submitted, and that it failed.
struct Submitting {
    entry: Arc<Entry>,
    lost: Option<Arc<Failure>>,
}

thread_local! {
    static SUBMITTING: RefCell<Option<Submitting>> = const { RefCell::new(None) };
}

/// Submits a message, which must not unwind; says why it failed meanwhile, if it did.
pub(super) fn watch<T>(entry: &Arc<Entry>, submit: impl FnOnce() -> T) -> (T, Option<Arc<Failure>>) {
    SUBMITTING.set(Some(Submitting { entry: Arc::clone(entry), lost: None }));
    let submitted = submit();
    (submitted, SUBMITTING.take().and_then(|submitting| submitting.lost))
}

/// Takes a report if it came from within a `submit` on this thread; gives it back if not. The lock of a slot is held.
pub fn take(entry: &Arc<Entry>, outcome: Outcome) -> Option<Outcome> {
    SUBMITTING.with_borrow_mut(|submitting| {
        let Some(submitting) = submitting else { return Some(outcome) };
        match outcome {
            Outcome::Failed { failure, possibly_delivered } if Arc::ptr_eq(&submitting.entry, entry) => {
                entry.state().possibly_delivered |= possibly_delivered;
                submitting.lost = Some(failure);
            }
            outcome => entry.dispatcher().mailbox().post(Mail::Reported { entry: Arc::clone(entry), outcome }),
        }
        None
    })
}
