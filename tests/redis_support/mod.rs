//! A `redis-server` of a test's own, the server that all tests share, and a look into their streams.
#![allow(dead_code)] // Each test file uses a part.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use outlast::testing::conformance::Entry;
use outlast::transport::redis::{RedisConfig, RedisTransport};
use outlast::transport::{Availability, Class, Handover, Monitor, Outcome, Recipient, Ticket, Transport};
use outlast::{Header, Lane, Message, MessageId, Outgoing, Route};
use redis::Value;

use crate::common::claim_port;

pub const PATIENCE: Duration = Duration::from_secs(30);

/// The server of `OUTLAST_TEST_REDIS`, which tests share: each uses streams of its own.
pub fn shared_server() -> RedisConfig {
    let address = std::env::var("OUTLAST_TEST_REDIS").unwrap_or_else(|_| {
        panic!("OUTLAST_TEST_REDIS=host:port is not set: run the tests through scripts/test, which starts Redis")
    });
    RedisConfig::from_url(&format!("redis://{address}").parse().unwrap()).unwrap()
}

/// A name no other test, and no earlier run, has used.
pub fn unused(purpose: &str) -> String {
    static USED: AtomicU64 = AtomicU64::new(0);
    format!("outlast-test-{purpose}-{:016x}-{}", fastrand::u64(..), USED.fetch_add(1, Ordering::Relaxed))
}

