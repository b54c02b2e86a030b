//! Evidence that a broker closes the connection because of what is sent to it, instead of refusing it.
//!
//! A broker does so with a request beyond its `socket.request.max.bytes`. librdkafka takes that for an outage: it
//! connects again and sends the same batch again, for ever, and everything behind it waits. What tells the two apart is
//! the repetition: the connection to a broker that answers breaks again and again, each time after the same first
//! message of a partition was sent, and nothing of that partition is acknowledged in between.
//!
//! Pure: takes librdkafka's counts as they come, keeps no time, sends nothing. A single cut means nothing: a broker
//! that restarts, a partition that moves to another broker and a network that fails each cut a connection, and then
//! the same messages pass.

use std::collections::{BTreeMap, HashMap};

use super::counts::{BrokerCounts, Counts, PartitionCounts};

/// So many cuts in a row are evidence.
pub(super) const ENOUGH: u32 = 3;

/// A partition whose first message has met [`ENOUGH`] cuts in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// The broker that closes the connection.
    pub(super) broker: i32,
    pub(super) cuts: u32,
}

/// How attempts to send a partition's first message are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Batches hold several messages: one attempt between two counts, however many messages were sent.
    Batches,
    /// Each batch holds one message, and there is one at a time.
    Single,
}

/// What is known of a partition.
#[derive(Clone, Debug, Default)]
struct Seen {
    broker: i32,
    disconnects: u64,
    timeouts: u64,
    sent: u64,
    acknowledged: u64,
    /// Whether an attempt is under way, as far as the counts say: its cut may be in later ones.
    is_open: bool,
    cuts: u32,
}

/// The evidence of one instance.
#[derive(Debug)]
pub(super) struct Cuts {
    counting: Counting,
    /// The brokers as of the counts before; `None`: there were none, and the instance counts from zero.
    before: Option<BTreeMap<i32, BrokerCounts>>,
    seen: HashMap<(String, i32), Seen>,
}

impl Cuts {
    pub(super) fn new(counting: Counting) -> Self {
        Self { counting, before: None, seen: HashMap::new() }
    }

    /// Takes counts in; returns the partitions for which there is enough evidence.
    pub(super) fn observe(&mut self, counts: &Counts) -> Vec<Cut> {
        let mut enough = Vec::new();
        for now in &counts.partitions {
            let Some(broker) = counts.brokers.get(&now.broker) else { continue };
            let key = (now.topic.clone(), now.partition);
            let counting = self.counting;
            let fresh = || {
                // Nothing was sent to it as of the counts before: cuts up to then concern others.
                let none = BrokerCounts::default();
                let known = self.before.as_ref().map_or(&none, |before| before.get(&now.broker).unwrap_or(broker));
                let (disconnects, timeouts) = (known.disconnects, known.timeouts);
                Seen { broker: now.broker, disconnects, timeouts, ..Seen::default() }
            };
            let seen = self.seen.entry(key).or_insert_with(fresh);
            seen.take(now, broker, counting);
            if seen.cuts >= ENOUGH {
                let (topic, partition) = (now.topic.clone(), now.partition);
                enough.push(Cut { topic, partition, broker: now.broker, cuts: seen.cuts });
            }
        }
        self.before = Some(counts.brokers.clone());
        enough
    }
}

impl Seen {
    fn take(&mut self, now: &PartitionCounts, broker: &BrokerCounts, counting: Counting) {
        let moved = now.broker != self.broker;
        let passed = now.acknowledged != self.acknowledged;
        let sent = now.sent.saturating_sub(self.sent);
        let broke = broker.disconnects.saturating_sub(self.disconnects);
        if moved || passed {
            (self.cuts, self.is_open) = (0, false);
        } else if broker.timeouts == self.timeouts {
            let sent = if counting == Counting::Single { sent } else { sent.min(1) };
            let attempts = sent.saturating_add(u64::from(self.is_open));
            let cut = attempts.min(broke);
            // One may be under way. That there was another means that the broker answered, if only to be asked again.
            let is_answered = attempts - cut > 1;
            let more = u32::try_from(cut).unwrap_or(u32::MAX);
            self.cuts = if is_answered { 0 } else { self.cuts.saturating_add(more) };
            self.is_open = attempts > cut;
        } else {
            // A broker that hangs closes nothing.
            self.is_open = false;
        }
        (self.broker, self.disconnects, self.timeouts) = (now.broker, broker.disconnects, broker.timeouts);
        (self.sent, self.acknowledged) = (now.sent, now.acknowledged);
    }
}

#[cfg(test)]
mod tests {
    use super::super::counts::BrokerCounts;
    use super::*;

    /// Counts of broker 1, which leads partition 0, and of broker 2, which leads partition 1.
    fn counts(disconnects: [u64; 2], sent: [u64; 2], acknowledged: [u64; 2]) -> Counts {
        let broker = |at: usize| BrokerCounts { disconnects: disconnects[at], ..BrokerCounts::default() };
        let partition = |at: usize| PartitionCounts {
            topic: "t".into(),
            partition: at as i32,
            broker: at as i32 + 1,
            sent: sent[at],
            acknowledged: acknowledged[at],
        };
        Counts { brokers: [(1, broker(0)), (2, broker(1))].into(), partitions: vec![partition(0), partition(1)] }
    }

    fn cut(cuts: u32) -> Vec<Cut> {
        vec![Cut { topic: "t".into(), partition: 0, broker: 1, cuts }]
    }

