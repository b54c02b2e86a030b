//! The ledger is removed, replaced by garbage or hangs: nothing is lost, order is kept, duplicates stay within the bound,
//! and health says so (DESIGN.md 3.4).

#![cfg(feature = "testing")]

mod shows;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Builder, Config, Message, OnPoison, Producer};
use shows::{LONG, builder_from, duplicates, in_order, numbered};

const KEYS: u64 = 20;
const EACH: u64 = 60;
const REDELIVERY: usize = 300;

fn settings(dir: &Path, broker: &Broker) -> Builder {
    let config = Config {
        window_messages: 100,
        redelivery_window: REDELIVERY,
        backoff_cap: Duration::from_secs(1),
        ..Config::default()
    };
    let built = builder_from(Producer::builder().config(config), dir, broker);
    built.on_poison(OnPoison::Hold)
}

/// Sends to a route that is blocked, to lanes that poison blocks and to healthy lanes, in turns. Two thirds stay.
fn fill(producer: &Producer, broker: &Broker, from: u64) {
    broker.reject("nowhere", Class::Hold);
    broker.reject_message("poison");
    let mut messages = Vec::new();
    for number in from..from + EACH {
        for key in 0..KEYS {
            messages.push(numbered("nowhere", &format!("n{key}"), number));
            messages.push(numbered("orders", &format!("o{key}"), number));
            let payload = if number == from { format!("p{key}:{number}:poison") } else { format!("p{key}:{number}") };
            messages.push(Message::to("orders").key(format!("p{key}")).payload(payload));
        }
    }
    pollster::block_on(producer.send_all(messages)).unwrap();
    wait_until("the healthy lanes are delivered", || producer.stats().pending == 2 * KEYS * EACH * (from / EACH + 1));
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets everything through and looks at what came, `rounds` times what `fill` sends.
fn all_arrives(producer: &Producer, broker: &Broker, rounds: u64) {
    broker.accept("nowhere");
    broker.accept_message("poison");
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?}: {:?}", producer.health());
    let mut delivered = broker.delivered();
    for one in &mut delivered {
        let payload = String::from_utf8(one.payload.clone().unwrap().to_vec()).unwrap();
        one.payload = Some(payload.replace(":poison", "").into());
    }
    let keys = in_order(&delivered);
    assert_eq!(keys.len() as u64, 3 * KEYS, "{:?}", keys.keys());
    for (key, numbers) in keys {
        assert_eq!(numbers, (0..rounds * EACH).collect::<Vec<_>>(), "key {key}");
    }
    let twice = duplicates(&delivered);
    assert!(twice <= REDELIVERY, "{twice} came twice");
    println!("{twice} of {} came twice", delivered.len());
}

fn ledger_alerts(producer: &Producer) -> Vec<String> {
    producer.health().alerts.into_iter().filter(|alert| alert.starts_with("ledger")).collect()
}

/// Files of the ledger's databases.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { found.extend(files(&entry)) } else { found.push(entry) }
    }
    found
}

/// Two runs, and what happens to the ledger in between.
fn between_two_runs(damage: impl FnOnce(&Path), told: bool) {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    fill(&producer, &broker, 0);
    producer.blocking_close(LONG).unwrap();
    let ledger = dir.path().join("outbox/ledger");
    assert!(!files(&ledger).is_empty(), "there is a ledger to damage");
    damage(&ledger);

    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    if told {
        wait_until("health tells of the ledger", || !ledger_alerts(&producer).is_empty());
        println!("{:?}", ledger_alerts(&producer));
    }
    fill(&producer, &broker, EACH);
    all_arrives(&producer, &broker, 2);
    wait_until("the ledger is whole again", || ledger_alerts(&producer).is_empty());
    producer.blocking_close(LONG).unwrap();

    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    assert_eq!(producer.stats().pending, 0);
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn a_ledger_that_was_removed_costs_nothing() {
    between_two_runs(|ledger| fs::remove_dir_all(ledger).unwrap(), true);
}

#[test]
fn a_ledger_of_garbage_costs_nothing() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    between_two_runs(
        |ledger| {
            for file in files(ledger) {
                let garbage: Vec<u8> = (0..rng.usize(1..100_000)).map(|_| rng.u8(..)).collect();
                fs::write(file, garbage).unwrap();
            }
        },
        true,
    );
}

#[test]
fn flipped_bits_in_the_ledger_cost_nothing() {
    for _ in 0..5 {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        // sled may not notice: then the ledger is silently shorter, and the log makes up for it.
        between_two_runs(
            |ledger| {
                for file in files(ledger) {
                    let mut bytes = fs::read(&file).unwrap();
                    for _ in 0..20 {
                        if !bytes.is_empty() {
                            let at = rng.usize(..bytes.len());
                            bytes[at] ^= 1 << rng.u8(..8);
                        }
                    }
                    fs::write(file, bytes).unwrap();
                }
            },
            false,
        );
    }
}

#[test]
fn a_ledger_of_empty_files_costs_nothing() {
    between_two_runs(|ledger| files(ledger).iter().for_each(|file| fs::write(file, b"").unwrap()), false);
}

/// Makes calls of the ledger's database hang, from when it is shut.
#[derive(Default)]
struct Trap {
    shut: Mutex<Option<&'static [&'static str]>>,
    opened: Condvar,
}

impl Trap {
    fn call(&self, name: &str) {
        let shut = self.shut.lock().unwrap();
        drop(self.opened.wait_while(shut, |shut| shut.is_some_and(|calls| calls.contains(&name))).unwrap());
    }

    fn set(&self, calls: Option<&'static [&'static str]>) {
        *self.shut.lock().unwrap() = calls;
        self.opened.notify_all();
    }
}

fn hangs_in(calls: &'static [&'static str]) {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let trap = Arc::new(Trap::default());
    let open = |trap: &Arc<Trap>| {
        let trap = Arc::clone(trap);
        let hook = move |name: &'static str| {
            trap.call(name);
            Ok(())
        };
        settings(dir.path(), &broker).ledger_hook(Duration::from_millis(500), hook).open_blocking().unwrap()
    };
    let producer = open(&trap);
    fill(&producer, &broker, 0);
    trap.set(Some(calls));
    fill(&producer, &broker, EACH);
    broker.accept("nowhere");
    broker.reject("nowhere", Class::Hold);
    wait_until("health tells of the ledger", || !ledger_alerts(&producer).is_empty());
    println!("{:?}", ledger_alerts(&producer));
    all_arrives(&producer, &broker, 2);
    // A hung one is left behind.
    let begun = Instant::now();
    producer.blocking_close(Duration::from_secs(5)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "closing waits for nothing that hangs: {:?}", begun.elapsed());
    trap.set(None);

    // The next run begins a new one, and writes nothing into what may wake.
    let producer = open(&Arc::default());
    assert_eq!(producer.stats().pending, 0);
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn a_ledger_that_hangs_while_it_writes_costs_nothing() {
    hangs_in(&["apply"]);
}

#[test]
fn a_ledger_that_hangs_while_it_is_asked_costs_nothing() {
    hangs_in(&["parked", "seek"]);
}

#[test]
fn a_ledger_that_hangs_in_everything_is_done_without() {
    hangs_in(&["choose", "open", "remove", "apply", "parked", "seek", "lanes", "forget", "close"]);
}
