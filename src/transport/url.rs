//! Where a broker is: `kafka://host:port[,host:port][/TOPIC][?librdkafka.option=…]`,
//! `redis://[user[:password]@]host[:port][/db][?stream=NAME]`, `rediss://…`.
//!
//! Several hosts, as Kafka has them, are no part of RFC 3986; everything else is. Nothing is resolved or opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use super::files;
use crate::config::TransportConfig;

/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is wrong with the URL of a broker: the part, and the right form. Never shows a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broker URL: {part}: {reason}")]
pub struct UrlError {
    part: &'static str,
    reason: String,
}

impl UrlError {
    pub(crate) fn new(part: &'static str, reason: impl Into<String>) -> Self {
        Self { part, reason: reason.into() }
    }

    /// The same without what is quoted. Where a URL has an `@`, a character that should have been escaped (`/`, `?`) may
    /// have made a host, a port or an option of what was meant as a password.
    fn unquoted(mut self) -> Self {
        if let (Some(first), Some(last)) = (self.reason.find('`'), self.reason.rfind('`')) {
            self.reason.replace_range(first..=last, "what stands there");
        }
        self
    }

    /// The part of the URL that is wrong: `scheme`, `host`, `port`, `topic`, `option`, `character`, …
    pub fn part(&self) -> &'static str {
        self.part
    }
}

/// The kind of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// `kafka://`
    Kafka,
    /// `redis://`
    Redis,
    /// `rediss://`: Redis over TLS.
    Rediss,
}

impl Scheme {
    /// Its name in a URL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::Rediss => "rediss",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            Self::Kafka => 9092,
            Self::Redis | Self::Rediss => 6379,
        }
    }
}

/// The URL of a broker, taken apart.
///
/// ```
/// use outlast::BrokerUrl;
/// let url: BrokerUrl = "kafka://a:9092,b:9093/orders?linger.ms=5".parse()?;
/// assert_eq!(url.destination(), Some("orders"));
/// assert!("kafka://a:99999/orders".parse::<BrokerUrl>().is_err());
/// # Ok::<(), outlast::UrlError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    pub(crate) scheme: Scheme,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    /// Where the password was read from, and is read again when it changes.
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) hosts: Vec<(String, u16)>,
    pub(crate) database: Option<i64>,
    pub(crate) destination: Option<String>,
    pub(crate) options: Vec<(String, String)>,
    /// What may be the rest of a password: see `conceal`.
    pub(crate) doubtful: Vec<String>,
}

impl BrokerUrl {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// Names the part that is wrong, and the right form.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        text.parse()
    }

    /// The kind of broker.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What the transport is called where nothing else names it.
    pub fn transport_name(&self) -> &'static str {
        match self.scheme {
            Scheme::Kafka => "kafka",
            Scheme::Redis | Scheme::Rediss => "redis",
        }
    }

    /// The topic or stream that the URL names.
    pub fn destination(&self) -> Option<&str> {
        self.destination.as_deref()
    }

    /// The same text, unless it repeats what may be the rest of a password. In `redis://user:1?a=b@host`, where a `?` should
    /// have been escaped, `1` is a port and `a` an option to us: no error shows what stands between the hosts and the last
    /// `@`.
    pub(crate) fn conceal(&self, text: String) -> String {
        if !self.doubtful.iter().any(|doubtful| mentions(&text, doubtful)) {
            return text;
        }
        "broker URL: an option, or the topic, is wrong. It is not shown, since an `@` stands behind it, and it may be the \
         rest of a password; in a password write / as %2F, ? as %3F, & as %26 and @ as %40"
            .to_owned()
    }

    /// Whether a password would be used, and the URL gives none in either way.
    pub(crate) fn lacks_password(&self) -> bool {
        let option = |wanted: &str| self.options.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
        self.password.is_none()
            && match self.scheme {
                Scheme::Redis | Scheme::Rediss => true,
                Scheme::Kafka => {
                    let protocol = option("security.protocol").map_or(String::new(), |it| it.to_ascii_lowercase());
                    protocol.starts_with("sasl_") && option("sasl.password").is_none()
                }
            }
    }

    /// What is odd about the password in a way that no password is meant to be: what a file or a variable adds to one.
    pub(crate) fn password_oddity(&self) -> Option<&'static str> {
        let option = || self.options.iter().find(|(name, _)| name == "sasl.password").map(|(_, value)| value);
        let password = self.password.as_ref().or_else(option)?;
        if password.ends_with(['\n', '\r']) {
            return Some("it ends in a newline or carriage return, which is sent as a part of it");
        }
        password
            .starts_with(BYTE_ORDER_MARK)
            .then_some("it begins with a byte order mark, which is sent as a part of it")
    }

    /// Sets the password, where the URL has none. An empty one is none.
    pub(crate) fn or_password(mut self, password: Option<&str>) -> Self {
        if self.password.is_none() {
            self.password = password.filter(|password| !password.is_empty()).map(str::to_owned);
        }
        self
    }
}

