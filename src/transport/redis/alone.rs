//! Trying a message on a connection of its own.
//!
//! For a message over which the server may close the connection: there it takes no other message along, and the server's
//! answer, or that it closes the connection again and again, means this message for certain. The usual connection is open
//! all the time, and pinged; should it break, the attempt is dropped with it, and no verdict is given.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, RedisResult, Value};

use super::classify;
use super::config::RedisConfig;
use super::connect::{self, Connected, Login};
use crate::message::Outgoing;
use crate::transport::{Class, Failure, Scope};

/// The pauses before each try. An outage of a moment must not look like a verdict.
const TRIES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)];
/// How long after the last try the usual connection must have held: a few of its pings.
const WATCH: Duration = Duration::from_secs(2);

/// What became of a message tried by itself.
pub(super) enum Alone {
    /// The server answered; the answer may be an error.
    Answered(Value),
    /// The server does not take it because of its size, or of what else makes it close the connection. `sent`: it may have
    /// arrived all the same.
    TooLarge { failure: Failure, sent: bool },
    /// No verdict; `sent` likewise.
    Failed { failure: Failure, sent: bool },
}

/// Tries the message, whose one command is in `pipeline`.
pub(super) async fn attempt(
    login: Arc<Login>,
    config: Arc<RedisConfig>,
    message: Arc<Outgoing>,
    pipeline: Pipeline,
) -> Alone {
    let address = config.address();
    let mut last = String::new();
    for (number, pause) in TRIES.into_iter().enumerate() {
        tokio::time::sleep(pause).await;
        let (mut connection, over) = match connect::connect(&login, &config).await {
            Ok(Connected { connection, facts }) => (connection, facts.exceeded_by(&message)),
            Err(failure) => return Alone::Failed { failure: no_verdict(&failure.reason), sent: number > 0 },
        };
        let replies: RedisResult<Vec<Value>> = connection.send_packed_commands(&pipeline, 0, 1).await;
        match replies {
            Ok(mut values) if values.len() == 1 => {
                let Some(value) = values.pop() else { continue };
                return match &value {
                    Value::ServerError(error) if classify::is_too_long(error.details().unwrap_or_default()) => {
                        let failure = too_large(&classify::reply(error).failure.reason, over);
                        Alone::TooLarge { failure, sent: false }
                    }
                    _ => Alone::Answered(value),
                };
            }
            Ok(values) => {
                let reason = format!("Redis: {} replies to one command", values.len());
                return Alone::Failed { failure: no_verdict(&reason), sent: true };
            }
            Err(error) if is_cut(&error) => {
                last = classify::client(&error, &address).reason;
                if over.is_some() {
                    return Alone::TooLarge { failure: too_large(&last, over), sent: true };
                }
            }
            Err(error) => {
                let failure = no_verdict(&classify::client(&error, &address).reason);
                return Alone::Failed { failure, sent: true };
            }
        }
    }
    tokio::time::sleep(WATCH).await;
    if let Err(failure) = connect::connect(&login, &config).await {
        return Alone::Failed { failure: no_verdict(&failure.reason), sent: true };
    }
    let times = TRIES.len();
    let reason = format!(
        "Redis closed the connection each of the {times} times this message was sent by itself, and takes others: {last} \
         (is it larger than client-query-buffer-limit, maxmemory-clients or what a proxy takes?)"
    );
    Alone::TooLarge { failure: Failure::new(Class::Permanent, Scope::Lane, reason), sent: true }
}

/// Whether the other side closed the connection, in contrast to not answering.
pub(super) fn is_cut(error: &redis::RedisError) -> bool {
    error.is_connection_dropped() && !error.is_timeout() && !error.is_connection_refusal()
}

fn no_verdict(reason: &str) -> Failure {
    Failure::new(Class::Transient, Scope::Lane, format!("tried on a connection of its own: {reason}"))
}

fn too_large(reason: &str, over: Option<u64>) -> Failure {
    let limit = over.map(|limit| {
        format!("; the server reads {limit} bytes in one value: raise proto-max-bulk-len, or client-query-buffer-limit")
    });
    Failure::new(Class::Permanent, Scope::Lane, format!("{reason}{}", limit.unwrap_or_default()))
}
