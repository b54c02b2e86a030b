//! One run of a producer on a disk with a fault, and what must hold of it.
//!
//! The script goes through everything that touches the log: an outage with rotation, a drain with recycling, direct
//! sends, dead letters, a second outage on recycled segments, a close, a requeue, a last drain. A lasting fault is left
//! alone for a step after it was noticed, looked at, and taken away; the script goes on without a restart. A fault in
//! an open is answered by opening again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::internals::outbox::{Outbox, OutboxOptions};
use outlast::internals::wal::{DiskStorage, Mark, Storage};
use outlast::testing::{Broker, Delivered};
use outlast::{Builder, Config, Message, OpenErrorKind, Producer, Receipt, SendErrorKind};

use crate::disk::{Error, FaultyDisk, Lasting, Plan};

/// For one thing to happen on a disk that works.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a send waits for space: longer than the log waits before it tries again, so that one error refuses nobody.
const SPACE_WAIT: Duration = Duration::from_millis(2_500);
const KEYS: u64 = 3;
const SEGMENT: u32 = 64 << 10;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub accepted: usize,
    pub refused: usize,
    pub duplicates: usize,
    /// Calls that failed: none if the script did not come to that call this time.
    pub failed: usize,
}

struct Refused {
    text: String,
    possibly: bool,
}

/// See the module.
pub struct Script {
    directory: PathBuf,
    disk: FaultyDisk,
    plan: Option<Plan>,
    broker: Broker,
    next: u64,
    accepted: BTreeSet<String>,
    refused: Vec<Refused>,
    /// Steps since a lasting fault was noticed.
    noticed: usize,
    refused_by_disk: bool,
    look_at_status: bool,
    closed_well: bool,
}

pub fn settings(directory: &Path, broker: &Broker) -> Builder {
    let config = Config {
        first_attempt: LIMIT,
        space_wait: SPACE_WAIT,
        backoff_base: Duration::from_millis(5),
        backoff_cap: Duration::from_millis(50),
        segment_bytes: SEGMENT,
        max_message_bytes: 8 << 10,
        max_bytes: Some(24 * u64::from(SEGMENT)),
        lock_wait: LIMIT,
        slots: 1 << 10,
        ..Config::default()
    };
    Builder::default().config(config).outbox(directory.join("outbox")).custom_transport("memory", broker.transport())
}

impl Script {
    pub fn new(directory: &Path, plan: Option<Plan>) -> Self {
        Self {
            directory: directory.to_path_buf(),
            disk: FaultyDisk::over(Arc::new(DiskStorage), plan),
            plan,
            broker: Broker::new(),
            next: 0,
            accepted: BTreeSet::new(),
            refused: Vec::new(),
            noticed: 0,
            refused_by_disk: false,
            // It is written once a second: waiting for it in every run would take too long.
            look_at_status: plan.is_some_and(|plan| plan.number.is_multiple_of(5)),
            closed_well: true,
        }
    }

    pub fn disk(&self) -> &FaultyDisk {
        &self.disk
    }

    /// The whole script; panics where a claim does not hold.
    pub fn run(mut self) -> Outcome {
        self.first_life();
        self.requeue();
        self.last_life();
        self.judge()
    }

    fn first_life(&mut self) {
        let mut producer = self.open();
        self.broker.down();
        self.batches(&mut producer, 9);
        self.broker.up();
        self.drain(&producer);
        self.direct(&producer);
        self.bury(&producer);
        self.broker.down();
        self.batches(&mut producer, 8);
        self.close(producer);
    }

    fn last_life(&mut self) {
        // One that is too short is removed.
        std::fs::write(self.directory.join("outbox/wal/free-0000000000000fff.seg"), b"short").expect("a file");
        self.broker.accept_message("poison");
        self.broker.up();
        let mut producer = self.open();
        self.drain(&producer);
        self.broker.down();
        self.batches(&mut producer, 2);
        self.broker.up();
        self.drain(&producer);
        self.close(producer);
    }

