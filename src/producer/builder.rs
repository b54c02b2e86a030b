//! From a configuration to a running producer. Everything is checked before a file is touched.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

use super::Producer;
use super::core::{Bell, Core, Line};
use super::open_error::{OpenError, OpenErrorKind};
use super::start::{Named, make_line, start, tell_of_backlog};
use crate::config::{Config, EVENTS, Mode, OnPoison, Order, RouteConfig, TransportConfig};
use crate::drainer::WindowLimits;
use crate::file_size;
use crate::forked::Maker;
use crate::message::Message;
use crate::outbox::{Outbox, OutboxOptions, StatusFile};
use crate::transport::{self, BrokerUrl, Transport};

/// Makes a [`Producer`]. Defaults and bounds are those of the fields of the same names in [`Config`].
///
/// ```no_run
/// # async fn f() -> Result<(), outlast::OpenError> {
/// use outlast::{Mode, Producer};
/// let producer = Producer::builder()
///     .outbox("/var/lib/orders/outbox")
///     .url("kafka://broker:9092")
///     .mode(Mode::WriteAhead)
///     .open()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
#[must_use = "a builder does nothing until it is opened"]
pub struct Builder {
    config: Config,
    custom: Vec<(Arc<str>, Arc<dyn Transport>)>,
    password: Option<String>,
    #[cfg(feature = "testing")]
    ledger: crate::outbox::ledger::LedgerOptions,
    #[cfg(feature = "testing")]
    storage: Option<Arc<dyn crate::wal::Storage>>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Builder {
    /// Takes all settings from a configuration; later calls change single ones.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The outbox's directory, made if it is not there.
    pub fn outbox(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.outbox = directory.into();
        self
    }

    /// Adds a broker, named by the scheme of its URL.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.config.transports.push(TransportConfig { url: url.into(), ..TransportConfig::default() });
        self
    }

    /// Adds a broker under a name, for messages that say [`via`](crate::Message::via).
    pub fn transport(mut self, name: impl Into<Arc<str>>, url: impl Into<String>) -> Self {
        let name = Some(name.into());
        self.config.transports.push(TransportConfig { name, url: url.into(), ..TransportConfig::default() });
        self
    }

    /// Adds a transport of one's own, behind those with URLs.
    pub fn custom_transport(mut self, name: impl Into<Arc<str>>, transport: Arc<dyn Transport>) -> Self {
        self.custom.push((name.into(), transport));
        self
    }

