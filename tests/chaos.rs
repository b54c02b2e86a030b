//! A broker that fails in every way it knows, at random, under several senders, through restarts: what `send`
//! returned `Ok` for arrives or is dead, per key in order, and twice only where a reply was lost.
//!
//! Three seeds that are always the same, so that a red run is about the change; `OUTLAST_TEST_SEED=n` begins with another
//! one (and repeats it, as far as threads allow), `OUTLAST_TEST_ROUNDS=n` makes that many.

#![cfg(feature = "testing")]

mod shows;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Config, Event, Fate, Message, MessageId, Mode, Order, Producer, Receipt, RouteConfig, SendErrorKind};
use tempfile::TempDir;

/// No run takes longer, or something hangs.
const DEADLINE: Duration = Duration::from_secs(90);
/// How long everything may take to arrive once the broker is well for good.
const HEALING: Duration = Duration::from_secs(30);

/// What became of one message, as `send` told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Delivered,
    Stored,
    Refused { possibly: bool },
    Unknown,
}

/// One message that was sent: its lane, its number there, whether it is poison, and what was told.
#[derive(Clone, Debug)]
struct Sent {
    lane: Option<String>,
    number: u64,
    poison: bool,
    told: Told,
    note: String,
}

#[derive(Default)]
struct Notes {
    sent: Mutex<HashMap<String, Sent>>,
    dead: Mutex<HashSet<MessageId>>,
    fates: AtomicU64,
    lost_replies: AtomicUsize,
    errors: Mutex<HashMap<String, usize>>,
}

/// What a seed makes of a run.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    brokers: usize,
    rounds: usize,
    senders: usize,
    keys: usize,
    round: Duration,
    payload: usize,
    poison: bool,
    max_attempts: Option<u32>,
    mode: Mode,
    slots: usize,
    window: usize,
    segment: u32,
    segments: u64,
    first_attempt: Duration,
    space_wait: Duration,
    under_way: usize,
    gentle: bool,
    /// Topics get partitions added and taken: order is promised within one count of them.
    repartition: bool,
}

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        Self {
            seed,
            brokers: rng.usize(1..=2),
            rounds: rng.usize(1..=4),
            senders: rng.usize(1..=4),
            keys: rng.usize(1..=6),
            round: Duration::from_millis(rng.u64(50..600)),
            payload: *rng.choice(&[0, 10, 300, 3_000]).unwrap(),
            poison: rng.bool(),
            max_attempts: rng.bool().then(|| rng.u32(1..20)).filter(|_| rng.u8(..4) == 0),
            mode: if rng.u8(..4) == 0 { Mode::WriteAhead } else { Mode::Direct },
            slots: 1 << rng.u32(0..8),
            window: *rng.choice(&[1, 2, 7, 50, 1_000]).unwrap(),
            segment: *rng.choice(&[64 << 10, 128 << 10, 1 << 20]).unwrap(),
            segments: rng.u64(4..40),
            first_attempt: Duration::from_millis(*rng.choice(&[1, 10, 100, 2_000]).unwrap()),
            space_wait: Duration::from_millis(*rng.choice(&[1, 50, 20_000]).unwrap()),
            under_way: *rng.choice(&[1, 5, 200]).unwrap(),
            gentle: rng.u8(..4) == 0,
            repartition: rng.u8(..6) == 0,
        }
    }

    /// How large an outbox is whose dead letters have room: an eighth is for them. Each takes a block, and each start with
    /// one a segment. A quick machine makes a thousand.
    fn for_dead_letters(&self) -> u64 {
        let some = self.poison || self.max_attempts.is_some();
        if some { 8 * (3_000 * 4096 + (self.rounds as u64 + 3) * u64::from(self.segment)) } else { 0 }
    }

    fn config(&self, dir: &TempDir) -> Config {
        let route = |transport: usize, destination: &str, order, mode| RouteConfig {
            transport: Some(format!("broker-{transport}").into()),
            destination: destination.into(),
            order: Some(order),
            mode,
            ..RouteConfig::default()
        };
        let mut routes = Vec::new();
        for broker in 0..self.brokers {
            routes.push(route(broker, "unordered", Order::None, None));
            routes.push(route(broker, "ahead", Order::Key, Some(Mode::WriteAhead)));
            for sender in 0..self.senders {
                routes.push(route(broker, &format!("stream-{sender}"), Order::Route, None));
            }
        }
        Config {
            outbox: dir.path().join("outbox"),
            mode: self.mode,
            routes,
            first_attempt: self.first_attempt,
            space_wait: self.space_wait,
            lock_wait: Duration::from_secs(30),
            window_messages: self.window,
            redelivery_window: self.window + 2_000,
            max_message_bytes: 8 << 10,
            max_bytes: Some((self.segments * u64::from(self.segment)).max(self.for_dead_letters())),
            segment_bytes: self.segment,
            slots: self.slots,
            max_attempts: self.max_attempts,
            backoff_base: Duration::from_millis(1),
            backoff_cap: Duration::from_millis(20),
            ..Config::default()
        }
    }
}

