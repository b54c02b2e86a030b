//! What the writer waits for besides the server: the end, the next attempt, files that change.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::access::Access;
use crate::transport::Class;

/// The first pause before connecting again; doubled each time.
const RECONNECT_BASE: Duration = Duration::from_millis(100);
/// How often certificates and password files are looked at. A few small files are compared: some 50 µs.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// The same while nothing else can be done: what was changed may be what stands in the way.
const LOOK_SOONER: Duration = Duration::from_millis(500);
/// How long reading them may take. On a file system that hangs, what was read before is used.
const READING: Duration = Duration::from_secs(2);

/// Reads the files again; whether there is something new to log in with.
pub(super) async fn refresh(access: &Arc<Access>) -> bool {
    if !access.has_files() {
        return false;
    }
    let access = access.clone();
    let read = tokio::task::spawn_blocking(move || access.refresh());
    matches!(tokio::time::timeout(READING, read).await, Ok(Ok(true)))
}

/// Returns after a pause, or as soon as the files hold something new.
pub(super) async fn until_renewed(access: &Arc<Access>, pause: Duration) {
    let end = tokio::time::Instant::now() + pause;
    while access.has_files() && tokio::time::Instant::now() + LOOK_SOONER < end {
        tokio::time::sleep(LOOK_SOONER).await;
        if refresh(access).await {
            return;
        }
    }
    tokio::time::sleep_until(end).await;
}

/// Returns when a transport without a connection has to end: it is closed, and owns nothing or its time is up.
pub(super) async fn must_end(shared: &Shared) {
    loop {
        let (deadline, owned) = {
            let intake = shared.lock();
            (intake.deadline, intake.messages)
        };
        match deadline {
            Some(_) if owned == 0 => return,
            Some(_) => return sleep_until(deadline.map(Into::into)).await,
            None => shared.wake.notified().await,
        }
    }
}

pub(super) async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

/// Full jitter; what an operator has to put right is tried at the cap from the beginning.
pub(super) fn pause(class: Class, attempt: u32, cap: Duration) -> Duration {
    if class == Class::Hold {
        return cap.mul_f64(0.5 + fastrand::f64() / 2.0);
    }
    RECONNECT_BASE.saturating_mul(2_u32.saturating_pow(attempt)).min(cap).mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_a_held_connection_begins_there() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        fastrand::seed(seed);
        let cap = Duration::from_secs(30);
        for attempt in 0..200 {
            assert!(pause(Class::Transient, attempt, cap) <= cap);
            assert!(pause(Class::Hold, attempt, cap) >= cap / 2);
        }
        assert!((0..100).all(|_| pause(Class::Transient, 0, cap) <= RECONNECT_BASE));
        assert!((0..100).any(|_| pause(Class::Transient, u32::MAX, cap) > cap / 2));
    }
}
