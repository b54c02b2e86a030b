//! Syncs that fail, on a disk that then loses what was not synced, and says yes when it is asked again (row 9).
//!
//! The log lies on a disk in memory (`ModelStorage`), the rest of the outbox in a real directory. A producer stores
//! messages while one of its syncs fails, once or each from then on; then the power is cut. Whatever was acknowledged,
//! before the failure or after it, must be there; so nothing may have been acknowledged on a second sync of the bytes
//! that the first one lost.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use outlast::internals::wal::{Fault, ModelStorage, Operation};
use outlast::testing::Broker;
use outlast::{Message, SendErrorKind};

use crate::script::{firsts, settings};

const EIO: i32 = 5;
const LIMIT: Duration = Duration::from_secs(20);
const GROUPS: u64 = 14;
const TOGETHER: u64 = 3;

/// Which sync fails.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    pub number: usize,
    pub for_good: bool,
    pub seed: u64,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, for_good, seed } = self;
        write!(f, "sync {number} fails {}, seed {seed}", if *for_good { "for good" } else { "once" })
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Synced {
    pub syncs: usize,
    pub accepted: usize,
    pub refused: usize,
}

/// One run; with no site, one where nothing fails.
pub fn run(directory: &Path, site: Option<Site>) -> Synced {
    let seed = site.map_or(0, |site| site.seed);
    let (storage, broker) = (ModelStorage::new(seed), Broker::new());
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&syncs);
    storage.on_call(move |_, call| {
        let is_sync = matches!(call, Operation::Sync(_) | Operation::SyncDirectory(_));
        let number = is_sync.then(|| counted.fetch_add(1, Ordering::AcqRel))?;
        let fails = site.is_some_and(|site| number == site.number || site.for_good && number > site.number);
        fails.then_some(Fault::Error(EIO))
    });
    let opened = settings(directory, &broker).storage(Arc::new(storage.clone())).open_blocking();
    let producer = opened.expect("an empty outbox syncs nothing of its log");
    broker.down();
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for group in 0..GROUPS {
        let numbers = group * TOGETHER..(group + 1) * TOGETHER;
        let sent: Vec<_> = numbers.map(|number| (number, producer.send(message(number)))).collect();
        for (number, future) in sent {
            match pollster::block_on(future) {
                Ok(_) => accepted.push(name(number)),
                Err(error) => {
                    assert_eq!(error.kind(), SendErrorKind::Storage, "{error}");
                    assert!(error.possibly_delivered(), "its bytes may be on the disk: {error}");
                    refused += 1;
                }
            }
        }
    }
    // The power is cut: from here on nothing of this process reaches the disk.
    let after = storage.crash(seed ^ 1);
    storage.on_call(|_, _| Some(Fault::Stop));
    // It has to let go of the lock; what it says of its disk is of no interest any more.
    let _ = producer.blocking_close(Duration::ZERO);
    drop(producer);

    broker.up();
    let opened = settings(directory, &broker).storage(Arc::new(after)).open_blocking();
    let producer = opened.unwrap_or_else(|error| panic!("opens after the power cut: {error}"));
    let drained = producer.blocking_drained(LIMIT);
    assert!(drained.is_ok(), "{drained:?}: {:?}", producer.health());
    let lost = producer.stats().set_aside;
    producer.blocking_close(LIMIT).expect("closes on a disk that works");
    let (arrived, _) = firsts(&broker.delivered());
    let missing: Vec<&String> = accepted.iter().filter(|name| !arrived.contains(*name)).collect();
    assert!(missing.is_empty(), "acknowledged and lost ({lost} set aside): {missing:?}");
    Synced { syncs: syncs.load(Ordering::Acquire), accepted: accepted.len(), refused }
}

fn message(number: u64) -> Message {
    Message::to("orders").key(key(number)).payload(format!("{}:{}", name(number), "x".repeat(2_500)))
}

fn name(number: u64) -> String {
    format!("{}:{number}", key(number))
}

fn key(number: u64) -> String {
    format!("k{}", number % 3)
}
