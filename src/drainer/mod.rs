//! drainer
