//! Asks a Redis server whether it bears the promise: whether it lets us in and takes writes from us, how it is set, what
//! it is.
//!
//! Nothing is written. Whether this user may append is found out with an `XADD` whose entry id no server takes
//! ([`NO_ID`]): rights, memory, replicas and the disk are looked at before the id is read, so that the refusal says what a
//! message would meet, and a server that would take the message refuses the id.

use std::fmt::Display;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

use super::access::Access;
use super::config::{RedisConfig, Trim};
use super::connect::Login;
use super::settings::{self, ServerSettings};
use super::{classify, connect};
use crate::clock;
use crate::finding::{Code, Finding};
use crate::message::Route;
use crate::transport::examine::Questions;
use crate::transport::{Class, Failure, Scope, StartError};

/// An entry id that none is: digits, and a hyphen between two numbers, are what ids are made of.
const NO_ID: &str = "outlast-doctor";
/// The oldest release that is supported: `minid` needs it, and it is the oldest that the tests have run with.
const OLDEST: (u64, u64) = (6, 2);
/// Clocks that differ by less count as equal.
const CLOCKS_MILLIS: i64 = 5_000;
/// Questions about the server: `MULTI`, `EXEC`, `ROLE`, `INFO`, `TIME`, and one setting that [`ServerSettings`] lacks.
const GENERAL: usize = 6;
/// Questions about each stream.
const EACH: usize = 2;

/// Asks the server.
///
/// # Errors
/// The configuration cannot work whatever the server does.
pub(in crate::transport) fn examine(config: &RedisConfig, questions: &Questions) -> Result<Vec<Finding>, StartError> {
    let mut config = config.clone();
    config.connect_timeout = config.connect_timeout.min(questions.timeout);
    config.response_timeout = config.response_timeout.min(questions.timeout);
    config.validate()?;
    let config = Arc::new(config);
    let login = Access::new(Arc::clone(&config))?.login();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|error| StartError(format!("no runtime: {error}")))?;
    let findings = runtime.block_on(async {
        let asking = tokio::time::timeout(questions.timeout, ask(&login, &config, questions));
        asking.await.unwrap_or_else(|_| {
            let what = format!("Redis at {} did not answer within {:?}", config.address(), questions.timeout);
            vec![unreached(&questions.transport, Failure::new(Class::Transient, Scope::Transport, what))]
        })
    });
    // A look-up of a host name that hangs must not keep the caller.
    runtime.shutdown_background();
    Ok(findings)
}

async fn ask(login: &Login, config: &RedisConfig, questions: &Questions) -> Vec<Finding> {
    let transport = &questions.transport;
    let mut connection = match connect::log_in(login, config).await {
        Ok(connection) => connection,
        Err(failure) => return vec![unreached(transport, failure)],
    };
    let before = clock::unix_millis();
    let answers = match answers(&mut connection, config, questions).await {
        Ok(answers) => answers,
        Err(failure) => return vec![unreached(transport, failure)],
    };
    if let Some(finding) = refused(transport, &answers) {
        return vec![finding];
    }
    // Half of the way lies behind the server's look at its clock.
    let now = before + (clock::unix_millis() - before) / 2;
    let (general, rest) = answers.split_at(GENERAL.min(answers.len()));
    let (settings, streams) = rest.split_at(ServerSettings::COUNT.min(rest.len()));
    let mut findings = Vec::new();
    let info = Info::read(general.get(3));
    findings.extend(server(transport, config, general, &info));
    let mut read = ServerSettings::read(settings);
    // A hosted server may forbid CONFIG, and says most of it elsewhere.
    read.policy = read.policy.or_else(|| info.text("maxmemory_policy"));
    let append_only = || Some(if info.number("aof_enabled")? == 0 { "no" } else { "yes" }.to_owned());
    read.append_only = read.append_only.or_else(append_only);
    findings.extend(read.findings(transport));
    findings.extend(unread(transport, &info, &read));
    findings.extend(clocks(transport, general.get(4), now));
    findings.extend(size(transport, general.get(5), questions.max_message_bytes));
    for (asked, answers) in questions.destinations.iter().zip(streams.chunks(EACH)) {
        for finding in stream(&asked.route, answers) {
            // What concerns the whole server is said once.
            if !findings.iter().any(|found| found.code == finding.code && found.subject == **transport) {
                findings.push(finding);
            }
        }
    }
    findings
}

async fn answers(
    connection: &mut MultiplexedConnection,
    config: &RedisConfig,
    questions: &Questions,
) -> Result<Vec<Value>, Failure> {
    let mut commands = Pipeline::new();
    commands.cmd("MULTI").cmd("EXEC").cmd("ROLE").cmd("INFO").cmd("TIME");
    settings::ask(&mut commands, &["proto-max-bulk-len"]);
    ServerSettings::ask(&mut commands);
    for asked in &questions.destinations {
        let name = &*asked.route.destination;
        commands.cmd("TYPE").arg(name);
        commands.cmd("XADD").arg(name).arg(NO_ID).arg(&config.fields.payload).arg("");
    }
    connect::ask(connection, &commands, &config.address()).await
}

