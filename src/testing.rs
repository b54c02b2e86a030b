//! For tests: a [`Broker`] in memory whose outages you make yourself, and the [`conformance`] suite for transports.

pub use crate::transport::conformance;
pub use crate::transport::memory::{Broker, Delivered};
