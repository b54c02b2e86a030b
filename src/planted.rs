//! Faults that are planted in a build for tests, so that each instrument is seen to catch what it is there for.
//!
//! Without the feature `planted` nothing of this is compiled in: [`is`] is the constant `false`. With it, the variable
//! `OUTLAST_PLANTED` names the one fault that the process has, for all of its life; a name that does not exist ends
//! it. The feature is for the project's own tests alone.

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "asked for, never made"))]
pub enum Planted {
    /// A message is acknowledged when its frame was written, before the sync.
    AckBeforeSync,
    /// A segment is used though its name was never made durable.
    SkipDirectorySync,
    /// A sync that failed is tried again on the same file, and believed.
    RetryFailedSync,
    /// A delivery counts as settled, for good, before the disk has the message.
    SettleBeforeSync,
    /// A message is settled when it is handed to the broker.
    SettleBeforeDelivery,
    /// A segment is recycled as soon as its messages were reported, before the log's own settlement is synced.
    RecycleOnLedgersWord,
    /// A new segment begins below what was acknowledged.
    ReuseAckedLsn,
    /// After a restart the found segment is written on.
    WriteIntoFound,
    /// A frame of a recycled segment's earlier life is taken for a live one.
    StaleFrameIsLive,
    /// A lane's gate opens though stored messages lie in front.
    LoseGate,
    /// Dropping the future throws the accepted message away.
    DropWithFuture,
}

#[cfg(not(feature = "planted"))]
/// Whether the process has this fault: never.
pub const fn is(_: Planted) -> bool {
    false
}

#[cfg(feature = "planted")]
/// Whether the process has this fault.
pub fn is(fault: Planted) -> bool {
    use std::sync::OnceLock;
    static PLANTED: OnceLock<Option<Planted>> = OnceLock::new();
    *PLANTED.get_or_init(from_environment) == Some(fault)
}

#[cfg(feature = "planted")]
/// All of them, by the names `OUTLAST_PLANTED` knows.
pub const ALL: [(&str, Planted); 11] = [
    ("ack-before-sync", Planted::AckBeforeSync),
    ("skip-directory-sync", Planted::SkipDirectorySync),
    ("retry-failed-sync", Planted::RetryFailedSync),
    ("settle-before-sync", Planted::SettleBeforeSync),
    ("settle-before-delivery", Planted::SettleBeforeDelivery),
    ("recycle-on-ledgers-word", Planted::RecycleOnLedgersWord),
    ("reuse-acked-lsn", Planted::ReuseAckedLsn),
    ("write-into-found", Planted::WriteIntoFound),
    ("stale-frame-is-live", Planted::StaleFrameIsLive),
    ("lose-gate", Planted::LoseGate),
    ("drop-with-future", Planted::DropWithFuture),
];

#[cfg(feature = "planted")]
fn from_environment() -> Option<Planted> {
    let name = std::env::var("OUTLAST_PLANTED").ok().filter(|name| !name.is_empty())?;
    let found = ALL.iter().find(|(known, _)| *known == name);
    let Some((_, fault)) = found else { panic!("OUTLAST_PLANTED={name}: there is no such fault") };
    eprintln!("planted: {name}");
    Some(*fault)
}
