//! From the command line to an open producer, every refusal in its order: nothing is touched before the whole line
//! is known to be right.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast::{BrokerUrl, Config, OpenErrorKind, Producer, RouteStats, Stats, TransportConfig};

use crate::args::Broker;
use crate::exit::Problem;
use crate::output::{self, counted};

/// Where a password may come from without being seen in the list of processes.
const PASSWORD_VARIABLE: &str = "OUTLAST_PASSWORD";

/// How long closing waits for what is in flight, after Ctrl-C.
pub const GRACE: Duration = Duration::from_secs(10);
/// The same after a wait for everything that was pending, in vain or not.
pub const GRACE_AFTER_WAIT: Duration = Duration::from_secs(1);

/// A broker as the command line names it, found to be well-formed.
pub struct Destination {
    url: String,
    /// The topic or stream, if the URL names one.
    pub name: Option<Arc<str>>,
    password: Option<String>,
}

impl Destination {
    /// Reads the URL and the password.
    pub fn parse(broker: &Broker) -> Result<Self, Problem> {
        let parsed = BrokerUrl::parse(&broker.to).map_err(|e| Problem::usage(format!("--to: {e}")))?;
        Ok(Self {
            url: broker.to.clone(),
            name: parsed.destination().map(Arc::from),
            password: broker.password_file.as_deref().map(password_of).transpose()?,
        })
    }

    /// Settings for a producer with this broker as its only transport; the rest are defaults.
    pub fn config(&self, outbox: &Path) -> Config {
        let transport = TransportConfig { name: None, url: self.url.clone(), password: self.password.clone() };
        Config { outbox: outbox.to_owned(), transports: vec![transport], ..Config::default() }
    }
}

/// The password of the environment, which nobody may have meant for this broker.
pub fn password_around() -> Result<Option<String>, Problem> {
    match std::env::var(PASSWORD_VARIABLE) {
        Ok(password) => Ok(Some(password)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Problem::usage(format!("{PASSWORD_VARIABLE} is not UTF-8"))),
    }
}

/// The password in the file that was named.
fn password_of(file: &Path) -> Result<String, Problem> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Problem::usage(format!("--password-file {}: {e}", file.display())))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(Problem::usage(format!("--password-file {}: its first line is empty", file.display()))),
    }
}

/// Opens the outbox, and says what was pending in it.
pub fn open(config: Config) -> Result<Producer, Problem> {
    let builder = match password_around()? {
        Some(password) => Producer::builder().password(password),
        None => Producer::builder(),
    };
    let producer = builder.config(config).open_blocking().map_err(|e| match e.kind() {
        OpenErrorKind::Config => Problem::usage(e),
        _ => Problem::failed(e),
    })?;
    if let Some(text) = pending(&producer) {
        output::say(text);
    }
    for (waiting, reason) in not_configured(&producer.stats()) {
        output::say(format_args!("{waiting}: {reason}, so they stay where they are"));
    }
    Ok(producer)
}

/// What waits for a broker that the command line does not name, and that it does.
pub fn not_configured(stats: &Stats) -> Vec<(String, String)> {
    let named = |route: &RouteStats| stats.transports.iter().any(|named| *named.name == *route.route.transport);
    let waiting = |route: &RouteStats| format!("{} for {}", counted(route.pending, "message"), route.route);
    let reason = |route: &RouteStats| route.blocked.as_ref().map_or(String::new(), |blocked| blocked.reason.clone());
    let others = stats.routes.iter().filter(|route| route.pending > 0 && !named(route));
    others.map(|route| (waiting(route), reason(route))).collect()
}

/// One line on what is pending: how much, how old, where to.
fn pending(producer: &Producer) -> Option<String> {
    let stats = producer.stats();
    if stats.pending == 0 {
        return None;
    }
    let routes: Vec<String> =
        stats.routes.iter().filter(|route| route.pending > 0).map(|route| route.route.to_string()).collect();
    let oldest = stats.oldest.map_or(String::new(), |time| format!(", the oldest for {}", output::age(time)));
    let (messages, bytes) = (counted(stats.pending, "message"), output::bytes(stats.pending_bytes));
    Some(format!("{messages} ({bytes}) pending{oldest}, for {}", routes.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn a_password_file_gives_its_first_line_and_must_have_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\nnoise\n").unwrap();
        assert_eq!(password_of(&file).unwrap(), "hunter2");
        for empty in ["", "\nhunter2"] {
            std::fs::write(&file, empty).unwrap();
            assert_eq!(password_of(&file).unwrap_err().exit, Exit::Usage);
        }
        assert_eq!(password_of(&dir.path().join("none")).unwrap_err().exit, Exit::Usage);
    }
}
