//! What waits for one stream, in units: a few of ordered messages, no two of which have a lane in common, and a few of
//! messages without order.

use std::collections::{HashSet, VecDeque};

use super::unit::Unit;
use crate::message::Lane;
use crate::transport::Handover;

/// Where a bigger transaction stops paying: 256 reach what the server can do [DESIGN.md 4.3].
const UNIT_MESSAGES: usize = 256;
/// A transaction is atomic and holds up the server's other clients: a few milliseconds at most.
const UNIT_BYTES: usize = 1 << 20;
/// Units of ordered messages that a stream may have outstanding: one is under way while the server works at the other.
const ORDERED_UNITS: usize = 2;
/// Pipelines of messages without a lane that a stream may have outstanding: enough to hide the round trip.
const FREE_UNITS: usize = 4;
/// How many messages are put aside at most while others, from behind them, go first.
const SET_ASIDE: usize = 4 * UNIT_MESSAGES;

/// What a unit may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitSize {
    pub messages: usize,
    /// But for one message, which always finds room.
    pub bytes: usize,
    /// A message of so many bytes goes by itself.
    pub alone_from: Option<usize>,
}

impl Default for UnitSize {
    fn default() -> Self {
        Self { messages: UNIT_MESSAGES, bytes: UNIT_BYTES, alone_from: None }
    }
}

/// How many messages make a unit beside so many outstanding: with fewer it is cheaper to wait for the next reply, which
/// lets them go in any case. So units are as large as the load asks for, and a message that is alone goes at once.
pub(super) fn worth_a_unit(outstanding: usize) -> usize {
    (outstanding / 2).max(1)
}

/// What waits for one stream, and what of it is on its way.
#[derive(Default)]
pub(super) struct Stream {
    /// Came before all of `ordered`; each has its lane outstanding, unless `look_again` is set.
    set_aside: VecDeque<Handover>,
    /// A unit came back, and what was set aside has not been looked through since.
    look_again: bool,
    ordered: VecDeque<Handover>,
    free: VecDeque<Handover>,
    /// The lanes of the ordered units outstanding; each is in one of them.
    lanes_outstanding: HashSet<Lane>,
    ordered_outstanding: usize,
    free_outstanding: usize,
    /// Units on connections of their own: those with a lane outstanding, and those without one. They count in neither of the
    /// above: a message that is tried for long must not hold up those of other keys.
    ordered_apart: usize,
    free_apart: usize,
    /// The writer knows that it may have something to send.
    pub(super) queued: bool,
}

impl Stream {
    pub(super) fn push(&mut self, handover: Handover) {
        let queue = if handover.message.lane.is_some() { &mut self.ordered } else { &mut self.free };
        queue.push_back(handover);
    }

    /// The next piece of work, if the rules allow one now.
    pub(super) fn next_unit(&mut self, size: UnitSize) -> Option<Unit> {
        let waiting = self.set_aside.len() + self.ordered.len();
        let on_connection = self.lanes_outstanding.len() - self.ordered_apart;
        if self.ordered_outstanding < ORDERED_UNITS && waiting >= worth_a_unit(on_connection) {
            let messages = self.take_ordered(size);
            if !messages.is_empty() {
                self.ordered_outstanding += 1;
                let before = self.lanes_outstanding.len();
                self.lanes_outstanding.extend(messages.iter().filter_map(|handover| handover.message.lane));
                let atomic = self.lanes_outstanding.len() - before < messages.len();
                return Some(Unit { ordered: true, atomic, apart: false, messages });
            }
        }
        if self.free_outstanding < FREE_UNITS && !self.free.is_empty() {
            self.free_outstanding += 1;
            let mut filling = Filling::new(size);
            while let Some(next) = self.free.pop_front() {
                if let Err(next) = filling.add(next) {
                    self.free.push_front(next);
                    break;
                }
            }
            return Some(Unit::free(filling.messages));
        }
        None
    }

    /// A unit's worth of what has no lane outstanding: what was set aside first, so that each lane keeps its order.
    fn take_ordered(&mut self, size: UnitSize) -> Vec<Handover> {
        let mut filling = Filling::new(size);
        if std::mem::take(&mut self.look_again) {
            let mut kept = VecDeque::new();
            while let Some(next) = self.set_aside.pop_front() {
                if self.is_outstanding(&next) {
                    kept.push_back(next);
                } else if let Err(next) = filling.add(next) {
                    self.set_aside.push_front(next);
                    self.look_again = true;
                    break;
                }
            }
            kept.append(&mut self.set_aside);
            self.set_aside = kept;
        }
        while !self.look_again
            && self.set_aside.len() < SET_ASIDE
            && let Some(next) = self.ordered.pop_front()
        {
            if self.is_outstanding(&next) {
                self.set_aside.push_back(next);
            } else if let Err(next) = filling.add(next) {
                self.ordered.push_front(next);
                break;
            }
        }
        filling.messages
    }