impl BrokerUrl {
    /// The URL of a transport of the configuration, with its password, or `default` where it has none.
    ///
    /// # Errors
    /// The URL is wrong, there are two passwords, or the file for one holds none.
    pub(crate) fn configured(given: &TransportConfig, default: Option<&str>) -> Result<Self, String> {
        let url: Self = given.url.parse().map_err(|error: UrlError| error.to_string())?;
        let url = url.or_password(given.password.as_deref());
        let url = match &given.password_file {
            Some(file) => url.with_password_file(file)?,
            None => url,
        };
        let default = default.filter(|_| url.lacks_password());
        Ok(url.or_password(default))
    }

    /// Takes the password from a file, which the transport reads again when it changes.
    ///
    /// # Errors
    /// There is a password already, or the file holds none.
    pub(crate) fn with_password_file(mut self, file: &Path) -> Result<Self, String> {
        if self.password.is_some() {
            let file = file.display();
            return Err(format!("two passwords for {self}: its own, and the one in {file}; leave one of them out"));
        }
        self.password = Some(files::read_password(file).map_err(|error| format!("password file {error}"))?);
        self.password_file = Some(std::path::absolute(file).unwrap_or_else(|_| file.to_owned()));
        Ok(self)
    }
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::take_apart(text).map_err(|error| if text.contains('@') { error.unquoted() } else { error })
    }
}

impl BrokerUrl {
    fn take_apart(text: &str) -> Result<Self, UrlError> {
        let form = "give kafka://host:port/TOPIC, redis://host:port?stream=NAME or rediss://host:port?stream=NAME";
        // They come along from files and variables, unseen, and would become a part of a host's, topic's or stream's name.
        if let Some(at) = text.chars().position(|c| c.is_control() || c == BYTE_ORDER_MARK) {
            let reason = format!(
                "number {} is a newline, a byte order mark or another control character; leave it out, or escape it as in %0A",
                at + 1
            );
            return Err(UrlError::new("character", reason));
        }
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| UrlError::new("scheme", format!("there is none; {form}")))?;
        let scheme = match scheme {
            "kafka" => Scheme::Kafka,
            "redis" => Scheme::Redis,
            "rediss" => Scheme::Rediss,
            other => return Err(UrlError::new("scheme", format!("`{other}` is not known; {form}"))),
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(hosts, path)| (hosts, Some(path)));
        let (user_info, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let (user, password) = match user_info {
            None => (None, None),
            Some(user_info) => {
                let (user, password) =
                    user_info.split_once(':').map_or((user_info, None), |(user, password)| (user, Some(password)));
                let user = decode("user", user)?;
                let password = password.map(|password| decode("password", password)).transpose()?;
                let user = (!user.is_empty()).then_some(user);
                // An empty one is what a template leaves of a password that is not set. With a user it may be meant: Redis
                // has users who need none.
                let password = password.filter(|password| user.is_some() || !password.is_empty());
                (user, password)
            }
        };
        let hosts = hosts.split(',').map(|host| parse_host(scheme, host)).collect::<Result<Vec<_>, _>>()?;
        let options = query.map(parse_query).transpose()?.unwrap_or_default();
        let doubtful = doubtful(path, query);
        let mut url = Self {
            scheme,
            user,
            password,
            password_file: None,
            hosts,
            database: None,
            destination: None,
            options,
            doubtful,
        };
        match scheme {
            Scheme::Kafka => url.take_topic(path)?,
            Scheme::Redis | Scheme::Rediss => url.take_database_and_stream(path)?,
        }
        Ok(url)
    }

    fn take_topic(&mut self, path: Option<&str>) -> Result<(), UrlError> {
        let Some(topic) = path.filter(|path| !path.is_empty()) else { return Ok(()) };
        if topic.contains('/') {
            return Err(UrlError::new("topic", format!("`{topic}` has a `/`; give kafka://host:port/TOPIC")));
        }
        self.destination = Some(decode("topic", topic)?);
        Ok(())
    }

    fn take_database_and_stream(&mut self, path: Option<&str>) -> Result<(), UrlError> {
        if self.hosts.len() > 1 {
            return Err(UrlError::new("host", "one host; give redis://host:port?stream=NAME"));
        }
        if let Some(path) = path.filter(|path| !path.is_empty()) {
            let database = path.parse().ok().filter(|database| *database >= 0);
            self.database = Some(database.ok_or_else(|| {
                UrlError::new("database", format!("`{path}` is no number; the stream goes behind ?stream="))
            })?);
        }
        if let Some(at) = self.options.iter().position(|(name, _)| name == "stream") {
            let (_, stream) = self.options.remove(at);
            if stream.is_empty() {
                return Err(UrlError::new("stream", "it is empty; give redis://host:port?stream=NAME"));
            }
            self.destination = Some(stream);
        }
        Ok(())
    }
}

