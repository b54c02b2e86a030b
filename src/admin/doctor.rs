//! Looks at a set-up before it is relied on: the place of the outbox, this process, the brokers.
//!
//! The checks themselves are one module of the library (`doctor`), which knows no outbox that is open and no producer;
//! here they are asked in turn. An outbox that is there is read and left as it is, beside a live producer too. Where there
//! is none yet, one small file is written in its directory, or in the one that it would be made in, and removed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::look;
use crate::config::{Config, ConfigError};
use crate::doctor::{broker, disk, lock, probe, process};
pub use crate::finding::{Code, Finding, Severity};
use crate::message::{Message, Route};
use crate::outbox::{DirectoryError, Fitness, Inspected, OutboxOptions, Room};
use crate::transport::examine::{Destination, Questions};
use crate::transport::{BrokerUrl, Limits, connect};
use crate::wal::Entry;

/// How long a broker may take to answer unless something else is said.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// Less is no time to connect in.
const LEAST_TIMEOUT: Duration = Duration::from_millis(100);
/// Topics and streams that are asked about at most, a broker: those with the most messages.
const MOST_DESTINATIONS: usize = 1_000;
/// Of what is pending, so many messages are read for their timestamps, or so many bytes.
const MOST_READ: (u64, usize) = (10_000, 64 << 20);

/// What was found. Its JSON has these fields under these names; new ones may come.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The outbox's directory, as an absolute path.
    pub outbox: PathBuf,
    /// Whether there is one.
    pub exists: bool,
    /// The process that has it open; 0 if it had no time to write its id.
    pub holder: Option<u32>,
    /// Bytes that are free on its disk, for this user.
    pub free_bytes: Option<u64>,
    /// Bytes that an outbox takes from its start, those that it has now included.
    pub least_bytes: Option<u64>,
    /// Bytes that its messages and dead letters may take.
    pub most_bytes: Option<u64>,
    /// Messages that are stored and not delivered.
    pub pending: u64,
    /// What was found, problems and notes, in the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether there is a problem; notes alone are none.
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Problem)
    }
}

/// Checks whether a producer with this configuration could start and keep its promise. Without transports, only what is
/// local: the outbox's place, and what this process may do. With them, each broker is asked about itself and about every
/// topic or stream that its URL names or that messages are pending for, within [`TIMEOUT`] each.
///
/// Run it as the user, and under the limits, that the producer will have. Nothing is sent to a broker, nothing in an
/// outbox is changed; where none is yet, one file is written beside its place, and removed.
///
/// ```no_run
/// use outlast::{Config, TransportConfig};
/// let url = "kafka://broker:9092/orders".to_owned();
/// let config = Config {
///     outbox: "/var/lib/orders/outbox".into(),
///     transports: vec![TransportConfig { url, ..TransportConfig::default() }],
///     ..Config::default()
/// };
/// for finding in outlast::admin::doctor(&config)?.findings {
///     println!("{}: {}: {}; {}", finding.code, finding.subject, finding.what, finding.advice);
/// }
/// # Ok::<(), outlast::ConfigError>(())
/// ```
///
/// # Errors
/// The configuration is wrong; nothing was looked at. Everything else is a [`Finding`].
pub fn doctor(config: &Config) -> Result<Report, ConfigError> {
    doctor_with(config, None, TIMEOUT)
}

