//! The routes of all that is pending or on its way into the log, so that a message whose route would make the checkpoint too
//! long is refused before it gets a place: later nobody could write down that it is settled.

use std::collections::HashSet;

use super::checkpoint::route_bytes;
use crate::message::Route;

/// See the module.
pub(super) struct Routes {
    /// All that are pending or on their way, and perhaps some that were.
    known: HashSet<Route>,
    bytes: u64,
    most: u64,
    /// That of the last message: many have the same.
    last: Option<Route>,
    /// Some may be in `known` that are pending no more.
    pub stale: bool,
}

impl Routes {
    /// `pending` are there, be they ever so many; they all may take `most` bytes.
    pub fn new<'a>(pending: impl Iterator<Item = &'a Route>, most: u64) -> Self {
        let mut routes = Self { known: HashSet::new(), bytes: 0, most, last: None, stale: false };
        pending.for_each(|route| routes.add(route));
        routes
    }

    /// Whether there is room for the route; then it is known. `others` tells the routes that are pending or on their
    /// way: asked only where that may make room.
    pub fn admit(&mut self, route: &Route, others: impl FnOnce() -> HashSet<Route>) -> Result<(), u64> {
        if self.last.as_ref() == Some(route) || self.known.contains(route) {
            return Ok(());
        }
        if self.is_full_for(route) && std::mem::take(&mut self.stale) {
            let left = others();
            (self.bytes, self.last) = (left.iter().map(route_bytes).sum(), None);
            self.known = left;
        }
        if self.is_full_for(route) {
            return Err(self.bytes + route_bytes(route));
        }
        self.add(route);
        self.last = Some(route.clone());
        Ok(())
    }

    /// What all take.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What all may take.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// All may take so much from now on; what ranges of settled LSNs take, they may not.
    pub fn set_most(&mut self, bytes: u64) {
        self.most = bytes;
    }

    fn is_full_for(&self, route: &Route) -> bool {
        self.bytes + route_bytes(route) > self.most
    }

    fn add(&mut self, route: &Route) {
        if self.known.insert(route.clone()) {
            self.bytes += route_bytes(route);
        }
    }
}