fn parse_host(scheme: Scheme, text: &str) -> Result<(String, u16), UrlError> {
    let form = format!("give {}://host:port", scheme.name());
    // [::1]:9092 or host:9092
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| UrlError::new("host", format!("`{text}` lacks the closing `]`; {form}")))?;
            if !rest.is_empty() && !rest.starts_with(':') {
                return Err(UrlError::new("port", format!("`{rest}` has no `:` before it; {form}")));
            }
            (host, rest.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err(UrlError::new("host", format!("there is none; {form}")));
    }
    let port = match port {
        None => scheme.default_port(),
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => {
                return Err(UrlError::new("port", format!("`{port}` is not a number from 1 to 65535; {form}")));
            }
            Ok(port) => port,
        },
    };
    Ok((decode("host", host)?, port))
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, UrlError> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .zip(1..)
        .map(|(pair, number)| {
            // Not shown: it may be the rest of a password with an `&` in it.
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| UrlError::new("option", format!("number {number} has no value; give ?name=value")))?;
            Ok((decode("option", name)?, decode("option", value)?))
        })
        .collect()
}

/// The parts of path and query before the last `@` in them, as they are and as they are read.
fn doubtful(path: Option<&str>, query: Option<&str>) -> Vec<String> {
    let parts: Vec<&str> = path.into_iter().chain(query.into_iter().flat_map(|query| query.split('&'))).collect();
    let Some(last) = parts.iter().rposition(|part| part.contains('@')) else { return Vec::new() };
    let words = parts[..=last].iter().flat_map(|part| std::iter::once(*part).chain(part.splitn(2, '=')));
    let read = |word: &str| percent_decode_str(word).decode_utf8_lossy().into_owned();
    let mut doubtful: Vec<String> = words.flat_map(|word| [word.to_owned(), read(word)]).collect();
    // A password among the options may well have an `@`; the names of these are no part of it.
    let harmless = |word: &str| ["sasl.", "ssl.", "security."].iter().any(|kind| word.starts_with(kind));
    doubtful.retain(|word| !word.is_empty() && (word.contains(['=', '@']) || !harmless(word)));
    doubtful
}

/// Whether a word stands in a text, and not only as a part of another word.
fn mentions(text: &str, word: &str) -> bool {
    let part = |neighbour: Option<char>| neighbour.is_some_and(char::is_alphanumeric);
    text.match_indices(word)
        .any(|(at, _)| !part(text[..at].chars().next_back()) && !part(text[at + word.len()..].chars().next()))
}

