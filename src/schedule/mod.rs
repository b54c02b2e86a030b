//! schedule
mod backoff;
mod pacer;
mod rate;

pub use backoff::Backoff;
pub use pacer::Pacer;
pub use rate::Rate;
