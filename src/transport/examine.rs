//! What a broker can be asked about itself without sending it anything to keep, and who asks.

use std::sync::Arc;
use std::time::Duration;

use super::{BrokerUrl, Scheme, StartError};
use crate::finding::Finding;
use crate::message::Route;

/// What is asked of a broker.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) struct Questions {
    /// The transport's name.
    pub transport: Arc<str>,
    /// The topics or streams: the one that the URL names, and those that messages are pending for.
    pub destinations: Vec<Destination>,
    /// The largest message that is accepted, in bytes of key, headers and payload.
    pub max_message_bytes: usize,
    /// Bytes in flight.
    pub window_bytes: usize,
    /// How long all of it may take.
    pub timeout: Duration,
}

/// A topic or stream, and what waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) struct Destination {
    /// Where.
    pub route: Route,
    /// Messages that are stored and not delivered.
    pub pending: u64,
    /// The least and the greatest of their timestamps that were looked at, in milliseconds since 1970.
    pub timestamps: Option<(i64, i64)>,
}

impl Destination {
    /// How old the oldest message is, in milliseconds; nothing is pending: `None`.
    #[cfg(feature = "kafka")]
    pub fn age(&self, now: i64) -> Option<i64> {
        self.timestamps.map(|(oldest, _)| now.saturating_sub(oldest))
    }

    /// How far the newest timestamp lies ahead of the clock, in milliseconds.
    #[cfg(feature = "kafka")]
    pub fn ahead(&self, now: i64) -> Option<i64> {
        self.timestamps.map(|(_, newest)| newest.saturating_sub(now))
    }
}

/// Asks the broker of a URL. Blocks for about the questions' timeout at most, name look-ups that hang excepted.
///
/// # Errors
/// The URL's options are wrong, or this build lacks the broker.
pub(crate) fn examine(url: &BrokerUrl, questions: &Questions) -> Result<Vec<Finding>, StartError> {
    match url.scheme() {
        Scheme::Kafka => kafka(url, questions),
        Scheme::Redis | Scheme::Rediss => redis(url, questions),
    }
}

#[cfg(feature = "kafka")]
fn kafka(url: &BrokerUrl, questions: &Questions) -> Result<Vec<Finding>, StartError> {
    super::kafka::examine(&super::kafka::KafkaConfig::from_url(url)?, questions)
}

#[cfg(not(feature = "kafka"))]
fn kafka(_: &BrokerUrl, _: &Questions) -> Result<Vec<Finding>, StartError> {
    Err(super::no_kafka())
}

#[cfg(feature = "redis")]
fn redis(url: &BrokerUrl, questions: &Questions) -> Result<Vec<Finding>, StartError> {
    super::redis::examine(&super::redis::RedisConfig::from_url(url)?, questions)
}

#[cfg(not(feature = "redis"))]
fn redis(_: &BrokerUrl, _: &Questions) -> Result<Vec<Finding>, StartError> {
    Err(super::no_redis())
}
