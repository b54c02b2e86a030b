//! The one task that talks to the server: gathers, sends, reports, reconnects.
//!
//! Reports run into the producer, so no lock of ours is held while one is made.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Client, RedisResult, Value};
use tokio::task::{Id, JoinError, JoinSet};

use super::config::RedisConfig;
use super::stream::{self, Stream};
use super::unit::Unit;
use super::{Gate, Shared, classify, closed, connect};
use crate::message::Lane;
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Monitor, Outcome, Scope};

/// Units outstanding on the connection, so that one slow server does not fill our memory with encoded commands.
const UNITS: usize = 64;
/// An idle connection is tried out so often, so that an outage shows before a message meets it.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The first pause before connecting anew; doubled each time (DESIGN.md 9).
const RECONNECT_BASE: Duration = Duration::from_millis(100);

pub(super) struct Writer {
    config: Arc<RedisConfig>,
    client: Client,
    shared: Arc<Shared>,
    monitor: Monitor,
    streams: HashMap<Arc<str>, Stream>,
    /// Streams that may have something to send.
    ready: VecDeque<Arc<str>>,
    /// What the monitor was told last; `None`: that the server is up, or nothing yet.
    told: Option<Arc<Failure>>,
}

/// One connection and what is outstanding on it.
struct Session {
    connection: MultiplexedConnection,
    calls: JoinSet<RedisResult<Vec<Value>>>,
    outstanding: HashMap<Id, (Arc<str>, Unit)>,
    /// It has acknowledged something, so it was of use.
    proven: bool,
}

type Joined = Result<(Id, RedisResult<Vec<Value>>), JoinError>;

enum Ended {
    Closed,
    Broken(Arc<Failure>),
}

impl Writer {
    pub(super) fn new(config: Arc<RedisConfig>, client: Client, shared: Arc<Shared>, monitor: Monitor) -> Self {
        let (streams, ready) = (HashMap::new(), VecDeque::new());
        Self { config, client, shared, monitor, streams, ready, told: None }
    }

    /// Connects, serves, and does so again, until the transport is closed.
    pub(super) async fn run(mut self) {
        let mut attempt = 0;
        let mut warned = false;
        loop {
            let connected = tokio::select! {
                connected = connect::connect(&self.client, &self.config) => connected,
                () = must_end(&self.shared) => break,
            };
            let failure = match connected {
                Ok(connection) => {
                    if !std::mem::replace(&mut warned, true) {
                        tokio::spawn(connect::warn_of_settings(connection.clone(), self.config.address()));
                    }
                    self.go_up();
                    let mut session = Session::new(connection);
                    let failure = match self.serve(&mut session).await {
                        Ended::Closed => return self.abandon(session, Gate::Closed, closed()).await,
                        Ended::Broken(failure) => failure,
                    };
                    attempt = if session.proven { 0 } else { attempt };
                    self.abandon(session, Gate::Down(failure.clone()), failure.clone()).await;
                    failure
                }
                Err(failure) => {
                    let failure = Arc::new(failure);
                    self.fail_all(Vec::new(), Gate::Down(failure.clone()), failure.clone());
                    failure
                }
            };
            let pause = pause(failure.class, attempt, self.config.reconnect_cap);
            attempt = attempt.saturating_add(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = must_end(&self.shared) => break,
            }
        }
        self.fail_all(Vec::new(), Gate::Closed, closed());
    }

    fn go_up(&mut self) {
        self.shared.lock().gate = Gate::Open;
        tracing::info!(address = %self.config.address(), "connected to Redis");
        self.told = None;
        self.monitor.up();
    }

