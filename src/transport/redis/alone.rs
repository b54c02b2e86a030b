//! Trying a message on a connection of its own.
//!
//! For a message over which the server may close the connection: there it takes no other message along, and the server's
//! answer, or that it closes the connection again and again, means this message for certain. The usual connection is open
//! all the time, and pinged; should it break, or be replaced because it does not answer any more, the attempt is dropped
//! with it, and no verdict is given.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, RedisResult, Value};
use tokio::sync::Semaphore;

use super::classify;
use super::config::RedisConfig;
use super::connect::{self, Connected, Login};
use super::entry;
use crate::message::Outgoing;
use crate::transport::{Class, Failure, Scope};

/// What the pauses here are counted in. Unit tests need not wait so long.
const SECOND: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };
/// The pauses before each try. An outage of a moment must not look like a verdict, nor memory that is short for a moment:
/// `maxmemory-clients` makes Redis close the largest connection, whoever used up the rest.
const TRIES: [Duration; 4] = [Duration::ZERO, SECOND, SECOND.saturating_mul(3), SECOND.saturating_mul(5)];
/// How long after the last try the usual connection must have held: a few of its pings.
const WATCH: Duration = SECOND.saturating_mul(2);
/// The pause before it is reported that there is no verdict, at least, and at most twice as long: such a message comes again
/// at once.
const NO_VERDICT: Duration = SECOND;

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

/// Tries the message. Several are tried at a time, but only one of them is connected at a time (`turn`): together they could
/// be too much for a server that takes each. Their pauses overlap, so that many do not take many times as long.
pub(super) async fn attempt(
    login: Arc<Login>,
    config: Arc<RedisConfig>,
    message: Arc<Outgoing>,
    turn: Arc<Semaphore>,
) -> Alone {
    let alone = judge(&login, &config, &message, &turn).await;
    if let Alone::Failed { failure, .. } = &alone {
        tracing::debug!(id = %message.id, reason = %failure.reason, "no verdict on a message tried by itself");
        tokio::time::sleep(NO_VERDICT.mul_f64(1.0 + fastrand::f64())).await;
    }
    alone
}

