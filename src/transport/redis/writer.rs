//! The one task that talks to the server: gathers, sends, reports, reconnects.
//!
//! Reports run into the producer, so no lock of ours is held while one is made.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::access::Access;
use super::alone::{self, Alone};
use super::config::RedisConfig;
use super::connect::Connected;
use super::limits::Limits;
use super::session::{Answer, Joined, PING_INTERVAL, Session};
use super::stream::{self, Stream};
use super::unit::{Context, Reading, Unit};
use super::{Gate, Shared, classify, closed, connect, waiting};
use crate::message::Lane;
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Monitor, Outcome, Scope};

/// Units outstanding on the connection, so that one slow server does not fill our memory with encoded commands.
const UNITS: usize = 64;

pub(super) struct Writer {
    config: Arc<RedisConfig>,
    access: Arc<Access>,
    shared: Arc<Shared>,
    monitor: Monitor,
    limits: Limits,
    streams: HashMap<Arc<str>, Stream>,
    /// Streams that may have something to send.
    ready: VecDeque<Arc<str>>,
    /// What the monitor was told last; `None`: that the server is up, or nothing yet.
    told: Option<Arc<Failure>>,
}

enum Ended {
    Closed,
    Broken(End),
}

/// Why a connection has to be replaced.
struct End {
    failure: Arc<Failure>,
    /// The other side closed it, without an answer to what was sent last.
    cut: bool,
}

impl Writer {
    pub(super) fn new(config: Arc<RedisConfig>, access: Arc<Access>, shared: Arc<Shared>, monitor: Monitor) -> Self {
        let (limits, streams, ready) = (Limits::default(), HashMap::new(), VecDeque::new());
        Self { config, access, shared, monitor, limits, streams, ready, told: None }
    }

    /// Connects, serves, and does so again, until the transport is closed.
    pub(super) async fn run(mut self) {
        let mut attempt = 0;
        let mut warned = false;
        loop {
            let connected = tokio::select! {
                connected = self.connect() => connected,
                () = waiting::must_end(&self.shared) => break,
            };
            let failure = match connected {
                Ok(Connected { connection, facts }) => {
                    self.limits.know(facts);
                    if !std::mem::replace(&mut warned, true) {
                        tokio::spawn(connect::warn_of_settings(connection.clone(), self.config.address()));
                    }
                    self.go_up();
                    let mut session = Session::new(connection);
                    let End { failure, cut } = match self.serve(&mut session).await {
                        Ended::Closed => {
                            let end = End { failure: closed(), cut: false };
                            return self.abandon(session, Gate::Closed, end).await;
                        }
                        Ended::Broken(end) => end,
                    };
                    attempt = if session.proven { 0 } else { attempt };
                    self.abandon(session, Gate::Down(failure.clone()), End { failure: failure.clone(), cut }).await;
                    failure
                }
                Err(failure) => {
                    let failure = Arc::new(failure);
                    self.fail_all(Vec::new(), Gate::Down(failure.clone()), failure.clone());
                    failure
                }
            };
            let pause = waiting::pause(failure.class, attempt, self.config.reconnect_cap);
            attempt = attempt.saturating_add(1);
            tokio::select! {
                () = waiting::until_renewed(&self.access, pause) => {}
                () = waiting::must_end(&self.shared) => break,
            }
        }
        self.fail_all(Vec::new(), Gate::Closed, closed());
    }

    /// Connects with what the files hold now.
    async fn connect(&self) -> Result<Connected, Failure> {
        waiting::refresh(&self.access).await;
        connect::connect(&self.access.login(), &self.config).await
    }

    fn go_up(&mut self) {
        self.shared.lock().gate = Gate::Open;
        tracing::info!(address = %self.config.address(), "connected to Redis");
        self.told = None;
        self.monitor.up();
    }

