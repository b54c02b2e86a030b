//! The options the promise rests on: what they may be set to, if at all, and why nothing else.

use crate::transport::StartError;

/// What a fixed option may be set to, if at all, and why nothing else.
struct Fixed {
    names: &'static [&'static str],
    allowed: &'static [&'static str],
    why: &'static str,
}

/// The options the promise rests on.
const FIXED: [Fixed; 14] = [
    Fixed {
        names: &["acks", "request.required.acks"],
        allowed: &["all", "-1"],
        why: "a message counts as delivered once all in-sync replicas have it: acks=all",
    },
    Fixed {
        names: &["enable.idempotence"],
        allowed: &["true"],
        why: "without idempotence retries reorder and duplicate: enable.idempotence=true",
    },
    Fixed {
        names: &["enable.gapless.guarantee"],
        allowed: &["true"],
        why: "a gap in a key's messages must stop what follows: enable.gapless.guarantee=true",
    },
    Fixed {
        names: &["message.timeout.ms", "delivery.timeout.ms"],
        allowed: &["0"],
        why: "an accepted message never expires: message.timeout.ms=0; how long a send waits is `first_attempt`",
    },
    Fixed {
        names: &["retries", "message.send.max.retries"],
        allowed: &["2147483647"],
        why: "an accepted message is tried for ever: leave it out",
    },
    Fixed {
        names: &["max.in.flight", "max.in.flight.requests.per.connection"],
        allowed: &["1"],
        why: "with more than one request in flight a lost first batch can be reported delivered (KAFKA-14312, \
              KAFKA-15591), and this version has no guard against it: max.in.flight=1",
    },
    Fixed {
        names: &["delivery.report.only.error"],
        allowed: &["false"],
        why: "success is what is waited for: delivery.report.only.error=false",
    },
    Fixed { names: &["queuing.strategy"], allowed: &["fifo"], why: "order holds per key: queuing.strategy=fifo" },
    Fixed {
        names: &["api.version.request"],
        allowed: &["true"],
        why: "idempotence needs a broker that is asked for its version: leave it out",
    },
    Fixed {
        names: &["transactional.id", "transaction.timeout.ms"],
        allowed: &[],
        why: "transactions are not supported in this version: leave it out",
    },
    Fixed {
        names: &["bootstrap.servers", "metadata.broker.list"],
        allowed: &[],
        why: "the brokers are named in the URL: kafka://HOST:PORT,HOST:PORT/TOPIC",
    },
    Fixed {
        names: &["plugin.library.paths"],
        allowed: &[],
        why: "an interceptor could change messages behind the library's back: leave it out",
    },
    Fixed {
        names: &["test.mock.num.brokers", "test.mock.broker.rtt", "ut_handle_ProduceResponse"],
        allowed: &[],
        why: "it would put a mock in the place of the brokers: leave it out",
    },
    Fixed {
        names: &["log.queue", "enabled_events", "statistics.interval.ms", "background_event_cb"],
        allowed: &[],
        why: "the transport uses it itself: leave it out",
    },
];

/// Refuses an option that would break the promise, and names the right form.
pub(super) fn check_fixed(name: &str, value: &str) -> Result<(), StartError> {
    let Some(fixed) = FIXED.iter().find(|fixed| fixed.names.contains(&name)) else {
        return Ok(());
    };
    if fixed.allowed.contains(&value) {
        return Ok(());
    }
    Err(StartError(format!("option {name} cannot be set so: {}", fixed.why)))
}