    /// Opens; where that fails, the error says why, and the next one works, once the fault is gone.
    fn open(&mut self) -> Producer {
        let open = |disk: &FaultyDisk| {
            settings(&self.directory, &self.broker).storage(Arc::new(disk.clone()) as Arc<dyn Storage>).open_blocking()
        };
        match open(&self.disk) {
            Ok(producer) => producer,
            Err(error) => {
                assert_eq!(error.kind(), OpenErrorKind::Storage, "{error}");
                self.open_failed(&error.to_string());
                open(&self.disk).unwrap_or_else(|error| panic!("the next open works: {error}"))
            }
        }
    }

    fn open_failed(&self, text: &str) {
        assert!(self.disk.failed() > 0, "nothing failed, and yet: {text}");
        let outbox = self.directory.join("outbox");
        let names = ["list", "open", "read", "sync", "length of", "sync directory"];
        let named = names.iter().any(|name| text.contains(&format!("{name} {}", outbox.display())));
        assert!(named, "the error names the call and the path: {text}");
        if self.disk.is_failing() {
            self.disk.mend();
        }
    }

    /// Outage: groups of messages, that are stored or refused.
    fn batches(&mut self, producer: &mut Producer, count: usize) {
        for _ in 0..count {
            let messages: Vec<Message> = (0..3).map(|_| self.message("orders", "")).collect();
            self.send(producer, messages);
            self.step(producer);
        }
    }

    /// With the broker up, a broken disk refuses nothing; a full one may.
    fn direct(&mut self, producer: &Producer) {
        let before = self.refused.len();
        let messages: Vec<Message> = (0..4).map(|_| self.message("direct", "")).collect();
        self.send(producer, messages);
        let full = self.plan.is_some_and(|plan| matches!(plan.error, Error::NoSpace | Error::Quota));
        let refused: Vec<&str> = self.refused[before..].iter().map(|refused| refused.text.as_str()).collect();
        assert!(full || refused.is_empty(), "the broker is up: {refused:?}");
        self.step(producer);
    }

    /// Messages that the broker will never take.
    fn bury(&mut self, producer: &Producer) {
        self.broker.reject_message("poison");
        let before = self.accepted.len();
        let messages: Vec<Message> = (0..2).map(|_| self.message("orders", "poison")).collect();
        self.send(producer, messages);
        let poison = (self.accepted.len() - before) as u64;
        let buried = || producer.stats().dead == poison;
        let begun = Instant::now();
        while !buried() && !self.disk.is_failing() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.step(producer);
        self.step(producer);
        wait_until("what is poison is in the dead letters", LIMIT, buried);
        let alerts = producer.health().alerts;
        assert!(poison == 0 || alerts.iter().any(|alert| alert.contains("dead letters")), "{alerts:?}");
    }

    fn drain(&mut self, producer: &Producer) {
        if producer.blocking_drained(Duration::from_millis(1_500)).is_err() {
            self.step(producer);
            self.step(producer);
            let drained = producer.blocking_drained(LIMIT);
            assert!(drained.is_ok(), "{drained:?}: {:?} {:?}", producer.health(), producer.stats());
        }
    }

    fn close(&mut self, producer: Producer) {
        let closed = producer.blocking_close(LIMIT);
        assert!(closed.is_ok() || self.disk.failed() > 0, "nothing failed, and yet {closed:?}");
        self.closed_well &= closed.is_ok();
        self.disk_is_mended_after_a_close();
    }

    /// A fault that came with a close, or was never noticed, is not carried into the next life.
    fn disk_is_mended_after_a_close(&mut self) {
        if self.disk.is_failing() {
            self.disk.mend();
        }
    }

    /// An operator requeues the dead letters.
    fn requeue(&mut self) {
        for attempt in 0.. {
            match self.requeue_once() {
                Ok(()) => return,
                Err(error) => {
                    assert!(attempt < 2 && self.disk.failed() > 0, "{error}");
                    self.closed_well = false;
                    self.disk_is_mended_after_a_close();
                }
            }
        }
    }