/// The same, with a password for brokers that have none in URL and configuration, as
/// [`Builder::password`](crate::Builder::password) takes it, and with another limit for each broker's answers (at least
/// 100 ms).
///
/// # Errors
/// As [`doctor`].
pub fn doctor_with(config: &Config, password: Option<&str>, timeout: Duration) -> Result<Report, ConfigError> {
    let brokers = check(config, password, timeout)?;
    let mut report = Report::default();
    let pending = match Fitness::of(&config.outbox) {
        Ok(fitness) => local(config, &fitness, &mut report),
        Err(error) => {
            report.findings.push(disk::refusal(&error));
            Pending::default()
        }
    };
    report.pending = pending.values().map(|found| found.count).sum();
    for (transport, url) in &brokers {
        let (destinations, omitted) = destinations(transport, url, &pending);
        let questions = Questions {
            transport: Arc::clone(transport),
            destinations,
            max_message_bytes: config.max_message_bytes,
            window_bytes: config.window_bytes,
            timeout,
        };
        report.findings.extend(broker::check(url, questions));
        if omitted > 0 {
            let what = format!("{omitted} more topics or streams with pending messages were not asked about");
            let advice = format!("the {MOST_DESTINATIONS} with the most messages were");
            report.findings.push(Finding::note(Code::NotChecked, transport, what, advice));
        }
    }
    if !brokers.is_empty() {
        report.findings.extend(not_configured(&brokers, &pending));
    }
    Ok(report)
}

/// The brokers, by their transports' names.
type Brokers = Vec<(Arc<str>, BrokerUrl)>;

/// Everything that is wrong with the configuration, before anything is looked at.
fn check(config: &Config, password: Option<&str>, timeout: Duration) -> Result<Brokers, ConfigError> {
    let mut wrong = config.validate().err().map_or(Vec::new(), |error| error.0);
    if timeout < LEAST_TIMEOUT {
        wrong.push(format!("timeout: at least {LEAST_TIMEOUT:?}"));
    }
    let limits = Limits { max_message_bytes: config.max_message_bytes, window_bytes: config.window_bytes };
    let mut brokers = Brokers::new();
    for given in &config.transports {
        let url = match BrokerUrl::configured(given, password) {
            Ok(url) => url,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        // Judges the options, and connects to nothing.
        let judged =
            connect(&url, limits).map_err(|error| error.to_string()).and_then(|transport| match url.destination() {
                Some(name) => transport.check(&Message::to(name)).map_err(|error| format!("broker URL: {error}")),
                None => Ok(()),
            });
        wrong.extend(judged.err());
        let name = given.name.clone().unwrap_or_else(|| url.transport_name().into());
        if brokers.iter().any(|(other, _)| *other == name) {
            wrong.push(format!("two transports are named `{name}`: give one of them another name"));
        }
        brokers.push((name, url));
    }
    if wrong.is_empty() { Ok(brokers) } else { Err(ConfigError(wrong)) }
}

/// What can be seen without a broker. Returns what is pending.
fn local(config: &Config, fitness: &Fitness, report: &mut Report) -> Pending {
    report.outbox = fitness.paths.root().to_owned();
    report.exists = fitness.has_outbox();
    let (nearest, findings) = (&fitness.nearest, &mut report.findings);
    let refused = disk::directory(fitness);
    let is_refused = refused.is_some();
    findings.extend(refused);
    findings.extend(disk::file_system(nearest));
    let options = OutboxOptions {
        segment_bytes: config.segment_bytes,
        max_bytes: config.max_bytes,
        max_message_bytes: config.max_message_bytes,
        ..OutboxOptions::new(config.outbox.clone())
    };
    let no_inodes = disk::inodes(fitness);
    let has_inodes = no_inodes.is_none();
    findings.extend(no_inodes);
    match Room::of(&options, &fitness.paths, nearest) {
        Ok(room) => {
            findings.extend(disk::space(&room, nearest));
            findings.extend(process::file_size(room.segment));
            report.free_bytes = Some(room.free);
            report.least_bytes = Some(room.least);
            report.most_bytes = Some(room.most);
        }
        Err(error) => findings.push(disk::not_checked(nearest.display(), "free space", &error)),
    }
    findings.extend(process::open_files(config.transports.len()));
    if !report.exists {
        if !is_refused && has_inodes {
            findings.extend(probe::run(nearest));
        }
        return Pending::default();
    }
    match pending(&config.outbox) {
        Ok(pending) => {
            let (holder, held) = lock::check(&fitness.paths);
            findings.extend(held);
            report.holder = holder.map(|holder| holder.pid.unwrap_or(0));
            pending
        }
        Err(error) => {
            if !is_refused {
                let what = format!("what is pending could not be read: {error}");
                findings.push(Finding::problem(Code::NotChecked, nearest.display(), what, "see `outlast check`"));
            }
            Pending::default()
        }
    }
}

/// What waits for one route.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    count: u64,
    /// The least and the greatest timestamp.
    timestamps: (i64, i64),
}

