//! `check` and `repair` in company: beside a producer that rotates and recycles, on an outbox that is held, killed in
//! the middle, and on what only several faults together bring about.
#![cfg(all(feature = "cli", feature = "testing"))]

mod check_support;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use check_support::{Made, builder, groups, program};
use outlast::admin::{self, AdminErrorKind, FindingKind, Severity};
use outlast::testing::Broker;
use outlast::{Message, Mode};
use tempfile::TempDir;

fn rounds(default: u64) -> u64 {
    std::env::var("OUTLAST_TEST_ROUNDS").map_or(default, |text| text.parse().expect("OUTLAST_TEST_ROUNDS is a number"))
}

/// Every segment is used again and again while the check reads it.
#[test]
fn beside_a_producer_that_rotates_and_recycles_nothing_is_found() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let outbox = dir.path().join("outbox");
    broker.latency(Duration::from_millis(3));
    let producer = builder(&outbox, &broker).mode(Mode::WriteAhead).open_blocking().unwrap();
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = rounds(60);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let messages = (0..50).map(|_| {
                        let number = sent.fetch_add(1, Ordering::Relaxed);
                        Message::to("orders").key(format!("k{}", number % 9)).payload(vec![7; 3000])
                    });
                    pollster::block_on(producer.send_all(messages.collect::<Vec<_>>())).unwrap();
                }
            });
        }
        let begun = Instant::now();
        let mut pending = 0;
        let found = (0..rounds).find_map(|round| {
            // A segment or three further on.
            common::wait_until("messages are sent", check_support::LONG, || sent.load(Ordering::Relaxed) > round * 60);
            let report = admin::check(&outbox).unwrap();
            assert_eq!(report.holder, Some(std::process::id()));
            pending += report.pending;
            (report.severity() > Some(Severity::Harmless)).then_some((round, report))
        });
        over.store(true, Ordering::Relaxed);
        assert!(found.is_none(), "{found:#?}");
        let (sent, took) = (sent.load(Ordering::Relaxed), begun.elapsed().as_secs_f32());
        println!("{rounds} checks beside {sent} messages, {pending} seen pending, 0 findings, {took:.1} s");
    });
    producer.blocking_drained(check_support::LONG).unwrap();
    producer.blocking_close(Duration::from_secs(10)).unwrap();
    let report = admin::check(&outbox).unwrap();
    assert_eq!((report.findings.len(), report.pending), (0, 0), "{:?}", report.findings);
}

#[test]
fn a_repair_is_refused_while_a_producer_has_the_outbox_and_a_check_is_not() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let outbox = dir.path().join("outbox");
    let producer = builder(&outbox, &broker).open_blocking().unwrap();
    for words in [&["repair"][..], &["repair", "--yes"]] {
        let output = common::run(&[words, &["--outbox", outbox.to_str().unwrap()]].concat(), b"");
        let pid = std::process::id().to_string();
        assert!(output.code == Some(1) && output.stderr.contains(&pid), "{output:?}");
    }
    assert!(matches!(admin::repair(&outbox).unwrap_err().kind(), AdminErrorKind::Held { .. }));
    assert_eq!(program(&["check"], &outbox).0, 0);
    producer.blocking_close(Duration::from_secs(10)).unwrap();
    let none = dir.path().join("none");
    assert_eq!(common::run(&["check", "--outbox", none.to_str().unwrap()], b"").code, Some(1));
    assert!(!none.exists());
}

#[test]
fn what_a_later_release_wrote_is_named_and_left_alone() {
    let made = Made::new(0, false, 100);
    let newest = made.segments("wal").pop().unwrap();
    made.edit(&newest, |bytes| {
        bytes[8] = 2;
        let crc = crc32fast::hash(&[&bytes[48..56], &bytes[..100]].concat());
        bytes[100..104].copy_from_slice(&crc.to_le_bytes());
    });
    let before = made.files();
    let report = admin::check(made.outbox()).unwrap();
    let newer = report.findings.iter().find(|one| one.kind == FindingKind::NewerFormat).expect("it is named");
    assert!(newer.stops_start && newer.severity == Severity::Damage, "{newer:?}");
    assert!(report.pending > 50, "the rest is read: {report:?}");
    let (code, repair) = program(&["repair", "--yes"], &made.outbox());
    assert_eq!((code, repair["remaining"][0]["kind"].as_str()), (1, Some("newer_format")), "{repair:#}");
    assert!(made.files() == before, "something was written");
}

#[test]
fn damaged_dead_letters_are_named_by_their_numbers_and_the_others_stay() {
    let made = Made::new(20, true, 20);
    assert_eq!(admin::dead_letters(made.outbox()).unwrap().len(), 3);
    let segment = made.segments("dead").into_iter().find(|path| !groups(path).is_empty()).unwrap();
    let group = groups(&segment)[0];
    made.edit(&segment, |bytes| bytes[group.offset + 200] ^= 1);
    let report = admin::check(made.outbox()).unwrap();
    let bad = report.findings.iter().find(|one| one.severity == Severity::Damage).expect("it is named");
    assert!(bad.path.starts_with("dead") && bad.lost == group.count, "{bad:?}");
    assert_eq!((report.pending, report.dead), (20, 3 - group.count));
    let repair = admin::repair(made.outbox()).unwrap();
    assert!(!repair.report.is_damaged() && repair.remaining.is_empty(), "{repair:?}");
    assert_eq!(repair.report.pending, 20, "no message was given up for a dead letter");
    assert_eq!(admin::dead_letters(made.outbox()).unwrap().len() as u64, 3 - group.count);
    assert_eq!(made.deliver().len(), 20);
}

