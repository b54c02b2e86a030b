//! The file `status`: what the owner of an outbox says of it, for tools that must not touch what is live.
//!
//! JSON, written aside and renamed, at most once a second and only when it changed. Assumes nothing of its reader
//! but that it takes an old report for an old one (`updated_at`, `pid`). Refuses to matter: it is not synced, nothing
//! is decided by it, a lost or half-known one is no error. Reasons come from [`Failure`](crate::transport::Failure)s,
//! which hold no secrets; URLs are never written.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use humantime_serde::re::humantime;
use serde::{Deserialize, Serialize};

use super::directory::DirectoryError;
use super::files::{self, Durability, Owner};
use super::ledger::{LedgerHealth, LedgerState};
use crate::stats::about;

/// The version of the report. Fields may be added to it; what changes its meaning raises it.
const VERSION: u32 = 1;

/// The shortest time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest report that is read: some 10,000 routes.
const MAX_BYTES: u64 = 4 << 20;

/// What the owner is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// It has the outbox open; or it died without a word, which the lock tells.
    Running,
    /// It closed the outbox in good order.
    Closed,
    /// Something that a later version says.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// Their bytes of key, headers and payload.
    pub bytes: u64,
}

/// Why something waits, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocked {
    /// One line for people.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since: i64,
}

/// A route with pending messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    /// The transport's name.
    pub transport: String,
    /// The topic or stream.
    pub destination: String,
    /// What waits.
    pub pending: Tally,
    /// When the oldest of it was accepted, in milliseconds since 1970.
    pub oldest_time: Option<i64>,
    /// Why the whole route waits, if it does.
    pub blocked: Option<Blocked>,
    /// How many single lanes wait apart, and why the first of them does.
    pub blocked_lanes: u64,
    /// That reason.
    pub lane_reason: Option<Blocked>,
}

/// A configured transport, or one that pending messages still name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransportStatus {
    /// Its name.
    pub name: String,
    /// Why it cannot be used, if it cannot.
    pub down: Option<Blocked>,
    /// That its broker slows the producer down on purpose, if it does.
    pub throttled: Option<String>,
}

/// The ledger's health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerStatus {
    /// `opening`, `ok`, `rebuilding` or `off`.
    pub state: String,
    /// Why it is not `ok`.
    pub trouble: Option<Blocked>,
    /// The number of its directory.
    pub directory: u64,
    /// Rows that found no room in its queue.
    pub rows_dropped: u64,
}

impl From<&LedgerHealth> for LedgerStatus {
    fn from(health: &LedgerHealth) -> Self {
        let (state, trouble) = match &health.state {
            LedgerState::Opening => ("opening", None),
            LedgerState::Ok => ("ok", None),
            LedgerState::Rebuilding { reason, since } => ("rebuilding", Some((reason, *since))),
            LedgerState::Off { reason, since } => ("off", Some((reason, *since))),
        };
        let trouble = trouble.map(|(reason, since)| Blocked { reason: reason.clone(), since });
        Self { state: state.into(), trouble, directory: health.directory, rows_dropped: health.dropped }
    }
}

/// What the owner of an outbox says of it. What an older or newer owner left out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The report's version.
    pub version: u32,
    /// The owner's process id.
    pub pid: u32,
    /// The outbox id, 32 hexadecimal digits.
    pub outbox: String,
    /// The incarnation, 16 hexadecimal digits.
    pub incarnation: String,
    /// When this was written, in milliseconds since 1970.
    pub updated_at: i64,
    /// What the owner is about.
    pub state: Lifecycle,
    /// The routes with pending messages.
    pub routes: Vec<RouteStatus>,
    /// The transports.
    pub transports: Vec<TransportStatus>,
    /// What the transports have to say although nothing waits for it, one line each.
    pub notes: Vec<String>,
    /// Dead letters.
    pub dead: Tally,
    /// Messages that cannot be read and were set aside.
    pub set_aside: u64,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// Why the disk takes nothing, if it does not.
    pub storage: Option<Blocked>,
}

