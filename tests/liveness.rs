//! Nothing that is stuck holds up what is not, and what was stuck goes on by itself: in one process, without opening the
//! outbox anew.

#![cfg(feature = "testing")]

#[path = "shows/faulty.rs"]
mod faulty;
mod shows;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use faulty::{Faulty, open_on};
use outlast::testing::Broker;
use outlast::transport::{Class, Handover, Monitor, Refused, StartError, Transport};
use outlast::{Config, Message, Mode, OnPoison, Outgoing, Producer, SendErrorKind};
use shows::{LONG, builder, builder_from, duplicates, in_order, numbered};
use tempfile::TempDir;

/// Attempts follow each other quickly.
fn quick() -> Config {
    let (base, cap) = (Duration::from_millis(1), Duration::from_millis(5));
    Config { backoff_base: base, backoff_cap: cap, first_attempt: Duration::from_millis(100), ..Config::default() }
}

fn open(config: Config, dir: &Path, broker: &Broker) -> Producer {
    builder_from(Producer::builder().config(config), dir, broker).open_blocking().expect("the producer opens")
}

/// A route that was blocked stayed so for ever if the message it was tried with was one that the broker never takes:
/// that one's own lane was blocked instead, and nobody tried the route again.
#[test]
fn a_route_goes_on_when_what_it_was_tried_with_is_refused_for_good() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.reject("t", Class::Hold);
    broker.reject_message("poison");
    let producer = open(quick(), dir.path(), &broker);
    producer.blocking_send(Message::to("t").key("poisoned").payload("poison")).unwrap();
    for number in 0..50 {
        producer.blocking_send(numbered("t", "healthy", number)).unwrap();
    }
    broker.accept("t");
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    assert_eq!((producer.stats().dead, in_order(&broker.delivered())["healthy"].len()), (1, 50));
    producer.blocking_close(LONG).unwrap();
}

/// The same when the message had used up its attempts. Those of the next one count from its own first.
#[test]
fn a_route_goes_on_when_what_it_was_tried_with_has_used_up_its_attempts() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.reject("t", Class::Hold);
    let events = Config { max_attempts: Some(3), ..quick() };
    let producer = open(events, dir.path(), &broker);
    let attempts = || producer.stats().attempts;
    for number in 0..50 {
        producer.blocking_send(numbered("t", "a", number)).unwrap();
    }
    let begun = Instant::now();
    while producer.stats().dead < 3 {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let (dead, tried) = (producer.stats().dead, attempts());
    assert!(tried >= 3 * dead, "{dead} were given up after {tried} attempts in all");
    broker.accept("t");
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    let delivered = in_order(&broker.delivered()).values().map(Vec::len).sum::<usize>() as u64;
    assert_eq!(delivered + producer.stats().dead, 50);
    producer.blocking_close(LONG).unwrap();
}

/// A partition without a leader fails nothing and reports nothing. After a restart the drainer began with one message: if
/// that was one of the partition's, nothing else of any topic was delivered until the leader came back; and if not, then
/// as soon as the partition owned as much as it may.
#[test]
fn a_partition_that_hangs_holds_up_itself_alone() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(4);
    broker.down();
    let config = Config { mode: Mode::WriteAhead, ..quick() };
    let producer = open(config.clone(), dir.path(), &broker);
    let message = |number: u64| {
        let partition = number % 4;
        numbered("t", &format!("<{partition}>"), number).partition(partition as i32)
    };
    // The first that is tried belongs to the one that hangs, and so do more than it may own.
    let stuck = (0..3_000).map(|number| message(number * 4));
    let others = (0..300).map(|number| message(number / 3 * 4 + number % 3 + 1));
    pollster::block_on(producer.send_all(stuck.chain(others))).unwrap();
    producer.blocking_close(LONG).unwrap();

    broker.pause_partition(0);
    broker.up();
    let producer = open(config, dir.path(), &broker);
    assert!(broker.wait_for(300, LONG), "{} delivered: {:?}", broker.delivered().len(), producer.stats());
    broker.resume_partition(0);
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    assert_eq!(in_order(&broker.delivered()).values().map(Vec::len).sum::<usize>(), 3_300);
    producer.blocking_close(LONG).unwrap();
}

