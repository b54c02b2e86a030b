//! What a Kafka transport is configured with, and what it makes of it.
//!
//! Options are librdkafka's own properties, by their own names. librdkafka judges them itself, before anything else is
//! touched. Refused are those that would break the promise (an acknowledgement that is none, a message that
//! expires in a queue), each with the right form named.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DefaultProducerContext};
use serde::Deserialize;

use super::credentials::{CredentialFiles, Credentials};
use super::ffi;
use super::fixed::check_fixed;
use super::partitioner::Partitioner;
use super::security::check_security;
use super::times::{self, ExpiredTimes};
use crate::message::Outgoing;
use crate::transport::near::near;
use crate::transport::{BrokerUrl, StartError};

/// librdkafka's own default of `batch.size`.
const BATCH_SIZE: usize = 1_000_000;
/// Room for what librdkafka adds to a message when it judges its size: at most 1,000 headers with their lengths,
/// the header of the message id, the framing of a batch.
const FRAMING_BYTES: usize = 64 << 10;
/// librdkafka's own default of `message.max.bytes`; smaller messages do not lower it, for it limits batches, too.
const LEAST_REQUEST_BYTES: usize = 1_000_000;
/// The largest message that an outbox can hold: a quarter of its largest segment. What lies there was accepted, by a
/// run with other limits perhaps, and librdkafka must let it pass; what this run accepts is not decided here.
const MOST_MESSAGE_BYTES: usize = 256 << 20;
/// librdkafka's default of `request.timeout.ms`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// librdkafka's default of `sticky.partitioning.linger.ms`.
const STICKY_LINGER: Duration = Duration::from_millis(10);

/// Where a Kafka cluster is, and how to talk to it.
///
/// ```
/// use outlast::transport::kafka::{KafkaConfig, KafkaTransport};
/// let config = KafkaConfig::new(["broker-1:9092", "broker-2:9092"]).option("compression.type", "lz4");
/// assert!(KafkaTransport::new(config).is_ok());
/// let error = KafkaTransport::new(KafkaConfig::new(["broker-1:9092"]).option("acks", "1")).unwrap_err();
/// assert!(error.to_string().contains("acks"));
/// ```
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// The brokers to ask first, each `host:port` (the port defaults to 9092).
    pub brokers: Vec<String>,
    /// librdkafka's properties, by name: `security.protocol`, `sasl.password`, `compression.type`, `linger.ms`, …
    /// `partitioner` is computed by this crate, to librdkafka's results. One option is this crate's own:
    /// `expired-times`, see [`expired_times`](Self::expired_times).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// A file whose first line is the password (`sasl.password`), which is then no option. Default: none. Like the files
    /// that `ssl.ca.location`, `ssl.certificate.location`, `ssl.key.location`, `ssl.keystore.location` and
    /// `ssl.crl.location` name, it is read again when it changes: a client made with the new contents takes over once a
    /// broker has let it in. Until then, and if they cannot be used at all, the former contents stay in use, and after a few
    /// seconds [`Health`](crate::Health) says why.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl KafkaConfig {
    /// A configuration without options.
    pub fn new<B: Into<String>>(brokers: impl IntoIterator<Item = B>) -> Self {
        Self { brokers: brokers.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Takes a URL's parts; a user and a password become `sasl.username` and `sasl.password`.
    ///
    /// # Errors
    /// An option is given twice.
    pub fn from_url(url: &BrokerUrl) -> Result<Self, StartError> {
        let host = |(host, port): &(String, u16)| match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let mut config = Self::new(url.hosts.iter().map(host));
        // What is no file, a pipe say, was read for good, and cannot be watched.
        config.password_file = url.password_file.clone().filter(|file| file.is_file());
        let password = if config.password_file.is_some() { &None } else { &url.password };
        let credentials = [("sasl.username", &url.user), ("sasl.password", password)];
        let credentials = credentials.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let options = url.options.iter().map(|(name, value)| (name.as_str(), value));
        for (name, value) in credentials.chain(options) {
            if config.options.insert(name.to_owned(), value.clone()).is_some() {
                return Err(StartError(url.conceal(format!("broker URL: option: `{name}` is given twice"))));
            }
        }
        Ok(config)
    }

    /// What becomes of a message whose time the application gave, and the topic's settings are against; the option
    /// `expired-times`. Default: [`ExpiredTimes::Hold`].
    pub fn expired_times(self, choice: ExpiredTimes) -> Self {
        self.option(times::OPTION, choice.name())
    }

    /// Sets one of librdkafka's properties.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }
}

/// Shows values of harmless options only: what is not on the list may hold a password, a key or a token.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: BTreeMap<&str, &str> = self
            .options
            .iter()
            .map(|(name, value)| (name.as_str(), if is_harmless(name) { value.as_str() } else { "…" }))
            .collect();
        let mut shown = f.debug_struct("KafkaConfig");
        shown.field("brokers", &self.brokers).field("options", &options);
        shown.field("password_file", &self.password_file).finish()
    }
}