type Pending = HashMap<Route, Waiting>;

/// What is pending, from the log. Timestamps are those of the first so many messages; of a route that none of them is for,
/// roughly the oldest one's.
fn pending(outbox: &Path) -> Result<Pending, super::AdminError> {
    let inspected = match Inspected::at(outbox) {
        Err(DirectoryError::Missing { .. }) => return Ok(Pending::new()),
        inspected => inspected?,
    };
    let Some(found) = look::open(&inspected, inspected.paths.wal())? else { return Ok(Pending::new()) };
    let routes = found.state.routes.iter().filter(|(_, pending)| pending.count > 0);
    let mut pending: Pending = routes
        .map(|(route, pending)| {
            (route.clone(), Waiting { count: pending.count, timestamps: (pending.oldest, pending.oldest) })
        })
        .collect();
    let mut seen: HashMap<Route, (i64, i64)> = HashMap::new();
    let (mut messages, mut bytes) = (0, 0);
    look::unsettled(&inspected, &found, |_, entry| {
        if let Entry::Message(outgoing) = entry {
            messages += 1;
            bytes += outgoing.message.size();
            let timestamp = outgoing.timestamp;
            let (least, greatest) = seen.entry(outgoing.route).or_insert((timestamp, timestamp));
            (*least, *greatest) = ((*least).min(timestamp), (*greatest).max(timestamp));
        }
        messages < MOST_READ.0 && bytes < MOST_READ.1
    })?;
    for (route, timestamps) in seen {
        if let Some(waiting) = pending.get_mut(&route) {
            waiting.timestamps = timestamps;
        }
    }
    Ok(pending)
}

/// What a broker is asked about: the topic or stream that the URL names first, then those with the most messages; and how
/// many are left out.
fn destinations(transport: &Arc<str>, url: &BrokerUrl, pending: &Pending) -> (Vec<Destination>, usize) {
    let own = url.destination().map(|name| Route { transport: Arc::clone(transport), destination: name.into() });
    let mut waiting: Vec<Destination> = pending
        .iter()
        .filter(|(route, _)| *route.transport == **transport && Some(*route) != own.as_ref())
        .map(|(route, waiting)| destination(route.clone(), Some(waiting)))
        .collect();
    waiting.sort_by(|a, b| b.pending.cmp(&a.pending).then_with(|| a.route.destination.cmp(&b.route.destination)));
    let omitted = waiting.len().saturating_sub(MOST_DESTINATIONS);
    waiting.truncate(MOST_DESTINATIONS);
    let own = own.map(|route| destination(route.clone(), pending.get(&route)));
    (own.into_iter().chain(waiting).collect(), omitted)
}

fn destination(route: Route, waiting: Option<&Waiting>) -> Destination {
    let pending = waiting.map_or(0, |waiting| waiting.count);
    Destination { route, pending, timestamps: waiting.map(|waiting| waiting.timestamps) }
}

/// Messages for transports that are not configured: they would stay.
fn not_configured(brokers: &Brokers, pending: &Pending) -> Vec<Finding> {
    let mut routes: Vec<(&Route, &Waiting)> =
        pending.iter().filter(|(route, _)| !brokers.iter().any(|(name, _)| *name == route.transport)).collect();
    routes.sort_by_key(|(route, _)| route.to_string());
    let found = |(route, waiting): (&Route, &Waiting)| {
        let what = format!("{} messages wait for a transport that was not named, and was not asked", waiting.count);
        Finding::note(Code::NotConfigured, route, what, "ask again with that broker")
    };
    routes.into_iter().take(MOST_DESTINATIONS).map(found).collect()
}
