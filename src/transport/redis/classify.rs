//! What an error means: its class, what it concerns, whether the connection is of further use.
//!
//! The codes are Redis' own (`server.c`, `shared.*err`); an error reply always means that its command was not
//! applied. What is not known is held: an operator looks at it, nothing is thrown away.

use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

use crate::transport::{Class, Failure, Scope};

/// A failure, and whether the connection has to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub failure: Failure,
    pub reconnect: bool,
}

const STAY: bool = false;
const RECONNECT: bool = true;

/// Judges an error reply.
pub(super) fn reply(error: &ServerError) -> Finding {
    code(error.code(), error.details().unwrap_or_default())
}

/// Judges a code and the text behind it.
///
/// `EXECABORT` is judged by the code within its text, where there is one ("Transaction discarded because of: …").
pub(super) fn code(code: &str, details: &str) -> Finding {
    if code == "EXECABORT"
        && let Some((_, cause)) = details.split_once("because of: ")
    {
        let (inner, rest) = cause.split_once(' ').unwrap_or((cause, ""));
        return self::code(inner, rest);
    }
    let (class, scope, reconnect, advice) = table(code, details);
    let advice = if advice.is_empty() { String::new() } else { format!(" ({advice})") };
    Finding { failure: Failure::new(class, scope, format!("Redis: {code} {details}{advice}")), reconnect }
}

fn table(code: &str, details: &str) -> (Class, Scope, bool, &'static str) {
    use Class::{Hold, Transient};
    use Scope::{Route, Transport};
    match code {
        // The server has no memory for writes until something is deleted or `maxmemory` is raised.
        "OOM" => (Transient, Transport, STAY, "maxmemory is reached"),
        // Persistence fails and `stop-writes-on-bgsave-error` protects what is there.
        "MISCONF" => (Transient, Transport, STAY, "it cannot persist to its disk"),
        // Fewer replicas than `min-replicas-to-write`; they come back by themselves.
        "NOREPLICAS" => (Transient, Transport, STAY, "too few replicas are connected"),
        // A script or function runs too long; writes are taken again when it ends or is killed.
        "BUSY" => (Transient, Transport, STAY, "a script keeps it busy"),
        // It was demoted in a failover. The name may lead to the new primary by now.
        "READONLY" => (Transient, Transport, RECONNECT, "it is a replica"),
        // Data is read from disk, or from the primary.
        "LOADING" | "MASTERDOWN" => (Transient, Transport, RECONNECT, ""),
        // The cluster misses slots; it mends itself or is mended.
        "CLUSTERDOWN" => (Transient, Transport, STAY, ""),
        // A slot moves; the key is on neither side whole. Passes when the slot has moved.
        "TRYAGAIN" | "ASK" => (Transient, Route, STAY, ""),
        // The stream is on another node for good, and this is no cluster client.
        "MOVED" => (Hold, Route, STAY, "the stream lies on another cluster node; cluster mode is not supported"),
        // Only several keys in a command can cause it, and none of ours has several.
        "CROSSSLOT" => (Hold, Route, STAY, ""),
        // The connection lost its login, or never had one.
        "NOAUTH" => (Hold, Transport, RECONNECT, "name user and password"),
        "WRONGPASS" => (Hold, Transport, RECONNECT, "user or password is wrong, or the user is disabled"),
        // Protected mode: no password, and not reached through loopback.
        "DENIED" => (Hold, Transport, RECONNECT, "the server's protected mode is on"),
        // May concern one stream (key patterns) or the command; the narrower is assumed.
        "NOPERM" => (Hold, Route, STAY, "the ACL user needs ~STREAM +xadd +multi +exec +ping"),
        // The name is taken by a key of another type. No message is at fault: all of them can be appended once the key is
        // deleted or renamed.
        "WRONGTYPE" => (Hold, Route, STAY, "the key exists and is no stream: delete or rename it"),
        // A script that is not cached any more is sent anew with the next attempt.
        "NOSCRIPT" => (Transient, Route, STAY, ""),
        "EXECABORT" => (Hold, Route, STAY, "the transaction was refused without a known cause"),
        "ERR" => plain(details),
        // Codes of commands we never send; and all that later servers may say.
        "NOTBUSY" | "NOSUB" => (Hold, Route, STAY, ""),
        _ => (Hold, Route, STAY, "an error outlast does not know"),
    }
}

