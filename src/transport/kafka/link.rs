//! Whether the cluster answers: what librdkafka's events and the metadata thread's questions add up to.
//!
//! A broken connection alone is no outage (brokers close idle ones), nor is a refused login or an untrusted
//! certificate, which may be one broker's of many; it is one when no broker answers a question after it. An
//! acknowledgement is an answer, too, and the question it overtook may stand in line behind it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::book::lock;
use super::classify;
use super::share::millis;
use crate::message::Route;
use crate::transport::{Class, Failure, Monitor, Scope};

/// How long the reason librdkafka gave last explains why nobody answers. It repeats it at each attempt to connect,
/// which are at most `reconnect.backoff.max.ms` (10 s) and half of that as jitter apart.
const REASON_HOLDS: Duration = Duration::from_secs(60);

/// Waits shorter than this keep a producer at its pace; no message is late for them.
const LEAST_THROTTLE: Duration = Duration::from_millis(500);
/// How long a broker counts as throttling after the time it asked for: what it says next comes within it.
const THROTTLE_HOLDS: Duration = Duration::from_secs(5);

/// How long an acknowledgement says that somebody is there.
const ACKNOWLEDGEMENT_HOLDS: Duration = Duration::from_secs(2);

/// What was last told, and what is known.
#[derive(Debug, Default)]
struct State {
    told: Option<Result<(), Arc<Failure>>>,
    /// Whether "down" was told with a reason that says why nobody answers.
    explained: bool,
    trouble: Option<(Instant, Code, Failure)>,
    /// What was wrong with some broker last, though others answer since.
    with_one: Option<(Instant, String)>,
    /// Until when a broker makes this client wait, and for how long in all.
    throttled: Option<(Instant, Duration)>,
}

/// The availability of the cluster.
#[derive(Debug, Default)]
pub(super) struct Link {
    monitor: OnceLock<Monitor>,
    state: Mutex<State>,
    /// Whether "up" was told last: read at each acknowledgement.
    is_up: AtomicBool,
    acknowledged_at: AtomicU64,
}

impl Link {
    /// Sets whom to tell; says whether nobody had been set before.
    pub(super) fn attach(&self, monitor: Monitor) -> bool {
        self.monitor.set(monitor).is_ok()
    }

    /// Whether the cluster answered when last asked.
    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    /// A broker acknowledged a message.
    pub(super) fn acknowledged(&self, now: Instant) {
        self.acknowledged_at.store(millis(now), Ordering::Release);
        if !self.is_up() {
            self.up();
        }
    }

    /// A broker answered.
    pub(super) fn up(&self) {
        let mut state = lock(&self.state);
        state.trouble = None;
        if !matches!(state.told, Some(Ok(()))) {
            state.told = Some(Ok(()));
            self.is_up.store(true, Ordering::Release);
            tracing::info!("Kafka answers");
            // Under the lock, so that up and down arrive in the order they happened.
            if let Some(monitor) = self.monitor.get() {
                monitor.up();
            }
        }
    }

    /// Nobody answered; `code` says how the question failed, which the last trouble may explain better.
    pub(super) fn down(&self, code: Code, now: Instant) {
        let mut state = lock(&self.state);
        let acknowledged = self.acknowledged_at.load(Ordering::Acquire);
        let silence = Duration::from_millis(millis(now).saturating_sub(acknowledged));
        if self.is_up() && acknowledged > 0 && silence < ACKNOWLEDGEMENT_HOLDS {
            return;
        }
        if let Some(text) = state.throttle(now) {
            // It does not read what it is asked in that time.
            self.tell_down(&mut state, Failure::new(Class::Transient, Scope::Transport, text), true);
            return;
        }
        let known = state.trouble.as_ref().filter(|(since, ..)| now.duration_since(*since) < REASON_HOLDS);
        let explained = known.is_some_and(|(_, code, _)| says_why(*code)) || state.recent_with_one(now).is_some();
        let failure = known.map_or_else(|| state.unexplained(code, now), |(_, _, failure)| failure.clone());
        self.tell_down(&mut state, failure, explained);
    }

