//! One connection, what is outstanding on it, and what is tried apart from it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, ServerError, Value};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::alone::{self, Alone};
use super::config::RedisConfig;
use super::connect::{self, Connected, Login};
use super::unit::Unit;
use crate::transport::Failure;

/// How long an idle connection is left alone. Proxies drop one in silence after a few seconds, a server with `timeout 1` closes
/// it after one. A ping costs some 50 µs of this machine's time, and as much of the server's.
pub(super) const PING_INTERVAL: Duration = Duration::from_millis(500);
/// A ping without an answer for so long makes messages wait: what is sent on a dead connection may have arrived or not.
const HOLD_BACK: Duration = Duration::from_millis(100);
/// A ping without an answer for so long has another connection made. A server that is merely busy answers neither, and then
/// this connection stays.
const DOUBT: Duration = Duration::from_secs(1);

/// What became of a unit.
pub(super) enum Answer {
    /// On the connection; `key_type`: what the key is, where that is why it was refused.
    Replies { replies: RedisResult<Vec<Value>>, key_type: Option<String> },
    /// On a connection of its own.
    Apart(Alone),
}

pub(super) type Joined = Result<(Id, Answer), JoinError>;

pub(super) struct Session {
    connection: MultiplexedConnection,
    pub calls: JoinSet<Answer>,
    outstanding: HashMap<Id, Outstanding>,
    /// How many units were sent so far.
    sent: u64,
    /// Outstanding units on connections of their own, and their turn: one is connected at a time.
    apart: usize,
    turn: Arc<Semaphore>,
    ping: Option<Ping>,
    /// The connection that takes over if it is usable before the ping is answered.
    pub rivals: JoinSet<Result<Connected, Failure>>,
    /// It has acknowledged something, so it was of use.
    pub proven: bool,
}

struct Outstanding {
    stream: Arc<str>,
    unit: Unit,
    call: AbortHandle,
    /// Units on the connection are answered in this order; `None`: it is on another.
    number: Option<u64>,
}

/// A ping without an answer.
struct Ping {
    call: AbortHandle,
    sent: Instant,
    /// When a rival is to be made.
    rival_at: Instant,
}

impl Session {
    pub(super) fn new(connection: MultiplexedConnection) -> Self {
        let (calls, rivals, outstanding) = (JoinSet::new(), JoinSet::new(), HashMap::new());
        let turn = Arc::new(Semaphore::new(1));
        Self { connection, calls, outstanding, sent: 0, apart: 0, turn, ping: None, rivals, proven: false }
    }

    /// Asks the server for a sign of life.
    pub(super) fn ping(&mut self, config: &RedisConfig) {
        let (call, sent) = (self.send(config, "".into(), Unit::free(Vec::new())), Instant::now());
        self.ping = Some(Ping { call, sent, rival_at: sent + DOUBT });
    }

    /// Whether a ping should have been answered by now.
    pub(super) fn is_doubtful(&self) -> bool {
        self.ping.as_ref().is_some_and(|ping| ping.sent.elapsed() >= HOLD_BACK)
    }

    /// When another connection is to be tried.
    pub(super) fn rival_at(&self) -> Option<Instant> {
        self.ping.as_ref().filter(|_| self.rivals.is_empty()).map(|ping| ping.rival_at)
    }

    /// Tries another connection. If it fails, and the ping is still not answered, the next one is tried a little later.
    pub(super) fn try_rival(&mut self, config: &Arc<RedisConfig>, login: Arc<Login>) {
        let config = config.clone();
        if let Some(ping) = &mut self.ping {
            ping.rival_at = Instant::now() + config.connect_timeout + DOUBT;
        }
        self.rivals.spawn(async move { connect::connect(&login, &config).await });
    }

    /// Goes on with another connection, unless the ping was answered meanwhile. Returns what had no answer on the one before, in
    /// order, and behind it what was tried apart from it: a verdict there supposes that this connection held.
    pub(super) fn replace(&mut self, connection: MultiplexedConnection) -> Option<Vec<(Arc<str>, Unit)>> {
        let ping = self.ping.take()?;
        self.outstanding.remove(&ping.call.id());
        ping.call.abort();
        self.connection = connection;
        let mut lost: Vec<_> = self.outstanding.drain().map(|(_, it)| it).collect();
        self.apart = 0;
        lost.sort_by_key(|it| it.number.unwrap_or(u64::MAX));
        let units = lost.into_iter().map(|it| {
            it.call.abort();
            (it.stream, it.unit)
        });
        Some(units.collect())
    }