fn heal(broker: &Broker) {
    broker.lose_replies(0);
    broker.latency(Duration::ZERO);
    broker.capacity(usize::MAX);
    for destination in ["orders", "unordered", "ahead", "stream-0", "stream-1"] {
        broker.accept(destination);
    }
    broker.resume();
    broker.up();
}

/// Torments a broker until told to stop.
async fn torment(
    broker: Broker,
    notes: Arc<Notes>,
    stop: Arc<AtomicBool>,
    mut rng: Rng,
    gentle: bool,
    repartition: bool,
) {
    while !stop.load(Ordering::Acquire) {
        tokio::time::sleep(Duration::from_millis(rng.u64(0..20))).await;
        match rng.u8(0..20) {
            0..2 => broker.down(),
            2..5 => broker.up(),
            5 => broker.pause(),
            6..9 => broker.resume(),
            9 if !gentle => {
                let count = rng.usize(1..4);
                notes.lost_replies.fetch_add(count, Ordering::AcqRel);
                broker.lose_replies(count);
            }
            10 => broker.reject(*rng.choice(&["orders", "unordered", "ahead", "stream-0"]).unwrap(), Class::Hold),
            11..13 => {
                for destination in ["orders", "unordered", "ahead", "stream-0"] {
                    broker.accept(destination);
                }
            }
            13 if !gentle => broker.reject("stream-1", Class::Fatal),
            14 => broker.accept("stream-1"),
            15 => broker.capacity(*rng.choice(&[1, 3, 100]).unwrap()),
            16 => broker.capacity(usize::MAX),
            17 => broker.latency(Duration::from_millis(rng.u64(0..30))),
            18 => broker.latency(Duration::ZERO),
            19 if repartition => broker.partitions(rng.i32(1..5)),
            _ => {}
        }
    }
}

struct Sender {
    number: usize,
    plan: Plan,
    notes: Arc<Notes>,
    counters: HashMap<String, u64>,
    rng: Rng,
}

impl Sender {
    fn message(&mut self) -> (String, Sent, Message) {
        let me = self.number;
        let broker = self.rng.usize(..self.plan.brokers);
        let key = format!("{me}-{}", self.rng.usize(..self.plan.keys));
        let (destination, lane, keyed) = match self.rng.u8(0..8) {
            0..4 => ("orders".to_owned(), Some(format!("orders/{key}")), true),
            4 => ("orders".to_owned(), None, false),
            5 => ("unordered".to_owned(), None, true),
            6 => ("ahead".to_owned(), Some(format!("ahead/{key}")), true),
            _ => (format!("stream-{me}"), Some(format!("stream-{me}")), true),
        };
        let lane = lane.map(|lane| format!("{broker}/{lane}"));
        let counter = self.counters.entry(lane.clone().unwrap_or(format!("none-{me}"))).or_default();
        *counter += 1;
        let number = *counter;
        let poison = self.plan.poison && self.rng.u8(..50) == 0;
        let name = format!("{}#{number}", lane.clone().unwrap_or(format!("none-{me}")));
        let mut payload = format!("{name}|");
        if poison {
            payload.push_str("POISON");
        }
        payload.push_str(&"x".repeat(self.rng.usize(..=self.plan.payload)));
        let mut message = Message::to(destination).payload(payload).via(format!("broker-{broker}"));
        if keyed {
            message = message.key(key);
        }
        (name, Sent { lane, number, poison, told: Told::Unknown, note: String::new() }, message)
    }