/// A damaged frame some of whose messages were settled already was set aside again at each start, for ever: the log
/// drops a settlement whose first LSN is settled, as one that it has seen before.
#[test]
fn a_damaged_frame_that_is_settled_in_part_is_set_aside_once() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let outbox = dir.path().join("outbox");
    broker.down();
    let producer = builder(&outbox, &broker).open_blocking().unwrap();
    let messages: Vec<Message> = (0..400)
        .map(|n| Message::to(if n % 8 == 7 { "shut" } else { "open" }).key("k").payload(format!("{n}")))
        .collect();
    pollster::block_on(producer.send_all(messages)).unwrap();
    broker.reject("shut", outlast::transport::Class::Hold);
    broker.up();
    assert!(broker.wait_for(350, check_support::LONG));
    producer.blocking_close(Duration::from_secs(5)).unwrap();
    let looked = admin::peek(&outbox, 1000).unwrap();
    let pending: BTreeSet<u64> = looked.iter().map(|one| one.lsn).collect();
    assert_eq!(pending.len(), 50);
    let segments = fs::read_dir(outbox.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let in_part = segments.filter(|path| path.file_name().unwrap().len() == 20).find_map(|path| {
        let groups = groups(&path);
        let group = groups.iter().skip(1).find(|group| {
            let mut left = pending.range(group.first_lsn..group.first_lsn + group.count);
            group.count > 3 && left.next().is_some_and(|lsn| *lsn != group.first_lsn)
        });
        group.copied().map(|group| (path, group))
    });
    let (segment, group) = in_part.expect("a frame of several messages, the first of them settled, another not");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[group.offset + 100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let lost =
        pending.iter().filter(|lsn| (group.first_lsn..group.first_lsn + group.count).contains(lsn)).count() as u64;

    let report = admin::check(&outbox).unwrap();
    assert_eq!(report.lost, lost, "{report:#?}");
    // The drainer comes across it, as a repair would.
    let broker = Broker::new();
    let producer = builder(&outbox, &broker).open_blocking().unwrap();
    producer.blocking_drained(check_support::LONG).unwrap();
    producer.blocking_close(Duration::from_secs(5)).unwrap();
    let report = admin::check(&outbox).unwrap();
    assert_eq!((report.lost, report.set_aside), (0, lost), "{report:#?}");
    assert!(!report.is_damaged(), "{report:#?}");
}

/// Killed anywhere, a repair leaves an outbox that the next one puts in order, with the same outcome.
#[test]
fn a_repair_that_is_killed_in_the_middle_is_done_by_the_next() {
    let made = Made::new(0, false, 200);
    let segments = made.segments("wal");
    let group = groups(&segments[1])[1];
    let names =
        [segments[3].clone(), segments[4].clone()].map(|path| path.strip_prefix(made.outbox()).unwrap().to_owned());
    let bad = segments[1].strip_prefix(made.outbox()).unwrap();
    let all = made.pending();
    let rounds = rounds(15);
    let mut rng = fastrand::Rng::with_seed(common::seed("repair killed"));
    let mut killed = 0;
    for round in 0..rounds {
        let copy = made.copy();
        copy.edit(&copy.outbox().join(bad), |bytes| bytes[group.offset + 200] ^= 1);
        let [a, b] = names.clone().map(|name| copy.outbox().join(name));
        fs::rename(&a, copy.path("x")).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(copy.path("x"), &b).unwrap();
        fs::remove_file(copy.path("IDENTITY")).unwrap();
        for _ in 0..3 {
            let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_outlast"))
                .args(["repair", "--yes", "--outbox", copy.outbox().to_str().unwrap()])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let until = Instant::now() + Duration::from_micros(rng.u64(2_000..40_000));
            while Instant::now() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_micros(200));
            }
            killed += u64::from(child.try_wait().unwrap().is_none());
            let _ = child.kill();
            child.wait().unwrap();
        }
        let repair = admin::repair(copy.outbox()).unwrap();
        assert!(!repair.report.is_damaged() && repair.remaining.is_empty(), "round {round}: {repair:#?}");
        let lost = group.first_lsn..group.first_lsn + group.count;
        let expected: BTreeSet<&Vec<u8>> =
            all.iter().filter(|(lsn, _)| !lost.contains(lsn)).map(|(_, payload)| payload).collect();
        let delivered = copy.deliver();
        assert!(delivered.iter().collect::<BTreeSet<_>>() == expected, "round {round}: {} delivered", delivered.len());
    }
    println!("{rounds} outboxes, {killed} repairs killed, 0 messages lost beyond the damage");
}