/// Errors under Redis' general code can only be told by their text.
///
/// About the message is only what names its size. The form of the command is ours and the route's options', the same for
/// every message: a server that refuses it refuses all of them, and none is at fault.
fn plain(details: &str) -> (Class, Scope, bool, &'static str) {
    let says = |text: &str| details.contains(text);
    if says("max number of clients") {
        // The connection is closed behind it; another client's leaving frees a place.
        (Class::Transient, Scope::Transport, RECONNECT, "maxclients is reached")
    } else if says("too large to be stored") || says("exceeds maximum allowed size") {
        // `STREAM_LISTPACK_MAX_SIZE`, 1 GiB an entry.
        (Class::Permanent, Scope::Lane, STAY, "")
    } else if is_too_long(details) {
        // Said while the command is being read; the connection is closed behind it.
        (Class::Permanent, Scope::Lane, RECONNECT, "the message is larger than the server reads")
    } else if says("Protocol error") {
        (Class::Transient, Scope::Transport, RECONNECT, "")
    } else if is_of_form(details) {
        (Class::Hold, Scope::Route, STAY, "the server does not know this form of XADD")
    } else if says("unknown command") {
        (Class::Hold, Scope::Transport, STAY, "streams need Redis 5 or later")
    } else if says("without any password configured") || says("invalid DB index") || says("DB index is out of range") {
        (Class::Hold, Scope::Transport, RECONNECT, "")
    } else {
        (Class::Hold, Scope::Route, STAY, "")
    }
}

/// Whether an error says that an argument, or their number, is beyond what the server reads: `proto-max-bulk-len` (by default
/// 512 MiB), or a million arguments before Redis 7. The texts are `networking.c`'s.
pub(super) fn is_too_long(details: &str) -> bool {
    const TEXTS: [&str; 4] =
        ["invalid bulk length", "invalid multibulk length", "too big bulk count string", "too big mbulk count string"];
    details.contains("Protocol error") && TEXTS.iter().any(|text| details.contains(text))
}

/// Whether an error says that the command was written in a form that the server does not take.
pub(super) fn is_of_form(details: &str) -> bool {
    const TEXTS: [&str; 5] = [
        "syntax error",
        "wrong number of arguments",
        "Invalid stream ID",
        "not an integer",
        "The MAXLEN argument must be",
    ];
    TEXTS.iter().any(|text| details.contains(text))
}

/// What a failure is when it was no message that failed, but the login or the connection: it concerns everything, and is no
/// verdict on any message.
pub(super) fn of_connection(failure: Failure) -> Failure {
    let class = if failure.class == Class::Permanent { Class::Hold } else { failure.class };
    Failure { class, scope: Scope::Transport, ..failure }
}

/// Judges an error of the client: the connection, its making, its reading. All of them end the connection.
pub(super) fn client(error: &RedisError, address: &str) -> Failure {
    let text = describe(error);
    let (class, reason) = match error.kind() {
        _ if is_tls(error) => (
            Class::Hold,
            format!(
                "no TLS connection to Redis at {address}: {text} (check ca_file, host name, dates, and that the port speaks TLS)"
            ),
        ),
        ErrorKind::Server(kind) => {
            return of_connection(code(server_code(kind), error.detail().unwrap_or_default()).failure);
        }
        ErrorKind::Extension => {
            return of_connection(code(error.code().unwrap_or_default(), error.detail().unwrap_or_default()).failure);
        }
        // Refused, reset, closed, timed out, no such host: networks and servers come back.
        ErrorKind::Io => (Class::Transient, format!("no connection to Redis at {address}: {text}")),
        // A name without addresses; DNS is repaired, or was slow.
        ErrorKind::InvalidClientConfig => (Class::Transient, format!("no connection to Redis at {address}: {text}")),
        ErrorKind::AuthenticationFailed => (Class::Hold, format!("Redis at {address} refuses the login: {text}")),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::RESP3NotSupported => {
            (Class::Hold, format!("what answers at {address} does not speak Redis: {text}"))
        }
        // Kinds of clients that we are not (sentinel, cluster), and what later releases of the crate may add.
        _ => (Class::Hold, format!("Redis at {address}: {text}")),
    };
    Failure::new(class, Scope::Transport, reason)
}

fn describe(error: &RedisError) -> String {
    if error.is_timeout() { "it took too long".to_owned() } else { error.to_string() }
}

