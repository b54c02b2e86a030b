//! Settings, their defaults and their bounds. Every number has one constant here, with its reason.
//!
//! Plain data: [`Config::validate`] looks at nothing outside it, and returns everything that is wrong at once.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a first attempt may take before the message is stored as well: a broker that is slower than this is
/// as good as down for whoever waits for `send`.
pub const FIRST_ATTEMPT: Duration = Duration::from_secs(5);
/// How long `send` waits for space in a full outbox: long enough for a broker's restart to make room.
pub const SPACE_WAIT: Duration = Duration::from_secs(30);
/// First messages in flight a transport: what librdkafka fills its batches from at full speed.
pub const WINDOW_MESSAGES: usize = 10_000;
/// Bytes in flight a transport; also the size of librdkafka's queue.
pub const WINDOW_BYTES: usize = 32 << 20;
/// In flight, plus delivered but not yet recorded: what a kill can make the broker see twice.
pub const REDELIVERY_WINDOW: usize = 20_000;
/// Slots a transport: with 10,000 lanes pending, six of seven fresh keys still go direct.
pub const SLOTS: usize = 65_536;
/// A segment: large enough that a checkpoint a segment costs nothing, small enough to read in a moment at start.
pub const SEGMENT_BYTES: u32 = 64 << 20;
/// The outbox's size, where 80 % of the free space is not less.
pub const MAX_BYTES: u64 = 16 << 30;
/// Key, headers and payload of one message: Kafka's own default limit.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// What names, numbers and a few headers take beside them in a segment.
pub const AROUND_MESSAGE: usize = 4 << 10;
/// Headers of one message.
pub const MAX_HEADERS: usize = 1_000;
/// Fields of one message: far above any entry, and what a reader takes for them stays at a few MiB, even where they are
/// all empty and cost the log two bytes each.
pub const MAX_FIELDS: usize = 65_536;
/// Messages one partition may own, so that a leaderless one does not fill the window for all.
pub const PARTITION_MESSAGES: usize = 2_000;
/// Bytes one partition may own.
pub const PARTITION_BYTES: usize = 8 << 20;
/// Delay after the first failed attempt; it doubles with each further one.
pub const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// The longest delay between attempts.
pub const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// Events kept for a reader of `events()` that lags behind.
pub const EVENTS: usize = 1_024;
/// Single lanes that are kept blocked apart; beyond that their route is blocked as a whole.
pub const BLOCKED_LANES: usize = 100_000;

/// How a message takes its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// To the broker first; stored if that fails, is late, or earlier messages of the lane are still pending.
    #[default]
    Direct,
    /// To the outbox first, then delivered at once.
    WriteAhead,
}

/// What keeps its order on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Order {
    /// Messages of one key; those without a key have no order. The default for Kafka.
    Key,
    /// All messages of the route. The default for Redis streams.
    Route,
    /// Nothing.
    None,
}

/// What happens to a message that the broker will never take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnPoison {
    /// It goes to the dead letters, and its lane goes on.
    #[default]
    DeadLetter,
    /// It stays at the head of its lane, which waits for an operator.
    Hold,
}

/// A transport: a name, and where its broker is.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportConfig {
    /// What messages call it, and what the log keeps; the URL's scheme if it is left out.
    #[serde(default)]
    pub name: Option<Arc<str>>,
    /// `kafka://host:port[,host:port][/TOPIC][?option=value]`, `redis://[user@]host:port[/db][?stream=NAME]`, `rediss://…`.
    /// It may hold a password: `Debug` shows nothing of it.
    pub url: String,
    /// The password, where the URL has none. It is sent as it is; a newline at its end is warned of in the log.
    #[serde(default)]
    pub password: Option<String>,
    /// A file whose first line is the password. It is read again when it changes. Default: none; an error where `password`
    /// or the URL has one, too.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("TransportConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What is special about one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteConfig {
    /// The transport's name; the first transport if it is left out.
    pub transport: Option<Arc<str>>,
    /// The topic or stream.
    pub destination: Arc<str>,
    /// Its mode; the producer's if it is left out.
    pub mode: Option<Mode>,
    /// Its order; the transport's default if it is left out.
    pub order: Option<Order>,
    /// What happens to poison; the producer's if it is left out.
    pub on_poison: Option<OnPoison>,
}

