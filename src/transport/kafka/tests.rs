use super::*;

const STAMPED: times::Stamped = times::Stamped { time: 1, accepted: None, ours: true };

#[test]
fn only_what_kafka_can_take_passes_the_check() {
    let ok = [Message::to("orders"), Message::to("a.b_c-D9").tombstone(), Message::to("x".repeat(249)).partition(0)];
    for message in ok {
        assert_eq!(check(&message), Ok(()));
    }
    let bad = [
        (Message::to(""), "topic name"),
        (Message::to("."), "topic name"),
        (Message::to(".."), "topic name"),
        (Message::to("a b"), "topic name"),
        (Message::to("ä"), "topic name"),
        (Message::to("nul\0"), "topic name"),
        (Message::to("x".repeat(250)), "topic name"),
        (Message::to("t").fields([("a", "b")]), "field map"),
        (Message::to("t").header("", "v"), "header"),
        (Message::to("t").partition(-1), "partition -1"),
        (Message::to("t").timestamp(-5), "timestamp -5"),
        (Message::to("t").timestamp(0), "timestamp 0"),
    ];
    for (message, reason) in bad {
        let refused = check(&message);
        assert!(refused.as_ref().is_err_and(|text| text.contains(reason)), "{message:?}: {refused:?}");
    }
}

/// Hands a message over and waits for its outcome.
mod probe {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::message::{MessageId, Route};
    use crate::transport::{Outcome, Recipient, Ticket};

    struct Reporter(Mutex<Sender<Outcome>>);

    impl Recipient for Reporter {
        fn report(self: Arc<Self>, outcome: Outcome) {
            let _ = lock(&self.0).send(outcome);
        }
    }

    pub(super) fn submit(transport: &KafkaTransport, message: Message) -> Option<Receiver<Outcome>> {
        let (sender, outcomes) = channel();
        let route = Route { transport: "kafka".into(), destination: message.destination().into() };
        let outgoing = Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp: 1, message };
        let ticket = Ticket::new(Arc::new(Reporter(Mutex::new(sender))));
        match transport.submit(Handover { message: Arc::new(outgoing), alone: false, ticket }) {
            Ok(()) => Some(outcomes),
            Err(refused) => {
                refused.handover.ticket.withdraw();
                None
            }
        }
    }

    pub(super) fn deliver(transport: &KafkaTransport) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            let outcome = submit(transport, Message::to("t")).and_then(|outcomes| outcomes.recv().ok());
            if let Some(Outcome::Delivered(_)) = outcome {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("not delivered in a minute");
    }
}

fn started(servers: &str) -> KafkaTransport {
    started_with(KafkaConfig::new([servers]))
}

fn started_with(config: KafkaConfig) -> KafkaTransport {
    let transport = KafkaTransport::new(config).unwrap_or_else(|error| panic!("{error}"));
    transport.start(Monitor::new(1 << 20, |_| (), |_| ())).unwrap_or_else(|error| panic!("{error}"));
    transport
}

/// A fatal error may come with no message under way that could report it.
#[test]
fn a_fatal_error_without_a_report_rebuilds_the_instance() {
    let mock = rdkafka::mocking::MockCluster::new(1).expect("a mock cluster");
    let transport = started(&mock.bootstrap_servers());
    probe::deliver(&transport);
    let first = transport.shared.seat.current().expect("an instance");
    ffi::raise_fatal(first.client());
    probe::deliver(&transport);
    let second = transport.shared.seat.current().expect("an instance");
    assert!(!Arc::ptr_eq(&first, &second));
    let reason = first.book().given_up().expect("a reason");
    // Not only that there was one: librdkafka refuses messages with "fatal error", and says elsewhere which.
    assert!(reason.class == Class::Fatal && reason.reason.contains(ffi::GIVEN_UP), "{reason}");
}

/// librdkafka may keep a message for ever after a fatal error: retiring the instance reports on it all the same,
/// as possibly delivered, and what librdkafka says later finds an empty slot.
#[test]
fn a_message_librdkafka_never_reports_on_is_reported_failed() {
    let book = book::Book::new(Role::Producing);
    let (share, now) = (Arc::new(share::Share::default()), Instant::now());
    let ticket = || crate::transport::Ticket::new(Arc::new(Nobody));
    let slot = book.enter(ticket(), &share, 10, STAMPED, now);
    assert!(!share.is_empty() && !book.wait_empty(Duration::ZERO));
    assert_eq!(book.settle_rest(|_, _| ()), 1);
    assert!(book.wait_empty(Duration::ZERO) && share.is_empty());
    book.settle(slot, |_| panic!("the late report finds nothing"));
    let next = book.enter(ticket(), &share, 10, STAMPED, now);
    assert_ne!(next, slot, "nor somebody else's message");
}