    async fn serve(&mut self, session: &mut Session) -> Ended {
        let mut quiet_since = tokio::time::Instant::now();
        loop {
            let deadline = self.take_in();
            self.dispatch(session);
            self.sleep_until_worth_it(session);
            if deadline.is_some_and(|deadline| self.streams.is_empty() || deadline <= Instant::now()) {
                return Ended::Closed;
            }
            tokio::select! {
                biased;
                Some(joined) = session.calls.join_next_with_id() => {
                    quiet_since = tokio::time::Instant::now();
                    if let Some(failure) = self.settle(session, joined) {
                        return Ended::Broken(failure);
                    }
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(quiet_since + PING_INTERVAL), if session.calls.is_empty() => {
                    session.send(&self.config, "".into(), Unit::free(Vec::new()));
                }
                () = sleep_until(deadline), if deadline.is_some() => {}
            }
        }
    }

    /// Says how many messages wake the writer from now on, and wakes it if so many came meanwhile.
    fn sleep_until_worth_it(&self, session: &Session) {
        let outstanding = session.outstanding.values().map(|(_, unit)| unit.messages.len()).sum();
        let mut intake = self.shared.lock();
        intake.wake_at = stream::worth_a_unit(outstanding);
        let came = intake.queue.len() >= intake.wake_at;
        drop(intake);
        if came {
            // Not by going on at once: replies are read, and units sent, between two turns.
            self.shared.wake.notify_one();
        }
    }

    /// Sorts what was submitted by stream; says by when to end.
    fn take_in(&mut self) -> Option<Instant> {
        let mut intake = self.shared.lock();
        let (taken, deadline) = (std::mem::take(&mut intake.queue), intake.deadline);
        drop(intake);
        for handover in taken {
            let name = &handover.message.route.destination;
            if !self.streams.contains_key(name) {
                self.streams.insert(name.clone(), Stream::default());
            }
            let Some(stream) = self.streams.get_mut(name) else { continue };
            if !std::mem::replace(&mut stream.queued, true) {
                self.ready.push_back(name.clone());
            }
            stream.push(handover);
        }
        deadline
    }

    fn dispatch(&mut self, session: &mut Session) {
        while session.outstanding.len() < UNITS
            && let Some(name) = self.ready.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&name) else { continue };
            stream.queued = false;
            if let Some(unit) = stream.next_unit() {
                // It may have more: round robin, so that no stream starves another.
                stream.queued = true;
                self.ready.push_back(name.clone());
                session.send(&self.config, name, unit);
            } else if stream.is_idle() {
                self.streams.remove(&name);
            }
        }
    }

    /// Reads the replies to a unit and reports on its messages; says why the connection has to go, if it has.
    fn settle(&mut self, session: &mut Session, joined: Joined) -> Option<Arc<Failure>> {
        let (id, result) = match joined {
            Ok(done) => done,
            // A bug within the client; its unit is still outstanding, and lost with the connection.
            Err(error) => {
                let reason = format!("the Redis client failed: {error}");
                return Some(Arc::new(Failure::new(Class::Transient, Scope::Transport, reason)));
            }
        };
        let values = match result {
            Ok(values) => values,
            // The unit stays outstanding; it is reported with all others.
            Err(error) => return Some(Arc::new(classify::client(&error, &self.config.address()))),
        };
        let (name, unit) = session.outstanding.remove(&id)?;
        if let Some(stream) = self.streams.get_mut(&name) {
            stream.returned(&unit);
            if !std::mem::replace(&mut stream.queued, true) {
                self.ready.push_back(name.clone());
            }
        }
        let reading = unit.read(values);
        session.proven |= reading.verdicts.iter().any(|(_, outcome)| matches!(outcome, Outcome::Delivered(_)));
        self.report(reading.verdicts, &name);
        reading.broken
    }

    fn report(&mut self, verdicts: Vec<Verdict>, stream: &str) {
        self.release(verdicts.iter().map(|(handover, _)| handover));
        fence::report(verdicts, |lanes| {
            let swept = self.sweep(stream, lanes);
            self.release(swept.iter());
            swept
        });
    }

    /// Gives back the room of messages that are about to be reported.
    fn release<'a>(&self, handovers: impl Iterator<Item = &'a Handover>) {
        let (messages, bytes) = handovers
            .fold((0, 0), |(messages, bytes), handover| (messages + 1, bytes + handover.message.message.size()));
        let mut intake = self.shared.lock();
        intake.messages = intake.messages.saturating_sub(messages);
        intake.bytes = intake.bytes.saturating_sub(bytes);
    }

    fn sweep(&mut self, stream: &str, lanes: &HashSet<Lane>) -> Vec<Handover> {
        self.take_in();
        self.streams.get_mut(stream).map_or_else(Vec::new, |stream| stream.sweep(lanes))
    }

    /// Drops the connection first, so that nothing more is written, then reports what it owned.
    async fn abandon(&mut self, mut session: Session, gate: Gate, failure: Arc<Failure>) {
        session.calls.shutdown().await;
        drop(session.connection);
        let mut sent = Vec::new();
        for (_, (_, unit)) in session.outstanding.drain() {
            sent.extend(unit.lost(&failure));
        }
        self.fail_all(sent, gate, failure);
    }

    /// Shuts the gate and reports everything owned as failed: `sent` as it says, the rest as never sent.
    fn fail_all(&mut self, sent: Vec<Verdict>, gate: Gate, failure: Arc<Failure>) {
        let closing = matches!(gate, Gate::Closed);
        self.shared.lock().gate = gate;
        self.take_in();
        self.ready.clear();
        let mut verdicts = sent;
        for (_, stream) in self.streams.drain() {
            let failed = || Outcome::Failed { failure: failure.clone(), possibly_delivered: false };
            verdicts.extend(stream.into_waiting().map(|handover| (handover, failed())));
        }
        if !closing && self.told.as_ref() != Some(&failure) {
            tracing::warn!(class = ?failure.class, reason = %failure.reason, owned = verdicts.len(), "Redis cannot be used");
            self.told = Some(failure.clone());
            self.monitor.down(failure);
        }
        self.release(verdicts.iter().map(|(handover, _)| handover));
        // The gate is shut: nothing can have come in behind what is reported here.
        fence::report(verdicts, |_| Vec::new());
    }
}