    async fn run(mut self, producer: Producer, stop: Arc<AtomicBool>) -> Self {
        let mut under_way = std::collections::VecDeque::new();
        while !stop.load(Ordering::Acquire) {
            let (name, sent, message) = self.message();
            self.notes.sent.lock().unwrap().insert(name.clone(), sent);
            let future = producer.send(message);
            if self.rng.u8(..30) == 0 {
                drop(future);
            } else {
                under_way.push_back((name, future));
            }
            while under_way.len() > self.plan.under_way {
                let (name, future) = under_way.pop_front().unwrap();
                self.told(name, future.await);
            }
            if self.rng.u8(..40) == 0 {
                tokio::time::sleep(Duration::from_millis(self.rng.u64(0..5))).await;
            }
            if self.plan.under_way > 100 {
                tokio::task::yield_now().await;
            }
        }
        drop(producer);
        while let Some((name, future)) = under_way.pop_front() {
            self.told(name, future.await);
        }
        self
    }

    fn told(&self, name: String, result: Result<Receipt, outlast::SendError>) {
        let mut note = String::new();
        let told = match result {
            Ok(Receipt::Delivered { .. }) => Told::Delivered,
            Ok(Receipt::Stored { delivery, lsn, .. }) => {
                note = format!("lsn {lsn}");
                let notes = Arc::clone(&self.notes);
                tokio::spawn(async move {
                    if !matches!(delivery.await, Fate::Unknown) {
                        notes.fates.fetch_add(1, Ordering::AcqRel);
                    }
                });
                Told::Stored
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                note = error.to_string();
                let kind = format!("{:?} {}", error.kind(), error.possibly_delivered());
                *self.notes.errors.lock().unwrap().entry(kind).or_default() += 1;
                assert!(matches!(error.kind(), SendErrorKind::Full | SendErrorKind::Closed), "{error}");
                Told::Refused { possibly: error.possibly_delivered() }
            }
        };
        let mut sent = self.notes.sent.lock().unwrap();
        let sent = sent.get_mut(&name).unwrap();
        (sent.told, sent.note) = (told, note);
    }
}

async fn open(plan: &Plan, dir: &TempDir, brokers: &[Broker]) -> Producer {
    let mut builder = Producer::builder().config(plan.config(dir));
    for (number, broker) in brokers.iter().enumerate() {
        builder = builder.custom_transport(format!("broker-{number}"), broker.transport());
    }
    builder.open().await.expect("the producer opens")
}

