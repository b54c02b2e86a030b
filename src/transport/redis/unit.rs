//! What goes to the server in one piece, and what its replies say about each message in it.
//!
//! A unit holds messages of one stream. If two of them are of one lane, it is a transaction, because an error reply in
//! mid-pipeline does not stop what follows it, and then a later message of the lane would be appended before an earlier
//! one:
//!
//! - Errors that depend on the server's state (`OOM`, `MISCONF`, `NOREPLICAS`, `READONLY`, `BUSY`, `NOPERM`, …) come
//!   when a command is queued, or instead of `EXEC`. Either aborts the whole: nothing was appended.
//! - Errors at run time do not stop an `EXEC`. What can fail an `XADD` there is the key's type and an exhausted id,
//!   which nothing within a transaction changes, so they fail all that follows, too; and an entry beyond 1 GiB,
//!   which no message reaches.
//!
//! Should a reply contradict this, the later message counts as failed, possibly delivered, and the log says so.
//! Where each message is of another lane, or of none, a plain pipeline does, which costs the server less.

use std::collections::HashSet;
use std::sync::Arc;

use redis::{Pipeline, ServerError, Value};

use super::classify::{self, Finding};
use super::config::{RedisConfig, Trim};
use super::entry;
use crate::message::Position;
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Outcome, Scope};

/// One piece of work for the server. Without messages it is a `PING`.
pub(super) struct Unit {
    /// Its messages keep their order; no lane is in two such units at a time.
    pub ordered: bool,
    /// Two of its messages are of one lane, so it has to be a transaction.
    pub atomic: bool,
    /// It is tried on a connection of its own, and takes none of its stream's places ([`Stream::apart`](super::stream::Stream::apart)).
    pub apart: bool,
    pub messages: Vec<Handover>,
}

/// What the replies to a unit say.
pub(super) struct Reading {
    pub verdicts: Vec<Verdict>,
    /// Why the connection has to be replaced, if it has.
    pub broken: Option<Arc<Failure>>,
}

/// What the replies alone do not say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Context<'a> {
    /// What the key is, where it is no stream.
    pub key_type: Option<&'a str>,
    /// What the stream is trimmed to.
    pub trim: Option<&'a Trim>,
    /// The server's version.
    pub version: Option<&'a str>,
}

enum Fate {
    Appended(Position),
    /// The server says that it did not append it.
    Refused(Arc<Failure>),
    /// Nobody can say.
    Unknown(Arc<Failure>),
}

impl Unit {
    /// Messages that need no order.
    pub(super) fn free(messages: Vec<Handover>) -> Self {
        Self { ordered: false, atomic: false, apart: false, messages }
    }

    /// The commands, and how many replies they get.
    pub(super) fn pipeline(&self, config: &RedisConfig) -> (Pipeline, usize) {
        let mut pipeline = Pipeline::with_capacity(self.messages.len() + 2);
        if self.messages.is_empty() {
            pipeline.cmd("PING");
        }
        // `Pipeline::atomic` would hide why a server refuses EXEC, so both commands are written here.
        if self.atomic {
            pipeline.cmd("MULTI");
        }
        for handover in &self.messages {
            pipeline.add_command(entry::command(config, &handover.message));
        }
        if self.atomic {
            pipeline.cmd("EXEC");
        }
        let replies = pipeline.len();
        (pipeline, replies)
    }

    /// Reports for when no reply comes any more.
    pub(super) fn lost(self, failure: &Arc<Failure>) -> Vec<Verdict> {
        let failed = || Outcome::Failed { failure: failure.clone(), possibly_delivered: true };
        self.messages.into_iter().map(|handover| (handover, failed())).collect()
    }

    /// What the replies mean for each message.
    pub(super) fn read(self, values: Vec<Value>, context: Context<'_>) -> Reading {
        let mut broken = Broken { why: None, context };
        let fates = if self.messages.is_empty() {
            if let Some(Value::ServerError(error)) = values.first() {
                refused(error, &mut broken);
            }
            Vec::new()
        } else if self.atomic {
            transaction(self.messages.len(), values, &mut broken)
        } else {
            each(self.messages.len(), values, &mut broken)
        };
        let mut closed = HashSet::new();
        let mut verdicts = Vec::with_capacity(self.messages.len());
        for (handover, fate) in self.messages.into_iter().zip(fates) {
            let lane = handover.message.lane;
            let overtook = lane.is_some_and(|lane| closed.contains(&lane));
            let outcome = match fate {
                Fate::Appended(position) if overtook => {
                    tracing::error!(id = %handover.message.id, %position, "Redis appended a message of a lane behind one it refused");
                    Outcome::Failed { failure: fence::behind(), possibly_delivered: true }
                }
                Fate::Appended(position) => Outcome::Delivered(position),
                Fate::Refused(failure) => Outcome::Failed { failure, possibly_delivered: false },
                Fate::Unknown(failure) => Outcome::Failed { failure, possibly_delivered: true },
            };
            if matches!(outcome, Outcome::Failed { .. }) {
                closed.extend(lane);
            }
            verdicts.push((handover, outcome));
        }
        Reading { verdicts, broken: broken.why }
    }
}

