//! From the command line to an open producer, every refusal in its order: nothing is touched before the whole line
//! is known to be right.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outlast::{BrokerUrl, Builder, Config, OpenErrorKind, Producer, RouteStats, Stats, TransportConfig};

use crate::args::Broker;
use crate::exit::Problem;
use crate::output::{self, counted};
use crate::signals::Stop;

/// Where a password may come from without being seen in the list of processes.
const PASSWORD_VARIABLE: &str = "OUTLAST_PASSWORD";
/// Letters by which another name may differ and still be a slip: OUTLAST_PWORD.
const MISSPELT: usize = 3;

/// How long closing waits for what is in flight after a wait for everything that was pending, in vain or not.
pub const GRACE_AFTER_WAIT: Duration = Duration::from_secs(1);

/// A broker as the command line names it, found to be well-formed.
pub struct Destination {
    url: String,
    /// The topic or stream, if the URL names one.
    pub name: Option<Arc<str>>,
    /// The library reads it again when it changes.
    password_file: Option<PathBuf>,
    /// What a pipe had, which can be read once.
    password: Option<String>,
}

impl Destination {
    /// Reads the URL, and looks whether the password file holds a password.
    pub fn parse(broker: &Broker) -> Result<Self, Problem> {
        let mut password_file = broker.password_file.clone();
        let mut password = password_file.as_deref().map(password_of).transpose()?;
        if password_file.as_ref().is_some_and(|file| file.is_file()) {
            password = None;
        } else {
            password_file = None;
        }
        let parsed = BrokerUrl::parse(&broker.to).map_err(|e| Problem::usage(format!("--to: {e}")))?;
        Ok(Self { url: broker.to.clone(), name: parsed.destination().map(Arc::from), password_file, password })
    }

    /// Settings for a producer with this broker as its only transport; the rest are defaults.
    pub fn config(&self, outbox: &Path, lock_wait: Duration) -> Config {
        let (password, password_file) = (self.password.clone(), self.password_file.clone());
        let transport =
            TransportConfig { url: self.url.clone(), password, password_file, ..TransportConfig::default() };
        Config { outbox: outbox.to_owned(), transports: vec![transport], lock_wait, ..Config::default() }
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
    match first_line(&text) {
        "" => Err(Problem::usage(format!("--password-file {}: its first line is empty", file.display()))),
        line if line.contains('\0') => {
            let problem =
                format!("--password-file {}: it holds zero bytes; is it UTF-16? Save it as UTF-8", file.display());
            Err(Problem::usage(problem))
        }
        line => Ok(line.to_owned()),
    }
}

/// Without what editors put around it: a byte order mark, and the end of the line however it is written.
fn first_line(text: &str) -> &str {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let line = text.split('\n').next().unwrap_or(text);
    line.strip_suffix('\r').unwrap_or(line)
}

/// Checks everything that can be checked before anything is touched.
pub fn check(config: Config) -> Result<Builder, Problem> {
    config
        .validate()
        .map_err(|e| Problem::usage(e.0.iter().map(|wrong| as_option(wrong)).collect::<Vec<_>>().join("; ")))?;
    let builder = match password_around()? {
        Some(password) => Producer::builder().password(password),
        None => Producer::builder(),
    };
    hint_at_variable();
    let builder = builder.config(config);
    builder.validate().map_err(Problem::usage)?;
    Ok(builder)
}

/// What is wrong with a setting, under the name that it has here.
fn as_option(wrong: &str) -> String {
    match wrong.split_once(':') {
        Some((setting @ ("first_attempt" | "max_message_bytes"), reason)) => {
            format!("--{}:{reason}", setting.replace('_', "-"))
        }
        _ => wrong.to_owned(),
    }
}

/// Names a variable that is not read, and was probably meant to be the password's. Does not show its value.
fn hint_at_variable() {
    if std::env::var_os(PASSWORD_VARIABLE).is_some() {
        return;
    }
    let near = |name: &String| {
        let misspelt = || strsim::damerau_levenshtein(name, PASSWORD_VARIABLE) <= MISSPELT;
        name.starts_with("OUTLAST_PASS") || name.starts_with("OUTLAST_") && misspelt()
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(near) {
        output::say(format_args!("the variable {name} is not read; did you mean {PASSWORD_VARIABLE}?"));
    }
}

/// Opens the outbox, and says what was pending in it. A signal ends the wait for another process's lock.
pub fn open(builder: Builder, stop: &mut Stop) -> Result<Producer, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Problem::failed)?;
    let Some(opened) = runtime.block_on(stop.or(builder.open())) else {
        return Err(Problem::failed("stopped by a signal before the outbox was open: nothing was read or sent"));
    };
    let producer = opened.map_err(|e| match e.kind() {
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

/// Whether the command line names the broker of a route.
fn is_named(stats: &Stats, route: &RouteStats) -> bool {
    stats.transports.iter().any(|named| *named.name == *route.route.transport)
}

/// Messages that wait for a broker that the command line does not name.
pub fn for_others(stats: &Stats) -> u64 {
    stats.routes.iter().filter(|route| !is_named(stats, route)).map(|route| route.pending).sum()
}

/// What waits for a broker that the command line does not name, and that it does.
pub fn not_configured(stats: &Stats) -> Vec<(String, String)> {
    let waiting = |route: &RouteStats| format!("{} for {}", counted(route.pending, "message"), route.route);
    let reason = |route: &RouteStats| route.blocked.as_ref().map_or(String::new(), |blocked| blocked.reason.clone());
    let others = stats.routes.iter().filter(|route| route.pending > 0 && !is_named(stats, route));
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
        // The mark was sent as a part of the password, and so was a carriage return without a newline.
        for text in ["\u{feff}hunter2\r\n", "hunter2\r", "\u{feff}hunter2", "hunter2\r\nnoise\r\n"] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(password_of(&file).unwrap(), "hunter2");
        }
        for empty in ["", "\nhunter2", "\r\nhunter2", "\u{feff}\n", "h\0u\0n\0"] {
            std::fs::write(&file, empty).unwrap();
            assert_eq!(password_of(&file).unwrap_err().exit, Exit::Usage);
        }
        assert_eq!(password_of(&dir.path().join("none")).unwrap_err().exit, Exit::Usage);
    }
}
