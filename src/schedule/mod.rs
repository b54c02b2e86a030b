//! Decisions about when and what, without doing anything: time and randomness are passed in.

mod backoff;
mod blocks;
mod pacer;
mod rate;
mod verdict;

pub use backoff::Backoff;
pub use blocks::{BlockKey, BlockState, Blocks, Failed};
pub use pacer::Pacer;
pub use rate::Rate;
pub use verdict::{Action, Circumstances, action};