/// A server of one test, with its data in a directory of its own; killed when dropped.
pub struct Server {
    pub port: u16,
    pub directory: tempfile::TempDir,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Starts one that syncs each write, so that what it acknowledged survives its death.
    pub fn start(extra: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), extra)
    }

    pub fn start_in(directory: tempfile::TempDir, extra: &[&str]) -> Self {
        let port = claim_port();
        let arguments = extra.iter().map(|argument| argument.replace("PORT", &port.to_string())).collect();
        let server = Self { port, directory, arguments, child: Mutex::new(None) };
        server.restart();
        server
    }

    /// Starts it again on its port, with its data.
    pub fn restart(&self) {
        let mut command = Command::new("redis-server");
        if !self.arguments.iter().any(|argument| argument == "--port") {
            command.args(["--port", &self.port.to_string()]);
        }
        command
            .args(["--bind", "127.0.0.1", "--dir", self.directory.path().to_str().unwrap(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("redis-server is not installed: run the tests through scripts/test");
        *self.child.lock().unwrap() = Some(child);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not come up on port {}", self.port);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn stop(&self) {
        self.signal("STOP");
    }

    pub fn cont(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.lock().unwrap().as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub fn config(&self) -> RedisConfig {
        let mut config = RedisConfig::from_url(&format!("redis://127.0.0.1:{}", self.port).parse().unwrap()).unwrap();
        config.reconnect_cap = Duration::from_millis(200);
        config
    }

    /// A connection past the transport.
    pub fn admin(&self) -> redis::Connection {
        connect(&self.config())
    }

    pub fn run(&self, words: &[&str]) -> Value {
        command(&mut self.admin(), words)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects, trying again for as long as the server is loading.
pub fn connect(config: &RedisConfig) -> redis::Connection {
    let client = redis::Client::open(format!("redis://{}:{}", config.host, config.port)).unwrap();
    let begun = Instant::now();
    loop {
        let pong = client.get_connection().and_then(|mut connection| {
            redis::cmd("PING").query::<String>(&mut connection)?;
            Ok(connection)
        });
        match pong {
            Ok(connection) => return connection,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "no connection to Redis: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn command(connection: &mut redis::Connection, words: &[&str]) -> Value {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(word);
    });
    command.query(connection).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// The entries of a stream, read with names of fields as they are by default.
pub fn contents(config: &RedisConfig, stream: &str) -> Result<Vec<Entry>, String> {
    let mut connection = connect(config);
    let range = redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query::<Value>(&mut connection);
    let Value::Array(entries) = range.map_err(|error| error.to_string())? else { return Err("no array".into()) };
    entries.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Result<Entry, String> {
    let Value::Array(parts) = value else { return Err("no entry".into()) };
    let Some(Value::Array(words)) = parts.into_iter().nth(1) else { return Err("no fields".into()) };
    let words: Vec<Vec<u8>> = words
        .into_iter()
        .map(|word| if let Value::BulkString(word) = word { Ok(word) } else { Err("no bulk string") })
        .collect::<Result<_, _>>()?;
    let mut entry =
        Entry { id: MessageId::new(0, 0), key: None, payload: None, fields: Vec::new(), headers: Vec::new() };
    for pair in words.chunks(2) {
        let (name, value) = (String::from_utf8_lossy(&pair[0]).into_owned(), pair[1].clone());
        match (name.as_str(), name.strip_prefix("h:")) {
            ("outlast-id", _) => {
                let text = String::from_utf8(value).map_err(|error| error.to_string())?;
                entry.id = text.parse().map_err(|_| format!("{text:?} is no id"))?;
            }
            ("payload", _) => entry.payload = Some(value.into()),
            ("key", _) => entry.key = Some(value.into()),
            (_, Some(header)) => entry.headers.push(Header { name: header.into(), value: Some(value.into()) }),
            _ => entry.fields.push((name.into(), value.into())),
        }
    }
    Ok(entry)
}

struct Tell(u64, mpsc::Sender<(u64, Outcome)>);

impl Recipient for Tell {
    fn report(self: Arc<Self>, outcome: Outcome) {
        let _ = self.1.send((self.0, outcome));
    }
}

/// A started transport, its reports, and what it said of its availability.
pub struct Bench {
    pub transport: Arc<RedisTransport>,
    sender: mpsc::Sender<(u64, Outcome)>,
    reports: mpsc::Receiver<(u64, Outcome)>,
    heard: mpsc::Receiver<Availability>,
}

impl Bench {
    pub fn start(config: RedisConfig) -> Self {
        let transport = Arc::new(RedisTransport::new(config).unwrap());
        let (sender, reports) = mpsc::channel();
        let (tell, heard) = mpsc::channel();
        let tell = Mutex::new(tell);
        let monitor = Monitor::new(1 << 20, move |availability| drop(tell.lock().unwrap().send(availability)), |_| {});
        transport.start(monitor).unwrap();
        Self { transport, sender, reports, heard }
    }

    /// Starts one and waits until it is connected.
    pub fn up(config: RedisConfig) -> Self {
        let bench = Self::start(config);
        bench.wait_up();
        bench
    }

    pub fn wait_up(&self) {
        let begun = Instant::now();
        while self.heard.recv_timeout(PATIENCE).expect("the transport never came up") != Availability::Up {
            assert!(begun.elapsed() < PATIENCE);
        }
    }

    pub fn wait_down(&self) -> Arc<outlast::transport::Failure> {
        loop {
            let heard = self.heard.recv_timeout(PATIENCE).expect("the transport never went down");
            if let Availability::Down(failure) = heard {
                return failure;
            }
        }
    }

    /// What the monitor was told since it was last asked.
    pub fn heard(&self) -> Vec<Availability> {
        self.heard.try_iter().collect()
    }

    /// Submits in the lane of its key; the reason of a refusal.
    pub fn submit(&self, number: u64, message: Message) -> Result<(), String> {
        let route = Route { transport: "redis".into(), destination: message.destination().into() };
        let lane = message.key_bytes().map(|key| Lane::of(&route, Some(key)));
        let outgoing = Outgoing { id: MessageId::new(1, number), route, lane, timestamp: 0, message };
        let ticket = Ticket::new(Arc::new(Tell(number, self.sender.clone())));
        let handover = Handover { message: Arc::new(outgoing), alone: false, ticket };
        self.transport.submit(handover).map_err(|refused| {
            let reason = refused.failure.reason.clone();
            std::mem::forget(refused);
            reason
        })
    }

    pub fn keyed(&self, number: u64, stream: &str, key: &'static str) {
        self.submit(number, Message::to(stream).key(key).payload(format!("n{number}"))).unwrap();
    }

    pub fn next(&self) -> (u64, Outcome) {
        self.reports.recv_timeout(PATIENCE).expect("a message was never reported on")
    }

    /// The next report in a word.
    pub fn word(&self) -> (u64, &'static str) {
        let (number, outcome) = self.next();
        let word = match outcome {
            Outcome::Delivered(_) => "delivered",
            Outcome::Failed { possibly_delivered: true, .. } => "perhaps",
            Outcome::Failed { failure, .. } => match failure.class {
                Class::Transient => "transient",
                Class::Hold => "hold",
                Class::Permanent => "permanent",
                Class::Fatal => "fatal",
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        (number, word)
    }

    pub fn words(&self, count: usize) -> Vec<(u64, &'static str)> {
        let mut words: Vec<_> = (0..count).map(|_| self.word()).collect();
        words.sort();
        words
    }
}

/// A file beside the server's data.
pub fn file(server_directory: &tempfile::TempDir, name: &str) -> PathBuf {
    server_directory.path().join(name)
}

/// A CA and a server certificate for `name`, made with the `openssl` program. A prefix names its CA as well: of two with one
/// name OpenSSL tries either.
pub fn certificates(directory: &tempfile::TempDir, prefix: &str, name: &str) {
    let at = |file_name: &str| file(directory, &format!("{prefix}{file_name}")).to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is not installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (ca_key, ca, key, request, certificate) =
        (at("ca.key"), at("ca.pem"), at("key.pem"), at("csr"), at("cert.pem"));
    let extensions = at("ext");
    std::fs::write(&extensions, format!("subjectAltName={name}\nbasicConstraints=CA:FALSE\n")).unwrap();
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let subject = format!("/CN=ca-{prefix}");
    let authority = ["req", "-x509", "-days", "2", "-subj", &subject, "-keyout", &ca_key, "-out", &ca];
    run(&[&authority[..], &curve].concat());
    run(&[&["req", "-subj", "/CN=server", "-keyout", &key, "-out", &request][..], &curve].concat());
    let sign = ["x509", "-req", "-days", "2", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
    run(&[&sign[..], &["-extfile", &extensions, "-out", &certificate]].concat());
}