/// `close` found nothing owned, and ended the transport, while the last report was still on its way to the producer.
#[test]
fn an_instance_is_empty_only_after_the_last_report_and_its_partition_has_room_before() {
    let book = book::Book::new(Role::Producing);
    let (share, now) = (Arc::new(share::Share::default()), Instant::now());
    let slot = book.enter(crate::transport::Ticket::new(Arc::new(Nobody)), &share, 10, STAMPED, now);
    let news = book.acknowledge(slot, now, |ticket| {
        assert!(share.is_empty() && !book.awaits_proof(&share, now) && !book.wait_empty(Duration::ZERO));
        ticket.delivered(crate::message::Position::Offset { partition: 0, offset: 0 });
    });
    assert!(news && book.wait_empty(Duration::ZERO));
}

struct Nobody;

impl crate::transport::Recipient for Nobody {
    fn report(self: Arc<Self>, _: crate::transport::Outcome) {}
}

#[test]
fn a_transport_starts_once_and_takes_nothing_after_close() {
    let transport = KafkaTransport::new(KafkaConfig::new(["localhost:1"])).unwrap_or_else(|error| panic!("{error}"));
    // Waits for metadata, for which nobody asks yet.
    assert!(probe::submit(&transport, Message::to("t")).is_some());
    transport.start(Monitor::new(1 << 20, |_| (), |_| ())).unwrap_or_else(|error| panic!("{error}"));
    assert!(transport.start(Monitor::new(1 << 20, |_| (), |_| ())).is_err());
    transport.close(Duration::ZERO);
    assert!(probe::submit(&transport, Message::to("t")).is_none());
}