/// Each partition may own 2,000 messages: five that hang owned the whole window, and nothing else was sent.
#[test]
fn partitions_that_hang_do_not_keep_the_window_to_themselves() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(8);
    let config = Config { window_messages: 600, mode: Mode::WriteAhead, ..quick() };
    let config = Config { first_attempt: Duration::from_secs(5), ..config };
    let producer = open(config, dir.path(), &broker);
    let message =
        |partition: u64, number: u64| numbered("t", &format!("<{partition}>"), number).partition(partition as i32);
    // The drainer begins with one message at a time, and has to have seen that the broker takes more.
    producer.blocking_send_all((0..2_000).map(|number| message(7, number))).unwrap();
    producer.blocking_drained(LONG).unwrap();
    (0..6).for_each(|partition| broker.pause_partition(partition));
    let stuck = (0..200).flat_map(|number| (0..6).map(move |partition| message(partition, number)));
    pollster::block_on(producer.send_all(stuck)).unwrap();
    assert!(broker.wait_for_owned(600, LONG), "they fill the window: {:?}", producer.stats());
    let others = (2_000..2_200).flat_map(|number| (6..8).map(move |partition| message(partition, number)));
    pollster::block_on(producer.send_all(others)).unwrap();
    assert!(broker.wait_for(2_400, LONG), "{} delivered: {:?}", broker.delivered().len(), producer.stats());
    (0..6).for_each(|partition| broker.resume_partition(partition));
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    let delivered = broker.delivered();
    assert_eq!((duplicates(&delivered), in_order(&delivered).values().map(Vec::len).sum::<usize>()), (0, 3_600));
    producer.blocking_close(LONG).unwrap();
}

/// The time that the drainers of this process have used, in hundredths of a second.
#[cfg(target_os = "linux")]
fn drainers_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let used = |stat: String| -> Option<u64> {
        let (name, rest) = (stat.split(['(', ')']).nth(1)?, stat.rsplit(')').next()?);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        name.starts_with("outlast-drain-s")
            .then(|| fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
    };
    stats.filter_map(used).sum()
}

/// While the whole transport waited, a lane whose time had come was no reason to sleep: the drainer went round and
/// round, on a whole core, for up to thirty seconds at a time.
#[test]
#[cfg(target_os = "linux")]
fn a_drainer_that_may_try_nothing_sleeps() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.reject_message("poison");
    let (base, cap) = (Duration::from_secs(20), Duration::from_secs(20));
    let config = Config { backoff_base: base, backoff_cap: cap, on_poison: OnPoison::Hold, ..quick() };
    // A name of its own: other tests of this process have drainers, too.
    let producer = Producer::builder()
        .config(config)
        .outbox(dir.path().join("outbox"))
        .custom_transport("s", broker.transport())
        .open_blocking()
        .unwrap();
    for lane in 0..20 {
        producer.blocking_send(Message::to("t").key(format!("{lane}")).payload("poison")).unwrap();
    }
    // From here on it has room for nothing, which is the whole transport's failure, though it is there.
    broker.capacity(0);
    producer.blocking_send(numbered("t", "a", 1)).unwrap();
    let begun = Instant::now();
    while producer.stats().transports[0].up {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = drainers_time();
    std::thread::sleep(Duration::from_secs(1));
    let used = drainers_time() - before;
    assert!(used < 30, "the drainer used {used} hundredths of a second in one that it had nothing to do in");
}