    fn requeue_once(&mut self) -> Result<(), String> {
        let options = OutboxOptions {
            segment_bytes: SEGMENT,
            max_message_bytes: 8 << 10,
            max_bytes: Some(24 * u64::from(SEGMENT)),
            lock_wait: LIMIT,
            storage: Arc::new(self.disk.clone()),
            ..OutboxOptions::new(self.directory.join("outbox"))
        };
        let outbox = Outbox::open(&options).map_err(|error| {
            self.open_failed(&error.to_string());
            error.to_string()
        })?;
        let changed = outbox.change_dead(Mark::Requeued, |_, _| true).map_err(|error| error.to_string());
        let closed = outbox.close().map_err(|error| error.to_string());
        outbox.release();
        changed.and(closed)
    }

    fn message(&mut self, to: &str, what: &str) -> Message {
        let number = self.next;
        self.next += 1;
        // What is poison has lanes of its own: where it is buried, it gives up its place.
        let key = if what.is_empty() { format!("{to}{}", number % KEYS) } else { format!("{what}{number}") };
        let payload = format!("{key}:{number}:{what}{}", "x".repeat(2_500));
        Message::to(to).key(key).payload(payload)
    }

    /// Sends messages together, and looks at each answer.
    fn send(&mut self, producer: &Producer, messages: Vec<Message>) {
        let names: Vec<String> = messages.iter().map(|message| name(payload(message))).collect();
        let sent: Vec<_> = messages.into_iter().map(|message| producer.send(message)).collect();
        for (name, future) in names.into_iter().zip(sent) {
            match pollster::block_on(future) {
                Ok(Receipt::Delivered { .. } | Receipt::Stored { .. }) => drop(self.accepted.insert(name)),
                Ok(other) => panic!("a receipt of no known kind: {other:?}"),
                Err(error) => {
                    let text = format!("{name}: {error}");
                    assert!(self.disk.failed() > 0, "nothing failed, and yet {text}");
                    let full = self.plan.is_some_and(|plan| matches!(plan.error, Error::NoSpace | Error::Quota));
                    match error.kind() {
                        SendErrorKind::Storage => {}
                        SendErrorKind::Full if full => assert!(!error.possibly_delivered(), "{text}"),
                        kind => panic!("{kind:?} is not what happened: {text}"),
                    }
                    assert!(error.is_retryable(), "{text}");
                    let possibly = error.possibly_delivered();
                    let back = error.into_message();
                    assert!(self::name(payload(&back)) == name && back.id().is_some(), "the message: {text}");
                    self.refused_by_disk |= self.disk.is_failing();
                    self.refused.push(Refused { text: name, possibly });
                }
            }
        }
    }

    /// Between two steps: a lasting fault that was noticed a step ago is looked at, and mended.
    fn step(&mut self, producer: &Producer) {
        if !self.disk.is_failing() {
            return;
        }
        self.noticed += 1;
        if self.noticed < 2 {
            return;
        }
        if self.refused_by_disk {
            let told = || producer.health().alerts.iter().any(|alert| alert.starts_with("disk: "));
            wait_until("health tells of the disk", LIMIT, &told);
            if self.look_at_status {
                wait_until("the file tells of the disk", LIMIT, || {
                    // A message that still fits into the segment is taken, and then there is nothing to tell, until none does.
                    if !told() {
                        let messages = vec![self.message("orders", "")];
                        self.send(producer, messages);
                    }
                    self.storage_in_status().is_some()
                });
            }
        }
        self.disk.mend();
        self.mended(producer);
    }