    fn is_outstanding(&self, handover: &Handover) -> bool {
        handover.message.lane.is_some_and(|lane| self.lanes_outstanding.contains(&lane))
    }

    /// A unit of one message goes on a connection of its own. Its place is free for another; its lane stays outstanding.
    pub(super) fn apart(&mut self, unit: &mut Unit) {
        if std::mem::replace(&mut unit.apart, true) {
            return;
        }
        if unit.ordered {
            self.ordered_outstanding -= 1;
            self.ordered_apart += 1;
        } else {
            self.free_outstanding -= 1;
            self.free_apart += 1;
        }
    }

    /// The replies to a unit came.
    pub(super) fn returned(&mut self, unit: &Unit) {
        let count = match (unit.ordered, unit.apart) {
            (true, false) => &mut self.ordered_outstanding,
            (true, true) => &mut self.ordered_apart,
            (false, false) => &mut self.free_outstanding,
            (false, true) => &mut self.free_apart,
        };
        *count -= 1;
        if unit.ordered {
            self.look_again = true;
            for lane in unit.messages.iter().filter_map(|handover| handover.message.lane) {
                self.lanes_outstanding.remove(&lane);
            }
        }
    }

    /// Takes out what waits of these lanes, in order.
    pub(super) fn sweep(&mut self, lanes: &HashSet<Lane>) -> Vec<Handover> {
        let concerned = |handover: &Handover| handover.message.lane.is_some_and(|lane| lanes.contains(&lane));
        let mut swept = Vec::new();
        for queue in [&mut self.set_aside, &mut self.ordered] {
            let (taken, kept): (VecDeque<_>, _) = queue.drain(..).partition(concerned);
            *queue = kept;
            swept.extend(taken);
        }
        swept
    }

    /// Everything that waits, each lane in order.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Handover> {
        self.set_aside.into_iter().chain(self.ordered).chain(self.free)
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        let waiting = self.set_aside.len() + self.ordered.len() + self.free.len();
        let apart = self.ordered_apart + self.free_apart;
        waiting + self.ordered_outstanding + self.free_outstanding + apart == 0
    }
}

/// A unit in the making: one message at least, no more than it may hold, one that is to go alone by itself.
struct Filling {
    messages: Vec<Handover>,
    bytes: usize,
    size: UnitSize,
    /// The last one goes by itself.
    closed: bool,
}

impl Filling {
    fn new(size: UnitSize) -> Self {
        Self { messages: Vec::new(), bytes: 0, size, closed: false }
    }

    /// Adds a message, or gives it back if it has to wait for the next unit.
    fn add(&mut self, handover: Handover) -> Result<(), Handover> {
        let own = handover.message.message.size();
        let bytes = self.bytes + own;
        let alone = handover.alone || self.size.alone_from.is_some_and(|from| own >= from);
        let full = self.messages.len() >= self.size.messages || bytes > self.size.bytes || alone || self.closed;
        if full && !self.messages.is_empty() {
            return Err(handover);
        }
        self.bytes = bytes;
        self.closed = alone;
        self.messages.push(handover);
        Ok(())
    }
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

    fn handover(number: u64, lane: Option<u128>, size: usize, alone: bool) -> Handover {
        let route = Route { transport: "redis".into(), destination: "s".into() };
        let message = Message::to("s").payload(vec![0; size]);
        let id = MessageId::new(1, number);
        let outgoing = Outgoing { id, route, lane: lane.map(Lane), timestamp: 0, message };
        Handover { message: Arc::new(outgoing), alone, ticket: Ticket::new(Arc::new(Deaf)) }
    }

    /// A stream with messages of these lanes, numbered from 0.
    fn stream(lanes: impl IntoIterator<Item = Option<u128>>) -> Stream {
        let mut stream = Stream::default();
        lanes.into_iter().zip(0..).for_each(|(lane, number)| stream.push(handover(number, lane, 1, false)));
        stream
    }

