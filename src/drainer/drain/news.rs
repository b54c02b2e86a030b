//! What the drainer makes of its mail: blocks, probes, dead letters.

use std::sync::Arc;
use std::time::Instant;

use super::catchup::lane_or_own;
use super::{Back, Drain};
use crate::clock;
use crate::drainer::dispatcher::{Again, route_hash};
use crate::drainer::entry::{Entry, Storing};
use crate::drainer::mailbox::Mail;
use crate::drainer::view::LAST_ERRORS;
use crate::message::{Lane, Outgoing, Position, Route};
use crate::outbox::ledger::LaneRow;
use crate::receipt::Fate;
use crate::schedule::{Action, BlockKey, BlockState, Circumstances, Failed, action};
use crate::stats::Event;
use crate::transport::{Availability, Class, Failure, Scope};
use crate::wal::{DeadLetter, Lsn};

impl Drain {
    pub(super) fn read(&mut self, mail: Mail, now: Instant) {
        match mail {
            Mail::Settled { lsn, entry, position } => self.settled(lsn, &entry, position),
            Mail::Passed { route, partition } => self.passed(route, partition),
            Mail::Returned { lsn, entry, failure } => self.take_back(lsn, &entry, &failure, now),
            Mail::FirstFailed { route, partition, lane, failure } => {
                self.first_failed(&route, partition, lane, &failure, now);
            }
            Mail::Late { entry } => {
                let partition = entry.state().partition;
                self.late(&entry.message.route, partition, entry.lane(), now);
            }
            Mail::Reported { entry, outcome } => self.dispatcher.report(&entry, outcome),
            Mail::Available(availability) => self.available(availability, now),
            Mail::RouteUp(route) => self.blocks.hurry(route, now),
            Mail::Buried { lsn, entry, reason, error } => self.buried(lsn, &entry, reason, error, now),
        }
    }

    fn settled(&mut self, lsn: Lsn, entry: &Entry, position: Position) {
        self.pacer.acknowledged(1);
        if let Some(key) = self.probes.remove(&lsn) {
            self.restart_pass(key);
            self.blocks.set_state(key, BlockState::CatchingUp);
        }
        if !self.logged.is_empty() {
            self.logged.remove(&BlockKey::Lane(entry.route, lane_or_own(&entry.message, lsn)));
        }
        self.passed(entry.route, entry.state().partition);
        self.dispatcher.tell(Event::Delivered {
            id: entry.message.id,
            lsn,
            route: entry.message.route.clone(),
            position,
        });
    }

    /// Something of this route and partition was delivered: neither they nor the transport are broken.
    fn passed(&mut self, route: u64, partition: Option<i32>) {
        if !self.logged.is_empty() {
            let partition = partition.map(|partition| BlockKey::Partition(route, partition));
            for key in [Some(BlockKey::Transport), Some(BlockKey::Route(route)), partition].into_iter().flatten() {
                self.logged.remove(&key);
            }
        }
        if self.blocks.is_empty() {
            return;
        }
        self.transport_attempts = 0;
        if self.blocks.get(BlockKey::Transport).is_some() {
            self.lift(BlockKey::Transport);
        }
        let partition = partition.map(|partition| BlockKey::Partition(route, partition));
        for key in [Some(BlockKey::Route(route)), partition].into_iter().flatten() {
            let state = self.blocks.get(key).map(|block| block.state);
            if state.is_some_and(|state| state != BlockState::CatchingUp) {
                self.restart_pass(key);
                self.blocks.set_state(key, BlockState::CatchingUp);
            }
        }
    }

