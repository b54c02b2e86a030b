//! A producer in miniature: keeps DESIGN.md's rules for lanes (4.1), so that the order in the topic is the
//! transport's doing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use fastrand::Rng;
use outlast::Message;
use outlast::transport::{Class, Outcome};

use super::{PATIENCE, Rig, Said};

/// One key's messages, by their numbers.
#[derive(Debug, Default)]
struct Lane {
    next: u64,
    /// Not delivered, not owned.
    pending: BTreeSet<u64>,
    owned: BTreeSet<u64>,
    /// Reported failed with a permanent class: to be tried alone.
    suspects: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    /// A failure closes it until nothing is owned.
    closed: bool,
}

/// Sends numbered messages of many keys until the transport has taken and acknowledged them all.
pub struct Lanes<'a> {
    rig: &'a Rig,
    topic: String,
    lanes: Vec<Lane>,
    owners: BTreeMap<u64, (usize, u64)>,
    /// The payload of a key's number.
    payload: fn(u64) -> Vec<u8>,
    pub handed_back: usize,
}

impl<'a> Lanes<'a> {
    pub fn new(rig: &'a Rig, topic: &str, keys: usize, payload: fn(u64) -> Vec<u8>) -> Self {
        let lanes = (0..keys).map(|_| Lane::default()).collect();
        Self { rig, topic: topic.to_owned(), lanes, owners: BTreeMap::new(), payload, handed_back: 0 }
    }

    /// Hands over one message of a random lane: a pending one first, else a new one if `fresh`.
    pub fn step(&mut self, rng: &mut Rng, fresh: bool) {
        self.listen();
        let index = rng.usize(0..self.lanes.len());
        let lane = &mut self.lanes[index];
        if lane.closed {
            return;
        }
        let number = match lane.pending.first() {
            Some(&number) => number,
            None if fresh => {
                lane.next += 1;
                lane.pending.insert(lane.next);
                lane.next
            }
            None => return,
        };
        let alone = lane.suspects.contains(&number);
        if alone && !lane.owned.is_empty() {
            return;
        }
        let message = Message::to(self.topic.as_str()).key(format!("key-{index}")).payload((self.payload)(number));
        let taken = if alone { self.rig.try_submit_alone(message) } else { self.rig.try_submit(message) };
        if let Ok(ticket) = taken {
            lane.pending.remove(&number);
            lane.owned.insert(number);
            // Nothing may follow a message that is tried alone until it was reported on.
            lane.closed = alone;
            self.owners.insert(ticket, (index, number));
        }
    }

    /// Takes in what was reported.
    pub fn listen(&mut self) {
        while let Ok(said) = self.rig.said.try_recv() {
            let Said::Report(ticket, outcome) = said else { continue };
            let (index, number) = self.owners.remove(&ticket).expect("reported once, on a message that is owned");
            let lane = &mut self.lanes[index];
            assert!(lane.owned.remove(&number));
            match outcome {
                Outcome::Delivered(_) => {
                    let earlier = lane.pending.range(..number).next();
                    assert!(earlier.is_none(), "key-{index}: {number} delivered, {earlier:?} failed before it");
                }
                Outcome::Failed { failure, .. } => {
                    self.handed_back += 1;
                    lane.closed = true;
                    let suspect = failure.class == Class::Permanent;
                    if suspect && lane.suspects.contains(&number) {
                        lane.dead.insert(number);
                    } else {
                        lane.pending.insert(number);
                        if suspect {
                            lane.suspects.insert(number);
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
            if lane.owned.is_empty() {
                lane.closed = false;
            }
        }
    }

    /// Goes on until everything is delivered or dead.
    pub fn finish(&mut self, rng: &mut Rng) {
        let deadline = Instant::now() + PATIENCE * 2;
        while self.lanes.iter().any(|lane| !lane.pending.is_empty() || !lane.owned.is_empty()) {
            assert!(Instant::now() < deadline, "not delivered: {:?}", self.lanes);
            self.step(rng, false);
            // Lets the broker get on; there is nothing to wait for in particular.
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    /// How many were sent to each key and did not die.
    pub fn expected(&self) -> BTreeMap<Vec<u8>, Vec<u64>> {
        let lanes = self.lanes.iter().enumerate().filter(|(_, lane)| lane.next > 0);
        lanes
            .map(|(index, lane)| {
                let numbers = (1..=lane.next).filter(|number| !lane.dead.contains(number)).collect();
                (format!("key-{index}").into_bytes(), numbers)
            })
            .collect()
    }

    /// How many died.
    pub fn dead(&self) -> usize {
        self.lanes.iter().map(|lane| lane.dead.len()).sum()
    }
}