fn files(dir: &TempDir) -> Vec<String> {
    let log = dir.path().join("outbox").join("wal");
    std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

async fn watch(notes: Arc<Notes>, mut events: outlast::Events, done: Arc<AtomicBool>) {
    loop {
        let last = done.load(Ordering::Acquire);
        while let Some(event) = events.try_next() {
            if let Event::DeadLettered { id, .. } = event {
                notes.dead.lock().unwrap().insert(id);
            }
        }
        if last {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn run(plan: Plan) {
    let (dir, notes) = (TempDir::new().unwrap(), Arc::new(Notes::default()));
    let mut rng = Rng::with_seed(plan.seed ^ 0x5eed);
    let brokers: Vec<Broker> = (0..plan.brokers).map(|_| Broker::new()).collect();
    for broker in &brokers {
        broker.partitions(rng.i32(1..4));
        if plan.poison {
            broker.reject_message("POISON");
        }
    }
    let mut senders: Vec<Sender> = (0..plan.senders)
        .map(|number| Sender {
            number,
            plan: plan.clone(),
            notes: Arc::clone(&notes),
            counters: HashMap::new(),
            rng: rng.fork(),
        })
        .collect();
    for round in 0..plan.rounds {
        let producer = open(&plan, &dir, &brokers).await;
        let (stop, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let watcher = tokio::spawn(watch(Arc::clone(&notes), producer.events(), Arc::clone(&calm)));
        let torments: Vec<_> = brokers
            .iter()
            .map(|broker| {
                tokio::spawn(torment(
                    broker.clone(),
                    Arc::clone(&notes),
                    Arc::clone(&stop),
                    rng.fork(),
                    plan.gentle,
                    plan.repartition,
                ))
            })
            .collect();
        let running: Vec<_> =
            senders.drain(..).map(|sender| tokio::spawn(sender.run(producer.clone(), Arc::clone(&stop)))).collect();
        tokio::time::sleep(plan.round).await;
        let early = rng.bool();
        if early {
            // The producer ends under the senders' hands.
            let grace = Duration::from_millis(rng.u64(0..200));
            let closed = producer.close(grace).await;
            assert!(closed.is_ok(), "round {round}: {closed:?}");
        }
        stop.store(true, Ordering::Release);
        if !early && rng.bool() {
            let closed = producer.close(Duration::from_millis(rng.u64(0..200))).await;
            assert!(closed.is_ok(), "round {round}: {closed:?}");
        }
        drop(producer);
        for sender in running {
            senders.push(sender.await.unwrap());
        }
        for torment in torments {
            torment.await.unwrap();
        }
        calm.store(true, Ordering::Release);
        watcher.await.unwrap();
    }
    brokers.iter().for_each(heal);
    let producer = open(&plan, &dir, &brokers).await;
    let calm = Arc::new(AtomicBool::new(false));
    let watcher = tokio::spawn(watch(Arc::clone(&notes), producer.events(), Arc::clone(&calm)));
    let begun = Instant::now();
    let drained = producer.drained(HEALING).await;
    let healed = begun.elapsed();
    assert!(drained.is_ok(), "{drained:?} {:#?} {:#?}", producer.stats(), producer.health());
    let stats = producer.stats();
    // Everything works as on the first day: each lane is open again.
    for broker in 0..plan.brokers {
        for key in 0..20 {
            let message =
                Message::to("orders").key(format!("new-{key}")).payload("new|").via(format!("broker-{broker}"));
            let mut sent = producer.send(message).await;
            let until = Instant::now() + Duration::from_secs(10);
            while let Err(error) = sent {
                assert!(
                    error.is_retryable() && Instant::now() < until,
                    "{error} {:?} {:?}",
                    producer.health(),
                    files(&dir)
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
                sent = producer.send(error.into_message()).await;
            }
            let receipt = sent.expect("it is accepted");
            assert!(
                receipt.is_delivered()
                    || plan.mode == Mode::WriteAhead
                    || plan.first_attempt < Duration::from_millis(2_000),
                "{receipt:?} {:#?}",
                producer.health()
            );
        }
    }
    // What was sent last may have been stored.
    let drained = producer.drained(HEALING).await;
    assert!(drained.is_ok(), "{drained:?} {:#?} {:#?}", producer.stats(), producer.health());
    calm.store(true, Ordering::Release);
    watcher.await.unwrap();
    let closed = producer.close(Duration::from_secs(5)).await.expect("it closes");
    assert_eq!(closed.pending, 0);
    judge(&plan, &brokers, &notes, stats.dead, healed);
}

fn judge(plan: &Plan, brokers: &[Broker], notes: &Notes, dead: u64, healed: Duration) {
    let sent = notes.sent.lock().unwrap().clone();
    let mut arrived: HashMap<String, usize> = HashMap::new();
    let mut lanes: HashMap<String, u64> = HashMap::new();
    let mut wrong = Vec::new();
    let mut ids: HashMap<String, MessageId> = HashMap::new();
    for broker in brokers {
        for one in broker.delivered() {
            let payload = String::from_utf8(one.payload.unwrap().to_vec()).unwrap();
            let name = payload.split('|').next().unwrap().to_owned();
            if name == "new" {
                continue;
            }
            if *ids.entry(name.clone()).or_insert(one.id) != one.id {
                wrong.push(format!("{name} arrived with two ids"));
            }
            let times = arrived.entry(name.clone()).or_default();
            *times += 1;
            let Some(sent) = sent.get(&name) else {
                wrong.push(format!("{name} was never sent"));
                continue;
            };
            if *times == 1
                && let Some(lane) = &sent.lane
            {
                let last = lanes.entry(lane.clone()).or_default();
                if *last > sent.number && !plan.repartition {
                    wrong.push(format!("{name} ({sent:?}) arrived after {last} ({:?})", notes_of(notes, lane, *last)));
                }
                *last = (*last).max(sent.number);
            }
        }
    }
    let mut accepted_poison = 0;
    let mut unknown_poison = 0;
    for (name, sent) in &sent {
        let times = arrived.get(name).copied().unwrap_or(0);
        match sent.told {
            Told::Delivered | Told::Stored if sent.poison => {
                accepted_poison += 1;
                if times > 0 || sent.told == Told::Delivered {
                    wrong.push(format!("poison {name} arrived: {sent:?}"));
                }
            }
            Told::Delivered | Told::Stored if times == 0 && plan.max_attempts.is_none() => {
                wrong.push(format!("{name} never arrived: {sent:?}"));
            }
            Told::Refused { possibly: false } if times > 0 => wrong.push(format!("{name} arrived, though {sent:?}")),
            Told::Unknown | Told::Refused { .. } => unknown_poison += u64::from(sent.poison),
            Told::Delivered | Told::Stored => {}
        }
    }
    let lost = sent.values().filter(|one| matches!(one.told, Told::Delivered | Told::Stored)).count();
    if plan.max_attempts.is_none() && !(accepted_poison..=accepted_poison + unknown_poison).contains(&dead) {
        wrong.push(format!("{dead} dead; poison: {accepted_poison} accepted, {unknown_poison} unknown"));
    }
    let never = sent
        .iter()
        .filter(|(name, one)| matches!(one.told, Told::Delivered | Told::Stored) && !arrived.contains_key(*name));
    if never.clone().count() as u64 > dead {
        wrong.push(format!("{} accepted never arrived, {dead} dead", never.count()));
    }
    let twice: usize = arrived.values().map(|times| times - 1).sum();
    let bound = notes.lost_replies.load(Ordering::Acquire);
    if twice > bound {
        wrong.push(format!("{twice} duplicates, {bound} replies lost"));
    }
    println!(
        "seed {}: {} sent, {lost} accepted, {} arrived, {twice} twice (at most {bound}), {dead} dead, {} fates, healed in \
         {healed:?}, errors {:?}",
        plan.seed,
        sent.len(),
        arrived.len(),
        notes.fates.load(Ordering::Acquire),
        notes.errors.lock().unwrap(),
    );
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

fn notes_of(notes: &Notes, lane: &str, number: u64) -> Option<Sent> {
    notes.sent.lock().unwrap().get(&format!("{lane}#{number}")).cloned()
}

#[test]
fn what_was_accepted_arrives_in_order_whatever_the_broker_does() {
    let (first, count) = (shows::setting("OUTLAST_TEST_SEED", 3_000), shows::setting("OUTLAST_TEST_ROUNDS", 3));
    if std::env::var("CHAOS_LOG").is_ok() {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .with_writer(std::io::stderr)
            .init();
    }
    for seed in first..first + count {
        let plan = Plan::draw(seed);
        println!("OUTLAST_TEST_SEED={seed} {plan:?}");
        let done = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&done);
        std::thread::spawn(move || {
            let until = Instant::now() + DEADLINE;
            while !watched.load(Ordering::Acquire) {
                if Instant::now() > until {
                    eprintln!("seed {seed} hangs");
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
        runtime.block_on(run(plan));
        done.store(true, Ordering::Release);
    }
}

#[cfg(feature = "planted")]
#[test]
fn planted_lose_gate_is_caught() {
    shows::assert_caught(
        "what_was_accepted_arrives_in_order_whatever_the_broker_does",
        "lose-gate",
        1,
        &["arrived after"],
    );
}