fn decode(part: &'static str, text: &str) -> Result<String, UrlError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| UrlError::new(part, "it is not UTF-8 once its %-escapes are resolved"))
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.name())?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        for (at, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{host}{close}:{port}")?;
        }
        if let Some(database) = self.database {
            write!(f, "/{database}")?;
        }
        match (&self.destination, self.scheme) {
            (Some(topic), Scheme::Kafka) => write!(f, "/{topic}"),
            (Some(stream), Scheme::Redis | Scheme::Rediss) => write!(f, "?stream={stream}"),
            (None, _) => Ok(()),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Options may hold secrets (`sasl.password`), and so may the URL: what Display shows is safe.
        write!(f, "BrokerUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> &'static str {
        text.parse::<BrokerUrl>().expect_err(text).part
    }

    #[test]
    fn each_part_is_understood() {
        let url: BrokerUrl = "kafka://a:9092,[::1]:9093,c/my.topic?linger.ms=5&client.id=x%20y".parse().unwrap();
        assert_eq!(url.hosts, [("a".into(), 9092), ("::1".into(), 9093), ("c".into(), 9092)]);
        assert_eq!(url.destination(), Some("my.topic"));
        assert_eq!(url.options[1], ("client.id".into(), "x y".into()));
        let url: BrokerUrl = "rediss://me:s%3Acret@h:1234/3?stream=log&timeout=1".parse().unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("me"), Some("s:cret")));
        assert_eq!((url.database, url.destination()), (Some(3), Some("log")));
        assert_eq!(url.options.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(part("localhost:9092"), "scheme");
        assert_eq!(part("amqp://h/t"), "scheme");
        assert_eq!(part("kafka:///t"), "host");
        assert_eq!(part("kafka://h:0/t"), "port");
        assert_eq!(part("kafka://h:70000/t"), "port");
        assert_eq!(part("kafka://h:x/t"), "port");
        // It was read over, and the default port taken.
        assert_eq!(part("redis://[::1]7000?stream=s"), "port");
        assert_eq!(part("kafka://[::1]x/t"), "port");
        assert_eq!(part("kafka://h/a/b"), "topic");
        assert_eq!(part("kafka://h/t?acks"), "option");
        assert_eq!(part("redis://h/stream"), "database");
        assert_eq!(part("redis://a,b"), "host");
        assert_eq!(part("redis://h?stream="), "stream");
        // The newline of a file or a variable was a part of the stream's name.
        for text in ["redis://h?stream=s\n", "kafka://h/t\r", "\u{feff}kafka://h/t", "redis://u:hunter2\n@h"] {
            assert_eq!(part(text), "character");
        }
        assert!("redis://u:hunter2%0A@h".parse::<BrokerUrl>().is_ok());
    }

    #[test]
    fn what_a_file_adds_to_a_password_is_odd() {
        for (text, password, odd) in [
            ("redis://h", Some("hunter2\n"), true),
            ("redis://h", Some("hunter2\r\n"), true),
            ("redis://h", Some("\u{feff}hunter2"), true),
            ("redis://h", Some(" hunter2 "), false),
            ("redis://h", None, false),
            ("redis://u:hunter2%0a@h", None, true),
            ("kafka://h?sasl.password=hunter2%0A", None, true),
            ("kafka://h?sasl.password=hunter2", None, false),
        ] {
            let url = text.parse::<BrokerUrl>().unwrap().or_password(password);
            assert_eq!(url.password_oddity().is_some(), odd, "{text} {password:?}");
        }
    }

    /// Without its escape a `/` or a `?` in a password made a port or an option of it, which the error then showed; an `&`
    /// in the value of an option did the same.
    #[test]
    fn a_password_that_is_not_escaped_is_not_shown_either() {
        for text in [
            "redis://u:hunter2/x@h:1",
            "redis://u:hunter2?x@h:1",
            "kafka://u:hunter2/a/b@h",
            "redis://u:1/hunter2@h",
            "redis://u:1?hunter2@h",
            "u:hunter2@h://x",
            "kafka://h/t?sasl.password=a&hunter2",
        ] {
            let error = text.parse::<BrokerUrl>().expect_err(text);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}: {error}");
        }
        let error = "kafka://u:p@h:x/t".parse::<BrokerUrl>().unwrap_err();
        let expected = "broker URL: port: what stands there is not a number from 1 to 65535; give kafka://host:port";
        assert_eq!(error.to_string(), expected);
    }

    /// A `?` or a `/` behind what reads as a port made options and a topic of the rest, and errors about those showed it.
    #[test]
    fn what_may_be_the_rest_of_a_password_is_not_shown() {
        let shown = |url: &str, error: &str| url.parse::<BrokerUrl>().expect(url).conceal(error.to_owned());
        for (url, error) in [
            ("redis://u:1?hunter2=x@h", "\"hunter2\" is no option"),
            ("redis://u:1?a=b&hunter2=x@h", "\"hunter2\" is no option"),
            ("redis://u:1?maxlen=hunter2@h", "maxlen=\"hunter2@h\": it wants a number"),
            ("kafka://u:1?hun%74er2=x@h", "option hunter2 is unknown"),
            ("kafka://u:1/hunter2@h", "\"hunter2@h\" is no legal topic name"),
        ] {
            assert!(!shown(url, error).contains("hunter2"), "{url}");
            assert!(shown(url, error).contains("write / as %2F"), "{url}");
        }
        // Behind the `@`, or without one there, it is shown.
        for url in ["kafka://h/t?sasl.password=p@ss&linger.ms=soon", "redis://u:p@h?linger.ms=soon"] {
            assert_eq!(shown(url, "option linger.ms: soon"), "option linger.ms: soon");
        }
        // So are the names of options that have passwords for values.
        let error = "option sasl.password has no effect with security.protocol=plaintext";
        assert_eq!(shown("kafka://h/t?sasl.password=p@ss", error), error);
    }

    #[test]
    fn an_empty_password_is_none_unless_a_user_has_it() {
        let password = |url: &str| url.parse::<BrokerUrl>().expect(url).password;
        assert_eq!(password("redis://:@h"), None);
        assert_eq!(password("kafka://:@h"), None);
        assert_eq!(password("redis://u:@h").as_deref(), Some(""));
        let given = |password| "redis://h".parse::<BrokerUrl>().unwrap().or_password(Some(password)).password;
        assert_eq!((given(""), given("p").as_deref()), (None, Some("p")));
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: BrokerUrl = "redis://u:hunter2@h:1?stream=s".parse().unwrap();
        for text in [url.to_string(), format!("{url:?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        let error = "redis://u:hunter2@h:x".parse::<BrokerUrl>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