impl Status {
    /// One line for each thing that waits or is wrong, for people; empty if all is well. Times of day are UTC, with
    /// the date if they are not of the last day before `now` (milliseconds since 1970).
    pub fn lines(&self, now: i64) -> Vec<String> {
        let since = |blocked: &Blocked| format!("{} since {}", blocked.reason, clock(blocked.since, now));
        let mut lines = Vec::new();
        lines.extend(self.storage.iter().map(|blocked| format!("disk: {}", since(blocked))));
        for transport in &self.transports {
            lines.extend(transport.down.iter().map(|blocked| about(&transport.name, &since(blocked))));
            if transport.down.is_none() {
                lines.extend(transport.throttled.iter().map(|throttled| about(&transport.name, throttled)));
            }
        }
        for route in &self.routes {
            let waiting = format!("{} waiting", grouped(route.pending.count));
            let mut parts: Vec<String> = route.blocked.iter().map(since).collect();
            if route.blocked_lanes > 0 {
                let keys = if route.blocked_lanes == 1 { "key" } else { "keys" };
                let why = route.lane_reason.as_ref().map(|blocked| format!(" ({})", since(blocked)));
                parts.push(format!("{} {keys} blocked{}", grouped(route.blocked_lanes), why.unwrap_or_default()));
            }
            parts.push(waiting);
            lines.push(about(&route.destination, &parts.join("; ")));
        }
        lines.extend(self.notes.iter().cloned());
        if self.dead.count > 0 {
            lines.push(format!("dead letters: {} ({} bytes)", grouped(self.dead.count), grouped(self.dead.bytes)));
        }
        if self.set_aside > 0 {
            lines.push(format!("set aside as unreadable: {}", grouped(self.set_aside)));
        }
        lines.extend(
            self.ledger.trouble.iter().map(|blocked| format!("ledger {}: {}", self.ledger.state, since(blocked))),
        );
        lines
    }
}

/// `10:03 UTC`, with the date in front if it is not within the day before `now`.
fn clock(millis: i64, now: i64) -> String {
    // The formatter knows the years up to 9999; whatever a strange clock says is brought within.
    const LAST: i64 = 253_402_300_799_000;
    let time = UNIX_EPOCH + Duration::from_millis(millis.clamp(0, LAST).unsigned_abs());
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let (date, time) = text.split_once('T').unwrap_or_default();
    let minute = time.get(..5).unwrap_or_default();
    let recent = now.saturating_sub(millis).unsigned_abs() < 24 * 3600 * 1000;
    if recent { format!("{minute} UTC") } else { format!("{date} {minute} UTC") }
}

/// `1,204`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Why there is no report to be had, though the file is there.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] DirectoryError),
    /// It is no report: a power cut may have emptied it. The owner writes it anew.
    #[error("{} is no status report: {reason}", path.display())]
    NoReport {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: serde_json::Error,
    },
}

/// The file.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    written: Option<(Instant, Status)>,
}

impl StatusFile {
    /// The file at a path, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Writes a report if it says something new and the last was written a second ago; says whether it did. The
    /// fields `version` and `updated_at` are filled in.
    ///
    /// # Errors
    /// It could not be written; the old report stays, and the next offer tries again after a second.
    pub fn offer(&mut self, status: &Status, now: Instant) -> Result<bool, DirectoryError> {
        if let Some((at, last)) = &self.written {
            let unchanged = Status { version: last.version, updated_at: last.updated_at, ..status.clone() } == *last;
            if unchanged || now.saturating_duration_since(*at) < INTERVAL {
                return Ok(false);
            }
        }
        self.write(status, now).map(|()| true)
    }

    /// Writes a report now: the last before the outbox is closed.
    ///
    /// # Errors
    /// It could not be written; the old report stays.
    pub fn write(&mut self, status: &Status, now: Instant) -> Result<(), DirectoryError> {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let updated_at = i64::try_from(millis).unwrap_or(i64::MAX);
        let status = Status { version: VERSION, updated_at, ..status.clone() };
        let text = serde_json::to_vec_pretty(&status)
            .map_err(|error| DirectoryError::io(&self.path, "write", io::Error::from(error)))?;
        let result = files::replace(&self.path, &text, Durability::Cached);
        // After a failure nothing is known to be in the file: an empty report differs from every other.
        let said = if result.is_ok() { status } else { Status::default() };
        self.written = Some((now, said));
        result
    }

