//! Checks of a set-up before it is relied on: can an outbox lie there, may this process do what it has to, does the
//! broker bear the promise.
//!
//! One file a group, one function a check; each returns [`Finding`](crate::finding::Finding)s and never fails: what
//! cannot be checked is a finding, too. An outbox that exists is looked at and not touched: nothing in it is opened for
//! writing or created. Where there is none yet, [`probe`] tries the disk with one file, which it removes. Brokers are
//! asked and sent nothing to keep.
//!
//! Assumes that the checks run as the user, and under the limits, of the process that will have the outbox.

pub mod broker;
pub mod disk;
pub mod lock;
pub mod probe;
pub mod process;