/// Why the connection has to be replaced, if it has; and what errors are explained with.
struct Broken<'a> {
    why: Option<Arc<Failure>>,
    context: Context<'a>,
}

fn each(count: usize, values: Vec<Value>, broken: &mut Broken<'_>) -> Vec<Fate> {
    if values.len() != count {
        return nonsense(count, format!("{} replies to {count} commands", values.len()), broken);
    }
    values.into_iter().map(|value| single(value, broken)).collect()
}

fn single(value: Value, broken: &mut Broken<'_>) -> Fate {
    let (kind, entry) = match value {
        Value::BulkString(text) => ("a bulk string", position(&text)),
        Value::ServerError(error) => return Fate::Refused(refused(&error, broken)),
        Value::SimpleString(_) => ("a simple string", None),
        Value::Nil => ("nil", None),
        _ => ("another type", None),
    };
    match entry {
        Some(position) => Fate::Appended(position),
        None => Fate::Unknown(unexpected(format!("{kind} instead of an entry's id"), broken)),
    }
}

fn transaction(count: usize, mut values: Vec<Value>, broken: &mut Broken<'_>) -> Vec<Fate> {
    if values.len() != count + 2 {
        return nonsense(count, format!("{} replies to a transaction of {count}", values.len()), broken);
    }
    let executed = values.pop();
    if let Value::ServerError(error) = values.remove(0) {
        // Without MULTI the commands ran one by one, and each reply speaks for itself. The next connection asks
        // for MULTI before it takes messages.
        broken.why = Some(refused(&error, broken));
        return each(count, values, broken);
    }
    match executed {
        Some(Value::Array(items)) => each(count, items, broken),
        Some(Value::ServerError(error)) if error.code() == "EXECABORT" => aborted(&error, values, broken),
        Some(Value::ServerError(error)) => {
            // What was queued is forgotten with the connection.
            let failure = refused(&error, broken);
            broken.why = Some(failure.clone());
            (0..count).map(|_| Fate::Refused(failure.clone())).collect()
        }
        _ => nonsense(count, "neither an array nor an error from EXEC".to_owned(), broken),
    }
}

/// Nothing of the transaction was applied: because of a command that was refused when it was queued, which has said
/// why itself, or because of EXEC.
fn aborted(error: &ServerError, queued: Vec<Value>, broken: &mut Broken<'_>) -> Vec<Fate> {
    let own: Vec<Option<Arc<Failure>>> = queued
        .into_iter()
        .map(|value| if let Value::ServerError(error) = value { Some(refused(&error, broken)) } else { None })
        .collect();
    let cause = own.iter().flatten().next().cloned().unwrap_or_else(|| refused(error, broken));
    let shared = if cause.class == Class::Permanent {
        // A verdict on one message is none on those that shared its transaction.
        Arc::new(Failure::new(Class::Transient, Scope::Lane, "discarded with the transaction of a refused message"))
    } else {
        cause
    };
    own.into_iter().map(|failure| Fate::Refused(failure.unwrap_or_else(|| shared.clone()))).collect()
}

fn refused(error: &ServerError, broken: &mut Broken<'_>) -> Arc<Failure> {
    let Finding { mut failure, reconnect } = classify::reply(error);
    failure.reason.push_str(&explanation(error, broken.context));
    let failure = Arc::new(failure);
    if reconnect && broken.why.is_none() {
        // The fault of a message is none of what else was on the connection.
        broken.why = Some(if failure.class == Class::Permanent {
            let reason = format!("the connection was closed over one message: {}", failure.reason);
            Arc::new(Failure::new(Class::Transient, Scope::Transport, reason))
        } else {
            failure.clone()
        });
    }
    failure
}

/// What an operator has to know to put it right, where the server's words do not say.
fn explanation(error: &ServerError, context: Context<'_>) -> String {
    let details = error.details().unwrap_or_default();
    match (error.code(), context.key_type, context.trim) {
        ("WRONGTYPE", Some(key_type), _) => format!(": it is a {key_type}"),
        ("ERR", _, Some(trim)) if classify::is_of_form(details) => {
            let (option, since) = match trim {
                Trim::MaxLen(_) => ("maxlen", "5"),
                Trim::MinId(_) => ("minid", "6.2"),
            };
            let version = context.version.map_or(String::new(), |version| format!(", this is {version}"));
            format!(": the stream's option {option} needs Redis {since} or later{version}")
        }
        _ => String::new(),
    }
}

fn nonsense(count: usize, what: String, broken: &mut Broken<'_>) -> Vec<Fate> {
    let failure = unexpected(what, broken);
    (0..count).map(|_| Fate::Unknown(failure.clone())).collect()
}

/// A reply that makes no sense: the connection cannot be trusted any more.
fn unexpected(what: String, broken: &mut Broken<'_>) -> Arc<Failure> {
    let reason = format!("Redis: a reply that makes no sense: {what}");
    let failure = Arc::new(Failure::new(Class::Transient, Scope::Transport, reason));
    broken.why.get_or_insert_with(|| failure.clone());
    failure
}

fn position(text: &[u8]) -> Option<Position> {
    let (millis, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some(Position::Entry { millis: millis.parse().ok()?, sequence: sequence.parse().ok()? })
}

#[cfg(test)]
mod tests;