    /// Without a restart: messages are taken, and nobody says any more that something is wrong.
    fn mended(&mut self, producer: &Producer) {
        let before = self.refused.len();
        // What failed is tried again each second: until then the disk may be taken for broken.
        wait_until("a message is taken again", LIMIT, || {
            let messages = vec![self.message("orders", "")];
            let refused = self.refused.len();
            self.send(producer, messages);
            self.refused.len() == refused
        });
        let again = self.refused.len() - before;
        assert!(again <= 1, "{again} messages were refused by a disk that works");
        let silent = || {
            let alerts = producer.health().alerts;
            !alerts.iter().any(|alert| alert.starts_with("disk: ") || alert.starts_with("outbox: "))
        };
        wait_until("nobody says any more that the disk is broken", LIMIT, silent);
        if self.look_at_status {
            wait_until("nor does the file", LIMIT, || self.storage_in_status().is_none());
        }
    }

    fn storage_in_status(&self) -> Option<String> {
        let text = std::fs::read(self.directory.join("outbox/status")).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(status.get("storage")?.get("reason")?.as_str()?.to_owned())
    }

    /// A last restart, on a disk that works; then everything that must hold.
    fn judge(self) -> Outcome {
        let producer = settings(&self.directory, &self.broker).open_blocking().expect("opens on a disk that works");
        let drained = producer.blocking_drained(LIMIT);
        assert!(drained.is_ok(), "{drained:?}: {:?}", producer.health());
        let (stats, health) = (producer.stats(), producer.health());
        assert_eq!((stats.pending, stats.set_aside, stats.dead), (0, 0, 0), "{health:?}");
        let disk = |alert: &String| alert.starts_with("disk") || alert.starts_with("outbox");
        assert!(!health.alerts.iter().any(disk), "{health:?}");
        producer.blocking_close(LIMIT).expect("closes on a disk that works");

        let delivered = self.broker.delivered();
        let (firsts, duplicates) = firsts(&delivered);
        for name in &self.accepted {
            assert!(firsts.contains(name), "{name} was accepted and did not arrive");
        }
        for name in &firsts {
            let refused = self.refused.iter().find(|refused| refused.text == *name);
            let honest = refused.is_none_or(|refused| refused.possibly);
            assert!(honest, "{name} was refused, certainly not delivered, and arrived");
            assert!(refused.is_some() || self.accepted.contains(name), "{name} was never sent");
        }
        let lasted = self.plan.is_some_and(|plan| plan.lasting != Lasting::Once);
        assert!(!self.closed_well || lasted || duplicates == 0, "{duplicates} twice, though each close went well");
        Outcome { accepted: self.accepted.len(), refused: self.refused.len(), duplicates, failed: self.disk.failed() }
    }
}

/// `key:number` of each message, the first time it came; the number of those that came again. Each key's numbers rise.
pub fn firsts(delivered: &[Delivered]) -> (BTreeSet<String>, usize) {
    let (mut seen, mut ids) = (BTreeSet::new(), BTreeMap::new());
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for one in delivered {
        let text = std::str::from_utf8(one.payload.as_deref().expect("a payload")).expect("text");
        let name = name(text);
        assert_eq!(*ids.entry(name.clone()).or_insert(one.id), one.id, "{name} came under two ids");
        if !seen.insert(name.clone()) {
            continue;
        }
        let (key, number) = name.split_once(':').expect("key:number");
        let number: u64 = number.parse().expect("a number");
        assert_eq!(one.key.as_deref(), Some(key.as_bytes()), "payload and key belong together");
        let before = last.insert(key.to_owned(), number);
        assert!(before.is_none_or(|before| before < number), "key {key}: {number} came after {before:?}");
    }
    let duplicates = delivered.len() - seen.len();
    (seen, duplicates)
}

fn payload(message: &Message) -> &str {
    let payload = message.payload_bytes().expect("a payload");
    std::str::from_utf8(payload).expect("text")
}

/// `key:number` of `key:number:padding`.
fn name(payload: &str) -> String {
    payload.rsplit_once(':').expect("a payload of ours").0.to_owned()
}

#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