    async fn serve(&mut self, session: &mut Session) -> Ended {
        let mut quiet_since = tokio::time::Instant::now();
        let mut look_at = quiet_since + waiting::LOOK;
        loop {
            let deadline = self.take_in();
            if !session.is_doubtful() {
                self.dispatch(session);
            }
            self.sleep_until_worth_it(session);
            if deadline.is_some_and(|deadline| self.streams.is_empty() || deadline <= Instant::now()) {
                return Ended::Closed;
            }
            let rival_at = session.rival_at();
            tokio::select! {
                biased;
                Some(joined) = session.calls.join_next_with_id() => {
                    quiet_since = tokio::time::Instant::now();
                    if let Some(end) = self.settle(session, joined) {
                        return Ended::Broken(end);
                    }
                }
                () = self.shared.wake.notified() => {}
                Some(rival) = session.rivals.join_next() => {
                    if let Ok(Ok(connected)) = rival {
                        self.replace(session, connected);
                    }
                }
                () = tokio::time::sleep_until(quiet_since + PING_INTERVAL), if session.is_idle() => {
                    session.ping(&self.config);
                }
                () = tokio::time::sleep_until(look_at), if self.access.has_files() => {
                    look_at = tokio::time::Instant::now() + waiting::LOOK;
                    let access = self.access.clone();
                    // Not waited for: it may hang.
                    drop(tokio::task::spawn_blocking(move || access.refresh()));
                }
                () = waiting::sleep_until(rival_at), if rival_at.is_some() => {
                    session.try_rival(&self.config, self.access.login());
                }
                () = waiting::sleep_until(deadline.map(Into::into)), if deadline.is_some() => {}
            }
        }
    }