    /// librdkafka told of trouble with a broker, which may be the reason why nobody answers. If that was told without one,
    /// it is told again; a reason of another class waits for the next question.
    pub(super) fn trouble(&self, code: Code, reason: &str, now: Instant) {
        // "All brokers are down" is no reason, and a failed instance none why nobody answers.
        if matches!(code, Code::AllBrokersDown | Code::Fatal) {
            return;
        }
        let failure = plain(code, reason);
        let mut state = lock(&self.state);
        if says_why(code) {
            state.with_one = Some((now, failure.reason.clone()));
        }
        // "Timed out" and "broke off" say less than why the login failed a moment ago.
        let better = state.trouble.as_ref().is_none_or(|(since, _, before)| {
            failure.class >= before.class || now.duration_since(*since) >= REASON_HOLDS
        });
        if better {
            let is_down = matches!(&state.told, Some(Err(told)) if is_alike(told, &failure));
            state.trouble = Some((now, code, failure.clone()));
            if is_down && says_why(code) {
                self.tell_down(&mut state, failure, true);
            }
        }
    }

    /// The longest time that a broker asked this client to wait, of late; zero: none did.
    pub(super) fn throttled(&self, wait: Duration, now: Instant) {
        if wait >= LEAST_THROTTLE {
            let mut state = lock(&self.state);
            if state.throttle(now).is_none() {
                tracing::warn!(?wait, "a broker of Kafka throttles this producer: a quota");
            }
            state.throttled = Some((now + wait + THROTTLE_HOLDS, wait));
        }
    }

    /// That a broker makes this client wait, if it does.
    pub(super) fn throttle(&self, now: Instant) -> Option<String> {
        lock(&self.state).throttle(now)
    }

    /// What is known to be wrong with a broker, of which others may know nothing.
    pub(super) fn trouble_with_one(&self, now: Instant) -> Option<String> {
        let state = lock(&self.state);
        state.throttle(now).or_else(|| state.recent_with_one(now).map(str::to_owned))
    }

    /// A route that was missing is there.
    pub(super) fn route_up(&self, route: &Route) {
        if let Some(monitor) = self.monitor.get() {
            monitor.route_up(route);
        }
    }

    /// Tells it once; once more if it can be said only then why.
    fn tell_down(&self, state: &mut State, failure: Failure, explained: bool) {
        if let Some(Err(before)) = &state.told
            && is_alike(before, &failure)
            && (state.explained || !explained)
        {
            return;
        }
        let failure = Arc::new(failure);
        state.explained = explained;
        state.told = Some(Err(Arc::clone(&failure)));
        self.is_up.store(false, Ordering::Release);
        tracing::warn!(reason = %failure.reason, class = ?failure.class, "Kafka does not answer");
        if let Some(monitor) = self.monitor.get() {
            monitor.down(failure);
        }
    }
}

impl State {
    fn recent_with_one(&self, now: Instant) -> Option<&str> {
        let recent = self.with_one.as_ref().filter(|(since, _)| now.duration_since(*since) < REASON_HOLDS);
        recent.map(|(_, reason)| reason.as_str())
    }

    /// A question got no answer, and librdkafka gave no reason since the last answer. It says the same thing about the
    /// same broker once in half a minute, however often others answer: that may still be the reason.
    fn unexplained(&self, code: Code, now: Instant) -> Failure {
        let mut failure = plain(code, "");
        if let Some(reason) = self.recent_with_one(now) {
            failure.reason = format!("{}; {reason}", failure.reason);
        }
        failure
    }

    fn throttle(&self, now: Instant) -> Option<String> {
        let (_, wait) = self.throttled.filter(|(until, _)| now < *until)?;
        let seconds = wait.as_secs_f64();
        Some(format!(
            "the broker throttles this producer, which is beyond its quota (producer_byte_rate or \
             request_percentage): it makes it wait for up to {seconds:.1} s"
        ))
    }
}

fn is_alike(one: &Failure, other: &Failure) -> bool {
    (one.class, one.scope) == (other.class, other.scope)
}

