//! Making a connection that can be used: reached, logged in, writable, allowed to do what is needed.
//!
//! Logging in and choosing the database is done here and not by the client, which keeps the server's reason to
//! itself. The client's `ConnectionManager` is not used: it would reconnect behind our back, but not after a
//! timeout or `READONLY`.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Pipeline, Value};

use super::classify;
use super::config::{RedisConfig, Secret};
use super::limits::Facts;
use super::settings::{ServerSettings, setting};
use crate::finding::{Finding, Severity};
use crate::transport::{Class, Failure, Scope};

/// How the server is reached, and who logs in there.
pub(super) struct Login {
    pub client: Client,
    pub password: Option<Secret>,
}

/// A connection that can be used, and what the server says of itself.
pub(super) struct Connected {
    pub connection: MultiplexedConnection,
    pub facts: Facts,
}

/// Connects, and finds out whether messages can be sent.
pub(super) async fn connect(login: &Login, config: &RedisConfig) -> Result<Connected, Failure> {
    dial(login, config, true).await
}

/// Connects and logs in, whether messages can be sent or not.
pub(super) async fn log_in(login: &Login, config: &RedisConfig) -> Result<MultiplexedConnection, Failure> {
    dial(login, config, false).await.map(|connected| connected.connection)
}

async fn dial(login: &Login, config: &RedisConfig, to_send: bool) -> Result<Connected, Failure> {
    let address = config.address();
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout));
    let greeted = async {
        let connecting = login.client.get_multiplexed_async_connection_with_config(&limits);
        let mut connection = connecting.await.map_err(|error| classify::client(&error, &address))?;
        greet(&mut connection, login, config, &address).await?;
        let facts = if to_send { find_fit(&mut connection, &address).await? } else { Facts::default() };
        Ok(Connected { connection, facts })
    };
    let connected = tokio::time::timeout(config.connect_timeout, greeted).await;
    connected
        .unwrap_or_else(|_| {
            let reason = format!("no connection to Redis at {address}: no answer within {:?}", config.connect_timeout);
            Err(Failure::new(Class::Transient, Scope::Transport, reason))
        })
        .map_err(|mut failure| {
            failure.reason = without_password(&failure.reason, login, config);
            // A plaintext port waits for the end of the greeting, and that looks like any other silence.
            if config.tls && failure.class == Class::Transient {
                failure.reason.push_str(" (does the port speak TLS?)");
            }
            failure
        })
}

/// A server that does not know `AUTH`, or means something else by it, repeats what it was given. Redis cuts that off
/// somewhere, so that it may be a part of the password.
fn without_password(reason: &str, login: &Login, config: &RedisConfig) -> String {
    /// What Redis puts before the words it repeats, up to the end of what it says.
    const REPEATED: &str = "with args beginning with:";
    let Some(password) = login.password.as_ref().filter(|password| !password.reveal().is_empty()) else {
        return reason.to_owned();
    };
    let mut text = reason.replace(password.reveal(), "***");
    if let Some(at) = text.find(REPEATED) {
        text.replace_range(at + REPEATED.len().., &format!(" *** [at {}]", config.address()));
    }
    text
}

async fn greet(
    connection: &mut MultiplexedConnection,
    login: &Login,
    config: &RedisConfig,
    address: &str,
) -> Result<(), Failure> {
    let mut hello = Pipeline::new();
    // An empty password is one only of a user who needs none; the default user would be refused for `AUTH ""`.
    let password = login.password.as_ref().filter(|password| config.user.is_some() || !password.reveal().is_empty());
    if let Some(password) = password {
        hello.cmd("AUTH");
        if let Some(user) = &config.user {
            hello.arg(user);
        }
        hello.arg(password.reveal());
    }
    if config.database != 0 {
        hello.cmd("SELECT").arg(config.database);
    }
    for value in ask(connection, &hello, address).await? {
        refuse(&value, address)?;
    }
    Ok(())
}