/// Batches that a topic's limit refuses were sent as large as ever after each rebuild, and refused again.
#[test]
fn after_a_batch_was_refused_as_too_large_the_next_instance_sends_smaller_ones() {
    use rdkafka::types::{RDKafkaApiKey::Produce, RDKafkaRespErr as Error};
    let mock = rdkafka::mocking::MockCluster::new(1).expect("a mock cluster");
    mock.create_topic("t", 1, 1).expect("a topic");
    // All ten in one batch.
    let transport = started_with(KafkaConfig::new([mock.bootstrap_servers()]).option("linger.ms", "300"));
    probe::deliver(&transport);
    mock.request_errors(Produce, &[Error::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let outcomes: Vec<_> = (0..10).filter_map(|_| probe::submit(&transport, Message::to("t").payload("p"))).collect();
    assert_eq!(outcomes.len(), 10);
    outcomes.iter().for_each(|outcome| assert!(!matches!(outcome.recv(), Ok(crate::transport::Outcome::Delivered(_)))));
    probe::deliver(&transport);
    assert_eq!(transport.shared.batch.smaller(), Some(16 << 10));
}

/// Whether the instance in use is this one.
fn is_at_work(transport: &KafkaTransport, instance: &Arc<Instance>) -> bool {
    transport.shared.seat.holds(instance)
}

#[test]
fn another_client_takes_over_without_a_failure() {
    use crate::transport::Outcome;
    let mock = rdkafka::mocking::MockCluster::new(1).expect("a mock cluster");
    mock.create_topic("t", 1, 1).expect("a topic");
    let transport = started(&mock.bootstrap_servers());
    probe::deliver(&transport);
    let (shared, former) = (&transport.shared, transport.shared.seat.current().expect("an instance"));
    mock.broker_round_trip_time(-1, Duration::from_millis(200)).expect("a slow broker");
    let submit = || probe::submit(&transport, Message::to("t").payload("p")).expect("taken");
    let mut outcomes: Vec<_> = (0..5).map(|_| submit()).collect();
    renewal::tests::offer(shared);
    shared.events.send(Event::Renewed).expect("the keeper listens");
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_at_work(&transport, &former) || shared.renewal.is_switching() {
        assert!(Instant::now() < deadline, "no client took over");
        outcomes.push(submit());
        std::thread::sleep(Duration::from_millis(5));
    }
    outcomes.push(submit());
    for outcome in outcomes {
        let outcome = outcome.recv_timeout(Duration::from_secs(60));
        assert!(matches!(outcome, Ok(Outcome::Delivered(_))), "{outcome:?}");
    }
    assert!(former.book().given_up().is_none());
}

/// A broker that hangs must not make the others wait for the change; but if it hangs because the client is not let in any
/// more, the change is what it waits for.
#[test]
fn while_a_partition_is_stalled_another_client_takes_over_only_from_one_that_is_locked_out() {
    use rdkafka::ClientContext;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    let mock = rdkafka::mocking::MockCluster::new(2).expect("a mock cluster");
    mock.create_topic("t", 2, 1).expect("a topic");
    mock.partition_leader("t", 0, Some(1)).expect("a leader");
    mock.partition_leader("t", 1, Some(2)).expect("a leader");
    let transport = started_with(KafkaConfig::new(mock.bootstrap_servers().split(',')));
    probe::deliver(&transport);
    let (shared, former) = (&transport.shared, transport.shared.seat.current().expect("an instance"));
    mock.broker_round_trip_time(1, Duration::from_secs(600)).expect("a broker that hangs");
    let to = |partition| Message::to("t").payload("p").partition(partition);
    let stuck = probe::submit(&transport, to(0)).expect("taken");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !shared.topics.is_stalled(Instant::now()) {
        assert!(Instant::now() < deadline, "not stalled");
        std::thread::sleep(Duration::from_millis(10));
    }
    renewal::tests::offer(shared);
    renewal::switch(shared);
    assert!(is_at_work(&transport, &former));
    let healthy = probe::submit(&transport, to(1)).expect("taken").recv_timeout(Duration::from_secs(60));
    assert!(matches!(healthy, Ok(crate::transport::Outcome::Delivered(_))), "{healthy:?}");

    mock.broker_down(1).expect("it is down");
    former.client().context().error(KafkaError::Global(RDKafkaErrorCode::SSL), "certificate verify failed");
    renewal::switch(shared);
    assert!(!is_at_work(&transport, &former) && shared.seat.current().is_some());
    assert!(!matches!(stuck.recv_timeout(Duration::from_secs(60)), Ok(crate::transport::Outcome::Delivered(_))));
}

/// A topic whose settings had been asked for when the instance left its place was never asked about again.
#[test]
fn questions_about_settings_that_go_down_with_their_instance_are_asked_again() {
    use crate::message::Route;
    // Nobody listens there: the question stays open.
    let transport = started("127.0.0.1:1");
    let (shared, now) = (&transport.shared, Instant::now());
    let topic = Arc::new(topics::Topic::new(Route { transport: "kafka".into(), destination: "t".into() }, now));
    topic.state().know(vec![true]);
    let pauses = times::Pauses { seldom: Duration::ZERO, often: Duration::ZERO, at_first: Duration::ZERO };
    let instance = shared.seat.current().expect("an instance");
    let mut inquiries = inquiries::Inquiries::default();
    inquiries.ask(shared, &instance, std::slice::from_ref(&topic), now);
    assert!(!topic.times().begin_asking(now, &pauses), "a question is open");
    shared.seat.vacate(closed()).expect("it was in its place");
    metadata::tick(shared, now, &mut 0, &mut inquiries);
    assert!(topic.times().begin_asking(now, &pauses));
}

/// As long as anything was acknowledged, what a hung partition owned kept its time, however old it became.
#[test]
fn what_a_stalled_partition_owns_gets_another_time_although_others_move() {
    let (times, now) = (Arc::new(times::TopicTimes::default()), Instant::now());
    times.learn(&times::Times::default(), "t", rules::Rules { retention: Some(1_000), ..rules::Rules::default() });
    let book = book::Book::new(Role::Producing);
    let [hung, other] = [(); 2].map(|()| Arc::new(share::Share::of(&times)));
    let at = |seconds| now + Duration::from_secs(seconds);
    let ticket = || crate::transport::Ticket::new(Arc::new(Nobody));
    let enter = |share, now| book.enter(ticket(), share, 10, STAMPED, now);
    let pass = |now| {
        let slot = enter(&other, now);
        book.acknowledge(slot, now, |ticket| ticket.withdraw());
    };
    enter(&hung, at(0));
    assert!(!book.is_overdue(at(1)), "it is not stalled yet");
    assert!(book.is_overdue(at(4)), "nothing moves");
    pass(at(4));
    assert!(!book.is_overdue(at(4)), "a young instance is not given up for one partition of several");
    pass(at(100));
    assert!(book.is_overdue(at(100)));
    enter(&hung, at(100));
    let first = book::Book::new(Role::Producing);
    let slot = first.enter(ticket(), &other, 10, STAMPED, at(99));
    assert!(!first.is_overdue(at(100)), "a partition that moves is waited for");
    first.settle(slot, |ticket| ticket.withdraw());
    book.settle_rest(|ticket, _| ticket.withdraw());
}