    /// A stored message has failed.
    fn take_back(&mut self, lsn: Lsn, entry: &Arc<Entry>, failure: &Arc<Failure>, now: Instant) {
        self.dispatcher.returned(entry);
        let probed = self.probes.remove(&lsn);
        let message = &entry.message;
        let attempts = probed.and_then(|key| self.blocks.get(key)).map_or(0, |block| block.attempts) + 1;
        let circumstances = Circumstances {
            alone: entry.alone,
            attempts,
            max_attempts: self.options.max_attempts,
            on_poison: (self.options.on_poison)(&message.route.destination),
        };
        match action(failure, circumstances) {
            Action::Again => {
                if let Some(key) = probed {
                    self.restart_pass(key);
                    self.blocks.set_state(key, BlockState::Waiting(now));
                }
            }
            Action::Wait => {
                let key =
                    self.key_of(failure.scope, &message.route, entry.state().partition, lane_or_own(message, lsn));
                self.block(key, &message.route, failure, false, probed == Some(key), now);
                self.probe_with_another(probed, key, now);
            }
            Action::Suspect => {
                let key = BlockKey::Lane(entry.route, lane_or_own(message, lsn));
                self.block(key, &message.route, failure, true, probed == Some(key), now);
                self.probe_with_another(probed, key, now);
            }
            // Its letter settles it, which must not be before the disk has it: it is tried once more.
            Action::Bury if matches!(entry.state().storing, Storing::Queued(_)) => {}
            Action::Bury => {
                self.bury(lsn, entry, failure, attempts, now);
                self.probe_with_another(probed, BlockKey::Lane(entry.route, lane_or_own(message, lsn)), now);
                return;
            }
        }
        // What the cursor has not reached yet it will meet by itself; what the log could not take (0: at once) is not there.
        if lsn > 0 && lsn < self.cursor && !entry.state().given_up {
            self.returned.insert(lsn, Back { message: Arc::clone(message) });
        }
    }

    /// What a block was probed with waits for `key` now: if that is another block, it tells nothing about the first.
    fn probe_with_another(&mut self, probed: Option<BlockKey>, key: BlockKey, now: Instant) {
        if let Some(other) = probed.filter(|other| *other != key) {
            self.restart_pass(other);
            self.blocks.try_another(other, now);
        }
    }

    /// The transport did not take a stored message.
    pub(super) fn refused(&mut self, again: &Again, failure: &Arc<Failure>, now: Instant) {
        if failure.class == Class::Fatal {
            // It is being rebuilt; that takes its own time.
            return;
        }
        let route = &again.message.route;
        let partition = self.dispatcher.transport().partition(&again.message);
        let key = self.key_of(failure.scope, route, partition, lane_or_own(&again.message, again.lsn));
        self.block(key, route, failure, false, false, now);
    }

    fn first_failed(
        &mut self,
        route: &Route,
        partition: Option<i32>,
        lane: Option<Lane>,
        failure: &Arc<Failure>,
        now: Instant,
    ) {
        let key = match (failure.class, failure.scope, lane) {
            (Class::Fatal, ..) | (_, Scope::Lane, None) => return,
            (Class::Permanent, _, Some(lane)) => BlockKey::Lane(route_hash(route), lane),
            (Class::Permanent, _, None) => return,
            (_, scope, lane) => self.key_of(scope, route, partition, lane.unwrap_or(Lane(0))),
        };
        self.block(key, route, failure, failure.class == Class::Permanent, false, now);
    }

    /// A first attempt is late, and stored; or nothing was reported of a partition for as long.
    pub(super) fn late(&mut self, route: &Route, partition: Option<i32>, lane: Option<Lane>, now: Instant) {
        let scope = partition.map_or(Scope::Transport, Scope::Partition);
        let mut reason = "no acknowledgement within the deadline".to_owned();
        if let Some(trouble) = self.dispatcher.transport().trouble() {
            reason = format!("{reason}: {trouble}");
        }
        let failure = Arc::new(Failure::new(Class::Transient, scope, reason));
        let key = self.key_of(scope, route, partition, lane.unwrap_or(Lane(0)));
        // One that was delivering again, and hangs anew, is blocked anew.
        if !self.blocks.is_waiting(key) {
            self.block(key, route, &failure, false, false, now);
        }
    }

