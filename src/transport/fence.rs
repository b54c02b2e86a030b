//! Reports a batch and keeps the prefix rule against submits that race with the reports.
//!
//! A transport decides that a message failed, then reports it. What the producer submits on that lane before it
//! has taken the report in is behind the failed message and must fail, too; the producer's own gate closes only
//! with the report. Assumes that a lane which had a failure reported gets nothing new until everything owned
//! there was reported ([rule 4 of lanes](crate::transport)). Must be called without any lock held that `submit`
//! takes: reports run into the producer, which may submit from within them.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Class, Failure, Handover, Outcome, Scope};
use crate::message::Lane;

/// One message with what became of it.
pub(crate) type Verdict = (Handover, Outcome);

/// The failure of a message whose only fault is to stand behind one that failed: no verdict, so it neither blocks its
/// lane nor uses up an attempt.
pub(crate) fn behind() -> Arc<Failure> {
    Arc::new(Failure::new(Class::Fatal, Scope::Lane, "an earlier message of its lane failed"))
}

/// Reports every verdict. `sweep` takes out of the transport's queue, in order, all messages of the given lanes.
///
/// The first failure of each lane is reported before the sweep, and what else failed there after it: while some
/// of a lane is unreported the lane is closed, so what the sweep finds was submitted without knowing of the
/// failure. Where one message was all the lane had, the sweep may also find one that the producer handed over
/// knowingly. It cannot be told apart; failing it is allowed, letting the other kind pass is not.
pub(crate) fn report(mut verdicts: Vec<Verdict>, mut sweep: impl FnMut(&HashSet<Lane>) -> Vec<Handover>) {
    while !verdicts.is_empty() {
        let mut closed = HashSet::new();
        let mut rest = Vec::new();
        for (handover, outcome) in verdicts {
            match (&outcome, handover.message.lane) {
                (Outcome::Failed { .. }, Some(lane)) if !closed.insert(lane) => rest.push((handover, outcome)),
                _ => tell(handover, outcome),
            }
        }
        if closed.is_empty() {
            return;
        }
        let settled_by_rest: HashSet<Lane> = rest.iter().filter_map(|(handover, _)| handover.message.lane).collect();
        let (known, ambiguous): (Vec<_>, Vec<_>) = sweep(&closed)
            .into_iter()
            .map(|handover| (handover, Outcome::Failed { failure: behind(), possibly_delivered: false }))
            .partition(|(handover, _)| handover.message.lane.is_some_and(|lane| settled_by_rest.contains(&lane)));
        for (handover, outcome) in rest.into_iter().chain(known) {
            tell(handover, outcome);
        }
        verdicts = ambiguous;
    }
}

fn tell(handover: Handover, outcome: Outcome) {
    match outcome {
        Outcome::Delivered(position) => handover.ticket.delivered(position),
        Outcome::Failed { failure, possibly_delivered } => handover.ticket.failed(failure, possibly_delivered),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::message::{Message, MessageId, Outgoing, Position, Route};
    use crate::transport::{Recipient, Ticket};

    struct Note(u64, Arc<Mutex<Vec<(u64, bool)>>>);

    impl Recipient for Note {
        fn report(self: Arc<Self>, outcome: Outcome) {
            self.1.lock().unwrap().push((self.0, matches!(outcome, Outcome::Delivered(_))));
        }
    }

    fn handover(number: u64, lane: Option<u128>, notes: &Arc<Mutex<Vec<(u64, bool)>>>) -> Handover {
        let message = Outgoing {
            id: MessageId::new(1, number),
            route: Route { transport: "t".into(), destination: "d".into() },
            lane: lane.map(Lane),
            timestamp: 0,
            message: Message::to("d"),
        };
        let ticket = Ticket::new(Arc::new(Note(number, notes.clone())));
        Handover { message: Arc::new(message), alone: false, ticket }
    }

    fn failed() -> Outcome {
        Outcome::Failed { failure: behind(), possibly_delivered: false }
    }

    #[test]
    fn what_was_submitted_before_the_failure_was_told_fails_behind_it() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let delivered = Outcome::Delivered(Position::Offset { partition: 0, offset: 0 });
        let verdicts = vec![
            (handover(1, Some(7), &notes), failed()),
            (handover(2, Some(8), &notes), delivered),
            (handover(3, Some(7), &notes), failed()),
        ];
        let mut late = vec![handover(4, Some(7), &notes)];
        report(verdicts, |lanes| if lanes.contains(&Lane(7)) { std::mem::take(&mut late) } else { Vec::new() });
        assert_eq!(*notes.lock().unwrap(), [(1, false), (2, true), (3, false), (4, false)]);
    }

    #[test]
    fn a_swept_message_that_may_have_been_a_new_try_is_swept_behind_again() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let mut late = vec![handover(3, Some(7), &notes), handover(2, Some(7), &notes)];
        report(vec![(handover(1, Some(7), &notes), failed())], |_| late.pop().into_iter().collect());
        assert_eq!(*notes.lock().unwrap(), [(1, false), (2, false), (3, false)]);
    }

    #[test]
    fn messages_without_a_lane_hold_nobody_up() {
        let notes = Arc::new(Mutex::new(Vec::new()));
        report(vec![(handover(1, None, &notes), failed()), (handover(2, None, &notes), failed())], |_| {
            panic!("nothing to sweep")
        });
        assert_eq!(notes.lock().unwrap().len(), 2);
    }
}
