//! What a check of a set-up finds: one finding, its severity, and a name that stays the same.
//!
//! Plain data, on the ground floor: checks of the disk, of the process and of each broker all return it, for
//! `outlast doctor` and for checks at a start alike.

use std::fmt;

use serde::{Serialize, Serializer};

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Severity {
    /// Worth knowing: a limit of the set-up, or something that could not be checked. The promise holds.
    Note,
    /// A producer would not start, could not deliver, or what is acknowledged could be lost.
    Problem,
}

/// Defines [`Code`]: each variant with its name in JSON and on the command line.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a [`Finding`] is about. The names ([`name`](Code::name), and in JSON) are stable; new ones may come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// Its name, in lower case with hyphens.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant),+];
        }
    };
}

codes! {
    /// The outbox lies on a file system that a restart of the machine empties (tmpfs, ramfs).
    OutboxInMemory = "outbox-in-memory",
    /// The outbox lies on a file system of which less is known: of a container's own, over the network, in user space.
    FileSystem = "file-system",
    /// The outbox, or a file of it, belongs to another user.
    ForeignOwner = "foreign-owner",
    /// The outbox, or a file of it, is a symbolic link.
    Symlink = "symlink",
    /// Other users may write to the outbox.
    OpenToOthers = "open-to-others",
    /// The directory cannot be written to: a read-only file system, or no right to.
    ReadOnly = "read-only",
    /// What is there is no outbox, or something in it is not what an outbox has there.
    NotAnOutbox = "not-an-outbox",
    /// A later release wrote the outbox.
    NewerFormat = "newer-format",
    /// A call to the disk failed.
    DiskFailed = "disk-failed",
    /// Too little space is free.
    NoSpace = "no-space",
    /// Too few inodes are free.
    NoInodes = "no-inodes",
    /// The file system does not set space aside, so that what is reserved may be missing when it is needed.
    NoReservation = "no-reservation",
    /// Another process has the outbox open.
    LockHeld = "lock-held",
    /// The file system has no locks.
    NoLocks = "no-locks",
    /// The process may not write files as large as a segment (`ulimit -f`).
    FileSizeLimit = "file-size-limit",
    /// The process may have too few files open (`ulimit -n`).
    OpenFilesLimit = "open-files-limit",
    /// Messages are pending for a transport that was not named, so that it was not looked at.
    NotConfigured = "not-configured",
    /// Something could not be read, and so was not checked.
    NotChecked = "not-checked",
    /// The broker's host name does not resolve.
    UnknownHost = "unknown-host",
    /// No connection to the broker.
    Unreachable = "unreachable",
    /// The broker does not answer in time.
    NoAnswer = "no-answer",
    /// The broker's certificate is not trusted: another authority's, another host's, or out of date.
    UntrustedCertificate = "untrusted-certificate",
    /// The TLS handshake failed otherwise.
    TlsFailed = "tls-failed",
    /// The broker refuses the user or the password.
    LoginRefused = "login-refused",
    /// The server is too old.
    ServerTooOld = "server-too-old",
    /// The user may not write to the topic or stream.
    NoRightToWrite = "no-right-to-write",
    /// The topic does not exist.
    TopicMissing = "topic-missing",
    /// A partition has no leader.
    NoLeader = "no-leader",
    /// A topic has too few replicas, or too few of them are in sync.
    TooFewReplicas = "too-few-replicas",
    /// `min.insync.replicas` lets one broker alone acknowledge, or cannot be met.
    MinInsyncReplicas = "min-insync-replicas",
    /// A broker that lacks acknowledged messages may become leader.
    UncleanLeaderElection = "unclean-leader-election",
    /// `retention.ms` deletes messages as old as those that wait.
    Retention = "retention",
    /// The broker takes no messages as large as ours.
    MessageTooLarge = "message-too-large",
    /// `message.timestamp.before.max.ms` or `.after.max.ms` refuses messages that wait, or may.
    TimestampLimits = "timestamp-limits",
    /// A compacted topic takes no message without a key.
    Compacted = "compacted",
    /// Redis keeps no log of its writes, or leaves the syncing of it to the system.
    PersistenceOff = "persistence-off",
    /// Redis syncs its log each second.
    PersistenceDelayed = "persistence-delayed",
    /// Redis may delete streams when its memory is full.
    EvictionPolicy = "eviction-policy",
    /// Redis' memory is full, or nearly so.
    MemoryFull = "memory-full",
    /// The server is a replica.
    IsReplica = "is-replica",
    /// No replica has what the server acknowledges.
    NoReplica = "no-replica",
    /// The server takes no writes at the moment.
    WritesRefused = "writes-refused",
    /// The server is a node of a cluster.
    IsCluster = "is-cluster",
    /// The stream's name is taken by a key of another type.
    NotAStream = "not-a-stream",
    /// The broker's clock and ours differ.
    ClockDiffers = "clock-differs",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub code: Code,
    /// Where: a path, a route (`kafka/orders`), a broker's address, or `process`.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub advice: String,
}

impl Finding {
    /// A problem.
    pub(crate) fn problem(
        code: Code,
        subject: impl fmt::Display,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (what, advice) = (what.into(), advice.into());
        Self { severity: Severity::Problem, code, subject: subject.to_string(), what, advice }
    }

    /// A note.
    pub(crate) fn note(
        code: Code,
        subject: impl fmt::Display,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Note, ..Self::problem(code, subject, what, advice) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own_in_lower_case_with_hyphens() {
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len(), "two codes have one name");
        for name in names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        }
        let finding = Finding::note(Code::NoAnswer, "redis", "what", "advice");
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!((&json["severity"], &json["code"]), (&"note".into(), &"no-answer".into()));
    }
}