/// Options whose values may be shown.
fn is_harmless(name: &str) -> bool {
    const SHOWN: [&str; 26] = [
        "acks",
        "batch.num.messages",
        "batch.size",
        "broker.address.family",
        "client.id",
        "client.rack",
        "compression.codec",
        "compression.level",
        "compression.type",
        "debug",
        "enable.ssl.certificate.verification",
        "linger.ms",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.max.bytes",
        "partitioner",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "reconnect.backoff.max.ms",
        "reconnect.backoff.ms",
        "request.timeout.ms",
        "sasl.mechanism",
        "sasl.mechanisms",
        "security.protocol",
        "socket.timeout.ms",
    ];
    SHOWN.contains(&name) || name == times::OPTION
}

/// The limits of librdkafka's that the application set itself: with them it refuses messages, and asks no broker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnLimits {
    message_max: Option<usize>,
    queue_kbytes: Option<usize>,
}

impl OwnLimits {
    /// Which of them a message that librdkafka did not take can never pass, and what would be right.
    pub(super) fn refused(&self, code: RDKafkaErrorCode, outgoing: &Outgoing) -> Option<String> {
        let size = outgoing.message.size();
        let (option, limit) = match (code, self.message_max, self.queue_kbytes) {
            (RDKafkaErrorCode::MessageSizeTooLarge, Some(most), _) => ("message.max.bytes", most),
            // Without one of these it waits for room.
            (RDKafkaErrorCode::QueueFull, _, Some(most)) if size > most.saturating_mul(1 << 10) => {
                ("queue.buffering.max.kbytes", most)
            }
            _ => return None,
        };
        Some(format!(
            "it has {size} bytes, and this producer's own option {option} ({limit}) keeps it back, no broker was asked: \
             raise the option or leave it out"
        ))
    }
}

/// A checked configuration, ready to make instances of.
#[derive(Clone)]
pub(super) struct Settings {
    client: ClientConfig,
    /// The brokers to ask first, as librdkafka takes them.
    pub(super) brokers: CString,
    pub(super) own: OwnLimits,
    pub(super) batch_size: usize,
    pub(super) partitioner: Partitioner,
    pub(super) expired_times: ExpiredTimes,
    pub(super) sticky_linger: Duration,
    pub(super) request_timeout: Duration,
    secrets: Vec<String>,
    pub(super) credentials: Arc<CredentialFiles>,
}

impl Settings {
    /// Checks everything that can be checked without a broker. Touches no file but certificates and keys.
    pub(super) fn resolve(config: &KafkaConfig) -> Result<Self, StartError> {
        check_brokers(&config.brokers)?;
        let options = &config.options;
        for (name, value) in options {
            check_fixed(name, value)?;
        }
        check_security(config)?;
        let number = |name: &str| options.get(name).and_then(|value| value.parse::<u64>().ok());
        let size = |name: &str| number(name).and_then(|number| usize::try_from(number).ok());
        let partitioner = match options.get("partitioner") {
            None => Partitioner::default(),
            Some(name) => Partitioner::parse(name).ok_or_else(|| {
                StartError(format!(
                    "option partitioner: {name:?} is none of consistent_random, consistent, murmur2_random, murmur2, \
                     fnv1a_random, fnv1a, random"
                ))
            })?,
        };
        let expired_times = options.get(times::OPTION).map(|value| ExpiredTimes::parse(value)).transpose()?;
        let brokers = config.brokers.join(",");
        let settings = Self {
            client: client_config(config),
            brokers: CString::new(brokers).map_err(|_| StartError("a broker has a NUL in its name".to_owned()))?,
            own: OwnLimits { message_max: size("message.max.bytes"), queue_kbytes: size("queue.buffering.max.kbytes") },
            batch_size: size("batch.size").unwrap_or(BATCH_SIZE),
            partitioner,
            expired_times: expired_times.unwrap_or_default(),
            sticky_linger: number("sticky.partitioning.linger.ms").map_or(STICKY_LINGER, Duration::from_millis),
            request_timeout: number("request.timeout.ms").map_or(REQUEST_TIMEOUT, Duration::from_millis),
            secrets: secrets(options),
            credentials: Arc::new(CredentialFiles::new(config)?),
        };
        let tried = settings.try_out(&settings.credentials.current());
        tried.map_err(|error| StartError(settings.scrub(&creation_error(&error, options))))?;
        Ok(settings)
    }