/// Why the server answers nothing at all.
fn refused(transport: &dyn Display, answers: &[Value]) -> Option<Finding> {
    let Some(Value::ServerError(error)) = answers.first() else { return None };
    let (code, advice) = match error.code() {
        "NOAUTH" | "DENIED" => (Code::LoginRefused, "give user and password"),
        "LOADING" | "MASTERDOWN" | "BUSY" => (Code::WritesRefused, "ask again when it is ready"),
        _ => return None,
    };
    let what = classify::code(error.code(), error.details().unwrap_or_default()).failure.reason;
    Some(Finding::problem(code, transport, what, advice))
}

/// What the server is, and what it has room for.
fn server(transport: &dyn Display, config: &RedisConfig, general: &[Value], info: &Info) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(version) = info.text("redis_version").filter(|version| is_older(version)) {
        let mut what = format!("Redis is {version}, older than {}.{}", OLDEST.0, OLDEST.1);
        if matches!(config.trim, Some(Trim::MinId(_))) {
            what.push_str(", and does not know the option minid");
        }
        findings.push(Finding::problem(Code::ServerTooOld, transport, what, "use Redis 6.2 or later"));
    }
    let is_role = |name: &[u8]| match general.get(2) {
        Some(Value::Array(parts)) => matches!(parts.first(), Some(Value::BulkString(role)) if role == name),
        _ => false,
    };
    if is_role(b"slave") || info.text("role").is_some_and(|role| role == "slave") {
        let advice = "name the primary, or a host name that leads to it";
        findings.push(Finding::problem(
            Code::IsReplica,
            transport,
            "the server is a replica and takes no messages",
            advice,
        ));
    } else if info.number("connected_slaves") == Some(0) {
        let what = "no replica is connected: what is acknowledged is on one machine";
        findings.push(Finding::note(Code::NoReplica, transport, what, "run a replica"));
    }
    if info.number("cluster_enabled") == Some(1) {
        let what = "the server is a node of a cluster: messages for streams that lie on other nodes wait";
        findings.push(Finding::problem(Code::IsCluster, transport, what, "use a server that is not in cluster mode"));
    }
    if let Some(Value::ServerError(error)) = general.iter().take(2).find(|value| matches!(value, Value::ServerError(_)))
        && error.code() == "NOPERM"
    {
        let what = format!("this user may not use transactions: {}", error.details().unwrap_or_default());
        findings.push(Finding::problem(Code::NoRightToWrite, transport, what, "allow +multi +exec +xadd +ping"));
    }
    findings.extend(memory(transport, info));
    findings
}

fn memory(transport: &dyn Display, info: &Info) -> Option<Finding> {
    let (used, most) = (info.number("used_memory")?, info.number("maxmemory").filter(|&most| most > 0)?);
    let what = format!("Redis uses {used} of maxmemory {most} bytes");
    let advice = "raise maxmemory, or trim streams: messages wait while it is reached";
    if used >= most {
        return Some(Finding::problem(Code::MemoryFull, transport, what, advice));
    }
    (used > most / 10 * 9).then(|| Finding::note(Code::MemoryFull, transport, what, advice))
}

/// What could not be read.
fn unread(transport: &dyn Display, info: &Info, read: &ServerSettings) -> Option<Finding> {
    let missing: Vec<&str> = [
        ("INFO", info.0.is_empty()),
        ("maxmemory-policy", read.policy.is_none()),
        ("appendonly", read.append_only.is_none()),
        ("appendfsync", read.append_fsync.is_none() && read.append_only.as_deref() != Some("no")),
    ]
    .into_iter()
    .filter_map(|(name, missing)| missing.then_some(name))
    .collect();
    (!missing.is_empty()).then(|| {
        let what = format!("the server does not show this user {}, so that was not checked", missing.join(", "));
        let advice = "allow +info +config|get, or look by hand: version, role, noeviction, appendonly yes";
        Finding::note(Code::NotChecked, transport, what, advice)
    })
}

/// Ids of entries are the server's time.
fn clocks(transport: &dyn Display, time: Option<&Value>, now: i64) -> Option<Finding> {
    let Some(Value::Array(parts)) = time else { return None };
    let part = |at: usize| match parts.get(at) {
        Some(Value::BulkString(text)) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
        Some(Value::Int(number)) => Some(*number),
        _ => None,
    };
    let theirs = part(0)?.saturating_mul(1_000).saturating_add(part(1)? / 1_000);
    let ahead = now.saturating_sub(theirs);
    (ahead.abs() >= CLOCKS_MILLIS).then(|| {
        let (seconds, word) = (ahead.abs() / 1_000, if ahead > 0 { "ahead of" } else { "behind" });
        let what = format!("this clock is {seconds} s {word} the server's, which entries' ids are made of");
        Finding::note(Code::ClockDiffers, transport, what, "keep both clocks synchronized (NTP)")
    })
}

