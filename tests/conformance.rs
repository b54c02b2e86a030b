//! The conformance suite itself: it passes a transport that keeps the contract, and catches each way of breaking it.
#![cfg(feature = "testing")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use outlast::testing::Broker;
use outlast::testing::conformance::{self, Entry, Fault, Subject, Violation};
use outlast::transport::{
    Class, Failure, Handover, Monitor, Outcome, Recipient, Refused, Scope, StartError, Ticket, Transport,
};
use outlast::{Message, MessageId, Outgoing, Position};

/// The broker in memory, and what is done to the transports that lead to it.
struct InMemory {
    broker: Broker,
    plant: fn(Arc<dyn Transport>) -> Arc<dyn Transport>,
    faulty: bool,
    patience: Duration,
    used: AtomicU64,
}

impl InMemory {
    fn new(plant: fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Self {
        let patience = Duration::from_secs(20);
        Self { broker: Broker::new(), plant, faulty: false, patience, used: AtomicU64::new(0) }
    }
}

impl Subject for InMemory {
    fn transport(&self) -> Arc<dyn Transport> {
        (self.plant)(self.broker.transport())
    }

    fn destination(&self, purpose: &str) -> String {
        format!("{purpose}-{}", self.used.fetch_add(1, Ordering::Relaxed))
    }

    fn contents(&self, destination: &str) -> Result<Vec<Entry>, String> {
        let here = self.broker.delivered().into_iter().filter(|entry| &*entry.destination == destination);
        Ok(here
            .map(|entry| Entry {
                id: entry.id,
                key: entry.key.filter(|_| entry.fields.is_empty()),
                payload: entry.payload,
                fields: entry.fields,
                headers: entry.headers,
            })
            .collect())
    }

    fn faults(&self) -> Vec<Fault> {
        if !self.faulty {
            return Vec::new();
        }
        let fault = |name, inflict: fn(&Broker), mend: fn(&Broker)| {
            let (one, two) = (self.broker.clone(), self.broker.clone());
            let lasts = Duration::from_millis(50);
            Fault { name, lasts, inflict: Box::new(move || inflict(&one)), mend: Box::new(move || mend(&two)) }
        };
        vec![
            fault("down", Broker::down, Broker::up),
            fault("hangs", Broker::pause, Broker::resume),
            fault(
                "hangs, then down",
                |b| {
                    b.pause();
                    b.down()
                },
                |b| {
                    b.resume();
                    b.up()
                },
            ),
            fault("loses replies", |b| b.lose_replies(40), |_| {}),
            fault("refuses messages", |b| b.reject_message("7"), |b| b.accept_message("7")),
            fault("is full", |b| b.capacity(3), |b| b.capacity(usize::MAX)),
        ]
    }

