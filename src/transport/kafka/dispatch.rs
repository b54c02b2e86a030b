//! Where a message goes, and whether it can go there now.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::instance::no_room;
use super::partitioner::scattered;
use super::topics::{Aside, Knowledge, State, Topic};
use crate::message::{Lane, Outgoing};
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Outcome, Refused, Scope};

impl Shared {
    /// The partition a message goes to now; `None` as long as nothing is known of its topic.
    pub(super) fn place(&self, state: &mut State, outgoing: &Outgoing, now: Instant) -> Option<i32> {
        let Knowledge::Known(leaders) = &state.knowledge else { return None };
        let count = i32::try_from(leaders.len()).ok()?;
        let message = &outgoing.message;
        let key = message.key.as_deref();
        let decided = message.partition.or_else(|| self.settings.partitioner.keyed(key, count));
        if decided.is_some() {
            return decided;
        }
        let linger = self.settings.sticky_linger;
        if linger.is_zero() || !key.is_none_or(<[u8]>::is_empty) {
            // Drawn anew for each message, and the same whenever it is asked for: by the message's id.
            return Some(scattered(outgoing.id, count, |partition| state.is_usable(partition, now)));
        }
        state.choose(now, linger)
    }

    /// Takes a message of a topic that can be used: hands it over, or lets it wait.
    // The message comes back on the rare way, and a box on the frequent one would cost more.
    #[allow(clippy::result_large_err)]
    pub(super) fn take(self: &Arc<Self>, state: &mut State, handover: Handover, now: Instant) -> Result<(), Refused> {
        let looked_at = state.waiting.is_empty() || state.aside.is_some();
        // What is too large is reported by the metadata thread, so that what follows on its lane waits behind it.
        let is_too_large = !handover.alone && state.is_too_large(&handover.message, now);
        // Likewise.
        let is_judged = is_too_large || state.hold(&self.times, &handover.message).is_some();
        if !state.is_ready() || !looked_at || is_judged {
            let first = state.waiting.is_empty() || state.aside.take().is_some();
            state.wait(handover)?;
            if first {
                self.bell.ring();
            }
            return Ok(());
        }
        // Also where nothing waits any more: what of it has failed may not be reported yet.
        if state.aside.is_some()
            && let Some(partition) = self.place(state, &handover.message, now)
            && state.aside.as_ref().is_some_and(|aside| aside.holds(partition, handover.message.lane))
        {
            let failure = no_room(&handover.message, partition, "messages wait for room already");
            return Err(Refused { handover, failure: Arc::new(failure) });
        }
        self.dispatch(state, handover, now)
    }

    /// Chooses the partition of a message and hands it over.
    // As above.
    #[allow(clippy::result_large_err)]
    fn dispatch(self: &Arc<Self>, state: &mut State, handover: Handover, now: Instant) -> Result<(), Refused> {
        let Some(partition) = self.place(state, &handover.message, now) else {
            return state.wait(handover);
        };
        let refuse = |handover, failure| Err(Refused { handover, failure: Arc::new(failure) });
        if !handover.alone && state.is_too_large(&handover.message, now) {
            let failure = too_large(&handover.message, state.refused_size(now).unwrap_or_default());
            return refuse(handover, failure);
        }
        if let Some(failure) = state.hold(&self.times, &handover.message) {
            return refuse(handover, failure);
        }
        let Knowledge::Known(leaders) = &state.knowledge else { return state.wait(handover) };
        let leader = usize::try_from(partition).ok().and_then(|index| Some((*leaders.get(index)?, index)));
        let Some((led, share)) = leader.and_then(|(led, index)| Some((led, state.shares.get(index)?))) else {
            let (topic, count) = (&handover.message.route.destination, leaders.len());
            let text = format!("{topic}[{partition}]: the topic has {count} partitions, counted from 0");
            return refuse(handover, Failure::new(Class::Hold, Scope::Partition(partition), text));
        };
        if share.is_full(handover.message.message.size()) {
            let failure = no_room(&handover.message, partition, full(led));
            return refuse(handover, failure);
        }
        handover.ticket.placed(partition);
        if handover.alone {
            return self.solo.submit(self, handover, partition, share);
        }
        self.seat.send(handover, partition, share).map_err(|mut refused| {
            if !led && is_no_room(&refused.failure) {
                refused.failure = Arc::new(no_room(&refused.handover.message, partition, full(led)));
            }
            refused
        })
    }