async fn judge(login: &Login, config: &RedisConfig, message: &Outgoing, turn: &Semaphore) -> Alone {
    let address = config.address();
    let mut last = String::new();
    for (number, pause) in TRIES.into_iter().enumerate() {
        tokio::time::sleep(pause).await;
        // It is never closed.
        let _turn = turn.acquire().await;
        let (mut connection, over) = match connect::connect(login, config).await {
            Ok(Connected { connection, facts }) => (connection, facts.exceeded_by(message)),
            Err(failure) => return Alone::Failed { failure: no_verdict(&failure.reason), sent: number > 0 },
        };
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(entry::command(config, message));
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
    if let Err(failure) = connect::connect(login, config).await {
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

/// The connection's trouble and not the message's: it uses up no attempt.
fn no_verdict(reason: &str) -> Failure {
    Failure::new(Class::Fatal, Scope::Lane, format!("tried on a connection of its own: {reason}"))
}

fn too_large(reason: &str, over: Option<u64>) -> Failure {
    let limit = over.map(|limit| {
        format!("; the server reads {limit} bytes in one value: raise proto-max-bulk-len, or client-query-buffer-limit")
    });
    Failure::new(Class::Permanent, Scope::Lane, format!("{reason}{}", limit.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::time::Instant;

    use super::super::session::{Answer, Session};
    use super::super::unit::Unit;
    use super::*;
    use crate::message::{Message, MessageId, Route};
    use crate::transport::{Handover, Outcome, Recipient, Ticket};

    struct Deaf;

    impl Recipient for Deaf {
        fn report(self: Arc<Self>, _: Outcome) {}
    }

    fn message(payload: &str) -> Arc<Outgoing> {
        let route = Route { transport: "redis".into(), destination: "s".into() };
        let message = Message::to("s").payload(payload.as_bytes().to_vec());
        Arc::new(Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp: 0, message })
    }

    /// A command.
    type Words = Vec<String>;

    fn command(input: &mut impl BufRead) -> Option<Words> {
        let number = |input: &mut dyn BufRead| {
            let mut line = String::new();
            input.read_line(&mut line).ok()?;
            line.get(1..)?.trim().parse::<usize>().ok()
        };
        let count = number(input)?;
        let word = |_| {
            let mut word = vec![0; number(input)? + 2];
            input.read_exact(&mut word).ok()?;
            Some(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned())
        };
        (0..count).map(word).collect()
    }

    /// Closes the connection over each `XADD`, of which it keeps the words.
    fn serve(stream: TcpStream, seen: &Mutex<Vec<Words>>) {
        let mut out = stream.try_clone().expect("a second handle");
        let mut input = BufReader::new(stream);
        while let Some(words) = command(&mut input) {
            if words[0] == "XADD" {
                seen.lock().unwrap().push(words);
                return;
            }
            let reply = if words[0] == "EXEC" { "*0\r\n" } else { "+OK\r\n" };
            if out.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn access(port: u16) -> (Arc<Login>, Arc<RedisConfig>) {
        let client = redis::Client::open(("127.0.0.1", port)).expect("a client");
        let config = RedisConfig { host: "127.0.0.1".to_owned(), port, ..RedisConfig::default() };
        (Arc::new(Login { client, password: None }), Arc::new(config))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
    }

    /// A server that closes the connection over each message; with how to reach it, and what it has read.
    fn server() -> (Arc<Login>, Arc<RedisConfig>, Arc<Mutex<Vec<Words>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (login, config) = access(listener.local_addr().expect("an address").port());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let noted = noted.clone();
                std::thread::spawn(move || serve(stream, &noted));
            }
        });
        (login, config, seen)
    }

    #[test]
    fn an_attempt_ends_with_the_connection_beside_it() {
        let (login, config, _) = server();
        block_on(async {
            let connection = || async { connect::connect(&login, &config).await.expect("a connection").connection };
            let mut session = Session::new(connection().await);
            let ticket = Ticket::new(Arc::new(Deaf));
            let unit = Unit::free(vec![Handover { message: message("one"), alone: true, ticket }]);
            session.send_apart(&config, &login, "s".into(), unit);
            session.ping(&config);
            let lost = session.replace(connection().await).expect("the ping was not answered");
            assert_eq!(lost.iter().map(|(name, unit)| (&**name, unit.messages.len())).collect::<Vec<_>>(), [("s", 1)]);
            assert_eq!(session.units(), 0);
            while let Some(joined) = session.calls.join_next_with_id().await {
                assert!(!matches!(joined, Ok((_, Answer::Apart(_)))), "the attempt went on");
            }
        });
    }

    #[test]
    fn several_messages_are_judged_side_by_side() {
        let (login, config, seen) = server();
        let turn = Arc::new(Semaphore::new(1));
        let one = |payload| attempt(login.clone(), config.clone(), message(payload), turn.clone());
        let (one, two) = block_on(async { tokio::join!(one("one"), one("two")) });
        for alone in [one, two] {
            let Alone::TooLarge { failure, sent: true } = alone else { panic!("no verdict") };
            assert_eq!((failure.class, failure.scope), (Class::Permanent, Scope::Lane));
        }
        let seen = seen.lock().unwrap();
        let tries = |payload: &str| seen.iter().filter(|words| words.iter().any(|word| word == payload)).count();
        assert_eq!((tries("one"), tries("two")), (TRIES.len(), TRIES.len()));
        let of_two = |words: &Words| words.iter().any(|word| word == "two");
        assert!(seen[..TRIES.len()].iter().any(of_two), "the second did not wait for the first's last try");
    }

    #[test]
    fn a_server_that_takes_no_connection_uses_up_no_attempt_and_is_not_tried_without_a_pause() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (login, config) = access(listener.local_addr().expect("an address").port());
        std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(drop));
        let begun = Instant::now();
        let alone = block_on(attempt(login, config, message("one"), Arc::new(Semaphore::new(1))));
        let Alone::Failed { failure, sent: false } = alone else { panic!("a verdict") };
        assert_eq!(failure.class, Class::Fatal, "{failure}");
        assert!(begun.elapsed() >= NO_VERDICT);
    }
}
