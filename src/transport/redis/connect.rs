//! Making a connection that can be used: reached, logged in, writable, allowed to do what is needed.
//!
//! Logging in and choosing the database is done here and not by the client, which keeps the server's reason to
//! itself. The client's `ConnectionManager` is not used: it would reconnect behind our back, but not after a
//! timeout or `READONLY`.

#[cfg(feature = "tls")]
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo, Value};

use super::classify;
use super::config::RedisConfig;
use super::settings::ServerSettings;
use crate::finding::{Finding, Severity};
use crate::transport::{Class, Failure, Scope, StartError};

/// Makes the client, which does not connect yet. Reads the certificates.
///
/// # Errors
/// The configuration cannot work, whatever the server does.
pub(super) fn client(config: &RedisConfig) -> Result<Client, StartError> {
    let fault = |error: redis::RedisError| StartError(format!("Redis: {error}"));
    let host = config.host.clone();
    let addr = if config.tls {
        ConnectionAddr::TcpTls { host, port: config.port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, config.port)
    };
    let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
    let info = addr
        .into_connection_info()
        .map_err(fault)?
        .set_redis_settings(greeting)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    if config.tls { secure(config, info) } else { Client::open(info).map_err(fault) }
}

#[cfg(feature = "tls")]
fn secure(config: &RedisConfig, info: redis::ConnectionInfo) -> Result<Client, StartError> {
    // Somebody else in the process may have chosen a provider already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client_tls = match (&config.certificate_file, &config.private_key_file) {
        (Some(certificate), Some(key)) => Some(redis::ClientTlsConfig {
            client_cert: read_pem(certificate, "CERTIFICATE")?,
            client_key: read_pem(key, "PRIVATE KEY")?,
        }),
        _ => None,
    };
    let root_cert = config.ca_file.as_deref().map(|path| read_pem(path, "CERTIFICATE")).transpose()?;
    let certificates = redis::TlsCertificates { client_tls, root_cert };
    Client::build_with_tls(info, certificates).map_err(|error| StartError(format!("Redis: {error}")))
}

#[cfg(not(feature = "tls"))]
fn secure(_: &RedisConfig, _: redis::ConnectionInfo) -> Result<Client, StartError> {
    Err(StartError("Redis: TLS is asked for, but outlast was built without its feature \"tls\"".to_owned()))
}

/// A file without the expected block would only show as a refused handshake later.
#[cfg(feature = "tls")]
fn read_pem(path: &Path, block: &str) -> Result<Vec<u8>, StartError> {
    let fault = |what: String| StartError(format!("Redis: {}: {what}", path.display()));
    let text = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
    let end = format!("{block}-----");
    if !text.windows(end.len()).any(|window| window == end.as_bytes()) {
        return Err(fault(format!("a PEM file with a {block} is needed")));
    }
    Ok(text)
}

/// Connects, and finds out whether messages can be sent.
pub(super) async fn connect(client: &Client, config: &RedisConfig) -> Result<MultiplexedConnection, Failure> {
    dial(client, config, true).await
}

/// Connects and logs in, whether messages can be sent or not.
pub(super) async fn log_in(client: &Client, config: &RedisConfig) -> Result<MultiplexedConnection, Failure> {
    dial(client, config, false).await
}

async fn dial(client: &Client, config: &RedisConfig, to_send: bool) -> Result<MultiplexedConnection, Failure> {
    let address = config.address();
    let limits = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.connect_timeout))
        .set_response_timeout(Some(config.response_timeout));
    let greeted = async {
        let connecting = client.get_multiplexed_async_connection_with_config(&limits);
        let mut connection = connecting.await.map_err(|error| classify::client(&error, &address))?;
        greet(&mut connection, config, &address).await?;
        if to_send {
            find_fit(&mut connection, &address).await?;
        }
        Ok(connection)
    };
    let connected = tokio::time::timeout(config.connect_timeout, greeted).await;
    connected
        .unwrap_or_else(|_| {
            let reason = format!("no connection to Redis at {address}: no answer within {:?}", config.connect_timeout);
            Err(Failure::new(Class::Transient, Scope::Transport, reason))
        })
        .map_err(|mut failure| {
            failure.reason = without_password(&failure.reason, config);
            // A plaintext port waits for the end of the greeting, and that looks like any other silence.
            if config.tls && failure.class == Class::Transient {
                failure.reason.push_str(" (does the port speak TLS?)");
            }
            failure
        })
}

/// A server that does not know `AUTH`, or means something else by it, repeats what it was given. Redis cuts that off
/// somewhere, so that it may be a part of the password.
fn without_password(reason: &str, config: &RedisConfig) -> String {
    /// What Redis puts before the words it repeats, up to the end of what it says.
    const REPEATED: &str = "with args beginning with:";
    let Some(password) = config.password.as_ref().filter(|password| !password.reveal().is_empty()) else {
        return reason.to_owned();
    };
    let mut text = reason.replace(password.reveal(), "***");
    if let Some(at) = text.find(REPEATED) {
        text.replace_range(at + REPEATED.len().., &format!(" *** [at {}]", config.address()));
    }
    text
}

async fn greet(connection: &mut MultiplexedConnection, config: &RedisConfig, address: &str) -> Result<(), Failure> {
    let mut login = Pipeline::new();
    if let Some(password) = &config.password {
        login.cmd("AUTH");
        if let Some(user) = &config.user {
            login.arg(user);
        }
        login.arg(password.reveal());
    }
    if config.database != 0 {
        login.cmd("SELECT").arg(config.database);
    }
    for value in ask(connection, &login, address).await? {
        refuse(&value, address)?;
    }
    Ok(())
}

async fn find_fit(connection: &mut MultiplexedConnection, address: &str) -> Result<(), Failure> {
    // An empty transaction: a user who may not use one would get an ordered batch applied piecemeal.
    let mut fitness = Pipeline::new();
    fitness.cmd("MULTI").cmd("EXEC").cmd("PING").cmd("ROLE");
    let values = ask(connection, &fitness, address).await?;
    let [multi, exec, ping, role] = &values[..] else {
        let reason = format!("what answers at {address} does not speak Redis: {} replies to 4 commands", values.len());
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
        _ => Ok(()),
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

    use super::*;
    use crate::transport::redis::Secret;

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
            let failure = connect(&client(&config).unwrap(), &config).await.expect_err("it is refused");
            assert!(failure.reason.contains("ERR") && failure.reason.contains("***"), "{}", failure.reason);
            assert!(!failure.reason.contains("hunter2"), "{}", failure.reason);
        }
    }
}
