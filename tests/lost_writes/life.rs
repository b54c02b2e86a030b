//! The program under test: one life of a log on the disk that forgets, in a process of its own.
//!
//! It sends for ever, through a broker that comes and goes, and is killed; or it drains what is there, and ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::testing::Broker;
use outlast::{Config, Mode, Producer, RouteConfig};

use crate::oracle::{A_LIFE, AHEAD, Lines, broker, message, payload};
use crate::shows::{LONG, builder_from};
use crate::sled_log::{SledLog, Sync};

/// Exit code of a log that cannot be opened or read.
pub const UNREADABLE: i32 = 7;
/// Sends that wait for their answer.
const UNDER_WAY: usize = 32;

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    Outbox,
    Sled(Sync),
}

impl Log {
    pub const ALL: [Self; 3] = [Self::Outbox, Self::Sled(Sync::Flush), Self::Sled(Sync::Fdatasync)];

    pub fn name(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Sled(Sync::Flush) => "sled-flush",
            Self::Sled(Sync::Fdatasync) => "sled-fdatasync",
        }
    }
}

/// What a child is to do, as its parent says it in words.
pub struct Life {
    /// Where the oracle's files are.
    pub notes: PathBuf,
    /// The disk that forgets.
    pub disk: PathBuf,
    pub log: Log,
    pub seed: u64,
    /// Counts from one; zero is the last, which drains.
    pub number: u64,
}

impl Life {
    pub fn words(&self) -> [String; 6] {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (seed, number) = (self.seed.to_string(), self.number.to_string());
        ["life".to_owned(), path(&self.notes), path(&self.disk), self.log.name().to_owned(), seed, number]
    }

    fn parse(words: &[String]) -> Self {
        let log = Log::ALL.into_iter().find(|log| log.name() == words[2]).expect("a log's name");
        let (notes, disk) = (PathBuf::from(&words[0]), PathBuf::from(&words[1]));
        Self { notes, disk, log, seed: words[3].parse().expect("a seed"), number: words[4].parse().expect("a life") }
    }
}

/// In the child: lives it.
pub fn live(words: &[String]) {
    let life = Life::parse(words);
    match (life.log, life.number) {
        (Log::Outbox, 0) => drain(&life),
        (Log::Outbox, _) => produce(&life),
        (Log::Sled(sync), number) => {
            let lived = if number == 0 { drain_sled(&life, sync) } else { produce_to_sled(&life, sync) };
            if let Err(error) = lived {
                eprintln!("sled: {error}");
                std::process::exit(UNREADABLE);
            }
        }
    }
}

fn open(life: &Life, broker: &Broker, direct: bool) -> Producer {
    let config = Config { window_messages: 64, redelivery_window: 200, ..Config::default() };
    let built = builder_from(Producer::builder().config(config), &life.disk, broker)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        .max_bytes(64 << 20);
    let ahead = RouteConfig { destination: AHEAD.into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let built = if direct { built } else { built.mode(Mode::WriteAhead) };
    built.route(ahead).first_attempt(Duration::from_millis(20)).open_blocking().expect("the outbox opens after a crash")
}

fn produce(life: &Life) {
    let mut rng = fastrand::Rng::with_seed(life.seed);
    let broker = broker(&life.notes);
    if rng.bool() {
        broker.down();
    }
    let producer = open(life, &broker, rng.bool());
    println!("open");
    // In a third of the lives nothing changes: whatever is stored in an outage stays pending.
    if rng.u8(..3) > 0 {
        let luck = fastrand::Rng::with_seed(rng.u64(..));
        std::thread::spawn(move || weather(&broker, luck));
    }
    let (tell, told) = sync_channel::<(u64, outlast::SendFuture)>(UNDER_WAY);
    let mut acks = Lines::to(&life.notes, "acked");
    std::thread::spawn(move || {
        for (number, future) in told {
            let receipt = pollster::block_on(future).expect("there is room, and the disk works");
            acks.put(&format!("{} {number}", receipt.id()));
        }
    });
    for number in life.number * A_LIFE.. {
        // The other thread has panicked if it does not listen any more.
        tell.send((number, producer.send(message(number)))).expect("the messages are accepted");
    }
}

fn weather(broker: &Broker, mut luck: fastrand::Rng) {
    loop {
        match luck.u8(..8) {
            0 | 1 => broker.down(),
            2 => broker.lose_replies(luck.usize(1..20)),
            3 => broker.pause(),
            _ => {
                broker.resume();
                broker.up();
            }
        }
        std::thread::sleep(Duration::from_micros(luck.u64(100..8_000)));
    }
}

fn drain(life: &Life) {
    let broker = broker(&life.notes);
    let producer = open(life, &broker, true);
    assert_eq!(producer.stats().set_aside, 0, "a crash damages nothing that was acknowledged");
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?}: {:?} {:?}", producer.health(), producer.stats());
    producer.blocking_close(LONG).expect("it closes");
}

fn produce_to_sled(life: &Life, sync: Sync) -> sled::Result<()> {
    let mut rng = fastrand::Rng::with_seed(life.seed);
    let mut log = SledLog::open(&life.disk.join("sled"), sync)?;
    println!("open");
    let up = Arc::new(AtomicBool::new(rng.bool()));
    let reader = log.reader();
    let (weather, mut luck) = (Arc::clone(&up), fastrand::Rng::with_seed(rng.u64(..)));
    std::thread::spawn(move || {
        loop {
            weather.store(luck.u8(..8) > 2, Ordering::Release);
            std::thread::sleep(Duration::from_micros(luck.u64(100..8_000)));
        }
    });
    let mut delivered = Lines::to(&life.notes, "delivered");
    let failed = Arc::new(Mutex::new(None));
    let failure = Arc::clone(&failed);
    std::thread::spawn(move || {
        loop {
            let more = !up.load(Ordering::Acquire)
                || deliver_one(&reader, &mut delivered).unwrap_or_else(|error| {
                    *failure.lock().expect("nobody panics") = Some(error);
                    false
                });
            if !more {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    let mut acks = Lines::to(&life.notes, "acked");
    let mut next = life.number * A_LIFE;
    loop {
        let numbers = next..next + rng.u64(1..=UNDER_WAY as u64);
        next = numbers.end;
        let payloads: Vec<String> = numbers.clone().map(payload).collect();
        log.append(&payloads)?;
        numbers.for_each(|number| acks.put(&format!("{number} {number}")));
        if let Some(error) = failed.lock().expect("nobody panics").take() {
            return Err(error);
        }
    }
}

/// False if there is none.
fn deliver_one(reader: &crate::sled_log::Reader, delivered: &mut Lines) -> sled::Result<bool> {
    reader.next(|payload| {
        let text = String::from_utf8_lossy(payload);
        delivered.delivered(text.split(':').next().unwrap_or_default(), payload);
    })
}

fn drain_sled(life: &Life, sync: Sync) -> sled::Result<()> {
    let log = SledLog::open(&life.disk.join("sled"), sync)?;
    let (reader, mut delivered) = (log.reader(), Lines::to(&life.notes, "delivered"));
    while deliver_one(&reader, &mut delivered)? {}
    Ok(())
}
