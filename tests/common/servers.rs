//! Where the brokers are, and brokers of a test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// `host:port` of the Kafka that all tests share. They must not kill it.
pub fn kafka_address() -> String {
    shared("OUTLAST_TEST_KAFKA")
}

/// `host:port` of the Redis that all tests share. They must not kill it, nor change its configuration.
pub fn redis_address() -> String {
    shared("OUTLAST_TEST_REDIS")
}

fn shared(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run the tests with scripts/test, or start the servers with \
             `scripts/services up` and set what `scripts/services env` prints"
        )
    })
}

/// A Kafka broker of the test's own; it is gone, with its data, when this is dropped.
pub struct KafkaServer(Server);

/// Three Kafka brokers of the test's own, `address` names all three (`kafka3` of `scripts/services`); they are gone, with
/// their data, when this is dropped.
pub struct Kafka3Server(Server);

/// A Redis server of the test's own; it is gone, with its data, when this is dropped.
pub struct RedisServer(Server);

macro_rules! server {
    ($type:ident, $name:literal, $variable:literal) => {
        impl $type {
            /// Brings one up, on a port of its own, and waits until it answers.
            pub fn up() -> Self {
                Self(Server::up($name, $variable))
            }

            /// `host:port`; the same for the server's whole life.
            pub fn address(&self) -> &str {
                &self.0.address
            }

            /// SIGKILL.
            pub fn kill(&self) {
                self.0.script("kill");
            }

            /// Starts it again after [`kill`](Self::kill), on the same port and data; waits until it answers.
            pub fn start(&self) {
                self.0.script("start");
            }

            /// SIGSTOP: connections stay open, nothing answers.
            pub fn stop(&self) {
                self.0.script("stop");
            }

            /// SIGCONT.
            pub fn cont(&self) {
                self.0.script("cont");
            }
        }
    };
}

server!(KafkaServer, "kafka", "OUTLAST_TEST_KAFKA");
server!(RedisServer, "redis", "OUTLAST_TEST_REDIS");
server!(Kafka3Server, "kafka3", "OUTLAST_TEST_KAFKA3");

impl Kafka3Server {
    /// Where a test may put proxies, broker by broker: these addresses are free, and the brokers' second listener
    /// advertises them.
    pub fn front(&self) -> Vec<String> {
        self.0.addresses("OUTLAST_TEST_KAFKA3_FRONT")
    }

    /// Where that listener is, broker by broker.
    pub fn back(&self) -> Vec<String> {
        self.0.addresses("OUTLAST_TEST_KAFKA3_BACK")
    }
}

/// One server in a directory of its own, handled through `scripts/services`.
struct Server {
    name: &'static str,
    dir: PathBuf,
    address: String,
}

impl Server {
    fn up(name: &'static str, variable: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Below the shared set, whose `down` sweeps up what a killed test left here.
        let shared = std::env::var_os("OUTLAST_SERVICES_DIR").map_or_else(|| target().join("services"), PathBuf::from);
        let dir = shared.join(format!("private/{}-{number}", std::process::id()));
        let mut server = Self { name, dir, address: String::new() };
        server.script("up");
        server.address = server.variable(variable);
        server
    }

    /// What the script says one of the server's variables is.
    fn variable(&self, variable: &str) -> String {
        let printed = self.run(&["env"]);
        let value = printed.lines().find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("scripts/services env printed no {variable}: {printed}")).to_owned()
    }

    fn addresses(&self, variable: &str) -> Vec<String> {
        self.variable(variable).split(',').map(str::to_owned).collect()
    }

    fn script(&self, command: &str) {
        self.run(&[command, self.name]);
    }

    fn run(&self, args: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
        let output = Command::new(&script)
            .args(args)
            .env("OUTLAST_SERVICES_DIR", &self.dir)
            .env("CARGO_TARGET_DIR", target())
            // These name servers that are not this test's to kill.
            .env_remove("OUTLAST_TEST_KAFKA")
            .env_remove("OUTLAST_TEST_REDIS")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", script.display()));
        assert!(
            output.status.success(),
            "scripts/services {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A second panic would hide the first; what stays behind is swept up with the shared set.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run(&["down"])));
        } else {
            self.run(&["down"]);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Cargo's target directory; the servers' data lies in it.
fn target() -> &'static Path {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().unwrap_or(tmp)
}