    fn available(&mut self, availability: Availability, now: Instant) {
        let transport = Arc::clone(self.dispatcher.name());
        match availability {
            Availability::Up => {
                self.dispatcher.gate().set_down(false);
                if self.down.take().is_some() {
                    tracing::info!(%transport, "the broker answers again");
                    self.dispatcher.tell(Event::Up { transport });
                    self.pacer.failed();
                }
                if self.blocks.get(BlockKey::Transport).is_some() {
                    self.blocks.set_state(BlockKey::Transport, BlockState::Waiting(now));
                }
            }
            Availability::Down(failure) => {
                self.dispatcher.gate().set_down(true);
                if self.down.as_ref().is_none_or(|known| known.reason != failure.reason) {
                    let block = self.blocks.get(BlockKey::Transport);
                    let is_said = block.is_some_and(|block| block.reason == failure.reason);
                    if !is_said {
                        tracing::warn!(%transport, reason = %failure, "the broker does not answer; messages are stored");
                    }
                    self.dispatcher.tell(Event::Down { transport, reason: failure.reason.clone() });
                }
                self.down = Some(failure);
                // What is on its way will hardly arrive within its deadline: whoever sent it need not wait for that.
                self.dispatcher.store_late(None);
            }
        }
        self.view_changed = true;
    }

    /// What a failure blocks. A lane that is the whole route's is spread over its partitions: blocked with one of them
    /// alone, its messages on the others would overtake.
    fn key_of(&self, scope: Scope, route: &Route, partition: Option<i32>, lane: Lane) -> BlockKey {
        let hash = route_hash(route);
        match (scope, partition) {
            (Scope::Partition(_), _) if lane == Lane::of(route, None) => BlockKey::Route(hash),
            (Scope::Transport, _) => BlockKey::Transport,
            (Scope::Route, _) => BlockKey::Route(hash),
            (Scope::Partition(partition), _) => BlockKey::Partition(hash, partition),
            (Scope::Lane, _) => BlockKey::Lane(hash, lane),
        }
    }

    /// Blocks, or blocks anew. Of many messages that fail together only the first counts as a failed try; the one
    /// that was tried by itself always does.
    fn block(&mut self, key: BlockKey, route: &Route, failure: &Arc<Failure>, alone: bool, probed: bool, now: Instant) {
        let known = self.blocks.get(key);
        let again = known.is_some_and(|block| match block.state {
            // One whose time has come is being tried: this is what came of it.
            BlockState::Waiting(at) => block.alone && !probed || at > now && !alone,
            BlockState::Probing(_) => !probed && key != BlockKey::Transport,
            BlockState::CatchingUp => false,
        });
        if again {
            return;
        }
        let known_reason = known.map(|block| block.reason.clone());
        let earlier = match key {
            BlockKey::Lane(route, lane) => self.earlier.remove(&(route, lane.hash())).unwrap_or(0),
            BlockKey::Transport => self.transport_attempts,
            BlockKey::Route(_) | BlockKey::Partition(..) => 0,
        };
        let unix_millis = clock::unix_millis();
        let failed = Failed { failure, alone, now, unix_millis, earlier_attempts: earlier };
        let key = self.blocks.fail(key, route, failed, &mut self.rng);
        self.restart_pass(key);
        self.dispatcher.gate().block(key);
        self.view_changed = true;
        let Some(block) = self.blocks.get(key) else { return };
        let (attempts, class, reason) = (block.attempts, block.class, block.reason.clone());
        if key != BlockKey::Transport && (self.said.len() < LAST_ERRORS || self.said.contains_key(route)) {
            self.said.insert(route.clone(), reason.as_str().into());
        }
        match key {
            BlockKey::Transport => {
                self.transport_attempts = attempts;
                self.pacer.failed();
            }
            BlockKey::Lane(route, lane) => {
                let row = LaneRow {
                    attempts,
                    class: class as u8,
                    first_failure: block.since,
                    last_failure: unix_millis,
                    error: reason.clone(),
                };
                self.dispatcher.outbox().ledger().set_lane(route, lane.hash(), row);
            }
            BlockKey::Route(_) | BlockKey::Partition(..) => {}
        }
        // A reason is said once; that it is tried again and again, stats and status say.
        let is_news = known_reason.as_ref().or(self.logged.get(&key)).is_none_or(|known| *known != reason);
        if self.logged.len() < LAST_ERRORS || self.logged.contains_key(&key) {
            self.logged.insert(key, reason.clone());
        }
        let is_said = key == BlockKey::Transport && self.down.as_ref().is_some_and(|down| down.reason == reason);
        if is_news
            && !is_said
            && let Some(suppressed) = self.lines.failed.admit(now)
        {
            tracing::warn!(
                transport = %self.dispatcher.name(), %route, attempts, class = class.name(), %reason, suppressed,
                "delivery failed; it is tried again"
            );
        }
        self.dispatcher.tell(Event::Retrying { route: route.clone(), attempts, class, reason });
    }

