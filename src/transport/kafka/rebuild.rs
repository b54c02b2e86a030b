//! The keeper thread: listens to the instances, and rebuilds the producing one when it was given up.
//!
//! In between `submit` refuses. Everything the old instance owned is reported before the new one takes anything,
//! so first appends keep their order.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::instance::{Event, Instance, closed, handed_back};
use super::{Shared, renewal, suspect};

/// How much longer than `request.timeout.ms` a request on the wire may take before it counts as lost.
const WIRE_MARGIN: Duration = Duration::from_secs(5);
/// Backoff of rebuilds: a fatal error that comes back at once must not spin.
const BACKOFF_LEAST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// Runs until the transport stops.
pub(super) fn run(shared: &Shared, events: &Receiver<Event>) {
    let mut failures = 0;
    while !shared.is_stopped() {
        match events.recv() {
            Ok(Event::GivenUp) => failures = rebuild(shared, events, failures),
            Ok(Event::Renewed) => renewal::switch(shared),
            Ok(Event::Trouble(code, reason)) => heed(shared, code, &reason),
            Ok(Event::Cut(instance, cuts)) => suspect::act(shared, instance, &cuts),
            Ok(Event::Closing) | Err(_) => {}
        }
    }
}

fn heed(shared: &Shared, code: Code, reason: &str) {
    if shared.seat.current().is_some_and(|instance| instance.check_fatal()) {
        // The event that it was given up follows.
        return;
    }
    shared.link.trouble(code, reason, Instant::now());
    shared.doubt();
}

/// Retires the instance that was given up and puts a new one in its place. Takes and returns how many in a row
/// were given up without having delivered anything.
fn rebuild(shared: &Shared, events: &Receiver<Event>, failures: u32) -> u32 {
    // The solo instance says so, too, and retires itself.
    let Some(old) = shared.seat.vacate_given_up() else {
        return failures;
    };
    let reason = old.book().given_up();
    retire(shared, &old);
    shared.batch.refused(old.book().too_large());
    if let Some(reason) = reason {
        shared.topics.fail_waiting(&Arc::new(handed_back(&reason)));
    }
    let mut failures = if old.book().has_delivered() { 0 } else { failures.saturating_add(1) };
    drop(old);
    loop {
        pause(shared, events, backoff(failures, fastrand::f64()));
        if shared.is_stopped() {
            return failures;
        }
        match shared.instance() {
            Ok(instance) => {
                let credentials = instance.credentials();
                shared.topics.renew(Instant::now());
                shared.seat.occupy(instance);
                vacate_if_stopped(shared);
                if credentials == shared.settings.credentials.current().number {
                    // One that was to take over with these has nothing to change.
                    renewal::discard(shared);
                }
                tracing::info!("Kafka producer instance rebuilt");
                shared.doubt();
                return failures;
            }
            Err(reason) => {
                tracing::error!(%reason, "the Kafka producer instance cannot be rebuilt");
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Retires an instance, in the time a request on the wire may take; at once when the transport stops.
pub(super) fn retire(shared: &Shared, instance: &Instance) {
    instance.retire(shared.settings.request_timeout + WIRE_MARGIN, || shared.is_stopped());
}

/// Takes the instance out again that was put into its place: the transport may have stopped in between, and found none.
pub(super) fn vacate_if_stopped(shared: &Shared) {
    if shared.is_stopped()
        && let Some(instance) = shared.seat.vacate(closed())
    {
        instance.give_up(closed());
        retire(shared, &instance);
    }
}

/// Full jitter.
pub(super) fn backoff(failures: u32, random: f64) -> Duration {
    let ceiling = BACKOFF_LEAST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MOST);
    ceiling.mul_f64(random)
}

/// Waits, and goes on listening.
fn pause(shared: &Shared, events: &Receiver<Event>, time: Duration) {
    let until = Instant::now() + time;
    while !shared.is_stopped() {
        match events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Event::Trouble(code, reason)) => heed(shared, code, &reason),
            // What is made next is made with the same credentials.
            Ok(Event::Renewed) => renewal::discard(shared),
            Ok(Event::GivenUp | Event::Cut(..) | Event::Closing) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rebuilds_back_off_to_a_cap() {
        assert_eq!(backoff(0, 1.0), Duration::from_millis(100));
        assert_eq!(backoff(3, 1.0), Duration::from_millis(800));
        assert_eq!(backoff(u32::MAX, 1.0), BACKOFF_MOST);
        assert_eq!(backoff(5, 0.0), Duration::ZERO);
    }
}