    /// The password for brokers whose URL and configuration have none, and that are logged in to: for Kafka, with a
    /// `security.protocol` that says so. It is sent as it is: one that ends in a newline, as files and variables give it,
    /// is warned of in the log.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// The mode of routes that do not say.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.config.mode = mode;
        self
    }

    /// What happens to poison on routes that do not say.
    pub fn on_poison(mut self, on_poison: OnPoison) -> Self {
        self.config.on_poison = on_poison;
        self
    }

    /// Settings of one route.
    pub fn route(mut self, route: RouteConfig) -> Self {
        self.config.routes.push(route);
        self
    }

    /// How long opening waits for another process to let go of the outbox.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.config.lock_wait = wait;
        self
    }

    /// How long a first attempt may take before the message is stored as well.
    pub fn first_attempt(mut self, deadline: Duration) -> Self {
        self.config.first_attempt = deadline;
        self
    }

    /// How long `send` waits for space in a full outbox.
    pub fn space_wait(mut self, wait: Duration) -> Self {
        self.config.space_wait = wait;
        self
    }

    /// The outbox's size in bytes.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.config.max_bytes = Some(bytes);
        self
    }

    /// Bytes of key, headers and payload of one message.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.config.max_message_bytes = bytes;
        self
    }

    /// The size of a segment in bytes.
    pub fn segment_bytes(mut self, bytes: u32) -> Self {
        self.config.segment_bytes = bytes;
        self
    }

    /// Attempts after which a message goes to the dead letters; without it there is no limit.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.config.max_attempts = Some(attempts);
        self
    }

    /// Stored messages delivered a second, at most.
    pub fn drain_rate(mut self, per_second: u32) -> Self {
        self.config.drain_rate = Some(per_second);
        self
    }

    /// For the project's own tests: a hook that is called before each call of the ledger's database, on its thread, and
    /// how long such a call may take.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn ledger_hook(
        mut self,
        watchdog: Duration,
        hook: impl Fn(&'static str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.ledger.watchdog = watchdog;
        self.ledger.hook = Some(Arc::new(hook));
        self
    }

    /// For the project's own tests: what takes the place of the disk under the logs.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn storage(mut self, storage: Arc<dyn crate::wal::Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Opens the outbox and starts delivering what is pending in it.
    ///
    /// # Errors
    /// See [`OpenErrorKind`]. The broker need not be there: that is no error.
    ///
    /// # Cancel safety
    /// Opening happens on a thread of its own; dropped half-way, it is completed there and closed again.
    pub async fn open(self) -> Result<Producer, OpenError> {
        let (sender, opened) = tokio::sync::oneshot::channel();
        let spawned = std::thread::Builder::new().name("outlast-open".into()).spawn(move || {
            file_size::block_signal();
            let _ = sender.send(self.open_blocking());
        });
        spawned.map_err(|error| OpenError::new(OpenErrorKind::Transport, format!("no thread: {error}")))?;
        opened.await.unwrap_or_else(|_| Err(OpenError::new(OpenErrorKind::Transport, "opening was cut short")))
    }

    /// As [`open`](Self::open), and blocks meanwhile.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_blocking(self) -> Result<Producer, OpenError> {
        let transports = self.check()?;
        let mut config = self.config;
        for route in &mut config.routes {
            route.transport = route.transport.take().or_else(|| transports.first().map(|(name, ..)| Arc::clone(name)));
        }
        let defaults = OutboxOptions::new(config.outbox.clone());
        let outbox = Arc::new(Outbox::open(&OutboxOptions {
            lock_wait: config.lock_wait,
            segment_bytes: config.segment_bytes,
            max_bytes: config.max_bytes,
            max_message_bytes: config.max_message_bytes,
            #[cfg(feature = "testing")]
            ledger: self.ledger,
            #[cfg(feature = "testing")]
            storage: self.storage.unwrap_or_else(|| Arc::clone(&defaults.storage)),
            ..defaults
        })?);
        let (events, _) = broadcast::channel(EVENTS);
        let owned = Arc::default();
        let window = WindowLimits { messages: config.window_of_each(transports.len()), bytes: config.window_bytes };
        let lines: Vec<Line> =
            transports.into_iter().map(|named| make_line(&config, window, &outbox, &events, &owned, named)).collect();
        let core = Arc::new(Core {
            status: Mutex::new(StatusFile::new(outbox.directory().paths().status())),
            outbox,
            lines,
            opened: SystemTime::now(),
            closed: AtomicBool::new(false),
            bell: Arc::new(Bell::default()),
            events,
            drainers: Mutex::default(),
            housekeeper: Mutex::default(),
            ended: Mutex::default(),
            stop: AtomicBool::new(false),
            maker: Maker::this(),
            config,
        });
        if let Err(error) = start(&core) {
            // Nothing of it may go on, nor keep the outbox from whoever tries again.
            core.give_up_start();
            return Err(error);
        }
        tell_of_backlog(&core);
        Ok(Producer::new(core))
    }

    /// Checks everything that can be checked before the outbox is touched: bounds, URLs, options and how they go together,
    /// and whether the files they name (certificates, keys, passwords) can be used. Connects to nothing.
    /// [`open`](Self::open) does the same first.
    ///
    /// # Errors
    /// Of the kind [`OpenErrorKind::Config`]: what is wrong, and what would be right.
    pub fn validate(&self) -> Result<(), OpenError> {
        self.check().map(drop)
    }

    /// As `validate`. Returns the transports.
    fn check(&self) -> Result<Vec<Named>, OpenError> {
        let wrong = |text: String| OpenError::new(OpenErrorKind::Config, text);
        self.config.validate().map_err(|error| wrong(error.to_string()))?;
        let limits = transport::Limits {
            max_message_bytes: self.config.max_message_bytes,
            window_bytes: self.config.window_bytes,
        };
        let mut transports: Vec<Named> = Vec::new();
        for given in &self.config.transports {
            let url = BrokerUrl::configured(given, self.password.as_deref()).map_err(wrong)?;
            let name = given.name.clone().unwrap_or_else(|| url.transport_name().into());
            let order = match url.scheme() {
                transport::Scheme::Kafka => Order::Key,
                transport::Scheme::Redis | transport::Scheme::Rediss => Order::Route,
            };
            if let Some(oddity) = url.password_oddity() {
                tracing::warn!(transport = %name, "the password is probably not as it is meant: {oddity}");
            }
            let made = transport::connect(&url, limits).map_err(|error| wrong(error.to_string()))?;
            if let Some(destination) = url.destination() {
                let checked = made.check(&Message::to(destination));
                checked.map_err(|error| wrong(url.conceal(format!("broker URL: {error}"))))?;
            }
            transports.push((name, order, made));
        }
        transports.extend(self.custom.iter().map(|(name, custom)| (Arc::clone(name), Order::Key, Arc::clone(custom))));
        if transports.is_empty() {
            return Err(wrong("no broker is given: add a URL, such as kafka://host:9092".into()));
        }
        let mut names = HashSet::new();
        if let Some((twice, ..)) = transports.iter().find(|(name, ..)| !names.insert(Arc::clone(name))) {
            return Err(wrong(format!("two transports are named `{twice}`: give one of them another name")));
        }
        for route in &self.config.routes {
            if let Some(name) = route.transport.as_ref().filter(|name| !names.contains(*name)) {
                return Err(wrong(format!("route `{}`: no transport is named `{name}`", route.destination)));
            }
        }
        Ok(transports)
    }
}

/// Opens with the defaults.
pub(super) fn builder_for(directory: &Path, url: &str) -> Builder {
    Builder::default().outbox(directory).url(url)
}