/// `close` waited while the drainer handed over more and more; when the grace had passed, what was in flight was cut off
/// and came again after the next start.
#[test]
fn close_in_the_middle_of_a_drain_waits_for_what_is_in_flight_and_doubles_nothing() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let config = Config { window_messages: 200, first_attempt: LONG, ..quick() };
    let producer = open(config.clone(), dir.path(), &broker);
    broker.down();
    let messages = (0..5_000).map(|number| numbered("t", &format!("<{}>", number % 7), number));
    pollster::block_on(producer.send_all(messages)).unwrap();
    broker.latency(Duration::from_millis(200));
    broker.up();
    assert!(broker.wait_for(500, LONG));
    let closed = producer.blocking_close(LONG).unwrap();
    assert!(closed.pending > 1_000, "it went on handing over: {closed:?}");
    assert_eq!(producer.blocking_close(LONG).unwrap(), closed, "whoever closes again is told the same");

    broker.latency(Duration::ZERO);
    let producer = open(config, dir.path(), &broker);
    producer.blocking_drained(LONG).unwrap();
    assert_eq!((duplicates(&broker.delivered()), broker.delivered().len()), (0, 5_000));
    producer.blocking_close(LONG).unwrap();
}

struct CannotStart;

impl Transport for CannotStart {
    fn start(&self, _: Monitor) -> Result<(), StartError> {
        Err(StartError("no such certificate".into()))
    }
    fn submit(&self, _: Handover) -> Result<(), Refused> {
        unreachable!("nothing is submitted to what did not start")
    }
    fn close(&self, _: Duration) {}
}

/// The first transport's drainer ran when the second could not start: it kept the outbox, and delivered from it, while
/// every further start in this process was refused.
#[test]
fn a_start_that_fails_delivers_nothing_and_lets_go_of_the_outbox() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.down();
    let producer = open(quick(), dir.path(), &broker);
    producer.blocking_send(numbered("t", "a", 1)).unwrap();
    producer.blocking_close(LONG).unwrap();
    broker.up();

    let both = builder(dir.path(), &broker).custom_transport("other", Arc::new(CannotStart));
    let error = both.open_blocking().expect_err("one of them cannot start");
    assert!(error.to_string().contains("no such certificate"), "{error}");
    assert_eq!(broker.delivered().len(), 0, "nothing was handed over");

    let producer = builder(dir.path(), &broker).lock_wait(Duration::ZERO).open_blocking().expect("nobody holds it");
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}

/// A ticket that is dropped within `submit`, by a panic or without one, reported into the lock that the caller held: whoever
/// sent to that slot afterwards hung.
#[test]
fn a_transport_that_panics_or_drops_what_it_is_given_keeps_nobody_and_loses_nothing() {
    for panics in [false, true] {
        let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
        let submitted = AtomicU64::new(0);
        let submit = move |inner: &dyn Transport, handover: Handover| {
            // First attempts and messages from the outbox, alone and with others.
            if !submitted.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) {
                return inner.submit(handover);
            }
            drop((!panics).then_some(handover).ok_or("planted").unwrap());
            Ok(())
        };
        let faulty = Faulty { inner: broker.transport(), submit: Box::new(submit), partition: |_| None };
        let producer = open_on(faulty, quick(), dir.path());
        for number in 0..60 {
            producer.blocking_send(numbered("t", &format!("key-{}", number % 4), number / 4)).unwrap();
        }
        producer.blocking_drained(LONG).unwrap();
        let delivered = in_order(&broker.delivered());
        assert!(delivered.len() == 4 && delivered.values().all(|numbers| numbers.len() == 15), "{delivered:?}");
        assert!(producer.stats().stored > 0);
        producer.blocking_close(LONG).unwrap();
    }
}

