//! A short-lived client that writes down what librdkafka says of its brokers.

use std::fmt::Display;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client as Native;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

use super::super::book::lock;
use super::super::config::Settings;
use super::ffi;
use crate::finding::{self, Finding};
use crate::transport::StartError;
use crate::transport::examine::Questions;

/// One question of several, so that a reason that came meanwhile ends the asking.
const SLICE: Duration = Duration::from_millis(250);
/// How long the client may go on once no broker is left: `localhost` has two addresses, and the second is tried later.
const ALL_DOWN: Duration = Duration::from_secs(2);
/// How long destroying the client is waited for; a name look-up that hangs keeps it.
const END: Duration = Duration::from_secs(2);

/// What librdkafka said.
#[derive(Debug, Default)]
struct Seen {
    /// Why a connection failed; of several reasons the one that says most.
    trouble: Option<(Code, String)>,
    all_down: Option<Instant>,
    /// A broker does not know idempotent producers.
    too_old: bool,
}

pub(super) struct Watcher {
    settings: Settings,
    seen: Arc<Mutex<Seen>>,
}

impl ClientContext for Watcher {
    fn log(&self, _: RDKafkaLogLevel, _: &str, text: &str) {
        // librdkafka tells nowhere else which requests a broker knows (`rd_kafka_features_check`).
        if text.contains("InitProducerId") && text.contains("NOT supported by broker") {
            lock(&self.seen).too_old = true;
        }
        tracing::trace!(target: "outlast::librdkafka", "{}", self.settings.scrub(text));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        let mut seen = lock(&self.seen);
        if code == Code::AllBrokersDown {
            seen.all_down.get_or_insert_with(Instant::now);
        } else if seen.trouble.as_ref().is_none_or(|(before, _)| weight(code) >= weight(*before)) {
            seen.trouble = Some((code, self.settings.scrub(reason)));
        }
    }
}

impl ProducerContext for Watcher {
    type DeliveryOpaque = ();

    /// Nothing is ever sent.
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// How much a reason says: why we are not let in, before why there is no connection.
fn weight(code: Code) -> u8 {
    match code {
        Code::SSL | Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => 3,
        Code::Resolve => 2,
        Code::BrokerTransportFailure => 1,
        _ => 0,
    }
}

/// The client.
pub(super) struct Client {
    producer: ThreadedProducer<Watcher>,
    seen: Arc<Mutex<Seen>>,
}

impl Client {
    /// Makes the client, which connects in the background.
    pub fn new(settings: Settings, questions: &Questions) -> Result<Self, StartError> {
        let mut config = settings.client(questions.max_message_bytes, questions.window_bytes)?;
        config.set("enable.idempotence", "false").set("enable.gapless.guarantee", "false");
        config.set("debug", "feature").set_log_level(RDKafkaLogLevel::Debug);
        let seen = Arc::<Mutex<Seen>>::default();
        let watcher = Watcher { settings: settings.clone(), seen: Arc::clone(&seen) };
        let producer = config.create_with_context(watcher);
        let producer = producer.map_err(|error: KafkaError| StartError(settings.scrub(&error.to_string())))?;
        Ok(Self { producer, seen })
    }

    /// librdkafka's handle.
    pub fn native(&self) -> &Native<Watcher> {
        self.producer.client()
    }

    /// Asks until a broker answers, the reason why none does is known, or time is up. Returns the broker that answered.
    pub fn reach(&self, transport: &dyn Display, deadline: Instant) -> Result<i32, Finding> {
        let begun = Instant::now();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let code = match ffi::any_broker(self.native(), SLICE.min(left)) {
                Ok(broker) => return Ok(broker),
                Err(code) => code,
            };
            let seen = lock(&self.seen);
            let given_up = seen.all_down.is_some_and(|since| since.elapsed() >= ALL_DOWN);
            if given_up || left <= SLICE {
                let (code, reason) = seen.trouble.clone().unwrap_or_else(|| (code, String::new()));
                return Err(unreached(transport, code, &reason, begun.elapsed()));
            }
            drop(seen);
            // Without a broker to ask librdkafka answers at once.
            std::thread::sleep(Duration::from_millis(20).min(left));
        }
    }

    /// Ends the client, and waits for a while until it has ended.
    pub fn end(self) {
        let (sender, ended) = channel();
        let end = std::thread::Builder::new().name("outlast-kafka-end".into()).spawn(move || {
            drop(self.producer);
            let _ = sender.send(());
        });
        if end.is_ok() {
            let _ = ended.recv_timeout(END);
        }
    }

    /// Whether a broker that answered is too old for idempotent producers.
    pub fn too_old(&self, transport: &dyn Display) -> Option<Finding> {
        lock(&self.seen).too_old.then(|| {
            let what =
                "a broker knows no idempotent producers, without which order does not hold: it is older than 0.11";
            Finding::problem(
                finding::Code::ServerTooOld,
                transport,
                what,
                "use Kafka 0.11 or later, better 2.8 or later",
            )
        })
    }
}

/// Why no broker answered.
fn unreached(transport: &dyn Display, code: Code, reason: &str, waited: Duration) -> Finding {
    use finding::Code as Name;
    let (name, advice) = match code {
        Code::SSL if reason.contains("certificate") => (
            Name::UntrustedCertificate,
            "set ssl.ca.location to the authority that signed the brokers' certificates, and name the hosts they are for",
        ),
        Code::SSL => (Name::TlsFailed, "see that the port speaks TLS, and which versions and certificates it wants"),
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
            (Name::LoginRefused, "check user, password and sasl.mechanism")
        }
        Code::Resolve => (Name::UnknownHost, "check the host's name, and the resolver of this machine"),
        Code::BrokerTransportFailure if !reason.is_empty() => {
            (Name::Unreachable, "check host, port, security.protocol, and that the broker runs")
        }
        _ => (Name::NoAnswer, "see whether the broker runs, and what lies between: a firewall, a stopped process"),
    };
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let what = format!("no broker answered within {:.1} s{why}", waited.as_secs_f64());
    Finding::problem(name, transport, what, advice)
}