    fn numbers(unit: &Unit) -> Vec<u64> {
        unit.messages.iter().map(|handover| handover.message.id.number()).collect()
    }

    fn next(stream: &mut Stream) -> Vec<Unit> {
        std::iter::from_fn(|| stream.next_unit(UnitSize::default())).collect()
    }

    fn units(handovers: impl IntoIterator<Item = (usize, bool)>) -> Vec<usize> {
        let mut stream = Stream::default();
        handovers.into_iter().for_each(|(size, alone)| stream.push(handover(1, Some(1), size, alone)));
        let one = || {
            let unit = stream.next_unit(UnitSize::default())?;
            stream.returned(&unit);
            Some(unit.messages.len())
        };
        std::iter::from_fn(one).collect()
    }

    #[test]
    fn a_unit_is_bounded_and_a_message_to_be_judged_alone_has_one_of_its_own() {
        assert_eq!(units((0..600).map(|_| (1, false))), [256, 256, 88]);
        assert_eq!(units([(1, false), (UNIT_BYTES, false), (2 * UNIT_BYTES, false), (1, false)]), [1, 1, 1, 1]);
        assert_eq!(units([false, false, true, true, false].map(|alone| (1, alone))), [2, 1, 1, 1]);
    }

    #[test]
    fn units_can_be_smaller_and_what_may_be_refused_for_its_size_goes_by_itself() {
        let mut stream = Stream::default();
        for (number, bytes) in [1, 1, 1, 9, 1].into_iter().enumerate() {
            stream.push(handover(number as u64, None, bytes, false));
        }
        let size = UnitSize { messages: 2, bytes: 100, alone_from: Some(9) };
        let units: Vec<_> = std::iter::from_fn(|| stream.next_unit(size)).map(|unit| numbers(&unit)).collect();
        assert_eq!(units, [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn a_stream_has_a_few_units_of_each_kind_outstanding() {
        let ordered = (0..1000).map(Some);
        let mut stream = stream(ordered.chain([None; 2000]));
        let units = next(&mut stream);
        let kinds: Vec<_> = units.iter().map(|unit| (unit.ordered, unit.messages.len())).collect();
        assert!(units.iter().all(|unit| !unit.atomic), "each has a lane of its own, or none");
        let (two, four) = ([(true, 256); ORDERED_UNITS], [(false, 256); FREE_UNITS]);
        assert_eq!(kinds, [&two[..], &four[..]].concat());
        stream.returned(&units[1]);
        assert_eq!(
            stream.next_unit(UnitSize::default()).map(|unit| (unit.ordered, unit.messages.len())),
            Some((true, 256))
        );
        assert!(stream.next_unit(UnitSize::default()).is_none() && !stream.is_idle());
    }

    #[test]
    fn a_few_beside_many_wait_for_the_reply_and_a_message_alone_goes_at_once() {
        let mut stream = stream((0..100).map(Some));
        let many = stream.next_unit(UnitSize::default()).expect("a unit");
        (100..149).for_each(|number| stream.push(handover(number, Some(number.into()), 1, false)));
        assert!(stream.next_unit(UnitSize::default()).is_none(), "49 beside 100");
        stream.push(handover(149, Some(149), 1, false));
        let half = stream.next_unit(UnitSize::default()).expect("50 beside 100 are worth it");
        assert_eq!(numbers(&half), (100..150).collect::<Vec<_>>());
        stream.push(handover(150, Some(150), 1, false));
        assert!(stream.next_unit(UnitSize::default()).is_none());
        stream.returned(&half);
        assert!(stream.next_unit(UnitSize::default()).is_none(), "one beside 100");
        stream.returned(&many);
        let alone = stream.next_unit(UnitSize::default()).expect("nothing is outstanding");
        stream.push(handover(151, Some(151), 1, false));
        let beside = stream.next_unit(UnitSize::default()).expect("one beside one");
        assert_eq!((numbers(&alone), numbers(&beside)), (vec![150], vec![151]));
    }

    #[test]
    fn what_has_its_lane_outstanding_waits_and_what_has_not_goes_first() {
        // The first unit is full of lane 7; behind it are more of lane 7, and two of lane 8 between them.
        let mut stream = stream((0..260).map(|number| Some(if [257, 259].contains(&number) { 8 } else { 7 })));
        let outstanding = next(&mut stream);
        assert_eq!(numbers(&outstanding[0]), (0..256).collect::<Vec<_>>());
        assert!(outstanding.iter().all(|unit| unit.atomic));
        assert_eq!(outstanding[1..].iter().map(numbers).collect::<Vec<_>>(), [[257, 259]]);
        // Of lane 8 there is one more, which comes while it is outstanding.
        stream.push(handover(260, Some(8), 1, false));
        assert!(next(&mut stream).is_empty());
        stream.returned(&outstanding[0]);
        assert_eq!(next(&mut stream).iter().map(numbers).collect::<Vec<_>>(), [[256, 258]]);
        stream.returned(&outstanding[1]);
        assert_eq!(next(&mut stream).iter().map(numbers).collect::<Vec<_>>(), [[260]]);
    }

    #[test]
    fn a_sweep_takes_what_was_set_aside_before_the_rest() {
        let mut stream = stream((0..260).map(|_| Some(7)).chain([Some(8)]));
        let outstanding = next(&mut stream);
        assert_eq!(outstanding.len(), 2, "lane 8 goes before what was set aside");
        stream.push(handover(300, Some(7), 1, false));
        stream.push(handover(301, Some(9), 1, false));
        let swept = stream.sweep(&HashSet::from([Lane(7)]));
        let swept: Vec<_> = swept.iter().map(|handover| handover.message.id.number()).collect();
        assert_eq!(swept, [256, 257, 258, 259, 300]);
        outstanding.iter().for_each(|unit| stream.returned(unit));
        assert_eq!(next(&mut stream).iter().map(numbers).collect::<Vec<_>>(), [[301]]);
    }

    #[test]
    fn messages_on_connections_of_their_own_hold_up_no_other_key() {
        let mut stream = Stream::default();
        (0..20).for_each(|number| stream.push(handover(number, Some(number.into()), 1, true)));
        (20..30).for_each(|number| stream.push(handover(number, None, 1, true)));
        let mut apart = Vec::new();
        while let Some(mut unit) = stream.next_unit(UnitSize::default()) {
            stream.apart(&mut unit);
            apart.push(unit);
        }
        assert_eq!(apart.len(), 30);
        // One of a key that is under way waits; another goes at once.
        stream.push(handover(30, Some(3), 1, false));
        stream.push(handover(31, Some(31), 1, false));
        stream.push(handover(32, None, 1, false));
        let mut others = next(&mut stream);
        assert_eq!(others.iter().map(numbers).collect::<Vec<_>>(), [[31], [32]]);
        others.drain(..).for_each(|unit| stream.returned(&unit));
        apart.drain(..).for_each(|unit| {
            assert!(!stream.is_idle());
            stream.returned(&unit);
        });
        assert_eq!(next(&mut stream).iter().map(numbers).collect::<Vec<_>>(), [[30]]);
        assert_eq!((stream.ordered_outstanding, stream.free_outstanding), (1, 0));
        assert_eq!((stream.ordered_apart, stream.free_apart), (0, 0));
    }

    /// Whatever comes and goes in whatever turn: each lane in order, in one unit at a time, and nothing is left.
    #[test]
    fn lanes_keep_their_order_in_any_turn() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (mut stream, mut outstanding) = (Stream::default(), Vec::<Unit>::new());
            let (lanes, total) = (random.u128(1..600), random.u64(0..4000));
            let (mut pushed, mut last) = (0, std::collections::HashMap::new());
            loop {
                for _ in 0..random.usize(0..1500) {
                    if pushed < total {
                        let alone = random.u8(0..50) == 0;
                        stream.push(handover(pushed, Some(random.u128(0..lanes)), random.usize(0..9000), alone));
                        pushed += 1;
                    }
                }
                for mut unit in next(&mut stream) {
                    if unit.messages.len() == 1 && random.bool() {
                        stream.apart(&mut unit);
                    }
                    for handover in &unit.messages {
                        let (lane, number) = (handover.message.lane.unwrap(), handover.message.id.number());
                        let elsewhere = outstanding.iter().flat_map(|unit| &unit.messages);
                        assert!(elsewhere.filter(|other| other.message.lane == Some(lane)).count() == 0, "seed {seed}");
                        assert!(last.insert(lane, number).is_none_or(|before| before < number), "seed {seed}");
                    }
                    outstanding.push(unit);
                }
                if outstanding.is_empty() && pushed == total {
                    break;
                }
                if !outstanding.is_empty() {
                    let unit = outstanding.swap_remove(random.usize(..outstanding.len()));
                    stream.returned(&unit);
                }
            }
            assert!(stream.is_idle(), "seed {seed}");
        }
    }
}