/// A drainer's thread that ended left what was stored where it was, and said nothing.
#[test]
fn a_drainer_that_panicked_is_told_of_and_the_next_start_delivers() {
    fn partition(_: &Outgoing) -> Option<i32> {
        let thread = std::thread::current();
        assert!(thread.name() != Some("outlast-drain-memory"), "planted");
        None
    }
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.down();
    let submit = |inner: &dyn Transport, handover| inner.submit(handover);
    let faulty = Faulty { inner: broker.transport(), submit: Box::new(submit), partition };
    let producer = open_on(faulty, quick(), dir.path());
    producer.blocking_send(numbered("t", "a", 1)).unwrap();
    broker.up();
    let begun = Instant::now();
    let alert = loop {
        let told = |alert: &String| alert.starts_with("memory: the drainer panicked") && alert.contains("planted");
        if let Some(alert) = producer.health().alerts.into_iter().find(told) {
            break alert;
        }
        assert!(begun.elapsed() < LONG, "{:?}", producer.health());
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(!producer.stats().transports[0].up, "{alert}");
    producer.blocking_close(LONG).unwrap();

    let producer = open(quick(), dir.path(), &broker);
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(in_order(&broker.delivered())["a"], [1]);
    producer.blocking_close(LONG).unwrap();
}

/// A window full of messages, and as many that waited for it, were a reason to say that the outbox is full; so was a log
/// that was just opening the segment for the first of them.
#[test]
fn a_broker_slower_than_its_callers_fills_the_outbox_and_refuses_nothing() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let config = Config { window_messages: 10, first_attempt: LONG * 10, ..quick() };
    let producer = open(config, dir.path(), &broker);
    broker.pause();
    let sent: Vec<_> =
        (0..100).map(|number| producer.try_send(numbered("t", &number.to_string(), 0)).unwrap()).collect();
    let begun = Instant::now();
    while producer.stats().stored < 80 {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    broker.resume();
    let delivered = sent.into_iter().map(pollster::block_on).filter(|receipt| receipt.as_ref().unwrap().is_delivered());
    assert_eq!(delivered.count(), 20);
    producer.blocking_drained(LONG).unwrap();
    assert_eq!((duplicates(&broker.delivered()), in_order(&broker.delivered()).len()), (0, 100));
    producer.blocking_close(LONG).unwrap();
}

/// What was stored at once took the space that is kept for first attempts; and all transports' messages waited for space in
/// one queue.
#[test]
fn one_transport_that_is_down_and_fills_the_outbox_does_not_stop_the_others() {
    let (dir, down, healthy) = (TempDir::new().unwrap(), Broker::new(), Broker::new());
    let producer = Producer::builder()
        .config(Config {
            max_bytes: Some(256 << 10),
            segment_bytes: 64 << 10,
            max_message_bytes: 8 << 10,
            first_attempt: LONG,
            ..quick()
        })
        .outbox(dir.path().join("outbox"))
        .custom_transport("down", down.transport())
        .custom_transport("healthy", healthy.transport())
        .open_blocking()
        .unwrap();
    down.down();
    let send = |number: u64| producer.send(numbered("t", "a", number).header("filler", vec![0; 2_000]));
    let mut waiting = Vec::new();
    for number in 0.. {
        waiting.push(send(number));
        // They wait for space: more than one, so that others would come behind them.
        if producer.stats().waiting_for_space > 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let receipt = producer.blocking_send(numbered("t", "b", 1).via("healthy")).unwrap();
    assert!(receipt.is_delivered(), "{receipt:?}");
    down.up();
    let count = waiting.len();
    waiting.into_iter().for_each(|future| drop(pollster::block_on(future).unwrap()));
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(in_order(&down.delivered())["a"].len(), count);
    producer.blocking_close(LONG).unwrap();
}

/// Whoever queued for space just after `close` had looked into the queue was never answered.
#[test]
fn whoever_sends_while_somebody_closes_is_answered() {
    for _ in 0..20 {
        let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
        broker.down();
        let limits =
            Config { max_bytes: Some(256 << 10), segment_bytes: 64 << 10, max_message_bytes: 8 << 10, ..quick() };
        let producer = open_with(limits, dir.path(), &broker);
        let sender = producer.clone();
        let sending = std::thread::spawn(move || {
            for number in 0.. {
                let sent = pollster::block_on(sender.send(numbered("t", "a", number).header("filler", vec![0; 4_000])));
                match sent.map_err(|error| error.kind()) {
                    Ok(_) => {}
                    Err(SendErrorKind::Closed) => return,
                    Err(kind) => panic!("{kind:?}"),
                }
            }
        });
        let begun = Instant::now();
        while producer.stats().waiting_for_space == 0 {
            assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        }
        producer.blocking_close(LONG).unwrap();
        sending.join().unwrap();
    }
}

fn open_with(config: Config, dir: &Path, broker: &Broker) -> Producer {
    let builder = Producer::builder().config(config).outbox(dir.join("outbox"));
    builder.custom_transport("memory", broker.transport()).open_blocking().expect("the producer opens")
}

/// Times that the clock cannot add up panicked in the caller, or in a thread that somebody waited for.
#[test]
fn for_ever_is_a_time() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let config = Config { first_attempt: Duration::MAX, space_wait: Duration::MAX, ..quick() };
    let producer = open(config, dir.path(), &broker);
    assert!(producer.blocking_send(numbered("t", "a", 1)).unwrap().is_delivered());
    pollster::block_on(producer.drained(Duration::MAX)).unwrap();
    assert_eq!(producer.blocking_close(Duration::MAX).unwrap().pending, 0);
}

/// Each block kept its reading of the log, with a file open and a frame in memory, from one probe to the next: with a
/// thousand lanes that were blocked the process had no descriptors left.
#[cfg(target_os = "linux")]
#[test]
fn blocked_lanes_keep_no_files_open() {
    const LANES: u64 = 400;
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.reject_message("poison");
    let open = || {
        let builder = builder_from(Producer::builder().config(quick()), dir.path(), &broker);
        builder.on_poison(OnPoison::Hold).open_blocking().expect("the producer opens")
    };
    let producer = open();
    for lane in 0..LANES {
        producer.blocking_send(Message::to("t").key(lane.to_string()).payload("poison")).unwrap();
    }
    producer.blocking_close(Duration::ZERO).unwrap();
    drop(producer);
    // After a restart nothing of the log is in memory.
    let producer = open();
    let segments = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let files = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        files.filter(|path| path.starts_with(dir.path()) && path.extension().is_some_and(|ext| ext == "seg")).count()
    };
    let (begun, mut most) = (Instant::now(), 0);
    while producer.stats().attempts < 5 * LANES {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        most = most.max(segments());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(most < 50, "{most} segments were open at a time");
    broker.accept_message("poison");
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    producer.blocking_close(LONG).unwrap();
}

/// A partition that was not known when a message was handed over (of Kafka, before the topic is) was not known to be what
/// held it up: after a restart nothing else was delivered while that partition hung, and a first attempt that was late on it
/// had the whole transport wait.
#[test]
fn a_partition_that_is_chosen_late_and_hangs_holds_up_itself_alone() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(4);
    let open = || {
        let submit = |inner: &dyn Transport, handover: Handover| {
            handover.ticket.placed(inner.partition(&handover.message).expect("known to the broker"));
            inner.submit(handover)
        };
        open_on(
            Faulty { inner: broker.transport(), submit: Box::new(submit), partition: |_| None },
            quick(),
            dir.path(),
        )
    };
    let producer = open();
    for number in 0..40 {
        producer.blocking_send(numbered("t", &format!("key-{number}"), 0)).unwrap();
    }
    producer.blocking_drained(LONG).unwrap();
    let on = |hangs: bool| {
        let delivered = broker.delivered().into_iter().filter(move |delivered| (delivered.partition == 0) == hangs);
        delivered.map(|delivered| shows::number_of(&delivered).0).collect::<std::collections::BTreeSet<_>>()
    };
    let (hanging, others) = (on(true), on(false));
    assert_eq!(hanging.len() + others.len(), 40);
    broker.down();
    // The one that is tried first is of the partition that hangs.
    for key in hanging.iter().chain(&others) {
        producer.blocking_send(numbered("t", key, 1)).unwrap();
    }
    producer.blocking_close(Duration::ZERO).unwrap();
    drop(producer);
    broker.pause_partition(0);
    broker.up();
    let producer = open();
    assert!(broker.wait_for(40 + others.len(), LONG), "{} {:?}", broker.delivered().len(), producer.stats());

    // A first attempt that is late there makes nobody else wait.
    producer.blocking_send(numbered("t", &hanging.iter().next().unwrap().clone(), 2)).unwrap();
    let (begun, mut number) = (Instant::now(), 2);
    while !producer.blocking_send(numbered("t", others.iter().next().unwrap(), number)).unwrap().is_delivered() {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        number += 1;
    }
    broker.resume_partition(0);
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    in_order(&broker.delivered());
    producer.blocking_close(LONG).unwrap();
}