    /// Writes a dead letter. Until the disk has it, the lane waits as for a probe.
    fn bury(&mut self, lsn: Lsn, entry: &Arc<Entry>, failure: &Arc<Failure>, attempts: u32, now: Instant) {
        let message = &entry.message;
        let key = BlockKey::Lane(entry.route, lane_or_own(message, lsn));
        if self.blocks.get(key).is_none() {
            self.block(key, &message.route, failure, true, false, now);
        }
        self.blocks.set_state(key, BlockState::Probing(lsn));
        self.probes.insert(lsn, key);
        let unix_millis = clock::unix_millis();
        let first_failure = self.blocks.get(key).map_or(unix_millis, |block| block.since);
        let letter = DeadLetter {
            lsn,
            outgoing: Outgoing::clone(message),
            reason: failure.reason.clone(),
            attempts,
            first_failure,
            last_failure: unix_millis,
        };
        let (dispatcher, buried) = (Arc::clone(&self.dispatcher), Arc::clone(entry));
        let reason = failure.reason.clone();
        self.dispatcher.outbox().bury(letter, move |result| {
            let error = result.err().map(|error| error.to_string());
            dispatcher.mailbox().post(Mail::Buried { lsn, entry: buried, reason, error });
        });
    }

    fn buried(&mut self, lsn: Lsn, entry: &Arc<Entry>, reason: String, error: Option<String>, now: Instant) {
        let message = &entry.message;
        let key = BlockKey::Lane(entry.route, lane_or_own(message, lsn));
        self.probes.remove(&lsn);
        match error {
            None => {
                self.dispatcher.uncount(message);
                if let Some(suppressed) = self.lines.dead.admit(now) {
                    tracing::error!(
                        id = %message.id, lsn, route = %message.route, %reason, suppressed,
                        "the broker will never take this message: it is in the dead letters"
                    );
                }
                self.dispatcher.fate(lsn, || Fate::Dead(reason.clone()));
                let (id, route) = (message.id, message.route.clone());
                self.dispatcher.tell(Event::DeadLettered { id, lsn, route, reason });
                self.restart_pass(key);
                self.blocks.set_state(key, BlockState::CatchingUp);
            }
            Some(error) => {
                let why = format!("no dead letter could be written ({error}) for: {reason}");
                let failure = Arc::new(Failure::new(Class::Hold, Scope::Lane, why));
                self.block(key, &message.route, &failure, true, true, now);
                // A message that is judged alone is tried at once; here that would go round and round while the disk has no
                // room.
                let attempts = self.blocks.get(key).map_or(1, |block| block.attempts);
                let delay = self.options.backoff.delay(attempts, &mut self.rng);
                self.blocks.set_state(key, BlockState::Waiting(now + delay));
                self.returned.insert(lsn, Back { message: Arc::clone(message) });
            }
        }
    }
}
