//! A Kafka broker that asks for TLS and passwords, and certificates to serve and to mistrust.

// Each test file uses its part.
#![allow(dead_code)]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outlast::transport::kafka::KafkaConfig;

use crate::common::{claim_port, wait_until};

/// The password of alice, who may do everything; it must never show.
pub const SECRET: &str = "canary-of-alice";

/// A broker with an open port for the test itself and one that takes TLS and passwords only; its certificate is for
/// `localhost`, not for `127.0.0.1`.
pub struct Guarded {
    process: Child,
    dir: tempfile::TempDir,
    open: u16,
    guarded: u16,
}

impl Guarded {
    /// Brings one up and waits until it listens.
    pub fn up() -> Self {
        Self::up_with(None, |_| String::new())
    }

    /// The same, with more settings, given the directory of `certificates`. Clients find the guarded port behind `front`, a
    /// port of a proxy's.
    pub fn up_with(front: Option<u16>, more: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let [open, guarded, controller] = ports();
        certificates(dir.path());
        let properties = dir.path().join("kafka.properties");
        let mut settings = settings(dir.path(), open, guarded, controller) + &more(dir.path());
        if let Some(front) = front {
            settings += &format!(
                "advertised.listeners=PLAINTEXT://127.0.0.1:{open},SASL_SSL://localhost:{front}
"
            );
        }
        std::fs::write(&properties, settings).expect("written");
        let mut format = java();
        format.args(["kafka.tools.StorageTool", "format", "-t", "guarded-test-cluster-0", "-c"]);
        let formatted = format.arg(&properties).output().expect("java runs");
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stdout));
        let log = std::fs::File::create(dir.path().join("kafka.log")).expect("a log");
        let process = java().arg("kafka.Kafka").arg(&properties).stdout(log).spawn().expect("java runs");
        let mut broker = Self { process, dir, open, guarded };
        wait_until("the broker listens", Duration::from_secs(120), || {
            let ended = broker.process.try_wait().expect("it can be waited for");
            let log = || std::fs::read_to_string(broker.dir.path().join("kafka.log"));
            assert!(ended.is_none(), "the broker ended: {:?}", log());
            [open, guarded].iter().all(|&port| TcpStream::connect(("127.0.0.1", port)).is_ok())
        });
        broker
    }

    /// `host:port` of the open port.
    pub fn open_address(&self) -> String {
        format!("127.0.0.1:{}", self.open)
    }

    /// `host:port` of the other; `host` decides whether the certificate is for it.
    pub fn guarded_address(&self, host: &str) -> String {
        format!("{host}:{}", self.guarded)
    }

    /// The directory of the files that `certificates` made.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The path of one of the files that `certificates` made.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Settings of a client.
    pub fn config(&self, host: &str, ca: &str, user: &str, password: &str) -> KafkaConfig {
        KafkaConfig::new([self.guarded_address(host)])
            .option("security.protocol", "sasl_ssl")
            .option("ssl.ca.location", self.file(ca))
            .option("sasl.mechanism", "PLAIN")
            .option("sasl.username", user)
            .option("sasl.password", password)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Three ports nobody uses.
pub fn ports() -> [u16; 3] {
    [(); 3].map(|()| claim_port())
}

/// `java` with the jars that `scripts/services` resolved.
fn java() -> Command {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let jars: PathBuf = tmp.parent().unwrap_or(tmp).join("services/kafka-jars");
    assert!(jars.exists(), "{} is missing: run the tests with scripts/test", jars.display());
    let mut java = Command::new("java");
    java.args(["-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    java.arg(jars.join("*")).stdin(Stdio::null()).stderr(Stdio::null());
    java
}

/// Runs `openssl` with the words of a line.
pub fn openssl(dir: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `ca.pem`, which signed the certificate `server.pem` for `localhost`, and `other.pem`, which did not.
pub fn certificates(dir: &Path) {
    for ca in ["ca", "other"] {
        openssl(
            dir,
            &format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -addext basicConstraints=critical,CA:TRUE \
                 -keyout {ca}.key -out {ca}.pem"
            ),
        );
    }
    openssl(dir, "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr");
    std::fs::write(dir.join("san"), "subjectAltName=DNS:localhost\n").expect("written");
    let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem";
    openssl(dir, sign);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect("made above");
    std::fs::write(dir.join("keystore.pem"), read("server.key") + &read("server.pem")).expect("written");
}

fn settings(dir: &Path, open: u16, guarded: u16, controller: u16) -> String {
    let dir = dir.display();
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{open},SASL_SSL://localhost:{guarded},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={dir}/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:alice
sasl.enabled.mechanisms=PLAIN
ssl.keystore.type=PEM
ssl.keystore.location={dir}/keystore.pem
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         username=\"admin\" password=\"admin\" user_alice=\"{SECRET}\" user_bob=\"bobs-own\";
"
    )
}
