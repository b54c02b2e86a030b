//! One connection, what is outstanding on it, and what is tried apart from it.

use std::collections::HashMap;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, ServerError, Value};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};

use super::alone::{self, Alone};
use super::config::RedisConfig;
use super::connect::{self, Login};
use super::unit::Unit;

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
    /// Outstanding units on connections of their own, and their turn: one at a time.
    apart: usize,
    turn: Arc<Semaphore>,
    /// It has acknowledged something, so it was of use.
    pub proven: bool,
}

struct Outstanding {
    stream: Arc<str>,
    unit: Unit,
    /// Units on the connection are answered in this order; `None`: it is on another.
    number: Option<u64>,
}

impl Session {
    pub(super) fn new(connection: MultiplexedConnection) -> Self {
        let (calls, outstanding, turn) = (JoinSet::new(), HashMap::new(), Arc::new(Semaphore::new(1)));
        Self { connection, calls, outstanding, sent: 0, apart: 0, turn, proven: false }
    }

    /// Sends a unit behind those that are on their way.
    pub(super) fn send(&mut self, config: &RedisConfig, stream: Arc<str>, unit: Unit) {
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
        let id = self.calls.spawn(call).id();
        self.sent += 1;
        self.outstanding.insert(id, Outstanding { stream, unit, number: Some(self.sent) });
    }

    /// Sends a unit of one message on a connection of its own.
    pub(super) fn send_apart(&mut self, config: &Arc<RedisConfig>, login: &Arc<Login>, stream: Arc<str>, unit: Unit) {
        let Some(message) = unit.messages.first().map(|handover| handover.message.clone()) else { return };
        let (pipeline, _) = unit.pipeline(config);
        let (config, login, turn) = (config.clone(), login.clone(), self.turn.clone());
        let call = async move {
            // It is never closed.
            let _turn = turn.acquire().await;
            Answer::Apart(alone::attempt(login, config, message, pipeline).await)
        };
        let id = self.calls.spawn(call).id();
        self.apart += 1;
        self.outstanding.insert(id, Outstanding { stream, unit, number: None });
    }

    /// The unit that was answered.
    pub(super) fn take(&mut self, id: Id) -> Option<(Arc<str>, Unit)> {
        let Outstanding { stream, unit, number } = self.outstanding.remove(&id)?;
        self.apart -= usize::from(number.is_none());
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

    /// Drops the connection. Returns what had no answer: what was sent on it, in order, and what was tried apart from it.
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