    /// Lets librdkafka judge names, values and how they go together: makes a producer that knows no broker.
    fn try_out(&self, credentials: &Credentials) -> Result<(), KafkaError> {
        let mut dry = self.client.clone();
        dry.remove("bootstrap.servers");
        credentials.apply(&mut dry);
        dry.create_with_context::<_, BaseProducer<DefaultProducerContext>>(DefaultProducerContext).map(|_| ())
    }

    /// Whether librdkafka takes other certificates, keys and passwords than those in use; if not, why.
    pub(super) fn try_with(&self, credentials: &Credentials) -> Result<(), String> {
        self.try_out(credentials).map_err(|error| match error {
            KafkaError::ClientCreation(text) => self.scrub(&text),
            other => self.scrub(&other.to_string()),
        })
    }

    /// The client's configuration once it is known how large a message that is accepted, and all that is in flight
    /// together, may be. The application's own limits must have room for what is accepted.
    pub(super) fn client(&self, max_message_bytes: usize, window_bytes: usize) -> Result<ClientConfig, StartError> {
        let framed = max_message_bytes.saturating_add(FRAMING_BYTES);
        let mut client = self.client.clone();
        match self.own.message_max {
            Some(own) if own < framed => {
                return Err(StartError(format!(
                    "option message.max.bytes: {own} is less than max_message_bytes ({max_message_bytes}) and its \
                     framing need: at least {}, or leave it out",
                    framed.max(LEAST_REQUEST_BYTES)
                )));
            }
            Some(_) => {}
            None => {
                client.set("message.max.bytes", framed.max(MOST_MESSAGE_BYTES + FRAMING_BYTES).to_string());
            }
        }
        match self.own.queue_kbytes {
            Some(own) if own.saturating_mul(1 << 10) < framed => {
                return Err(StartError(format!(
                    "option queue.buffering.max.kbytes: {own} has no room for a message of max_message_bytes \
                     ({max_message_bytes}): at least {}, or leave it out",
                    framed.div_ceil(1 << 10)
                )));
            }
            Some(_) => {}
            None => {
                // Beside the window one message that is larger: the producer's window lets it pass by itself.
                let most = framed.max(MOST_MESSAGE_BYTES + FRAMING_BYTES).saturating_add(window_bytes);
                client.set("queue.buffering.max.kbytes", queue_kbytes(most).to_string());
            }
        }
        Ok(client)
    }

    /// A text of librdkafka's without the values of options that may be secret.
    pub(super) fn scrub(&self, text: &str) -> String {
        let text = self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "…"));
        self.credentials.scrub(&text)
    }
}