    fn takes_fields(&self) -> bool {
        true
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}

fn seed() -> u64 {
    std::env::var("OUTLAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

#[test]
fn the_broker_in_memory_conforms() {
    for partitions in [1, 4] {
        let mut subject = InMemory::new(|transport| transport);
        subject.faulty = true;
        if partitions > 1 {
            subject.broker.partitions(partitions);
            subject.broker.latency(Duration::from_millis(1));
        }
        conformance::run(&subject, seed()).unwrap();
    }
}

type Meddle = dyn FnMut(&Arc<dyn Transport>, Handover) -> Result<(), Refused> + Send;

/// A transport that does to hand-overs what it was told to.
struct Planted {
    inner: Arc<dyn Transport>,
    meddle: Mutex<Box<Meddle>>,
}

impl Planted {
    fn wrap(
        inner: Arc<dyn Transport>,
        meddle: impl FnMut(&Arc<dyn Transport>, Handover) -> Result<(), Refused> + Send + 'static,
    ) -> Arc<dyn Transport> {
        Arc::new(Self { inner, meddle: Mutex::new(Box::new(meddle)) })
    }
}

impl Transport for Planted {
    fn start(&self, monitor: Monitor) -> Result<(), StartError> {
        self.inner.start(monitor)
    }

    fn submit(&self, handover: Handover) -> Result<(), Refused> {
        (self.meddle.lock().unwrap())(&self.inner, handover)
    }

    fn close(&self, grace: Duration) {
        self.inner.close(grace);
    }
}

/// Takes a report that nobody asked for.
struct Nobody;

impl Recipient for Nobody {
    fn report(self: Arc<Self>, _: Outcome) {}
}

fn caught(plant: fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Violation {
    caught_within(Duration::from_secs(10), plant)
}

/// The same, where a report may never come: so long is waited for it.
fn caught_within(patience: Duration, plant: fn(Arc<dyn Transport>) -> Arc<dyn Transport>) -> Violation {
    let mut subject = InMemory::new(plant);
    subject.patience = patience;
    let violation = conformance::run(&subject, seed()).unwrap_err();
    println!("{violation}");
    violation.cause().clone()
}

fn every(nth: u64, handover: &Handover) -> bool {
    handover.message.id.number().is_multiple_of(nth)
}

#[test]
fn a_planted_reordering_is_caught() {
    let violation = caught(|inner| {
        let mut held: Option<Handover> = None;
        let mut planted = false;
        Planted::wrap(inner, move |inner, handover| match &held {
            // Once, and not with one that is tried alone: nothing would follow it before there is a report.
            None if !planted && !handover.alone && handover.message.lane.is_some() && every(10, &handover) => {
                planted = true;
                held = Some(handover);
                Ok(())
            }
            Some(first) if first.message.lane == handover.message.lane => {
                inner.submit(handover)?;
                held.take().map_or(Ok(()), |first| inner.submit(first))
            }
            _ => inner.submit(handover),
        })
    });
    assert!(matches!(violation, Violation::OutOfOrder { .. } | Violation::Positions { .. }), "{violation:?}");
}

#[test]
fn a_lost_report_is_caught() {
    let violation = caught_within(Duration::from_millis(500), |inner| {
        Planted::wrap(inner, |inner, handover| {
            if every(7, &handover) {
                std::mem::forget(handover);
                return Ok(());
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::NoReport { .. }), "{violation:?}");
}

#[test]
fn a_double_append_reported_once_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            if every(5, &handover) {
                let ticket = Ticket::new(Arc::new(Nobody));
                let _ = inner.submit(Handover { message: handover.message.clone(), alone: false, ticket });
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::Duplicate { copies: 2, accounted: 1, .. }), "{violation:?}");
}

#[test]
fn a_message_that_passes_a_failed_one_is_caught() {
    let passes = |inner| {
        let mut failing: Option<Handover> = None;
        let mut planted = false;
        Planted::wrap(inner, move |inner, handover| {
            if !planted && !handover.alone && handover.message.lane.is_some() && every(13, &handover) {
                planted = true;
                failing = Some(handover);
                return Ok(());
            }
            let lane = handover.message.lane;
            inner.submit(handover)?;
            if let Some(failed) = failing.take_if(|failed| failed.message.lane == lane) {
                let failure = Arc::new(Failure::new(Class::Transient, Scope::Lane, "planted"));
                thread::spawn(move || failed.ticket.failed(failure, false));
            }
            Ok(())
        })
    };
    // What comes next on the lane may be tried alone, once there is a report on the first: then there is none to pass it.
    let nothing_followed = |violation: &Violation| matches!(violation, Violation::NoReport { .. });
    let mut tries = (0..20).map(|_| caught_within(Duration::from_millis(500), passes));
    let violation = tries.find(|violation| !nothing_followed(violation));
    let violation = violation.expect("something follows in most runs");
    assert!(matches!(violation, Violation::Overtaken { .. }), "{violation:?}");
}

#[test]
fn a_delivery_that_did_not_take_place_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            if every(9, &handover) {
                let offset = handover.message.id.number() as i64 + 1_000_000;
                thread::spawn(move || handover.ticket.delivered(Position::Offset { partition: 99, offset }));
                return Ok(());
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::Missing { .. } | Violation::Positions { .. }), "{violation:?}");
}

#[test]
fn a_delivery_called_impossible_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            if handover.message.lane.is_none() {
                let ticket = Ticket::new(Arc::new(Nobody));
                inner.submit(Handover { message: handover.message.clone(), alone: false, ticket })?;
                let failure = Arc::new(Failure::new(Class::Transient, Scope::Lane, "planted"));
                // Told as failed once, and appended again when it is tried again.
                if fastrand::bool() {
                    thread::spawn(move || handover.ticket.failed(failure, false));
                    return Ok(());
                }
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::Duplicate { .. }), "{violation:?}");
}

#[test]
fn altered_bytes_are_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            let old = &handover.message;
            let mut message = Message::to(old.message.destination());
            if let Some(key) = old.message.key_bytes() {
                message = message.key(key.clone());
            }
            // A tombstone becomes the empty payload, and headers are lost.
            message = message.payload(old.message.payload_bytes().cloned().unwrap_or_default());
            let changed = Outgoing { message, ..(**old).clone() };
            inner.submit(Handover { message: Arc::new(changed), ..handover })
        })
    });
    assert!(matches!(violation, Violation::Altered { .. }), "{violation:?}");
}

#[test]
fn a_report_from_within_submit_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |_, handover| {
            handover.ticket.delivered(Position::Offset { partition: 0, offset: 0 });
            Ok(())
        })
    });
    assert!(matches!(violation, Violation::ReportedWithinSubmit { .. }), "{violation:?}");
}

#[test]
fn a_submit_that_blocks_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            if every(3, &handover) {
                thread::sleep(Duration::from_millis(2100));
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::SubmitBlocked { .. }), "{violation:?}");
}

#[test]
fn a_close_that_leaves_messages_behind_is_caught() {
    struct Keeps(Arc<dyn Transport>, Mutex<Vec<Handover>>);
    impl Transport for Keeps {
        fn start(&self, monitor: Monitor) -> Result<(), StartError> {
            self.0.start(monitor)
        }
        fn submit(&self, handover: Handover) -> Result<(), Refused> {
            if handover.message.message.destination().starts_with("close") && every(50, &handover) {
                self.1.lock().unwrap().push(handover);
                return Ok(());
            }
            self.0.submit(handover)
        }
        fn close(&self, grace: Duration) {
            self.0.close(grace);
            self.1.lock().unwrap().drain(..).for_each(std::mem::forget);
        }
    }
    let violation = caught(|inner| Arc::new(Keeps(inner, Mutex::default())));
    assert!(matches!(violation, Violation::Close { unreported: 1.., .. }), "{violation:?}");
}

#[test]
fn a_foreign_message_is_caught() {
    let violation = caught(|inner| {
        Planted::wrap(inner, |inner, handover| {
            if every(11, &handover) {
                let foreign = Outgoing { id: MessageId::new(0, 1), ..(*handover.message).clone() };
                let ticket = Ticket::new(Arc::new(Nobody));
                let _ = inner.submit(Handover { message: Arc::new(foreign), alone: false, ticket });
            }
            inner.submit(handover)
        })
    });
    assert!(matches!(violation, Violation::Invented { .. }), "{violation:?}");
}