    #[test]
    fn three_cuts_in_a_row_after_the_same_first_message_are_evidence() {
        let mut cuts = Cuts::new(Counting::Batches);
        assert_eq!(cuts.observe(&counts([0, 0], [10, 10], [7, 7])), []);
        for round in 1..=2 {
            assert_eq!(cuts.observe(&counts([round, 0], [10 + 3 * round, 20], [7, 9 + round])), [], "{round}");
        }
        // Nothing was sent meanwhile: an idle connection that breaks is none.
        assert_eq!(cuts.observe(&counts([9, 0], [16, 20], [7, 11])), []);
        assert_eq!(cuts.observe(&counts([10, 0], [19, 20], [7, 11])), cut(3));
        assert_eq!(cuts.observe(&counts([11, 0], [22, 20], [7, 11])), cut(4));
    }

    #[test]
    fn one_at_a_time_every_cut_is_counted_and_none_without_an_attempt() {
        let mut cuts = Cuts::new(Counting::Single);
        assert_eq!(cuts.observe(&counts([2, 0], [2, 0], [0, 0])), []);
        assert_eq!(cuts.observe(&counts([9, 0], [2, 0], [0, 0])), []);
        assert_eq!(cuts.observe(&counts([11, 0], [4, 0], [0, 0])), cut(4));
        let mut first = Cuts::new(Counting::Single);
        assert_eq!(first.observe(&counts([3, 0], [3, 0], [0, 0])), cut(3), "a new instance counts from zero");
    }

    /// Most of what was sent and cut off was counted at two moments, and the cut was overlooked.
    #[test]
    fn a_cut_that_is_counted_later_than_its_attempt_is_evidence() {
        for counting in [Counting::Batches, Counting::Single] {
            let mut cuts = Cuts::new(counting);
            cuts.observe(&counts([0, 0], [10, 0], [10, 0]));
            for round in 1..=3 {
                assert_eq!(cuts.observe(&counts([round - 1, 0], [10 + round, 0], [10, 0])), [], "{round}");
                let evidence = cuts.observe(&counts([round, 0], [10 + round, 0], [10, 0]));
                assert_eq!(evidence, if round == 3 { cut(3) } else { vec![] }, "{round}");
            }
            // An attempt is cut off once.
            assert_eq!(cuts.observe(&counts([9, 0], [13, 0], [10, 0])), cut(3));
        }
    }

    /// "Not enough replicas" is an answer, too: the batch is sent again, and nothing is acknowledged.
    #[test]
    fn an_attempt_that_was_answered_begins_the_count_anew() {
        for counting in [Counting::Batches, Counting::Single] {
            let mut cuts = Cuts::new(counting);
            for round in 0..20 {
                let sent = 3 * round;
                for (disconnects, sent) in [(round, sent + 1), (round, sent + 2), (round + 1, sent + 3)] {
                    assert_eq!(cuts.observe(&counts([disconnects, 0], [sent, 0], [0, 0])), [], "{round}");
                }
            }
        }
    }

    #[test]
    fn cuts_before_anything_was_sent_to_a_partition_do_not_concern_it() {
        let mut cuts = Cuts::new(Counting::Single);
        let mut first = counts([0, 5], [0, 4], [0, 4]);
        first.partitions.remove(0);
        first.brokers.entry(1).and_modify(|broker| broker.disconnects = 9);
        cuts.observe(&first);
        assert_eq!(cuts.observe(&counts([9, 5], [3, 4], [0, 4])), []);
        let mut unknown = Cuts::new(Counting::Single);
        unknown.observe(&Counts::default());
        assert_eq!(unknown.observe(&counts([9, 0], [3, 0], [0, 0])), [], "a broker that had no number before");
    }

    #[test]
    fn an_acknowledgement_in_between_begins_the_count_anew() {
        let mut cuts = Cuts::new(Counting::Batches);
        for round in 1..=20 {
            // A broker that is killed again and again, and takes something in between.
            assert_eq!(cuts.observe(&counts([round, 0], [round * 2, 0], [round / 3, 0])), [], "{round}");
        }
    }

    #[test]
    fn a_partition_that_moves_begins_the_count_anew() {
        let mut cuts = Cuts::new(Counting::Batches);
        for round in 1..=20 {
            let mut counts = counts([round, round], [round, 0], [0, 0]);
            counts.partitions[0].broker = 1 + i32::from(round.is_multiple_of(2));
            assert_eq!(cuts.observe(&counts), [], "{round}");
        }
    }

    #[test]
    fn a_broker_that_answers_nothing_in_time_is_not_the_one_that_closes_the_connection() {
        let mut cuts = Cuts::new(Counting::Batches);
        for round in 1..=20 {
            let mut counts = counts([round, 0], [round * 2, 0], [0, 0]);
            counts.brokers.entry(1).and_modify(|broker| broker.timeouts = round);
            assert_eq!(cuts.observe(&counts), [], "{round}");
        }
    }

    #[test]
    fn the_cuts_of_one_broker_are_no_evidence_against_another() {
        let mut cuts = Cuts::new(Counting::Batches);
        for round in 1..=20 {
            assert_eq!(cuts.observe(&counts([0, round], [round, 0], [0, 0])), [], "{round}");
        }
    }

    #[test]
    fn a_broker_that_cannot_be_reached_cuts_nothing() {
        let mut cuts = Cuts::new(Counting::Batches);
        cuts.observe(&counts([0, 0], [5, 0], [3, 0]));
        for round in 0..20 {
            // One connection broke; since then none was made, and nothing could be sent.
            assert_eq!(cuts.observe(&counts([1, 0], [8, 0], [3, 0])), [], "{round}");
        }
    }
}