/// librdkafka's properties: ours with their reasons, then the application's.
fn client_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.brokers.join(","));
    // Shows in the broker's logs and quotas who it is.
    client.set("client.id", "outlast");
    // The promise (see `fixed`).
    client.set("acks", "all");
    client.set("enable.idempotence", "true");
    client.set("enable.gapless.guarantee", "true");
    client.set("message.timeout.ms", "0");
    client.set("max.in.flight.requests.per.connection", "1");
    // The bytes are what bounds memory (see `Settings::client`), not their number.
    client.set("queue.buffering.max.messages", "0");
    // librdkafka's default, told again so that it stays. Longer (DESIGN.md 5 says 30 s) would only make what is owned
    // wait longer after an outage: one connection attempt in ten seconds costs no broker anything.
    client.set("reconnect.backoff.max.ms", "10000");
    // A moved leader or a new partition is noticed within a minute.
    client.set("topic.metadata.refresh.interval.ms", "60000");
    // Beside the requests of `keepalive`, which only partitions' leaders get.
    client.set("socket.keepalive.enable", "true");
    // Disconnects are told through the availability; a line for each idle connection would drown it.
    client.set("log.connection.close", "false");
    for (name, value) in
        config.options.iter().filter(|(name, _)| !["partitioner", times::OPTION].contains(&name.as_str()))
    {
        client.set(name, value);
    }
    let debugging = config.options.contains_key("debug");
    client.set_log_level(if debugging { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    client
}

/// librdkafka's queue, in KiB, within what librdkafka takes.
fn queue_kbytes(bytes: usize) -> usize {
    bytes.div_ceil(1 << 10).clamp(1, i32::MAX as usize)
}

fn check_brokers(brokers: &[String]) -> Result<(), StartError> {
    if brokers.is_empty() {
        return Err(StartError("no broker: name at least one as HOST:PORT".to_owned()));
    }
    for broker in brokers {
        let (host, port) = match broker.rsplit_once(':') {
            // An IPv6 address without a port ends in its bracket.
            Some((_, rest)) if rest.ends_with(']') => (broker.as_str(), None),
            Some((host, port)) => (host, Some(port)),
            None => (broker.as_str(), None),
        };
        let illegal = |c: char| c == ',' || c == '/' || c == '@' || c.is_whitespace() || c.is_control();
        let bad_port = port.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..)));
        if host.is_empty() || host.contains(illegal) || bad_port {
            // A broker with an `@` may carry a password: it is not repeated.
            let shown = if broker.contains('@') { "…" } else { broker.as_str() };
            return Err(StartError(format!("broker {shown:?} is not HOST:PORT (a port is 1 to 65535)")));
        }
    }
    Ok(())
}

/// The least length of what is blanked out of texts: shorter values would blank out innocent ones.
pub(super) const LEAST_SECRET: usize = 4;

/// Values that must not show in a log line or an error.
fn secrets(options: &BTreeMap<String, String>) -> Vec<String> {
    let guarded = |name: &str| name.starts_with("sasl.") || name.starts_with("ssl.") || name.starts_with("ssl_");
    options
        .iter()
        .filter(|(name, value)| guarded(name) && !is_harmless(name) && value.len() >= LEAST_SECRET)
        .filter(|(name, _)| !name.ends_with(".location"))
        .map(|(_, value)| value.clone())
        .collect()
}

/// librdkafka's objection, with the option's name, and its value only where it may be shown.
fn creation_error(error: &KafkaError, options: &BTreeMap<String, String>) -> String {
    match error {
        KafkaError::ClientConfig(_, text, name, value) => {
            let known = !text.starts_with("No such configuration property");
            if !options.contains_key(name) {
                format!("librdkafka refuses {name}: {text}")
            } else if !known {
                unknown(name)
            } else if is_harmless(name) || !text.contains(value.as_str()) {
                format!("option {name}: {text}")
            } else {
                format!("option {name}: librdkafka refuses the value")
            }
        }
        KafkaError::ClientCreation(text) => format!("librdkafka refuses the options: {text}"),
        other => format!("librdkafka refuses the options: {other}"),
    }
}

/// Of librdkafka's aliases, which it does not list, those that people know their properties by.
const ALIASES: [&str; 7] =
    ["acks", "bootstrap.servers", "compression.type", "delivery.timeout.ms", "linger.ms", "retries", "sasl.mechanism"];

fn unknown(option: &str) -> String {
    if ["topic", "topics", "stream"].contains(&option) {
        return format!("option {option} is unknown: the topic goes behind the broker, as in kafka://host:port/TOPIC");
    }
    let names = ffi::property_names();
    let meant = match near(option, names.iter().map(String::as_str).chain(ALIASES)) {
        Some(near) => format!("did you mean {near}? Options are"),
        None => "use the name of one of".to_owned(),
    };
    format!("option {option} is unknown: {meant} librdkafka's configuration properties")
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