impl Session {
    fn new(connection: MultiplexedConnection) -> Self {
        Self { connection, calls: JoinSet::new(), outstanding: HashMap::new(), proven: false }
    }

    fn send(&mut self, config: &RedisConfig, stream: Arc<str>, unit: Unit) {
        let (pipeline, replies) = unit.pipeline(config);
        let mut connection = self.connection.clone();
        let call = async move { connection.send_packed_commands(&pipeline, 0, replies).await };
        let id = self.calls.spawn(call).id();
        self.outstanding.insert(id, (stream, unit));
    }
}

/// Returns when a transport without a connection has to end: it is closed, and owns nothing or its time is up.
async fn must_end(shared: &Shared) {
    loop {
        let (deadline, owned) = {
            let intake = shared.lock();
            (intake.deadline, intake.messages)
        };
        match deadline {
            Some(_) if owned == 0 => return,
            Some(_) => return sleep_until(deadline).await,
            None => shared.wake.notified().await,
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

/// Full jitter; what an operator has to mend is tried at the cap from the beginning.
fn pause(class: Class, attempt: u32, cap: Duration) -> Duration {
    if class == Class::Hold {
        return cap.mul_f64(0.5 + fastrand::f64() / 2.0);
    }
    RECONNECT_BASE.saturating_mul(2_u32.saturating_pow(attempt)).min(cap).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_a_held_connection_begins_there() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let cap = Duration::from_secs(30);
        for attempt in 0..200 {
            assert!(pause(Class::Transient, attempt, cap) <= cap);
            assert!(pause(Class::Hold, attempt, cap) >= cap / 2);
        }
        assert!((0..100).all(|_| pause(Class::Transient, 0, cap) <= RECONNECT_BASE));
        assert!((0..100).any(|_| pause(Class::Transient, u32::MAX, cap) > cap / 2));
    }
}