/// Everything a producer can be told.
///
/// ```
/// let config: outlast::Config = serde_json::from_str(r#"{
///     "outbox": "/var/lib/orders/outbox",
///     "transports": [{ "url": "kafka://broker:9092" }],
///     "first_attempt": "2s"
/// }"#)?;
/// assert!(config.validate().is_ok());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The outbox's directory, made if it is not there.
    pub outbox: PathBuf,
    /// The brokers; the first takes messages that name none.
    pub transports: Vec<TransportConfig>,
    /// The mode of routes that name none. Default: `direct`.
    pub mode: Mode,
    /// What happens to poison on routes that do not say. Default: `dead-letter`.
    pub on_poison: OnPoison,
    /// Routes with settings of their own.
    pub routes: Vec<RouteConfig>,
    /// How long a first attempt may take before the message is stored as well. Default 5 s; at least 1 ms.
    #[serde(with = "humantime_serde")]
    pub first_attempt: Duration,
    /// How long `send` waits for space in a full outbox, before it returns `Full`. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub space_wait: Duration,
    /// How long opening waits for another process to let go of the outbox. Default 0.
    #[serde(with = "humantime_serde")]
    pub lock_wait: Duration,
    /// Messages in flight a transport. Default 10,000; at least 1. Of several transports, n say, none has more than
    /// `redelivery_window` / (n + 1), so that those that are down do not keep the others waiting.
    pub window_messages: usize,
    /// Bytes in flight a transport. Default 32 MiB; at least twice `max_message_bytes`.
    pub window_bytes: usize,
    /// In flight, plus delivered but not recorded. Default 20,000; at least `window_messages` + 1.
    pub redelivery_window: usize,
    /// Key, headers and payload of one message that is accepted; what lies in the outbox already is delivered whatever its
    /// size. Default 1 MiB; at most a quarter of a segment less 4 KiB for names and the
    /// like, and half of `window_bytes`. One with so many headers or fields that it does not fit all the same is refused.
    pub max_message_bytes: usize,
    /// The outbox's size. Default: 16 GiB or 80 % of the free space, the smaller; at least four segments. It takes one
    /// segment for each 128 bytes of a segment at most, because each has a list of them: of 64 KiB 512, which is 32 MiB; of
    /// 1 MiB 8 GiB.
    ///
    /// An eighth is for dead letters, each of which takes 4 KiB at least, in segments that stay as long as one letter in
    /// them does. Where there is no room for another, poison is held, and told of, until some are requeued or purged.
    pub max_bytes: Option<u64>,
    /// A segment's size. Default 64 MiB; 64 KiB to 1 GiB, a multiple of 4 KiB. Where this is the default and `max_bytes` is
    /// left out, an outbox on a small disk begins with smaller ones, and keeps their size.
    pub segment_bytes: u32,
    /// Slots a transport: more means fewer strangers gated together, at 104 bytes each, some 50 more once it was used.
    /// Default 65,536; a power of two.
    pub slots: usize,
    /// Attempts after which a message goes to the dead letters. Default: no limit; where set, at least 1.
    pub max_attempts: Option<u32>,
    /// Stored messages delivered a second, at most. Default: no limit; where set, at least 1.
    pub drain_rate: Option<u32>,
    /// Delay after the first failed attempt. Default 100 ms.
    #[serde(with = "humantime_serde")]
    pub backoff_base: Duration,
    /// The longest delay between attempts. Default 30 s; not less than `backoff_base`.
    #[serde(with = "humantime_serde")]
    pub backoff_cap: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            outbox: PathBuf::new(),
            transports: Vec::new(),
            mode: Mode::default(),
            on_poison: OnPoison::default(),
            routes: Vec::new(),
            first_attempt: FIRST_ATTEMPT,
            space_wait: SPACE_WAIT,
            lock_wait: Duration::ZERO,
            window_messages: WINDOW_MESSAGES,
            window_bytes: WINDOW_BYTES,
            redelivery_window: REDELIVERY_WINDOW,
            max_message_bytes: MAX_MESSAGE_BYTES,
            max_bytes: None,
            segment_bytes: SEGMENT_BYTES,
            slots: SLOTS,
            max_attempts: None,
            drain_rate: None,
            backoff_base: BACKOFF_BASE,
            backoff_cap: BACKOFF_CAP,
        }
    }
}

