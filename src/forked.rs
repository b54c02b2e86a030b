//! Forks of the process: a child that was forked without `exec` has a copy of everything, but none of our threads.
//!
//! What it drops must not touch what it shares with the parent: the lock on an outbox, its files. Nor may it wait for
//! a lock that another thread held at the fork, or join a thread that does not exist. So what owns such things notes the
//! process that made it, and in any other one leaves them alone.

/// The process that made something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maker(u32);

impl Maker {
    /// This process.
    pub fn this() -> Self {
        Self(std::process::id())
    }

    /// Whether this is not that process, but a fork of it.
    pub fn is_other(self) -> bool {
        self.0 != std::process::id()
    }
}