fn size(transport: &dyn Display, value: Option<&Value>, ours: usize) -> Option<Finding> {
    let theirs: usize = settings::setting(value?)?.parse().ok()?;
    (theirs < ours).then(|| {
        let what = format!("proto-max-bulk-len is {theirs}, and messages up to {ours} bytes are accepted");
        let advice = "raise it, or set max_message_bytes lower";
        Finding::problem(Code::MessageTooLarge, transport, what, advice)
    })
}

/// Whether a stream takes what this user appends.
fn stream(route: &Route, answers: &[Value]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(Value::SimpleString(kind)) = answers.first().filter(|kind| !is_stream_or_none(kind)) {
        let what = format!("the name is taken by a {kind}: nothing can be appended there");
        findings.push(Finding::problem(Code::NotAStream, route, what, "name another stream, or remove that key"));
    }
    let Some(Value::ServerError(error)) = answers.get(1) else {
        let what = "the server did not say whether it would take a message";
        findings.push(Finding::note(Code::NotChecked, route, what, "look at the user's rights by hand"));
        return findings;
    };
    let details = error.details().unwrap_or_default();
    // What a server says that got as far as the id.
    if error.code() == "ERR" && details.contains("Invalid stream ID") {
        return findings;
    }
    let what = classify::code(error.code(), details).failure.reason;
    let (code, advice) = match error.code() {
        "NOPERM" => (Code::NoRightToWrite, "allow this user ~STREAM +xadd +multi +exec +ping"),
        "OOM" => (Code::MemoryFull, "raise maxmemory, or trim streams: messages wait until then"),
        "READONLY" => (Code::IsReplica, "name the primary, or a host name that leads to it"),
        "MOVED" | "ASK" | "CLUSTERDOWN" => (Code::IsCluster, "use a server that is not in cluster mode"),
        "ERR" if details.contains("unknown command") => (Code::ServerTooOld, "use Redis 6.2 or later"),
        _ => (Code::WritesRefused, "see the server's log: messages wait until it takes writes"),
    };
    findings.push(Finding::problem(code, route, what, advice));
    findings
}

fn is_stream_or_none(kind: &Value) -> bool {
    !matches!(kind, Value::SimpleString(kind) if kind != "stream" && kind != "none")
}

/// Why there is no connection that can be used.
fn unreached(transport: &dyn Display, failure: Failure) -> Finding {
    let says = |text: &str| failure.reason.contains(text);
    let (code, advice) = if says("no TLS connection") {
        match says("certificate") {
            true => {
                (Code::UntrustedCertificate, "set ca-file to the authority that signed it, and name the host it is for")
            }
            false => (Code::TlsFailed, "see that the port speaks TLS, and which certificates it wants"),
        }
    } else if ["WRONGPASS", "NOAUTH", "NOPERM", "refuses the login", "AUTH", "DENIED"].iter().any(|text| says(text)) {
        (Code::LoginRefused, "check user and password")
    } else if says("no answer within") || says("did not answer") || says("it took too long") {
        (Code::NoAnswer, "see whether the server runs, and what lies between: a firewall, a stopped process")
    } else if says("lookup") || says("resolve") || says("No address found") {
        (Code::UnknownHost, "check the host's name, and the resolver of this machine")
    } else {
        (Code::Unreachable, "check host, port, whether it speaks TLS (rediss://), and that the server runs")
    };
    Finding::problem(code, transport, failure.reason, advice)
}

fn is_older(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST,
        (Some(major), None) => major < OLDEST.0,
        _ => false,
    }
}

/// The lines of a reply to `INFO`.
struct Info(Vec<(String, String)>);

impl Info {
    fn read(value: Option<&Value>) -> Self {
        let text = match value {
            Some(Value::BulkString(text)) => String::from_utf8_lossy(text).into_owned(),
            Some(Value::VerbatimString { text, .. }) => text.clone(),
            _ => String::new(),
        };
        let pair = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
        Self(text.lines().filter_map(pair).collect())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, older) in
            [("6.0.16", true), ("5.0.14", true), ("6.2.0", false), ("7.4.1", false), ("10.0", false)]
        {
            assert_eq!(is_older(version), older, "{version}");
        }
        assert!(!is_older("unknown"));
    }

    #[test]
    fn a_clock_is_compared_to_the_second() {
        let time = |seconds: &str| {
            Value::Array(vec![Value::BulkString(seconds.into()), Value::BulkString(b"500000".to_vec())])
        };
        assert_eq!(clocks(&"redis", Some(&time("1000")), 1_000_900), None);
        let found = clocks(&"redis", Some(&time("1000")), 1_061_000).unwrap();
        assert!(found.what.contains("60 s ahead of"), "{found:?}");
        let found = clocks(&"redis", Some(&time("2000")), 1_000_500).unwrap();
        assert!(found.what.contains("1000 s behind"), "{found:?}");
    }
}
