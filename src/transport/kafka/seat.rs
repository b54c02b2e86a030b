//! The place of the producing instance: taken, or empty while it is being rebuilt.
//!
//! Whoever hands a message over holds the place for that long, so an instance that has left it gets nothing
//! more. Nobody is left with the last reference to an instance under a lock of the producer's: its destruction
//! blocks.

use std::sync::{Arc, PoisonError, RwLock};

use super::instance::{Instance, handed_back};
use super::share::Share;
use crate::transport::{Class, Failure, Handover, Refused, Scope};

/// The place.
pub(super) struct Seat(RwLock<Result<Arc<Instance>, Arc<Failure>>>);

impl Default for Seat {
    fn default() -> Self {
        let failure = Failure::new(Class::Transient, Scope::Transport, "the transport has not been started");
        Self(RwLock::new(Err(Arc::new(failure))))
    }
}

impl Seat {
    /// Hands a message to the instance, if there is one.
    // As in `Instance::send`.
    #[allow(clippy::result_large_err)]
    pub(super) fn send(&self, handover: Handover, partition: i32, share: &Arc<Share>) -> Result<(), Refused> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(instance) => instance.send(handover, partition, share),
            Err(failure) => Err(Refused { handover, failure: Arc::clone(failure) }),
        }
    }

    /// The instance, for the transport's own threads.
    pub(super) fn current(&self) -> Option<Arc<Instance>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().ok().cloned()
    }

    /// Whether this instance is in the place.
    pub(super) fn holds(&self, instance: &Arc<Instance>) -> bool {
        self.current().is_some_and(|current| Arc::ptr_eq(&current, instance))
    }

    /// Puts an instance in.
    pub(super) fn occupy(&self, instance: Instance) {
        self.restore(Arc::new(instance));
    }

    /// Puts an instance in again.
    pub(super) fn restore(&self, instance: Arc<Instance>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Ok(instance);
    }

    /// Takes the instance out because it was given up; when this returns, nothing more is handed to it.
    pub(super) fn vacate_given_up(&self) -> Option<Arc<Instance>> {
        let reason = self.current()?.book().given_up()?;
        self.vacate(handed_back(&reason))
    }

    /// Takes the instance out; from now on messages are refused for `reason`.
    pub(super) fn vacate(&self, reason: Failure) -> Option<Arc<Instance>> {
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, Err(Arc::new(reason))).ok()
    }
}