    /// Hands over what waits for a topic that is there; says whether nothing is left. For the metadata thread alone.
    ///
    /// What its partition has no room for goes on waiting, and holds up nothing but that partition and its lane; it is
    /// handed back once the partition keeps what it owns for long.
    pub(super) fn hand_over(self: &Arc<Self>, topic: &Topic, now: Instant) -> bool {
        let mut state = topic.state();
        if !state.is_ready() || state.waiting.is_empty() {
            return true;
        }
        let mut pass = Pass::default();
        while let Some(handover) = state.waiting.pop_front() {
            let (partition, lane) = (self.place(&mut state, &handover.message, now), handover.message.lane);
            if partition.is_some_and(|partition| pass.aside.holds(partition, lane)) {
                pass.no_room(&state, partition, handover, now);
                continue;
            }
            let Err(refused) = self.dispatch(&mut state, handover, now) else { continue };
            match refused.failure.scope {
                Scope::Partition(partition) if is_no_room(&refused.failure) => {
                    pass.no_room(&state, Some(partition), refused.handover, now);
                }
                Scope::Partition(_) | Scope::Lane => pass.judged(refused.handover, refused.failure),
                Scope::Transport | Scope::Route => {
                    // It concerns everything that waits.
                    pass.kept.push(refused.handover);
                    pass.put_back(&mut state);
                    drop(state);
                    topic.fail_waiting(None, &refused.failure);
                    self.tell(topic, pass.verdicts);
                    return true;
                }
            }
        }
        pass.put_back(&mut state);
        state.aside = Some(pass.aside);
        drop(state);
        self.tell(topic, pass.verdicts);
        let mut state = topic.state();
        if state.waiting.is_empty() {
            state.aside = None;
        }
        state.waiting.is_empty()
    }

    fn tell(&self, topic: &Topic, verdicts: Vec<Verdict>) {
        fence::report(verdicts, |lanes| topic.take_lanes(lanes));
    }
}

/// What came of a look at everything that waits.
#[derive(Default)]
struct Pass {
    aside: Aside,
    kept: Vec<Handover>,
    verdicts: Vec<Verdict>,
}

impl Pass {
    /// There is no room for a message: it waits, unless its partition is stuck.
    fn no_room(&mut self, state: &State, partition: Option<i32>, handover: Handover, now: Instant) {
        let index = partition.and_then(|partition| usize::try_from(partition).ok());
        self.aside.partitions.extend(partition);
        self.aside.lanes.extend(handover.message.lane);
        let stuck = index.and_then(|index| state.shares.get(index)).is_some_and(|share| share.is_stuck(now));
        if let Some(partition) = partition.filter(|_| stuck) {
            let failure = no_room(&handover.message, partition, full(state.is_led(partition)));
            self.judged(handover, Arc::new(failure));
        } else {
            self.kept.push(handover);
        }
    }

    /// A message has failed; what waits of its lane is kept for the fence.
    fn judged(&mut self, handover: Handover, failure: Arc<Failure>) {
        self.aside.lanes.extend(handover.message.lane);
        self.verdicts.push((handover, Outcome::Failed { failure, possibly_delivered: false }));
    }

    fn put_back(&mut self, state: &mut State) {
        for handover in self.kept.drain(..).rev() {
            state.waiting.push_front(handover);
        }
    }
}

impl Aside {
    /// Whether a message would overtake one that waits.
    fn holds(&self, partition: i32, lane: Option<Lane>) -> bool {
        self.partitions.contains(&partition) || lane.is_some_and(|lane| self.lanes.contains(&lane))
    }
}

/// Whether a message was only refused because a report has to make room for it.
fn is_no_room(failure: &Failure) -> bool {
    failure.class == Class::Transient && matches!(failure.scope, Scope::Partition(_))
}

fn full(led: bool) -> &'static str {
    if led {
        "as much as a partition may own is not acknowledged yet"
    } else {
        "as much as a partition may own is not acknowledged yet, and it has no leader"
    }
}

/// The verdict on a message that is as large as one that was refused by itself: it is to be judged by itself, too.
fn too_large(outgoing: &Outgoing, refused: usize) -> Failure {
    let (topic, size) = (&outgoing.route.destination, outgoing.message.size());
    let text =
        format!("{topic}: a message of {refused} bytes was refused as too large a while ago; this one has {size}");
    Failure::new(Class::Permanent, Scope::Lane, text)
}
