//! How messages reach a broker: the [`Transport`] trait, and one folder a broker.
//!
//! A transport takes messages in order and reports on each exactly once, through the [`Ticket`] that came with
//! it. It keeps nothing on disk, retries nothing on its own account that could change the order, and decides
//! nothing about a message's fate: a [`Failure`] says what is known, the producer and the drainer act on it.
//!
//! # The prefix rule
//! First appends of a lane follow the order of [`Transport::submit`], without gaps: after one message failed,
//! everything submitted behind it on its lane is reported failed, too, before anything submitted there later
//! is accepted by the broker. A request already on the wire may still land, in order, as a duplicate.

#[cfg(feature = "testing")]
pub mod conformance;
pub(crate) mod examine;
#[cfg(any(feature = "testing", feature = "kafka", feature = "redis"))]
pub(crate) mod fence;
pub(crate) mod files;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "testing")]
pub(crate) mod memory;
#[cfg(any(feature = "kafka", feature = "redis"))]
mod near;
#[cfg(feature = "redis")]
pub mod redis;
pub mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::WINDOW_BYTES;
pub use crate::failure::{Class, Failure, Scope};
use crate::message::{Message, Outgoing, Position, Route};
pub use url::{BrokerUrl, Scheme, UrlError};

/// Carries messages to a broker.
///
/// `submit`, `partition` and `check` are called under locks of the producer: they must not block, and must not
/// report from within the call. Reports come from the transport's own threads.
pub trait Transport: Send + Sync + 'static {
    /// Starts the transport: connects in the background and tells `monitor` when the broker can be reached and
    /// when it cannot. Called once, before anything is submitted; does not wait for the broker.
    ///
    /// # Errors
    /// The configuration cannot work whatever the broker does (an unreadable certificate, say).
    fn start(&self, monitor: Monitor) -> Result<(), StartError>;

    /// Whether the broker could ever take this message: a legal topic name, a body it knows.
    ///
    /// # Errors
    /// Says what is wrong and what would be right.
    fn check(&self, message: &Message) -> Result<(), String> {
        let _ = message;
        Ok(())
    }

    /// The partition the message would go to now, where the transport has such a thing and knows it. Only used to
    /// find what a stuck partition holds up; the transport chooses anew in `submit`, and where that comes to another
    /// result, or to the first, says so with [`Ticket::placed`].
    fn partition(&self, message: &Outgoing) -> Option<i32> {
        let _ = message;
        None
    }

    /// Takes a message over. From here on the transport owns it, until it reports through the ticket.
    ///
    /// # Errors
    /// The transport has no place for it at the moment (a full queue, an instance being rebuilt). It never
    /// owned the message; the ticket comes back unused.
    ///
    /// # Panics
    /// A panic is caught and logged; a message whose ticket goes down with it counts as lost by the transport.
    fn submit(&self, handover: Handover) -> Result<(), Refused>;

    /// What an operator should know although messages are taken, one line each, without secrets and without the
    /// transport's name: a renewed certificate that cannot be read, say. Shown in [`Health`](crate::Health) for as long as it
    /// is returned. Must not block.
    fn alerts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Hands everything back that is owned, reported as failed ([`Class::Fatal`]): so much of it belongs to partitions that
    /// hang that little else can be sent. Called from the drainer's thread, and rarely; the reports may come later. A
    /// transport that has no partitions, or of which none can hang, has nothing to do.
    fn hand_back(&self) {}

    /// What is known to be wrong at the moment with a part of what the transport talks to, though it takes messages: a
    /// broker of several that cannot be reached, say, by host and port. Stands beside "no acknowledgement within the
    /// deadline", which it may explain. Default: nothing. Called by the drainer; must not block.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// That the broker slows this producer down on purpose (a quota), if it does, and for how long. Shown by health and
    /// status; no message fails for it. Default: it does not. Must not block.
    fn throttled(&self) -> Option<String> {
        None
    }

    /// Stops: reports what can be within `grace`, everything else as failed. Nothing is submitted afterwards.
    /// Blocks for `grace` at most, and a little for the threads to end.
    fn close(&self, grace: Duration);
}

/// A message on its way into a transport.
#[derive(Debug)]
pub struct Handover {
    /// The message.
    pub message: Arc<Outgoing>,
    /// To be tried by itself, nothing else of its lane being owned: a permanent verdict on it is then certain
    /// to mean this message and no other of its batch.
    pub alone: bool,
    /// What the transport reports through.
    pub ticket: Ticket,
}

/// Why [`Transport::submit`] did not take a message, and the message.
#[derive(Debug)]
pub struct Refused {
    /// The message and its unused ticket.
    pub handover: Handover,
    /// What stands in the way.
    pub failure: Arc<Failure>,
}

/// Receives the one report on one message.
pub trait Recipient: Send + Sync {
    /// Takes the report.
    fn report(self: Arc<Self>, outcome: Outcome);

    /// Hears which partition the message goes to.
    fn placed(&self, _partition: i32) {}
}

/// The right, and the duty, to report once on a message.
///
/// Reporting uses the ticket up, so a second report cannot be written:
///
/// ```compile_fail
/// # fn f(ticket: outlast::transport::Ticket, position: outlast::Position) {
/// ticket.delivered(position);
/// ticket.delivered(position); // error: use of moved value
/// # }
/// ```
///
/// A ticket that is dropped reports a failure ("lost by the transport"), possibly delivered.
pub struct Ticket(Option<Arc<dyn Recipient>>);

impl Ticket {
    /// A ticket that reports to `recipient`.
    pub fn new(recipient: Arc<dyn Recipient>) -> Self {
        Self(Some(recipient))
    }

