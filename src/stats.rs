//! What a producer tells about itself: events as they happen, counts and reasons when asked. Plain types.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::failure::Class;
use crate::message::{MessageId, Position, Route};

/// Something that happened after `send` returned, or that an operator should see.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A stored message was delivered.
    Delivered {
        /// Its identity.
        id: MessageId,
        /// Its place in the log.
        lsn: u64,
        /// Where it went.
        route: Route,
        /// Where the broker put it.
        position: Position,
    },
    /// An attempt to deliver failed; it is tried again.
    Retrying {
        /// What waits.
        route: Route,
        /// Failed attempts so far.
        attempts: u32,
        /// What kind of failure it was.
        class: Class,
        /// Why it failed.
        reason: String,
    },
    /// A message went to the dead letters.
    DeadLettered {
        /// Its identity.
        id: MessageId,
        /// Its place in the log.
        lsn: u64,
        /// Where it should have gone.
        route: Route,
        /// Why the broker will never take it.
        reason: String,
    },
    /// A transport's broker can be reached again.
    Up {
        /// The transport.
        transport: Arc<str>,
    },
    /// A transport's broker cannot be reached.
    Down {
        /// The transport.
        transport: Arc<str>,
        /// Why.
        reason: String,
    },
    /// LSNs that could not be read were set aside; everything else goes on.
    SetAside {
        /// The first of them.
        first_lsn: u64,
        /// The last.
        last_lsn: u64,
        /// What was found.
        reason: String,
    },
    /// The reader of events was too slow: so many are missing here.
    Lagged(u64),
}

/// Why messages of a route wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BlockedStats {
    /// The last failure.
    pub reason: String,
    /// What kind it is.
    #[serde(serialize_with = "class_name")]
    pub class: Class,
    /// When it failed first.
    #[serde(serialize_with = "humantime_serde::serialize")]
    pub since: SystemTime,
    /// Messages that were passed over because of it; more may come behind them.
    pub waiting: u64,
    /// Lanes, partitions or routes that are blocked.
    pub blocks: usize,
    /// Failed attempts of the one that was tried most often.
    pub attempts: u32,
}

fn class_name<S: serde::Serializer>(class: &Class, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(class.name())
}

/// One route.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RouteStats {
    /// Which.
    pub route: Route,
    /// Stored messages that are neither delivered nor dead.
    pub pending: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// When the oldest of them was stored, to the second.
    #[serde(serialize_with = "humantime_serde::option::serialize")]
    pub oldest: Option<SystemTime>,
    /// Why they wait, where something failed.
    pub blocked: Option<BlockedStats>,
    /// The last error, also when it has passed.
    pub last_error: Option<String>,
}

/// One transport.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TransportStats {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its broker can be reached, as far as is known.
    pub up: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Since when not.
    #[serde(serialize_with = "humantime_serde::option::serialize")]
    pub since: Option<SystemTime>,
    /// That its broker slows this producer down on purpose (a quota), if it does.
    pub throttled: Option<String>,
    /// Messages it owns now.
    pub in_flight: usize,
    /// Slots whose new messages are stored first, because earlier ones are pending.
    pub gated_slots: usize,
}

/// Counts since the producer was opened, and what is pending now.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Stored messages that are neither delivered nor dead.
    pub pending: u64,
    /// Their bytes.
    pub pending_bytes: u64,
    /// When the oldest of them was stored, to the second.
    #[serde(serialize_with = "humantime_serde::option::serialize")]
    pub oldest: Option<SystemTime>,
    /// Hand-overs to a broker's client.
    pub attempts: u64,
    /// Messages delivered at the first attempt.
    pub delivered: u64,
    /// Messages stored.
    pub stored: u64,
    /// Stored messages delivered later.
    pub retries_succeeded: u64,
    /// Dead letters in the outbox.
    pub dead: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// LSNs that could not be read and were set aside.
    pub set_aside: u64,
    /// Slots whose new messages are stored first.
    pub gated_lanes: usize,
    /// Messages that wait for space.
    pub waiting_for_space: usize,
    /// Routes with something pending or blocked.
    pub routes: Vec<RouteStats>,
    /// The transports.
    pub transports: Vec<TransportStats>,
}

/// A reason with what it is about in front, unless it begins with that itself.
pub(crate) fn about(name: &str, reason: &str) -> String {
    let begins = reason.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    if begins && reason[name.len()..].starts_with(':') { reason.into() } else { format!("{name}: {reason}") }
}

impl Stats {
    /// How long the oldest pending message has waited.
    pub fn oldest_age(&self) -> Option<Duration> {
        self.oldest.map(|oldest| SystemTime::now().duration_since(oldest).unwrap_or_default())
    }
}

/// Whether somebody should look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// What an operator should know, most urgent first, one line each. Empty: all is well.
    pub alerts: Vec<String>,
}

impl Health {
    /// Whether there is nothing to tell.
    pub fn is_ok(&self) -> bool {
        self.alerts.is_empty()
    }
}
