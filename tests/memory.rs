//! Memory is bounded by configuration, whatever the backlog (DESIGN.md 1.5): resident size with messages of 200 bytes
//! pending, while they are stored, at rest after a restart, and while they are drained.
//!
//! With the default settings, on a broker in memory that keeps nothing, in a process of its own. `OUTLAST_TEST_PENDING`
//! is the number of messages (1,000,000). What the process itself takes, the broker and the test included, counts.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod shows;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use outlast::testing::Broker;
use outlast::{Message, Producer};
use shows::{LONG, myself, setting, work};

/// Kibibytes.
const LIMIT: u64 = 128 << 10;
/// Sends under way at a time.
const UNDER_WAY: usize = 1_000;
/// Keys: fewer than slots, more than anybody could keep apart in memory for nothing.
const KEYS: u64 = 50_000;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

fn open(dir: &Path, broker: &Broker) -> Producer {
    let builder = Producer::builder().outbox(dir.join("outbox")).custom_transport("memory", broker.transport());
    builder.lock_wait(LONG).open_blocking().expect("the outbox opens")
}

#[test]
#[ignore = "run by the other test as a child process"]
fn child() {
    let Some(work) = work() else { return };
    let [phase, dir, count] = &work[..] else { panic!("{work:?}") };
    let (dir, count): (&Path, u64) = (Path::new(dir), count.parse().expect("a number"));
    let broker = Broker::new();
    broker.append_to(|_| {});
    broker.down();
    let producer = open(dir, &broker);
    match phase.as_str() {
        "store" => {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut under_way = std::collections::VecDeque::new();
                for number in 0..count {
                    let message = Message::to("orders").key(format!("key-{}", number % KEYS)).payload(vec![b'x'; 200]);
                    under_way.push_back(producer.send(message));
                    if under_way.len() == UNDER_WAY {
                        let first = under_way.pop_front().expect("it is full");
                        assert!(!first.await.expect("accepted").is_delivered());
                    }
                }
                for send in under_way {
                    assert!(!send.await.expect("accepted").is_delivered());
                }
            });
            assert_eq!(producer.stats().pending, count);
        }
        "rest" => assert_eq!(producer.stats().pending, count),
        "drain" => {
            broker.up();
            producer.blocking_drained(Duration::from_secs(300)).expect("drained");
        }
        other => panic!("{other}"),
    }
    println!("resident {}", resident());
    producer.blocking_close(Duration::ZERO).expect("closed");
}

fn run(phase: &str, dir: &Path, count: u64) -> u64 {
    let child = myself(&[&phase, &dir, &count.to_string()]).stdout(Stdio::piped()).output().expect("a child");
    let printed = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{phase}: {printed}");
    let line =
        printed.lines().find_map(|line| Some(line.split_once("resident ")?.1)).unwrap_or_else(|| panic!("{printed}"));
    line.parse().expect("a number")
}

#[test]
fn a_backlog_takes_no_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let count = setting("OUTLAST_TEST_PENDING", 1_000_000);
    for phase in ["store", "rest", "drain"] {
        let most = run(phase, dir.path(), count);
        println!("{phase}: at most {:.1} MiB resident with {count} messages pending", most as f64 / 1024.0);
        assert!(most <= LIMIT, "{phase}: {most} KiB; {LIMIT} are allowed");
    }
}