/// The code that a kind was read from; the crate keeps the inverse to itself.
fn server_code(kind: ServerErrorKind) -> &'static str {
    match kind {
        ServerErrorKind::ResponseError => "ERR",
        ServerErrorKind::ExecAbort => "EXECABORT",
        ServerErrorKind::BusyLoading => "LOADING",
        ServerErrorKind::NoScript => "NOSCRIPT",
        ServerErrorKind::Moved => "MOVED",
        ServerErrorKind::Ask => "ASK",
        ServerErrorKind::TryAgain => "TRYAGAIN",
        ServerErrorKind::ClusterDown => "CLUSTERDOWN",
        ServerErrorKind::CrossSlot => "CROSSSLOT",
        ServerErrorKind::MasterDown => "MASTERDOWN",
        ServerErrorKind::ReadOnly => "READONLY",
        ServerErrorKind::NotBusy => "NOTBUSY",
        ServerErrorKind::NoSub => "NOSUB",
        ServerErrorKind::NoPerm => "NOPERM",
        _ => "unknown",
    }
}

#[cfg(feature = "tls")]
fn is_tls(error: &RedisError) -> bool {
    use std::error::Error;
    use std::sync::Arc;

    // The client's source is the `Arc` around an `io::Error`, and that shows its content's source, not its content.
    let Some(source) = error.source() else { return false };
    let source = match source.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(shared) => &**shared as &(dyn Error + 'static),
        None => source,
    };
    let within = source.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    source.is::<rustls::Error>() || within.is_some_and(|within| within.is::<rustls::Error>())
}

