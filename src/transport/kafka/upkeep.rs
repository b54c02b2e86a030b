//! The thread that looks after what nothing else calls for: idle connections, and files that change. Nothing waits for it,
//! so it may block.

use std::time::{Duration, Instant};

use super::Shared;
use super::keepalive;
use super::renewal::Watch;

/// How often it looks: a load balancer that drops connections after few seconds of silence never sees so many, and changed
/// files are in use soon.
const BEAT: Duration = Duration::from_millis(1_500);

/// Runs until the transport stops.
pub(super) fn run(shared: &Shared) {
    let mut watch = Watch::default();
    while !shared.stopped.wait(BEAT) {
        watch.tick(shared, Instant::now());
        keepalive::tick(shared, Instant::now());
    }
}