    /// Says which partition the message goes to: for a transport whose [`partition`](Transport::partition) could not
    /// say, or said another. To be called before the message is on its way, from `submit` or later, as often as that
    /// changes. Without it a partition that hangs is not known to be what holds the message up.
    pub fn placed(&self, partition: i32) {
        if let Some(recipient) = &self.0 {
            recipient.placed(partition);
        }
    }

    /// The broker acknowledged the message, at the configured strength, and said where it lies.
    pub fn delivered(mut self, position: Position) {
        if let Some(recipient) = self.0.take() {
            recipient.report(Outcome::Delivered(position));
        }
    }

    /// The broker did not acknowledge it. `possibly_delivered`: it may have it all the same.
    pub fn failed(mut self, failure: Arc<Failure>, possibly_delivered: bool) {
        if let Some(recipient) = self.0.take() {
            recipient.report(Outcome::Failed { failure, possibly_delivered });
        }
    }

    /// Takes the ticket back without a report: for the producer, when a submit was refused.
    pub(crate) fn withdraw(mut self) {
        self.0 = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(recipient) = self.0.take() {
            let failure =
                Failure::new(Class::Transient, Scope::Lane, "lost by the transport, which never reported on it");
            recipient.report(Outcome::Failed { failure: Arc::new(failure), possibly_delivered: true });
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

/// What became of a message that a transport owned.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// Acknowledged.
    Delivered(Position),
    /// Not acknowledged.
    Failed {
        /// Why.
        failure: Arc<Failure>,
        /// Whether the broker may have it all the same.
        possibly_delivered: bool,
    },
}

/// Whether the broker can be reached, as far as the transport knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Availability {
    /// Messages can be submitted with hope.
    Up,
    /// They cannot: new ones are stored at once. The transport keeps trying to connect.
    Down(Arc<Failure>),
}

/// What a transport tells its availability to, and what it learns about limits from.
#[derive(Clone)]
pub struct Monitor {
    notify: Arc<dyn Fn(Availability) + Send + Sync>,
    route_up: Arc<dyn Fn(&Route) + Send + Sync>,
    /// The most bytes of key, headers and payload that a message may have to be accepted. Stored ones may have more, if an
    /// earlier run accepted more.
    pub max_message_bytes: usize,
    /// The most bytes that are handed over and not reported on. Default 32 MiB.
    pub window_bytes: usize,
}

impl Monitor {
    /// A monitor that calls `notify` at each change, and `route_up` when a route became usable again.
    pub fn new(
        max_message_bytes: usize,
        notify: impl Fn(Availability) + Send + Sync + 'static,
        route_up: impl Fn(&Route) + Send + Sync + 'static,
    ) -> Self {
        let (notify, route_up) = (Arc::new(notify), Arc::new(route_up));
        Self { notify, route_up, max_message_bytes, window_bytes: WINDOW_BYTES }
    }

    /// Says how many bytes may be in flight.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// The broker can be reached.
    pub fn up(&self) {
        (self.notify)(Availability::Up);
    }

    /// The broker cannot be reached, or refuses everything.
    pub fn down(&self, failure: Arc<Failure>) {
        (self.notify)(Availability::Down(failure));
    }

    /// A route that failed is usable again, the transport found (an unknown topic now exists): no need to wait
    /// for the backoff to pass.
    pub fn route_up(&self, route: &Route) {
        (self.route_up)(route);
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("max_message_bytes", &self.max_message_bytes).finish_non_exhaustive()
    }
}

/// A transport cannot start with its configuration, whatever the broker does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// What a producer hands to its transports at most.
#[derive(Clone, Copy, Debug)]
// Of the transports only Kafka's has options that depend on them.
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
pub(crate) struct Limits {
    /// Bytes of one message.
    pub max_message_bytes: usize,
    /// Bytes in flight.
    pub window_bytes: usize,
}

/// Makes the transport that a URL describes, without touching the network.
///
/// # Errors
/// Its options are wrong, or do not go with the limits, or this build lacks the broker.
pub(crate) fn connect(url: &BrokerUrl, limits: Limits) -> Result<Arc<dyn Transport>, StartError> {
    let connected = match url.scheme() {
        Scheme::Kafka => connect_kafka(url, limits),
        Scheme::Redis | Scheme::Rediss => connect_redis(url),
    };
    connected.map_err(|error| StartError(url.conceal(error.0)))
}

#[cfg(feature = "kafka")]
fn connect_kafka(url: &BrokerUrl, limits: Limits) -> Result<Arc<dyn Transport>, StartError> {
    let transport = kafka::KafkaTransport::new(kafka::KafkaConfig::from_url(url)?)?;
    transport.check_limits(limits)?;
    Ok(Arc::new(transport))
}

#[cfg(not(feature = "kafka"))]
fn connect_kafka(_: &BrokerUrl, _: Limits) -> Result<Arc<dyn Transport>, StartError> {
    Err(no_kafka())
}

#[cfg(not(feature = "kafka"))]
fn no_kafka() -> StartError {
    StartError("broker URL: scheme: this program was built without Kafka (feature `kafka`)".into())
}

#[cfg(feature = "redis")]
fn connect_redis(url: &BrokerUrl) -> Result<Arc<dyn Transport>, StartError> {
    Ok(Arc::new(redis::RedisTransport::new(redis::RedisConfig::from_url(url)?)?))
}

#[cfg(not(feature = "redis"))]
fn connect_redis(_: &BrokerUrl) -> Result<Arc<dyn Transport>, StartError> {
    Err(no_redis())
}

#[cfg(not(feature = "redis"))]
fn no_redis() -> StartError {
    StartError("broker URL: scheme: this program was built without Redis (feature `redis`)".into())
}