    /// Reads the report; `None` if there is none.
    ///
    /// # Errors
    /// See [`StatusError`].
    pub fn read(&self) -> Result<Option<Status>, StatusError> {
        let Some(file) = files::open_existing(&self.path, Owner::Any)? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(|error| DirectoryError::io(&self.path, "read", error))?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|reason| StatusError::NoReport { path: self.path.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MINUTE: i64 = 60_000;
    /// 2026-11-20 10:03 UTC.
    const TEN_O_THREE: i64 = 1_795_168_980_000;

    fn waiting() -> Status {
        let route = RouteStatus {
            transport: "kafka".into(),
            destination: "orders".into(),
            pending: Tally { count: 1_204, bytes: 60_000 },
            oldest_time: Some(TEN_O_THREE),
            blocked: Some(Blocked { reason: "topic unknown".into(), since: TEN_O_THREE }),
            ..RouteStatus::default()
        };
        Status { pid: 7, state: Lifecycle::Running, routes: vec![route], ..Status::default() }
    }

    #[test]
    fn what_waits_is_told_in_one_line() {
        let lines = waiting().lines(TEN_O_THREE + 5 * MINUTE);
        assert_eq!(lines, ["orders: topic unknown since 10:03 UTC; 1,204 waiting"]);
        let lines = waiting().lines(TEN_O_THREE + 3 * 24 * 60 * MINUTE);
        assert_eq!(lines, ["orders: topic unknown since 2026-11-20 10:03 UTC; 1,204 waiting"]);
        assert!(Status::default().lines(0).is_empty());
    }

    #[test]
    fn everything_that_is_wrong_has_its_line() {
        let blocked = |reason: &str| Some(Blocked { reason: reason.into(), since: TEN_O_THREE });
        let mut status = waiting();
        status.routes[0].blocked = None;
        status.routes[0].blocked_lanes = 2;
        status.routes[0].lane_reason = blocked("message too large");
        status.transports = vec![
            TransportStatus { name: "kafka".into(), down: blocked("connection refused"), throttled: None },
            TransportStatus { name: "second".into(), down: None, throttled: Some("the broker throttles".into()) },
        ];
        status.storage = blocked("no space left on device");
        status.dead = Tally { count: 3, bytes: 1_000_000 };
        status.set_aside = 5;
        status.ledger = LedgerStatus { state: "off".into(), trouble: blocked("hung"), ..LedgerStatus::default() };
        assert_eq!(
            status.lines(TEN_O_THREE),
            [
                "disk: no space left on device since 10:03 UTC",
                "kafka: connection refused since 10:03 UTC",
                "second: the broker throttles",
                "orders: 2 keys blocked (message too large since 10:03 UTC); 1,204 waiting",
                "dead letters: 3 (1,000,000 bytes)",
                "set aside as unreadable: 5",
                "ledger off: hung since 10:03 UTC",
            ]
        );
    }

    #[test]
    fn strange_times_make_no_panic() {
        for since in [i64::MIN, -1, 0, i64::MAX] {
            for now in [i64::MIN, 0, i64::MAX] {
                assert!(clock(since, now).ends_with(" UTC"));
            }
        }
    }

    #[test]
    fn a_report_is_written_at_most_once_a_second_and_only_when_it_changed() {
        let temp = tempfile::tempdir().expect("tempdir");
        let mut file = StatusFile::new(temp.path().join("status"));
        assert_eq!(file.read().expect("no error"), None);
        let (start, mut status) = (Instant::now(), waiting());
        assert!(file.offer(&status, start).expect("written"));
        status.dead.count = 1;
        assert!(!file.offer(&status, start + Duration::from_millis(999)).expect("too early"));
        assert!(file.offer(&status, start + Duration::from_secs(1)).expect("written"));
        assert!(!file.offer(&status, start + Duration::from_secs(9)).expect("unchanged"));
        let read = file.read().expect("read").expect("there");
        assert!(read.version == VERSION && read.updated_at > 0 && read.dead.count == 1);
        let mode = fs::metadata(temp.path().join("status")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!temp.path().join("status.tmp").exists());
    }

    #[test]
    fn reports_of_other_versions_are_read_for_what_they_say() {
        let temp = tempfile::tempdir().expect("tempdir");
        let file = StatusFile::new(temp.path().join("status"));
        fs::write(&file.path, r#"{"version":9,"state":"paused","dead":{"count":2},"news":[1]}"#).expect("write");
        let status = file.read().expect("read").expect("there");
        assert_eq!((status.version, status.state, status.dead.count), (9, Lifecycle::Unknown, 2));
        for garbage in ["", "{", "[[]]", "\u{0}\u{0}"] {
            fs::write(&file.path, garbage).expect("write");
            assert!(matches!(file.read(), Err(StatusError::NoReport { .. })), "{garbage:?}");
        }
    }
}