    /// Says how many messages wake the writer from now on, and wakes it if so many came meanwhile.
    fn sleep_until_worth_it(&self, session: &Session) {
        let outstanding = session.messages();
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
        let now = Instant::now();
        while session.units() < UNITS
            && let Some(name) = self.ready.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&name) else { continue };
            stream.queued = false;
            if let Some(unit) = stream.next_unit(self.limits.unit(&name, now)) {
                // It may have more: round robin, so that no stream starves another.
                stream.queued = true;
                self.ready.push_back(name.clone());
                self.send(session, name, unit, now);
            } else if stream.is_idle() {
                self.streams.remove(&name);
            }
        }
    }

    fn send(&mut self, session: &mut Session, name: Arc<str>, mut unit: Unit, now: Instant) {
        let suspicion = match &unit.messages[..] {
            [handover] => self.limits.suspicion(&handover.message, now).map(|reason| (reason, handover.alone)),
            _ => None,
        };
        match suspicion {
            None => {
                session.send(&self.config, name, unit);
            }
            Some((_, true)) => {
                if let Some(stream) = self.streams.get_mut(&name) {
                    stream.apart(&mut unit);
                }
                session.send_apart(&self.config, &self.access.login(), name, unit);
            }
            // It comes back by itself, when nothing else of its ordering key is in flight.
            Some((reason, false)) => {
                let reason = format!("Redis: {reason}; it is tried on a connection of its own");
                let failure = Arc::new(Failure::new(Class::Permanent, Scope::Lane, reason));
                let failed = || Outcome::Failed { failure: failure.clone(), possibly_delivered: false };
                if let Some(stream) = self.streams.get_mut(&name) {
                    stream.returned(&unit);
                }
                let verdicts = unit.messages.into_iter().map(|handover| (handover, failed())).collect();
                self.report(verdicts, &name);
            }
        }
    }

    /// Reads the replies to a unit and reports on its messages; says why the connection has to go, if it has.
    fn settle(&mut self, session: &mut Session, joined: Joined) -> Option<End> {
        let (id, answer) = match joined {
            Ok(done) => done,
            // Of a connection that was replaced.
            Err(error) if error.is_cancelled() => return None,
            // A bug within the client; its unit is still outstanding, and lost with the connection.
            Err(error) => {
                let reason = format!("the Redis client failed: {error}");
                let failure = Arc::new(Failure::new(Class::Transient, Scope::Transport, reason));
                return Some(End { failure, cut: false });
            }
        };
        if !session.is_outstanding(id) {
            // Of a connection that was replaced.
            return None;
        }
        let answer = match answer {
            Answer::Replies { replies: Ok(values), key_type } => Ok((values, key_type)),
            // The unit stays outstanding; it is reported with all others.
            Answer::Replies { replies: Err(error), .. } => {
                let failure = Arc::new(classify::client(&error, &self.config.address()));
                return Some(End { failure, cut: alone::is_cut(&error) });
            }
            Answer::Apart(alone) => Err(alone),
        };
        let (name, unit) = session.take(id)?;
        if let Some(stream) = self.streams.get_mut(&name) {
            stream.returned(&unit);
            if !std::mem::replace(&mut stream.queued, true) {
                self.ready.push_back(name.clone());
            }
        }
        let Reading { verdicts, broken } = match answer {
            Ok((values, key_type)) => self.read(unit, values, key_type.as_deref()),
            Err(alone) => Reading { verdicts: self.read_apart(unit, alone), broken: None },
        };
        let delivered = |(_, outcome): &&Verdict| matches!(outcome, Outcome::Delivered(_));
        let (count, now) = (verdicts.len(), Instant::now());
        for (handover, _) in verdicts.iter().filter(delivered) {
            session.proven = true;
            self.limits.pass(&handover.message, count, now);
        }
        self.report(verdicts, &name);
        broken.map(|failure| End { failure, cut: false })
    }

    fn read(&mut self, unit: Unit, values: Vec<redis::Value>, key_type: Option<&str>) -> Reading {
        let stream = unit.messages.first().map(|handover| handover.message.route.destination.clone());
        let facts = self.limits.facts.clone();
        let trim = stream.as_deref().and_then(|stream| self.config.trim_of(stream));
        let reading = unit.read(values, Context { key_type, trim, version: facts.version.as_deref() });
        if let (Some(_), [(handover, Outcome::Failed { failure, .. })]) = (&reading.broken, &reading.verdicts[..])
            && failure.class == Class::Permanent
        {
            self.limits.refuse(&handover.message, Instant::now());
        }
        reading
    }

    /// What became of a message tried on a connection of its own.
    fn read_apart(&mut self, unit: Unit, alone: Alone) -> Vec<Verdict> {
        let (failure, possibly_delivered) = match alone {
            Alone::Answered(value) => return self.read(unit, vec![value], None).verdicts,
            Alone::TooLarge { failure, sent } => {
                unit.messages.iter().for_each(|handover| self.limits.refuse(&handover.message, Instant::now()));
                (Arc::new(failure), sent)
            }
            Alone::Failed { failure, sent } => (Arc::new(failure), sent),
        };
        let failed = || Outcome::Failed { failure: failure.clone(), possibly_delivered };
        unit.messages.into_iter().map(|handover| (handover, failed())).collect()
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

    /// Goes on with another connection: this one is dead, though nothing said so. Mostly nothing is on it but the ping.
    fn replace(&mut self, session: &mut Session, connected: Connected) {
        let Some(units) = session.replace(connected.connection) else { return };
        self.limits.know(connected.facts);
        let address = self.config.address();
        tracing::info!(%address, units = units.len(), "Redis does not answer on an open connection, but on a new one");
        let reason = format!("Redis at {address} did not answer on this connection any more, but on a new one");
        // The connection's trouble, so it uses up no attempt of a message. It comes again at once; the next connection is not
        // replaced before a ping was without an answer for a second.
        let failure = Arc::new(Failure::new(Class::Fatal, Scope::Lane, reason));
        for (name, unit) in units {
            if let Some(stream) = self.streams.get_mut(&name) {
                stream.returned(&unit);
                if !std::mem::replace(&mut stream.queued, true) {
                    self.ready.push_back(name.clone());
                }
            }
            self.report(unit.lost(&failure), &name);
        }
    }

    /// Drops the connection first, so that nothing more is written, then reports what it owned.
    async fn abandon(&mut self, mut session: Session, gate: Gate, end: End) {
        // Answers that came before the connection broke, and were not looked at yet.
        while let Some(joined) = session.joined_already() {
            let _ = self.settle(&mut session, joined);
        }
        let (on_it, apart) = session.close().await;
        let mut units = on_it.into_iter();
        let mut sent = Vec::new();
        // Units are answered in turn: over the first of these the connection broke.
        if let Some(first) = units.next() {
            let failure = if end.cut { self.blame(&first, &end.failure) } else { None };
            sent.extend(first.lost(failure.as_ref().unwrap_or(&end.failure)));
        }
        sent.extend(units.chain(apart).flat_map(|unit| unit.lost(&end.failure)));
        self.fail_all(sent, gate, end.failure);
    }

    /// Notes that the connection broke over a unit; what to say of it, where that is its one message's fault by all
    /// appearance.
    fn blame(&mut self, unit: &Unit, failure: &Failure) -> Option<Arc<Failure>> {
        let now = Instant::now();
        let messages: Vec<_> = unit.messages.iter().map(|handover| &*handover.message).collect();
        self.limits.cut(&messages, now);
        let [message] = messages[..] else { return None };
        let reason = self.limits.suspicion(message, now)?;
        let reason = format!("{failure}; Redis: {reason}; it is tried on a connection of its own");
        Some(Arc::new(Failure::new(Class::Permanent, Scope::Lane, reason)))
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
