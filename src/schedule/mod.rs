//! Decisions about when and what, without doing anything: time and randomness are passed in.

mod backoff;
mod blocks;
mod lines;
mod pacer;
mod rate;
mod verdict;

pub use backoff::Backoff;
pub use blocks::{Block, BlockKey, BlockState, Blocks, Failed};
pub use lines::Lines;
pub use pacer::Pacer;
pub use rate::Rate;
pub use verdict::{Action, Circumstances, action};