/// Everything that is wrong with a [`Config`], one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Messages in flight of each of so many transports.
    pub(crate) fn window_of_each(&self, transports: usize) -> usize {
        if transports < 2 {
            return self.window_messages;
        }
        self.window_messages.min(self.redelivery_window / (transports + 1)).max(1)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// All that is wrong, each with the bound it breaks. Nothing was touched.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, text: &dyn Fn() -> String| {
            if !holds {
                wrong.push(text());
            }
        };
        must(!self.outbox.as_os_str().is_empty(), &|| "outbox: no directory given".into());
        // It may hold a password, and is not shown.
        must(!self.outbox.to_string_lossy().contains("://"), &|| {
            "outbox: a directory is expected, this is a URL".into()
        });
        must(self.first_attempt >= Duration::from_millis(1), &|| "first_attempt: at least 1ms".into());
        must(self.window_messages >= 1, &|| "window_messages: at least 1".into());
        must(self.slots.is_power_of_two(), &|| format!("slots: {} is not a power of two", self.slots));
        must(self.backoff_base > Duration::ZERO, &|| "backoff_base: more than 0".into());
        must(self.backoff_cap >= self.backoff_base, &|| "backoff_cap: not less than backoff_base".into());
        must(self.max_attempts != Some(0), &|| "max_attempts: at least 1; leave it out for no limit".into());
        must(self.drain_rate != Some(0), &|| "drain_rate: at least 1; leave it out for no limit".into());
        let segment = self.segment_bytes;
        must((64 << 10..=1 << 30).contains(&segment) && segment.is_multiple_of(4096), &|| {
            format!("segment_bytes: {segment} is not a multiple of 4096 between 64 KiB and 1 GiB")
        });
        must(self.redelivery_window > self.window_messages, &|| {
            format!("redelivery_window: {} is not more than window_messages", self.redelivery_window)
        });
        let most = (segment as usize / 4).saturating_sub(AROUND_MESSAGE).min(self.window_bytes / 2);
        must((1..=most).contains(&self.max_message_bytes), &|| {
            format!(
                "max_message_bytes: {} is not between 1 and {most} (a quarter of segment_bytes less 4 KiB, half of \
                 window_bytes)",
                self.max_message_bytes
            )
        });
        let least = 4 * u64::from(segment);
        must(self.max_bytes.is_none_or(|max| max >= least), &|| {
            format!("max_bytes: {} is less than four segments ({least})", self.max_bytes.unwrap_or_default())
        });
        for route in &self.routes {
            must(!route.destination.is_empty(), &|| "routes: a route without a destination".into());
        }
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError(wrong)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let config = Config { slots: 3, max_attempts: Some(0), segment_bytes: 5, ..Config::default() };
        let error = config.validate().unwrap_err();
        assert_eq!(error.0.len(), 5, "{error}");
        for part in ["outbox:", "slots:", "max_attempts:", "segment_bytes:", "max_message_bytes:"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        let error = serde_json::from_str::<Config>(r#"{ "outbx": "x" }"#).unwrap_err();
        assert!(error.to_string().contains("outbx"), "{error}");
    }

    #[test]
    fn a_password_is_not_shown() {
        let config = TransportConfig {
            url: "redis://u:hunter2@h:1".into(),
            password: Some("hunter2".into()),
            ..Default::default()
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
