//! The ledger is removed, damaged, read-only, or fails, panics or hangs at any call of its database: nothing is lost, order
//! is kept, duplicates stay within the bound, and health says so while it is so (DESIGN.md 3.4; RELIABILITY.md, row 28).
//!
//! `OUTLAST_TEST_ROUNDS=N` runs N rounds over all cases, with other bits; `OUTLAST_TEST_SEED=S` repeats one.

#![cfg(all(feature = "testing", target_os = "linux"))]

#[allow(dead_code, reason = "shared with other test programs")]
#[path = "common/disk.rs"]
mod disk;
#[allow(dead_code, reason = "shared with other test programs")]
#[path = "io_faults/runs.rs"]
mod runs;
mod shows;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use disk::{Disk, root, run};
use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Builder, Config, Message, OnPoison, Producer};
use shows::{LONG, builder_from, duplicates, in_order, numbered, setting};

const KEYS: u64 = 20;
const EACH: u64 = 24;
const REDELIVERY: usize = 300;
/// Cases that run at a time: those that hang wait for the watchdog.
const CASES: usize = 4;

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
    let stay = 2 * KEYS * EACH * (from / EACH + 1);
    let begun = Instant::now();
    while producer.stats().pending != stay {
        assert!(begun.elapsed() < LONG, "healthy lanes wait: {stay} of {:?} {:?}", producer.stats(), producer.health());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn wait_whole(producer: &Producer) {
    let begun = Instant::now();
    while !ledger_alerts(producer).is_empty() {
        assert!(begun.elapsed() < LONG, "the ledger is not whole again: {:?}", ledger_alerts(producer));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets everything through and looks at what came, `rounds` times what `fill` sends; how many came twice.
fn all_arrives(producer: &Producer, broker: &Broker, rounds: u64) -> usize {
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
    twice
}

fn ledger_alerts(producer: &Producer) -> Vec<String> {
    producer.health().alerts.into_iter().filter(|alert| alert.starts_with("ledger")).collect()
}

/// Files of the ledger's databases.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { found.extend(files(&entry)) } else { found.push(entry) }
    }
    found
}

/// What happens to the ledger's files between two runs.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Removed,
    Garbage,
    Empty,
    /// Each file ends somewhere.
    Truncated,
    /// Each file is as long as it was.
    Zeroed,
    /// Twenty bits of each file.
    Bits,
    /// Twenty bits of one file.
    BitsOfOne(usize),
    ReadOnlyFiles,
    ReadOnlyDirectory,
    /// A plain file where the directory was.
    NoDirectory,
}

const DAMAGES: [Damage; 12] = [
    Damage::Removed,
    Damage::Garbage,
    Damage::Empty,
    Damage::Truncated,
    Damage::Zeroed,
    Damage::Bits,
    Damage::BitsOfOne(0),
    Damage::BitsOfOne(1),
    Damage::BitsOfOne(2),
    Damage::ReadOnlyFiles,
    Damage::ReadOnlyDirectory,
    Damage::NoDirectory,
];

/// A damage, and the seed of its bits.
struct Damaged {
    damage: Damage,
    seed: u64,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, seed {}", self.damage, self.seed)
    }
}

/// Those that can be had here: two of them are mounts.
fn damages() -> Vec<Damage> {
    let mounts = Disk::new(16).is_some();
    let can = |damage: &Damage| mounts || !matches!(damage, Damage::ReadOnlyFiles | Damage::ReadOnlyDirectory);
    DAMAGES.into_iter().filter(can).collect()
}

impl Damaged {
    /// Whether nobody can fail to notice. A few bits sled may not see: then the ledger is silently shorter, and the log
    /// makes up for it.
    fn is_plain(&self) -> bool {
        matches!(
            self.damage,
            Damage::Removed | Damage::Garbage | Damage::ReadOnlyFiles | Damage::ReadOnlyDirectory | Damage::NoDirectory
        )
    }

    /// Does it; what is returned ends it when it is dropped.
    fn inflict(&self, ledger: &Path) -> Option<ReadOnly> {
        let mut rng = fastrand::Rng::with_seed(self.seed);
        let all = files(ledger);
        let each = |change: &mut dyn FnMut(Vec<u8>) -> Vec<u8>| {
            all.iter().for_each(|file| fs::write(file, change(fs::read(file).unwrap())).unwrap());
        };
        match self.damage {
            Damage::Removed => fs::remove_dir_all(ledger).unwrap(),
            Damage::Garbage => each(&mut |_| (0..rng.usize(1..100_000)).map(|_| rng.u8(..)).collect()),
            Damage::Empty => each(&mut |_| Vec::new()),
            Damage::Truncated => each(&mut |bytes| bytes[..rng.usize(..=bytes.len())].to_vec()),
            Damage::Zeroed => each(&mut |bytes| vec![0; bytes.len()]),
            Damage::Bits => each(&mut |bytes| flipped(bytes, &mut rng)),
            Damage::BitsOfOne(nth) => {
                let file = &all[nth % all.len()];
                fs::write(file, flipped(fs::read(file).unwrap(), &mut rng)).unwrap();
            }
            Damage::ReadOnlyFiles => return Some(ReadOnly::new(&all)),
            Damage::ReadOnlyDirectory => return Some(ReadOnly::new(&[ledger.to_path_buf()])),
            Damage::NoDirectory => {
                fs::remove_dir_all(ledger).unwrap();
                fs::write(ledger, "no directory").unwrap();
            }
        }
        None
    }
}