/// Whether messages can be sent, and what the server says of itself.
async fn find_fit(connection: &mut MultiplexedConnection, address: &str) -> Result<Facts, Failure> {
    // An empty transaction: a user who may not use one would get an ordered batch applied piecemeal.
    let mut fitness = Pipeline::new();
    fitness.cmd("MULTI").cmd("EXEC").cmd("PING").cmd("ROLE");
    // What is not permitted, or not known, is answered with an error, and stays unknown.
    fitness.cmd("INFO").arg("server");
    fitness.cmd("CONFIG").arg("GET").arg("proto-max-bulk-len");
    fitness.cmd("CONFIG").arg("GET").arg("client-query-buffer-limit");
    let values = ask(connection, &fitness, address).await?;
    let [multi, exec, ping, role, info, longest, buffer] = &values[..] else {
        let reason = format!("what answers at {address} does not speak Redis: {} replies to 7 commands", values.len());
        return Err(Failure::new(Class::Hold, Scope::Transport, reason));
    };
    refuse(multi, address)?;
    refuse(exec, address)?;
    // Commands that the user may not call tell nothing; what else goes wrong concerns everything.
    if !is_forbidden(ping) {
        refuse(ping, address)?;
    }
    match role {
        Value::Array(parts) if matches!(parts.first(), Some(Value::BulkString(role)) if role == b"slave") => {
            let reason =
                format!("Redis at {address} is a replica; waiting for it to become, or its name to lead to, a primary");
            Err(Failure::new(Class::Transient, Scope::Transport, reason))
        }
        _ => Ok(Facts { version: version(info), longest: bytes(longest), buffer: bytes(buffer) }),
    }
}

fn version(info: &Value) -> Option<String> {
    let text = match info {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix("redis_version:")).map(|version| version.trim().to_owned())
}

/// A setting in bytes; 0 means none.
fn bytes(value: &Value) -> Option<u64> {
    setting(value)?.parse().ok().filter(|bytes| *bytes > 0)
}

/// What a key is; `None` where that may not be asked, or takes too long to hear.
pub(super) async fn key_type(connection: &mut MultiplexedConnection, key: &str) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut question = Pipeline::new();
    question.cmd("TYPE").arg(key);
    let asked = connection.send_packed_commands(&question, 0, 1);
    match tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?.pop()? {
        Value::SimpleString(name) => Some(name),
        _ => None,
    }
}

pub(super) async fn ask(
    connection: &mut MultiplexedConnection,
    commands: &Pipeline,
    address: &str,
) -> Result<Vec<Value>, Failure> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    let replies = connection.send_packed_commands(commands, 0, commands.len()).await;
    replies.map_err(|error| classify::client(&error, address))
}

fn refuse(value: &Value, address: &str) -> Result<(), Failure> {
    let Value::ServerError(error) = value else { return Ok(()) };
    let failure = classify::of_connection(classify::reply(error).failure);
    Err(Failure { reason: format!("{} [at {address}]", failure.reason), ..failure })
}

fn is_forbidden(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == "NOPERM")
}

/// Warns of settings under which the server itself loses what it acknowledged, where it lets us see them.
pub(super) async fn warn_of_settings(mut connection: MultiplexedConnection, address: String) {
    let mut questions = Pipeline::new();
    ServerSettings::ask(&mut questions);
    /// Nobody waits for it; a server that is slow to tell is not asked again.
    const PATIENCE: Duration = Duration::from_secs(5);
    let asked = connection.send_packed_commands(&questions, 0, questions.len());
    let Ok(Ok(values)) = tokio::time::timeout(PATIENCE, asked).await else { return };
    for Finding { severity, what, advice, .. } in ServerSettings::read(&values).findings(&address) {
        match severity {
            Severity::Problem => tracing::warn!(%address, "{what}; {advice}"),
            Severity::Note => tracing::info!(%address, "{what}; {advice}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use std::sync::Arc;

    use super::*;
    use crate::transport::redis::Secret;
    use crate::transport::redis::access::Access;

    /// A server's answer to `AUTH` was told as it came, and some of them repeat the password.
    #[tokio::test]
    async fn a_password_that_the_server_repeats_is_not_told() {
        let password = "hunter2".repeat(30);
        for answer in [
            format!("-ERR unknown command 'AUTH', with args beginning with: '{}' \r\n", &password[..128]),
            format!("-ERR {password} is not what I expected\r\n"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            // Ends when the client has gone, which is at the end of the test.
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
                stream.read(&mut [0; 4096]).unwrap_or(0)
            });
            let password = Some(Secret::new(&*password));
            let config = RedisConfig { host: "127.0.0.1".into(), port, password, ..RedisConfig::default() };
            let access = Access::new(Arc::new(config.clone())).unwrap();
            let failure = connect(&access.login(), &config).await.err().expect("it is refused");
            assert!(failure.reason.contains("ERR") && failure.reason.contains("***"), "{}", failure.reason);
            assert!(!failure.reason.contains("hunter2"), "{}", failure.reason);
        }
    }
}
