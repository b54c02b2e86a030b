//! How a Redis server is reached, and what stream entries look like. Plain data; nothing here connects.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::message::ID_HEADER;
use crate::transport::StartError;
use crate::transport::near::near;
use crate::transport::url::{BrokerUrl, Scheme};

/// Redis listens here unless it was told otherwise.
const DEFAULT_PORT: u16 = 6379;
/// A connection that takes longer will not come, or not to anyone's use.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a busy server's pauses (fork, AOF rewrite, a slow script), shorter than anyone's patience.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// DESIGN.md 9.
const RECONNECT_CAP: Duration = Duration::from_secs(30);

/// The options of a URL, the stream's name among them.
const OPTIONS: [&str; 12] = [
    "stream",
    "maxlen",
    "minid",
    "ca-file",
    "certificate-file",
    "private-key-file",
    "connect-timeout",
    "response-timeout",
    "payload-field",
    "key-field",
    "id-field",
    "header-prefix",
];

/// How to reach a Redis server, and how messages are written to its streams.
///
/// `Debug` never shows the password.
///
/// ```
/// use outlast::transport::redis::RedisConfig;
/// let url = "redis://app:secret@cache:6380/2?stream=orders&maxlen=100000".parse()?;
/// let config = RedisConfig::from_url(&url)?;
/// assert_eq!((&*config.host, config.port, config.database), ("cache", 6380, 2));
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// Host name or address, an IPv6 address without brackets. Default `localhost`.
    pub host: String,
    /// TCP port. Default 6379.
    pub port: u16,
    /// The number of the database. Default 0.
    pub database: u32,
    /// The ACL user; without it the password is the `default` user's.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A file whose first line is the password, in place of `password`. Read again when it changes, as are the three PEM files;
    /// the next connection uses what they hold then.
    pub password_file: Option<PathBuf>,
    /// Speak TLS (the feature `tls`). Certificate and host name are always verified.
    pub tls: bool,
    /// PEM file with the authorities to trust; without it the system's. Needs `tls`.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate chain. Needs `tls` and `private_key_file`.
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the client's private key. Needs `tls` and `certificate_file`.
    pub private_key_file: Option<PathBuf>,
    /// How long connecting may take, greeting included. Default 5 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a reply may take before the connection is given up; what was on it may have arrived. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub response_timeout: Duration,
    /// The longest pause between two attempts to connect. The first is at most 100 ms; they double. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub reconnect_cap: Duration,
    /// How entries are written.
    pub fields: FieldNames,
    /// What streams are trimmed to at each append, unless `streams` names them. Default: not at all.
    pub trim: Option<Trim>,
    /// What single streams are trimmed to, by name.
    pub streams: BTreeMap<String, Trim>,
    /// The stream that the URL names, for a program that has no other word for it. The transport ignores it.
    pub stream: Option<String>,
}

/// The names of the fields of an entry. Default `payload`, `key`, `outlast-id`, `h:`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldNames {
    /// The field with the payload; a tombstone's entry lacks it.
    pub payload: String,
    /// The field with the key; the entry of a message without key lacks it.
    pub key: String,
    /// The field with the id: 32 hexadecimal digits.
    pub id: String,
    /// What stands before a header's name. A header with a null value is left out: Redis knows no null, and
    /// the empty value means the empty value.
    pub header_prefix: String,
}

/// What an append trims its stream to, roughly (Redis' `~`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Trim {
    /// The newest so many entries stay.
    MaxLen(u64),
    /// Entries from this id on stay.
    MinId(String),
}

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Shows it, to who needs it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Default for FieldNames {
    fn default() -> Self {
        Self {
            payload: "payload".to_owned(),
            key: "key".to_owned(),
            id: ID_HEADER.to_owned(),
            header_prefix: "h:".to_owned(),
        }
    }
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: DEFAULT_PORT,
            database: 0,
            user: None,
            password: None,
            password_file: None,
            tls: false,
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
            reconnect_cap: RECONNECT_CAP,
            fields: FieldNames::default(),
            trim: None,
            streams: BTreeMap::new(),
            stream: None,
        }
    }
}

