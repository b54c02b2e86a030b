//! Whether the cluster answers: what librdkafka's events and the metadata thread's questions add up to.
//!
//! A broken connection alone is no outage (brokers close idle ones); it is one when no broker answers a question
//! after it. A refused login or an untrusted certificate is told at once: no question can get through.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::book::lock;
use super::classify;
use crate::message::Route;
use crate::transport::{Class, Failure, Monitor, Scope};

/// How long the reason librdkafka gave last explains why nobody answers. It repeats it at each attempt to connect,
/// which are at most `reconnect.backoff.max.ms` (10 s) and half of that as jitter apart.
const REASON_HOLDS: Duration = Duration::from_secs(60);

/// What was last told, and what is known.
#[derive(Debug, Default)]
struct State {
    told: Option<Result<(), Arc<Failure>>>,
    trouble: Option<(Instant, Failure)>,
}

/// The availability of the cluster.
#[derive(Debug, Default)]
pub(super) struct Link {
    monitor: OnceLock<Monitor>,
    state: Mutex<State>,
}

impl Link {
    /// Sets whom to tell; says whether nobody had been set before.
    pub(super) fn attach(&self, monitor: Monitor) -> bool {
        self.monitor.set(monitor).is_ok()
    }

    /// Whether the cluster answered when last asked.
    pub(super) fn is_up(&self) -> bool {
        matches!(lock(&self.state).told, Some(Ok(())))
    }

    /// A broker answered.
    pub(super) fn up(&self) {
        let mut state = lock(&self.state);
        state.trouble = None;
        if !matches!(state.told, Some(Ok(()))) {
            state.told = Some(Ok(()));
            tracing::info!("Kafka answers");
            // Under the lock, so that up and down arrive in the order they happened.
            if let Some(monitor) = self.monitor.get() {
                monitor.up();
            }
        }
    }

    /// Nobody answers; `code` says how the question failed, which the last trouble may explain better.
    pub(super) fn down(&self, code: Code, now: Instant) {
        let mut state = lock(&self.state);
        let known = state.trouble.as_ref().filter(|(since, _)| now.duration_since(*since) < REASON_HOLDS);
        let failure = known.map_or_else(|| plain(code, ""), |(_, failure)| failure.clone());
        self.tell_down(&mut state, failure);
    }

    /// librdkafka told of trouble with a broker, which may be the reason why nobody answers.
    pub(super) fn trouble(&self, code: Code, reason: &str, now: Instant) {
        // "All brokers are down" is no reason.
        if code == Code::AllBrokersDown {
            return;
        }
        let failure = plain(code, reason);
        let mut state = lock(&self.state);
        // "Timed out" and "broke off" say less than why the login failed a moment ago.
        let better = state
            .trouble
            .as_ref()
            .is_none_or(|(since, before)| failure.class >= before.class || now.duration_since(*since) >= REASON_HOLDS);
        if better {
            state.trouble = Some((now, failure.clone()));
        }
        if failure.class == Class::Hold {
            self.tell_down(&mut state, failure);
        }
    }

    /// A route that was missing is there.
    pub(super) fn route_up(&self, route: &Route) {
        if let Some(monitor) = self.monitor.get() {
            monitor.route_up(route);
        }
    }

    fn tell_down(&self, state: &mut State, failure: Failure) {
        if let Some(Err(before)) = &state.told
            && (before.class, before.scope) == (failure.class, failure.scope)
        {
            return;
        }
        let failure = Arc::new(failure);
        state.told = Some(Err(Arc::clone(&failure)));
        tracing::warn!(reason = %failure.reason, class = ?failure.class, "Kafka does not answer");
        if let Some(monitor) = self.monitor.get() {
            monitor.down(failure);
        }
    }
}

/// The failure of the whole transport.
fn plain(code: Code, reason: &str) -> Failure {
    let verdict = classify::judge(code);
    let class = if verdict.class == Class::Hold { Class::Hold } else { Class::Transient };
    let text = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Failure::new(class, Scope::Transport, format!("{}{text}", verdict.hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Availability;

    fn link() -> (Link, Arc<Mutex<Vec<String>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let link = Link::default();
        let notify = move |availability| {
            lock(&ear).push(match availability {
                Availability::Up => "up".to_owned(),
                Availability::Down(failure) => format!("{:?} {}", failure.class, failure.reason),
            });
        };
        assert!(link.attach(Monitor::new(1 << 20, notify, |_| ())));
        (link, heard)
    }

    #[test]
    fn a_closed_idle_connection_is_no_outage() {
        let (link, heard) = link();
        link.up();
        link.trouble(Code::BrokerTransportFailure, "Disconnected", Instant::now());
        link.trouble(Code::AllBrokersDown, "1/1 brokers are down", Instant::now());
        link.up();
        assert_eq!(*lock(&heard), ["up"]);
    }

    #[test]
    fn a_wrong_password_is_told_at_once_and_stays_the_reason() {
        let (link, heard) = link();
        let now = Instant::now();
        link.trouble(Code::Authentication, "SASL authentication error: bad login", now);
        link.trouble(Code::BrokerTransportFailure, "Disconnected", now);
        link.trouble(Code::AllBrokersDown, "1/1 brokers are down", now);
        link.down(Code::OperationTimedOut, now);
        let heard = lock(&heard);
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert!(heard[0].starts_with("Hold authentication failed") && heard[0].contains("bad login"), "{heard:?}");
    }

    #[test]
    fn down_and_up_are_told_once_each() {
        let (link, heard) = link();
        let now = Instant::now();
        link.trouble(Code::BrokerTransportFailure, "Connection refused", now);
        for _ in 0..3 {
            link.down(Code::OperationTimedOut, now);
        }
        link.up();
        link.up();
        let heard = lock(&heard);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains("Connection refused"), "{heard:?}");
    }
}