fn flipped(mut bytes: Vec<u8>, rng: &mut fastrand::Rng) -> Vec<u8> {
    if !bytes.is_empty() {
        for _ in 0..20 {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
    }
    bytes
}

/// Paths that even root cannot write to: bound over themselves, read-only.
struct ReadOnly(Vec<PathBuf>);

impl ReadOnly {
    fn new(paths: &[PathBuf]) -> Self {
        let mount =
            |options: &[&str], path: &Path| run(root("mount").args(options).arg(path)).expect("it can be bound");
        let mut bound = Self(Vec::new());
        for path in paths {
            mount(&["--bind", path.to_str().unwrap()], path);
            bound.0.push(path.clone());
            mount(&["-o", "remount,bind,ro"], path);
        }
        bound
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        for path in &self.0 {
            // What holds it goes away with the test.
            let _ = run(root("umount").arg("--lazy").arg(path));
        }
    }
}

/// Two runs, and what happens to the ledger in between.
fn between_two_runs(case: &Damaged) -> usize {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    fill(&producer, &broker, 0);
    producer.blocking_close(LONG).unwrap();
    let ledger = dir.path().join("outbox/ledger");
    assert!(files(&ledger).len() >= 2, "there is a ledger to damage");
    let lasting = case.inflict(&ledger);

    // A plain file in a directory's place is no outbox of ours; the operator is told at once.
    if matches!(case.damage, Damage::NoDirectory) {
        let refused = settings(dir.path(), &broker).open_blocking().expect_err("something is in the way");
        assert!(refused.to_string().contains("ledger"), "{refused}");
        fs::remove_file(&ledger).unwrap();
    }
    // Until the log was walked, which is not before the broker is there, health tells of it.
    broker.down();
    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    if case.is_plain() {
        wait_until("health tells of the ledger", || !ledger_alerts(&producer).is_empty());
    }
    broker.up();
    fill(&producer, &broker, EACH);
    let twice = all_arrives(&producer, &broker, 2);
    // Beside files that cannot be written a new database can be begun.
    if matches!(case.damage, Damage::ReadOnlyDirectory) {
        assert!(!ledger_alerts(&producer).is_empty(), "it cannot be written, and health says so");
    } else {
        wait_whole(&producer);
    }
    producer.blocking_close(LONG).unwrap();
    drop(lasting);

    let producer = settings(dir.path(), &broker).open_blocking().unwrap();
    assert_eq!(producer.stats().pending, 0);
    producer.blocking_close(LONG).unwrap();
    twice
}

fn seed() -> u64 {
    setting("OUTLAST_TEST_SEED", fastrand::u64(..1 << 32))
}

fn again(test: &str, seed: u64) -> String {
    let command = "cargo test --features cli,testing,zstd,tls,planted --test ledger_faults -- --nocapture --exact";
    format!("OUTLAST_TEST_SEED={seed} {command} {test}")
}

#[test]
fn a_ledger_that_was_removed_or_damaged_costs_nothing() {
    let (first, rounds, begun) = (seed(), setting("OUTLAST_TEST_ROUNDS", 1), Instant::now());
    let (damages, seeds) = (damages(), first..first.saturating_add(rounds));
    let cases: Vec<Damaged> =
        seeds.flat_map(|seed| damages.iter().map(move |&damage| Damaged { damage, seed })).collect();
    let again = |case: &Damaged| again("a_ledger_that_was_removed_or_damaged_costs_nothing", case.seed);
    let twice = runs::run_all(&cases, CASES, again, between_two_runs);
    println!(
        "{} damaged ledgers, seed {first}, {} messages, 0 lost, {} duplicates (bound {REDELIVERY} each), {:.0} s",
        cases.len(),
        cases.len() as u64 * 6 * KEYS * EACH,
        twice.iter().sum::<usize>(),
        begun.elapsed().as_secs_f64()
    );
}

/// What a call of the ledger's database does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    FailOnce,
    Fail,
    PanicOnce,
    Panic,
    HangOnce,
    Hang,
}

const DOES: [Does; 6] = [Does::FailOnce, Does::Fail, Does::PanicOnce, Does::Panic, Does::HangOnce, Does::Hang];

/// The names under which the hook is called.
const SITES: [&str; 9] = ["choose", "open", "remove", "lanes", "apply", "parked", "seek", "forget", "close"];

impl Does {
    fn once(self) -> bool {
        matches!(self, Self::FailOnce | Self::PanicOnce | Self::HangOnce)
    }
}