/// Whether a code says more than that there was no answer.
fn says_why(code: Code) -> bool {
    !matches!(code, Code::OperationTimedOut | Code::MessageTimedOut | Code::TimedOutQueue)
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
    fn a_wrong_password_stays_the_reason_why_nobody_answers() {
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

    /// One broker of three refused the login, and the transport was told to be down, until the next question reached one
    /// of the others: up and down in turns, each "up" slowing the drainer down anew.
    #[test]
    fn a_login_that_one_broker_refuses_is_no_outage_while_others_answer() {
        let (link, heard) = link();
        link.up();
        for _ in 0..3 {
            link.trouble(Code::Authentication, "SASL authentication error: bad login", Instant::now());
            link.up();
        }
        assert_eq!(*lock(&heard), ["up"]);
    }

    /// With one request in flight a question waits behind the messages: it timed out, and the transport was told to be
    /// down, while acknowledgements came in.
    #[test]
    fn an_acknowledgement_says_that_somebody_is_there() {
        let (link, heard) = link();
        let now = Instant::now();
        link.down(Code::OperationTimedOut, now);
        link.acknowledged(now);
        link.down(Code::OperationTimedOut, now + ACKNOWLEDGEMENT_HOLDS / 2);
        assert_eq!(lock(&heard).len(), 2, "{heard:?}");
        link.down(Code::OperationTimedOut, now + ACKNOWLEDGEMENT_HOLDS * 2);
        let heard = lock(&heard);
        assert!(heard[1] == "up" && heard.len() == 3, "{heard:?}");
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

    /// A broker that made the producer wait for a quota answered no questions in that time. The transport reported an outage:
    /// "no answer in time".
    #[test]
    fn a_broker_that_throttles_is_said_to_do_so_until_it_stops() {
        let (link, heard) = link();
        let now = Instant::now();
        link.throttled(Duration::from_millis(20), now);
        assert_eq!(link.throttle(now), None, "too short to matter");
        link.throttled(Duration::from_secs(12), now);
        link.down(Code::OperationTimedOut, now + Duration::from_secs(8));
        assert!(lock(&heard)[0].contains("throttles") && lock(&heard)[0].contains("12.0 s"), "{heard:?}");
        assert!(link.trouble_with_one(now).is_some_and(|text| text.contains("throttles")));
        assert_eq!(link.throttle(now + Duration::from_secs(12) + THROTTLE_HOLDS), None);
    }

    /// While others answered, nothing said which broker it was whose name did not resolve.
    #[test]
    fn what_is_wrong_with_one_broker_is_known_while_others_answer() {
        let (link, heard) = link();
        let now = Instant::now();
        link.trouble(Code::Resolve, "b2:9092/2: Failed to resolve 'b2:9092'", now);
        link.up();
        assert!(link.trouble_with_one(now).is_some_and(|text| text.contains("b2:9092")));
        link.trouble(Code::OperationTimedOut, "1 request(s) timed out", now);
        link.trouble(Code::AllBrokersDown, "2/2 brokers are down", now);
        assert!(link.trouble_with_one(now).is_some_and(|text| text.contains("b2:9092")));
        link.up();
        link.down(Code::OperationTimedOut, now);
        assert!(lock(&heard).last().is_some_and(|text| text.contains("b2:9092")), "{heard:?}");
        assert_eq!(link.trouble_with_one(now + REASON_HOLDS), None);
    }

    /// On a slow machine the question was given up before librdkafka had come to the port: "connection refused" was then
    /// told nowhere for the whole outage.
    #[test]
    fn a_reason_that_comes_after_down_was_told_is_told_once() {
        let (link, heard) = link();
        let now = Instant::now();
        link.down(Code::OperationTimedOut, now);
        link.trouble(Code::OperationTimedOut, "1 request(s) timed out", now);
        assert_eq!(lock(&heard).len(), 1, "{heard:?}");
        for _ in 0..3 {
            link.trouble(Code::BrokerTransportFailure, "Connection refused", now);
            link.down(Code::OperationTimedOut, now);
        }
        let heard = lock(&heard);
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[1].contains("Connection refused"), "{heard:?}");
    }
}