/// One ack of a partition that hung had it delivered again; when it hung anew at once, nothing that was stored was read on,
/// of any partition.
#[test]
fn a_partition_that_hangs_again_while_it_is_delivered_holds_up_itself_alone() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(2);
    let config = Config { mode: Mode::WriteAhead, ..quick() };
    let producer = open(config, dir.path(), &broker);
    let message =
        |partition: u64, number: u64| numbered("t", &format!("<{partition}>"), number).partition(partition as i32);
    broker.pause_partition(0);
    // More than a partition may own, so that there is always one more that finds no room.
    producer.blocking_send_all((0..6_000).map(|number| message(0, number))).unwrap();
    let mut sent = 0;
    let mut others = |count: u64| {
        producer.blocking_send_all((sent..sent + count).map(|number| message(1, number))).unwrap();
        sent += count;
        let wanted = sent as usize;
        let arrived = || broker.delivered().iter().filter(|delivered| delivered.partition == 1).count();
        let begun = Instant::now();
        while arrived() < wanted {
            assert!(begun.elapsed() < LONG, "{} of {wanted}: {:?}", arrived(), producer.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    others(100);
    for _ in 0..5 {
        broker.resume_partition(0);
        while broker.delivered().iter().filter(|delivered| delivered.partition == 0).count() == 0 {
            std::thread::yield_now();
        }
        broker.pause_partition(0);
        others(100);
    }
    broker.resume_partition(0);
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    assert_eq!(in_order(&broker.delivered()).values().map(Vec::len).sum::<usize>(), 6_600);
    producer.blocking_close(LONG).unwrap();
}

/// Transports that are down kept what they owned, as much together as may be delivered and not recorded: a healthy one got
/// nothing of what was stored for it.
#[test]
fn transports_that_hang_leave_room_for_a_healthy_one() {
    let dir = TempDir::new().unwrap();
    let brokers = [Broker::new(), Broker::new(), Broker::new()];
    let config = Config {
        window_messages: 100,
        redelivery_window: 200,
        first_attempt: LONG * 10,
        mode: Mode::WriteAhead,
        ..quick()
    };
    let mut builder = Producer::builder().config(config).outbox(dir.path().join("outbox"));
    for (name, broker) in ["a", "b", "c"].into_iter().zip(&brokers) {
        builder = builder.custom_transport(name, broker.transport());
    }
    let producer = builder.open_blocking().expect("the producer opens");
    let to = |name: &str, number: u64| numbered("t", &format!("key-{number}"), number).via(name);
    for name in ["a", "b"] {
        producer.blocking_send_all((0..100).map(|number| to(name, number))).unwrap();
    }
    let begun = Instant::now();
    while brokers[..2].iter().any(|broker| broker.delivered().len() < 100) {
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    brokers[..2].iter().for_each(Broker::pause);
    for name in ["a", "b", "c"] {
        producer.blocking_send_all((100..400).map(|number| to(name, number))).unwrap();
    }
    assert!(brokers[2].wait_for(300, LONG), "{:?}", producer.stats());
    brokers[..2].iter().for_each(Broker::resume);
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}

/// Whoever watched a stored message, and kept a producer, waited for ever after `close`.
#[test]
fn who_watches_a_stored_message_hears_of_the_end() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.down();
    let producer = open(quick(), dir.path(), &broker);
    let receipt = producer.blocking_send(numbered("t", "a", 1)).unwrap();
    let outlast::Receipt::Stored { delivery, .. } = receipt else { panic!("{receipt:?}") };
    let other = producer.clone();
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(pollster::block_on(delivery)));
    producer.blocking_close(Duration::ZERO).unwrap();
    assert_eq!(answer.recv_timeout(LONG).expect("it is told"), outlast::Fate::Unknown);
    drop(other);
}

/// The same where the transport chose the partition of a first attempt only after that was late.
#[test]
fn a_partition_that_is_chosen_after_the_deadline_and_hangs_holds_up_itself_alone() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(4);
    let transport = broker.transport();
    // What goes to the partition that hangs, until that is known.
    let held = Arc::new(Mutex::new(Some(Vec::new())));
    let keep = Arc::clone(&held);
    let place = |inner: &dyn Transport, handover: Handover| {
        handover.ticket.placed(inner.partition(&handover.message).expect("known to the broker"));
        inner.submit(handover)
    };
    let submit = move |inner: &dyn Transport, handover: Handover| {
        if inner.partition(&handover.message) == Some(0)
            && let Some(held) = &mut *keep.lock().unwrap()
        {
            held.push(handover);
            return Ok(());
        }
        place(inner, handover)
    };
    let faulty = Faulty { inner: Arc::clone(&transport), submit: Box::new(submit), partition: |_| None };
    let producer = open_on(faulty, quick(), dir.path());
    broker.pause_partition(0);
    // Those that are kept return when they are late, and stored.
    for number in 0..40 {
        producer.blocking_send(numbered("t", &format!("key-{number}"), 0)).unwrap();
    }
    let late = held.lock().unwrap().take().expect("nobody took it before");
    assert!(!late.is_empty(), "some key is of that partition");
    late.into_iter().for_each(|handover| place(&*transport, handover).expect("it has room"));
    let begun = Instant::now();
    while broker.owned() == 0 || broker.delivered().len() + broker.owned() < 40 {
        assert!(begun.elapsed() < LONG, "{} {:?}", broker.delivered().len(), producer.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    broker.resume_partition(0);
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    assert_eq!(in_order(&broker.delivered()).len(), 40);
    producer.blocking_close(LONG).unwrap();
}

/// An eighth of the outbox is for dead letters. What finds no room there is held, which is told, and goes on once there is.
#[test]
fn poison_waits_where_dead_letters_have_no_room_until_some_are_purged() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let outbox = dir.path().join("outbox");
    let config = Config {
        segment_bytes: 64 << 10,
        max_message_bytes: 8 << 10,
        max_bytes: Some(4 << 20),
        mode: Mode::WriteAhead,
        ..quick()
    };
    let open = || {
        let settings = Producer::builder().config(config.clone()).outbox(&outbox);
        settings.custom_transport("memory", broker.transport()).open_blocking().expect("the producer opens")
    };
    let is_full =
        |producer: &Producer| producer.health().alerts.iter().any(|it| it.contains("no dead letter could be written"));
    broker.reject_message("poison");
    let mut producer = open();
    // More than an eighth has room for, and less than the rest. Of its own key each, for it holds up that.
    let poison = (0..200).map(|number| {
        let message = Message::to("t").key(format!("key-{number}")).payload(format!("poison {number}"));
        message.header("filler", vec![0; 4 << 10])
    });
    producer.blocking_send_all(poison).unwrap();
    let (begun, mut purged, mut full) = (Instant::now(), 0, 0);
    while purged < 200 {
        while producer.stats().pending > 0 && !is_full(&producer) {
            assert!(begun.elapsed() < LONG, "{purged} purged: {:?} {:?}", producer.health(), producer.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
        full += usize::from(is_full(&producer));
        // Others go on.
        assert!(producer.blocking_send(numbered("t", "healthy", purged)).is_ok());
        assert!(broker.wait_for(full, LONG), "{:?}", producer.stats());
        // It may say that a letter found no room.
        drop(producer.blocking_close(LONG));
        drop(producer);
        purged += outlast::admin::purge(&outbox, outlast::admin::Selection::All).unwrap();
        producer = open();
    }
    assert!(full > 0, "{purged} purged, {full} times there was no room");
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}