/// A call that goes wrong.
struct Wrong {
    sites: &'static [&'static str],
    does: Does,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {:?}", self.does, self.sites)
    }
}

/// Makes calls of the ledger's database go wrong, while it is set.
#[derive(Default)]
struct Trap {
    state: Mutex<Trapped>,
    opened: Condvar,
}

#[derive(Default)]
struct Trapped {
    set: bool,
    met: usize,
}

impl Trap {
    fn call(&self, wrong: &Wrong, name: &str) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        if !state.set || !wrong.sites.contains(&name) || wrong.does.once() && state.met > 0 {
            return Ok(());
        }
        state.met += 1;
        match wrong.does {
            Does::FailOnce | Does::Fail => Err("the test said so".into()),
            Does::PanicOnce | Does::Panic => {
                drop(state);
                panic!("the test said so")
            }
            Does::HangOnce | Does::Hang => {
                drop(self.opened.wait_while(state, |state| state.set).unwrap());
                Ok(())
            }
        }
    }

    fn set(&self, set: bool) {
        self.state.lock().unwrap().set = set;
        self.opened.notify_all();
    }

    fn met(&self) -> usize {
        self.state.lock().unwrap().met
    }
}

/// Two fills and a drain, while calls go wrong; then a run in which none does. How many were met, how many came twice.
fn goes_wrong(wrong: &Wrong) -> (usize, usize) {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let trap = Arc::new(Trap::default());
    // What hangs is waited for; what does not must have its time, on a machine that is busy too.
    let hangs = matches!(wrong.does, Does::Hang | Does::HangOnce);
    let watchdog = if hangs { Duration::from_secs(3) } else { Duration::from_secs(10) };
    let open = || {
        let (trap, wrong) = (Arc::clone(&trap), Wrong { sites: wrong.sites, does: wrong.does });
        let hook = move |name: &'static str| trap.call(&wrong, name);
        settings(dir.path(), &broker).ledger_hook(watchdog, hook).open_blocking().unwrap()
    };
    // These are called at the start, and again only when a new database is begun.
    let at_start = wrong.sites.iter().all(|site| ["choose", "open", "remove", "lanes"].contains(site));
    trap.set(at_start);
    let producer = open();
    fill(&producer, &broker, 0);
    trap.set(true);
    fill(&producer, &broker, EACH);
    broker.accept("nowhere");
    broker.reject("nowhere", Class::Hold);
    // What is asked once, at the start, or now and then, may be whole again before anybody looks.
    let passes = [["lanes"], ["forget"], ["close"]].iter().any(|rare| wrong.sites == rare);
    let told = trap.met() > 0 && !wrong.does.once() && !passes;
    if told {
        wait_until("health tells of the ledger", || !ledger_alerts(&producer).is_empty());
    }
    let twice = all_arrives(&producer, &broker, 2);
    if wrong.does.once() && wrong.sites != ["close"] {
        wait_whole(&producer);
    }
    // A hung one is left behind.
    let begun = Instant::now();
    producer.blocking_close(Duration::from_secs(5)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30), "closing waits for nothing that hangs: {:?}", begun.elapsed());
    trap.set(false);

    // The next run begins a new one, and writes nothing into what may wake.
    let producer = open();
    assert_eq!(producer.stats().pending, 0);
    producer.blocking_close(LONG).unwrap();
    (trap.met(), twice)
}

#[test]
fn a_ledger_that_fails_panics_or_hangs_at_any_call_costs_nothing() {
    let (seed, begun) = (seed(), Instant::now());
    let each = SITES.iter().map(std::slice::from_ref).chain([&SITES[..], &["apply", "open"]]);
    let mut cases: Vec<Wrong> = each.flat_map(|sites| DOES.map(|does| Wrong { sites, does })).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    // Each site once, then each once more with something else.
    let mut nth = HashMap::new();
    cases.sort_by_cached_key(|case| {
        let nth: &mut usize = nth.entry(case.sites).or_default();
        *nth += 1;
        *nth
    });
    cases.truncate(setting("OUTLAST_TEST_ROUNDS", 2) as usize * nth.len());
    if let Ok(only) = std::env::var("OUTLAST_TEST_CASE") {
        cases.retain(|case| case.to_string() == only);
    }
    let again = |_: &Wrong| again("a_ledger_that_fails_panics_or_hangs_at_any_call_costs_nothing", seed);
    let seen = runs::run_all(&cases, 2 * CASES, again, goes_wrong);
    let met = seen.iter().filter(|(met, _)| *met > 0).count();
    println!(
        "{} ways to go wrong, seed {seed}, {met} met, {} messages, 0 lost, {} duplicates (bound {REDELIVERY} each), {:.0} s",
        cases.len(),
        cases.len() as u64 * 6 * KEYS * EACH,
        seen.iter().map(|(_, twice)| twice).sum::<usize>(),
        begun.elapsed().as_secs_f64()
    );
    assert!(cases.len() == 1 || met * 10 >= cases.len() * 7, "most were meant to be met");
}