impl RedisConfig {
    /// Takes a URL's parts: `redis://[user:password@]host[:port][/database][?option=value&…]`; `rediss://` for TLS.
    ///
    /// Options: `stream`, `maxlen`, `minid`, `ca-file`, `certificate-file`, `private-key-file`,
    /// `connect-timeout`, `response-timeout` (as `5s`), `payload-field`, `key-field`, `id-field`, `header-prefix`.
    ///
    /// # Errors
    /// Names the part that is wrong and the right form; never shows the password.
    pub fn from_url(url: &BrokerUrl) -> Result<Self, StartError> {
        let Some((host, port)) = url.hosts.first() else { return Err(StartError("the URL names no host".into())) };
        let mut config = Self {
            host: host.clone(),
            port: *port,
            user: url.user.clone(),
            password: url.password.clone().filter(|_| url.password_file.is_none()).map(Secret),
            password_file: url.password_file.clone(),
            tls: url.scheme == Scheme::Rediss,
            stream: url.destination.clone(),
            ..Self::default()
        };
        if let Some(database) = url.database {
            config.database = u32::try_from(database)
                .map_err(|_| StartError(format!("{database} is no database number: it is too large")))?;
        }
        for (index, (name, value)) in url.options.iter().enumerate() {
            // The first `stream` is no option any more.
            if name == "stream" || url.options[..index].iter().any(|(before, _)| before == name) {
                let text = format!("{name} is given twice in the Redis URL: once is right");
                return Err(StartError(url.conceal(text)));
            }
            config.set_option(name, value).map_err(|error| StartError(url.conceal(error.0)))?;
        }
        Ok(config)
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), StartError> {
        let wrong = |right: &str| StartError(format!("{name}={value:?} in the Redis URL: it wants {right}"));
        let duration = || humantime::parse_duration(value).map_err(|_| wrong("a duration, such as 5s or 300ms"));
        match name {
            "maxlen" | "minid" if self.trim.is_some() => {
                let text =
                    "the Redis URL has maxlen and minid: Redis trims a stream by one of them, leave the other out";
                return Err(StartError(text.to_owned()));
            }
            "maxlen" => self.trim = Some(Trim::MaxLen(value.parse().map_err(|_| wrong("a number of entries"))?)),
            "minid" => self.trim = Some(Trim::MinId(value.to_owned())),
            "ca-file" => self.ca_file = Some(value.into()),
            "certificate-file" => self.certificate_file = Some(value.into()),
            "private-key-file" => self.private_key_file = Some(value.into()),
            "connect-timeout" => self.connect_timeout = duration()?,
            "response-timeout" => self.response_timeout = duration()?,
            "payload-field" => self.fields.payload = value.to_owned(),
            "key-field" => self.fields.key = value.to_owned(),
            "id-field" => self.fields.id = value.to_owned(),
            "header-prefix" => self.fields.header_prefix = value.to_owned(),
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    /// Everything that is wrong with the configuration, whatever the server does.
    ///
    /// # Errors
    /// All faults in one text.
    pub fn validate(&self) -> Result<(), StartError> {
        let mut faults = Vec::new();
        if self.host.is_empty() {
            faults.push("no host is named".to_owned());
        }
        if self.port == 0 {
            faults.push("port 0 is none".to_owned());
        }
        if self.tls && !cfg!(feature = "tls") {
            faults.push("TLS is asked for, but outlast was built without its feature \"tls\"".to_owned());
        }
        let files = [&self.ca_file, &self.certificate_file, &self.private_key_file];
        if !self.tls && files.iter().any(|file| file.is_some()) {
            faults.push("certificates are named, but TLS is off (rediss:// turns it on)".to_owned());
        }
        if self.certificate_file.is_some() != self.private_key_file.is_some() {
            faults.push("a client's certificate and its private key go together; one is missing".to_owned());
        }
        if self.password.is_some() && self.password_file.is_some() {
            faults.push("password and password_file are both given; one of them is right".to_owned());
        }
        if self.user.is_some() && self.password.is_none() && self.password_file.is_none() {
            faults.push("a user is named without a password".to_owned());
        }
        for (what, duration) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("reconnect_cap", self.reconnect_cap),
        ] {
            if duration.is_zero() {
                faults.push(format!("{what} is zero"));
            }
        }
        if [&self.fields.payload, &self.fields.key, &self.fields.id].iter().any(|name| name.is_empty()) {
            faults.push("the fields of an entry need names".to_owned());
        }
        for trim in self.trim.iter().chain(self.streams.values()) {
            match trim {
                Trim::MinId(id) if !is_entry_id(id) => {
                    faults.push(format!("{id:?} is no id of a stream entry; the form is MILLISECONDS-SEQUENCE"));
                }
                Trim::MaxLen(0) => {
                    faults
                        .push("a stream trimmed to 0 entries keeps nothing of what is delivered: maxlen from 1".into());
                }
                Trim::MinId(_) | Trim::MaxLen(_) => {}
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(StartError(format!("Redis: {}", faults.join("; ")))) }
    }

    /// What a stream is trimmed to.
    pub(super) fn trim_of(&self, stream: &str) -> Option<&Trim> {
        self.streams.get(stream).or(self.trim.as_ref())
    }

    /// Where it is, for people.
    pub(super) fn address(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }
}

fn unknown(option: &str) -> StartError {
    let meant = match near(option, OPTIONS) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("they are {}", OPTIONS.join(", ")),
    };
    StartError(format!("{option:?} is no option of a Redis URL: {meant}"))
}

fn is_entry_id(text: &str) -> bool {
    let (millis, sequence) = text.split_once('-').unwrap_or((text, "0"));
    u64::from_str(millis).is_ok() && u64::from_str(sequence).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(url: &str) -> Result<RedisConfig, StartError> {
        let url = url.parse().map_err(|error: crate::transport::UrlError| StartError(error.to_string()))?;
        RedisConfig::from_url(&url)
    }

    #[test]
    fn a_url_is_read_whole() {
        let config = from_text("rediss://us%20er:p%40ss@[::1]:7000/3?stream=s&maxlen=5&connect-timeout=2s");
        let config = config.unwrap();
        assert_eq!((config.host.as_str(), config.port, config.database, config.tls), ("::1", 7000, 3, true));
        assert_eq!((config.user.as_deref(), config.password.as_ref().unwrap().reveal()), (Some("us er"), "p@ss"));
        assert_eq!((config.stream.as_deref(), config.trim), (Some("s"), Some(Trim::MaxLen(5))));
        assert_eq!(config.connect_timeout, Duration::from_secs(2));
    }

    #[test]
    fn each_wrong_part_of_a_url_is_named_and_no_password_shown() {
        for (url, part) in [
            ("http://h", "scheme"),
            ("redis://", "host"),
            ("redis://h:99999", "port"),
            ("redis://h:0", "port"),
            ("redis://h/x", "database"),
            ("redis://h?maxlen=many", "maxlen"),
            ("redis://h?stream=", "stream"),
            ("redis://h?surprise=1", "surprise"),
            ("redis://h?maxlen=5&minid=1-0", "maxlen and minid"),
            ("redis://h?maxlen=5&maxlen=6", "maxlen is given twice"),
            ("redis://h?stream=a&stream=b", "stream is given twice"),
            ("redis://h?key-field=a&key-field=b", "key-field is given twice"),
            ("redis://u:canary@h?connect-timeout=soon", "connect-timeout"),
        ] {
            let error = from_text(url).unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn a_slip_in_an_option_is_answered_with_the_right_one() {
        for (url, meant) in [
            ("redis://h?streem=p", "did you mean stream?"),
            ("redis://h?maxlne=5", "did you mean maxlen?"),
            ("redis://h?ca_file=x", "did you mean ca-file?"),
            ("redis://h?colour=red", "they are stream, maxlen"),
        ] {
            let error = from_text(url).unwrap_err().to_string();
            assert!(error.contains(meant), "{url}: {error}");
        }
        for option in OPTIONS {
            let known = from_text(&format!("redis://h?{option}=5s"));
            assert!(!known.is_err_and(|error| error.to_string().contains("is no option")), "{option}");
        }
    }

    #[test]
    fn debug_does_not_show_the_password() {
        let config = RedisConfig { password: Some(Secret::new("canary")), ..RedisConfig::default() };
        assert!(!format!("{config:?} {config:#?}").contains("canary"));
    }

    #[test]
    fn validation_tells_all_faults_at_once() {
        let config = RedisConfig {
            host: String::new(),
            ca_file: Some("ca.pem".into()),
            user: Some("u".into()),
            trim: Some(Trim::MinId("soon".into())),
            response_timeout: Duration::ZERO,
            ..RedisConfig::default()
        };
        let text = config.validate().unwrap_err().to_string();
        for part in ["host", "TLS is off", "without a password", "\"soon\"", "response_timeout"] {
            assert!(text.contains(part), "{text}");
        }
        // Every message would be deleted as it is acknowledged.
        let config = from_text("redis://h?maxlen=0").unwrap();
        assert!(config.validate().is_err_and(|error| error.to_string().contains("maxlen from 1")));
    }

    #[test]
    fn it_is_read_from_a_configuration_file() {
        let json = r#"{"host":"h","response_timeout":"3s","trim":{"max-len":9},"fields":{"payload":"body"},
            "streams":{"s":{"min-id":"1-0"}}}"#;
        let config: RedisConfig = serde_json::from_str(json).unwrap();
        assert_eq!((config.response_timeout, config.trim), (Duration::from_secs(3), Some(Trim::MaxLen(9))));
        assert_eq!((config.fields.payload.as_str(), config.fields.key.as_str()), ("body", "key"));
        assert!(serde_json::from_str::<RedisConfig>(r#"{"hots":"h"}"#).is_err());
    }
}