    /// Sends a unit behind those that are on their way.
    pub(super) fn send(&mut self, config: &RedisConfig, stream: Arc<str>, unit: Unit) -> AbortHandle {
        let (pipeline, expected) = unit.pipeline(config);
        let (mut connection, key) = (self.connection.clone(), stream.clone());
        let call = async move {
            let replies = connection.send_packed_commands(&pipeline, 0, expected).await;
            let key_type = match &replies {
                Ok(values) if values.iter().any(is_of_wrong_type) => connect::key_type(&mut connection, &key).await,
                _ => None,
            };
            Answer::Replies { replies, key_type }
        };
        let call = self.calls.spawn(call);
        self.sent += 1;
        let outstanding = Outstanding { stream, unit, call: call.clone(), number: Some(self.sent) };
        self.outstanding.insert(call.id(), outstanding);
        call
    }

    /// Sends a unit of one message on a connection of its own.
    pub(super) fn send_apart(&mut self, config: &Arc<RedisConfig>, login: &Arc<Login>, stream: Arc<str>, unit: Unit) {
        let Some(message) = unit.messages.first().map(|handover| handover.message.clone()) else { return };
        let (config, login, turn) = (config.clone(), login.clone(), self.turn.clone());
        let call = async move { Answer::Apart(alone::attempt(login, config, message, turn).await) };
        let call = self.calls.spawn(call);
        self.apart += 1;
        self.outstanding.insert(call.id(), Outstanding { stream, unit, call, number: None });
    }

    /// Whether an answer is still waited for.
    pub(super) fn is_outstanding(&self, id: Id) -> bool {
        self.outstanding.contains_key(&id)
    }

    /// The unit that was answered.
    pub(super) fn take(&mut self, id: Id) -> Option<(Arc<str>, Unit)> {
        let Outstanding { stream, unit, number, .. } = self.outstanding.remove(&id)?;
        self.apart -= usize::from(number.is_none());
        if self.ping.as_ref().is_some_and(|ping| ping.call.id() == id) {
            self.ping = None;
            self.rivals.abort_all();
        }
        Some((stream, unit))
    }

    /// Units outstanding on the connection.
    pub(super) fn units(&self) -> usize {
        self.outstanding.len() - self.apart
    }

    /// Messages outstanding on the connection.
    pub(super) fn messages(&self) -> usize {
        let on_it = self.outstanding.values().filter(|outstanding| outstanding.number.is_some());
        on_it.map(|outstanding| outstanding.unit.messages.len()).sum()
    }

    /// Whether nothing is outstanding on the connection.
    pub(super) fn is_idle(&self) -> bool {
        self.units() == 0
    }

    /// An answer that is there.
    pub(super) fn joined_already(&mut self) -> Option<Joined> {
        self.calls.try_join_next_with_id()
    }

    /// Drops the connection, and another that is being made. Returns what had no answer: what was sent on it, in order, and what was tried apart from it.
    pub(super) async fn close(mut self) -> (Vec<Unit>, Vec<Unit>) {
        self.calls.shutdown().await;
        drop(self.connection);
        let mut outstanding: Vec<Outstanding> = self.outstanding.into_values().collect();
        outstanding.sort_by_key(|outstanding| outstanding.number);
        let (apart, on_it): (Vec<_>, Vec<_>) = outstanding.into_iter().partition(|it| it.number.is_none());
        let units = |all: Vec<Outstanding>| all.into_iter().map(|outstanding| outstanding.unit).collect();
        (units(on_it), units(apart))
    }
}

/// Whether a reply, or one of a transaction's, says that the key is no stream.
fn is_of_wrong_type(value: &Value) -> bool {
    let is_it = |error: &ServerError| error.code() == "WRONGTYPE";
    match value {
        Value::ServerError(error) => is_it(error),
        Value::Array(items) => items.iter().any(|item| matches!(item, Value::ServerError(error) if is_it(error))),
        _ => false,
    }
}