#[cfg(not(feature = "tls"))]
fn is_tls(_: &RedisError) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    const CODES: &[(&str, Class, Scope, bool)] = &[
        ("OOM", Class::Transient, Scope::Transport, STAY),
        ("MISCONF", Class::Transient, Scope::Transport, STAY),
        ("NOREPLICAS", Class::Transient, Scope::Transport, STAY),
        ("BUSY", Class::Transient, Scope::Transport, STAY),
        ("READONLY", Class::Transient, Scope::Transport, RECONNECT),
        ("LOADING", Class::Transient, Scope::Transport, RECONNECT),
        ("MASTERDOWN", Class::Transient, Scope::Transport, RECONNECT),
        ("CLUSTERDOWN", Class::Transient, Scope::Transport, STAY),
        ("TRYAGAIN", Class::Transient, Scope::Route, STAY),
        ("ASK", Class::Transient, Scope::Route, STAY),
        ("MOVED", Class::Hold, Scope::Route, STAY),
        ("CROSSSLOT", Class::Hold, Scope::Route, STAY),
        ("NOAUTH", Class::Hold, Scope::Transport, RECONNECT),
        ("WRONGPASS", Class::Hold, Scope::Transport, RECONNECT),
        ("DENIED", Class::Hold, Scope::Transport, RECONNECT),
        ("NOPERM", Class::Hold, Scope::Route, STAY),
        ("WRONGTYPE", Class::Hold, Scope::Route, STAY),
        ("NOSCRIPT", Class::Transient, Scope::Route, STAY),
        ("EXECABORT", Class::Hold, Scope::Route, STAY),
        ("ERR", Class::Hold, Scope::Route, STAY),
        ("NOTBUSY", Class::Hold, Scope::Route, STAY),
        ("NOSUB", Class::Hold, Scope::Route, STAY),
        ("NEWLYMADEUP", Class::Hold, Scope::Route, STAY),
    ];

    /// The reply as the client reads it from the wire.
    fn parsed(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// A Redis before 6 knows no user names: "wrong number of arguments for 'auth' command". It was taken for a verdict on the
    /// messages, and buried them.
    #[test]
    fn what_is_wrong_with_the_login_is_no_verdict_on_messages() {
        let failure = of_connection(code("ERR", "wrong number of arguments for 'auth' command").failure);
        assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Transport));
        // Whatever answers there, with whatever is a verdict on a message elsewhere.
        let failure = of_connection(code("ERR", "Protocol error: invalid bulk length").failure);
        assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Transport));
        let busy = of_connection(code("LOADING", "").failure);
        assert_eq!((busy.class, busy.scope), (Class::Transient, Scope::Transport));
    }

    #[test]
    fn each_code_has_its_class_alone_and_as_the_cause_of_an_aborted_transaction() {
        for &(code, class, scope, reconnect) in CODES {
            let cause = format!("EXECABORT Transaction discarded because of: {code} of something");
            for line in [format!("{code} of something"), cause] {
                let found = reply(&parsed(&line));
                let got = (found.failure.class, found.failure.scope, found.reconnect);
                assert_eq!(got, (class, scope, reconnect), "{line}");
                assert!(found.failure.reason.contains(code), "{}", found.failure.reason);
            }
        }
    }

    /// The enum is `non_exhaustive`: a variant that a later release adds must come to this list by hand.
    #[test]
    fn each_kind_the_client_knows_is_in_the_table_of_codes() {
        use ServerErrorKind::*;
        for kind in [
            ResponseError,
            ExecAbort,
            BusyLoading,
            NoScript,
            Moved,
            Ask,
            TryAgain,
            ClusterDown,
            CrossSlot,
            MasterDown,
            ReadOnly,
            NotBusy,
            NoSub,
            NoPerm,
        ] {
            let code = server_code(kind);
            assert_eq!(parsed(&format!("{code} x")).kind(), Some(kind));
            assert!(CODES.iter().any(|row| row.0 == code), "{code}");
        }
    }

    #[test]
    fn each_kind_of_client_error_has_its_class() {
        use ErrorKind::*;
        for (kind, class) in [
            (Io, Class::Transient),
            (InvalidClientConfig, Class::Transient),
            (AuthenticationFailed, Class::Hold),
            (Parse, Class::Hold),
            (UnexpectedReturnType, Class::Hold),
            (RESP3NotSupported, Class::Hold),
            (Client, Class::Hold),
            (Extension, Class::Hold),
            (MasterNameNotFoundBySentinel, Class::Hold),
            (NoValidReplicasFoundBySentinel, Class::Hold),
            (EmptySentinelList, Class::Hold),
            (ClusterConnectionNotFound, Class::Hold),
            (Server(ServerErrorKind::ReadOnly), Class::Transient),
            (Server(ServerErrorKind::NoPerm), Class::Hold),
        ] {
            let failure = client(&RedisError::from((kind, "x")), "h:1");
            assert_eq!((failure.class, failure.scope), (class, Scope::Transport), "{kind:?}");
        }
    }

    /// An option that the server does not know (`minid=` before Redis 6.2) was taken for a verdict on the message: every
    /// message became a dead letter. So was a key that is no stream.
    #[test]
    fn what_the_route_is_at_fault_for_is_no_verdict_on_messages() {
        for text in [
            "syntax error",
            "wrong number of arguments for 'xadd' command",
            "Invalid stream ID specified as stream command argument",
            "value is not an integer or out of range",
            "The MAXLEN argument must be >= 0.",
            "The stream has exhausted the last possible ID, unable to add more items",
        ] {
            let found = code("ERR", text);
            assert_eq!((found.failure.class, found.failure.scope), (Class::Hold, Scope::Route), "{text}");
        }
    }

    #[test]
    fn general_errors_are_told_by_their_text() {
        for (text, class, scope, reconnect) in [
            ("max number of clients reached", Class::Transient, Scope::Transport, RECONNECT),
            ("Elements are too large to be stored", Class::Permanent, Scope::Lane, STAY),
            ("Protocol error: invalid bulk length", Class::Permanent, Scope::Lane, RECONNECT),
            ("Protocol error: invalid multibulk length", Class::Permanent, Scope::Lane, RECONNECT),
            ("Protocol error: expected '$', got 'x'", Class::Transient, Scope::Transport, RECONNECT),
            ("unknown command 'XADD', with args", Class::Hold, Scope::Transport, STAY),
            ("DB index is out of range", Class::Hold, Scope::Transport, RECONNECT),
            ("something else", Class::Hold, Scope::Route, STAY),
        ] {
            let found = code("ERR", text);
            assert_eq!(
                (found.failure.class, found.failure.scope, found.reconnect),
                (class, scope, reconnect),
                "{text}"
            );
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_certificate_that_is_not_trusted_is_held() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = RedisError::from(std::io::Error::new(std::io::ErrorKind::InvalidData, inner));
        let failure = client(&error, "h:1");
        assert_eq!(failure.class, Class::Hold);
        assert!(failure.reason.contains("ca_file"), "{failure}");
    }
}
