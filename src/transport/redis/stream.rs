//! What waits for one stream, in units: one atomic unit of ordered messages at a time, a few of those without order.

use std::collections::VecDeque;

use super::unit::Unit;
use crate::transport::Handover;

/// Where a bigger transaction stops paying: 256 reach what the server can do [DESIGN.md 4.3].
const UNIT_MESSAGES: usize = 256;
/// A transaction is atomic and holds up the server's other clients: a few milliseconds at most.
const UNIT_BYTES: usize = 1 << 20;
/// Pipelines of messages without a lane that a stream may have outstanding: enough to hide the round trip.
const FREE_UNITS: usize = 4;

/// What waits for one stream, and what of it is on its way.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) ordered: VecDeque<Handover>,
    pub(super) free: VecDeque<Handover>,
    ordered_outstanding: bool,
    free_outstanding: usize,
    /// The writer knows that it may have something to send.
    pub(super) queued: bool,
}

impl Stream {
    /// The next piece of work, if the rules allow one now.
    pub(super) fn next_unit(&mut self) -> Option<Unit> {
        if !self.ordered_outstanding && !self.ordered.is_empty() {
            self.ordered_outstanding = true;
            return Some(Unit { ordered: true, messages: take_some(&mut self.ordered) });
        }
        if self.free_outstanding < FREE_UNITS && !self.free.is_empty() {
            self.free_outstanding += 1;
            return Some(Unit { ordered: false, messages: take_some(&mut self.free) });
        }
        None
    }

    /// The replies to a unit came.
    pub(super) fn returned(&mut self, unit: &Unit) {
        if unit.ordered {
            self.ordered_outstanding = false;
        } else {
            self.free_outstanding -= 1;
        }
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.ordered.is_empty() && self.free.is_empty() && !self.ordered_outstanding && self.free_outstanding == 0
    }
}

/// From the front: one message at least, no more than a unit may hold, one that is to go alone by itself.
fn take_some(queue: &mut VecDeque<Handover>) -> Vec<Handover> {
    let mut taken: Vec<Handover> = Vec::with_capacity(queue.len().min(UNIT_MESSAGES));
    let mut bytes = 0;
    while let Some(next) = queue.front() {
        bytes += next.message.message.size();
        let full =
            taken.len() == UNIT_MESSAGES || bytes > UNIT_BYTES || next.alone || taken.iter().any(|one| one.alone);
        if full && !taken.is_empty() {
            break;
        }
        taken.extend(queue.pop_front());
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::{Message, MessageId, Outgoing, Route};
    use crate::transport::{Outcome, Recipient, Ticket};

    struct Deaf;

    impl Recipient for Deaf {
        fn report(self: Arc<Self>, _: Outcome) {}
    }

    fn queue(sizes: impl IntoIterator<Item = (usize, bool)>) -> VecDeque<Handover> {
        let handover = |(size, alone)| {
            let route = Route { transport: "redis".into(), destination: "s".into() };
            let message = Message::to("s").payload(vec![0; size]);
            let outgoing = Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp: 0, message };
            Handover { message: Arc::new(outgoing), alone, ticket: Ticket::new(Arc::new(Deaf)) }
        };
        sizes.into_iter().map(handover).collect()
    }

    fn units(mut queue: VecDeque<Handover>) -> Vec<usize> {
        std::iter::from_fn(|| Some(take_some(&mut queue).len()).filter(|taken| *taken > 0)).collect()
    }

    #[test]
    fn a_unit_is_bounded_and_a_message_to_be_judged_alone_has_one_of_its_own() {
        assert_eq!(units(queue((0..600).map(|_| (1, false)))), [256, 256, 88]);
        assert_eq!(units(queue([(1, false), (UNIT_BYTES, false), (2 * UNIT_BYTES, false), (1, false)])), [1, 1, 1, 1]);
        assert_eq!(units(queue([false, false, true, true, false].map(|alone| (1, alone)))), [2, 1, 1, 1]);
    }

    #[test]
    fn a_stream_has_one_ordered_unit_outstanding_and_a_few_without_order() {
        let (ordered, free) = (queue([(1, false); 300]), queue([(1, false); 2000]));
        let mut stream = Stream { ordered, free, ..Stream::default() };
        let units: Vec<_> = std::iter::from_fn(|| stream.next_unit()).collect();
        let kinds: Vec<_> = units.iter().map(|unit| (unit.ordered, unit.messages.len())).collect();
        assert_eq!(kinds, [(true, 256), (false, 256), (false, 256), (false, 256), (false, 256)]);
        stream.returned(&units[0]);
        assert_eq!(stream.next_unit().map(|unit| (unit.ordered, unit.messages.len())), Some((true, 44)));
        assert!(stream.next_unit().is_none() && !stream.is_idle());
    }
}
