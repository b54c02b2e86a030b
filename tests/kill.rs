//! SIGKILL at random times, also during recovery: what was acknowledged is delivered, per key in order, nothing is
//! invented, and duplicates stay within the bound (DESIGN.md 1; RELIABILITY.md 1 and 3).
//!
//! Nothing that is judged lies in the process that is killed: what the broker took goes to a file in one write a
//! message, before it is reported; what was acknowledged goes to another, behind the `Ok`.

#![cfg(all(feature = "testing", unix))]

mod shows;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{Message, Mode, Producer, RouteConfig};
use shows::{LONG, assert_rising, builder_from, myself, setting, work};

const KEYS: u64 = 5;
/// Lives of an outbox before it is drained and judged.
const LIVES: u64 = 5;
const WINDOW: usize = 64;
const REDELIVERY: usize = 200;

/// Appends lines, one write each.
fn lines(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// A broker that puts down what it takes.
fn broker(dir: &Path) -> Broker {
    let broker = Broker::new();
    let mut file = lines(&dir.join("delivered"));
    broker.append_to(move |message| {
        let payload = message.payload.expect("a payload");
        let text = std::str::from_utf8(&payload).expect("text");
        file.write_all(format!("{} {text}\n", message.id).as_bytes()).expect("the oracle's disk works");
    });
    broker
}

fn open(dir: &Path, broker: &Broker, direct: bool) -> Producer {
    let config =
        outlast::Config { window_messages: WINDOW, redelivery_window: REDELIVERY, ..outlast::Config::default() };
    let built = builder_from(Producer::builder().config(config), dir, broker)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        .max_bytes(8 << 20);
    let ahead = RouteConfig { destination: "ahead".into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let built = if direct { built } else { built.mode(Mode::WriteAhead) };
    built.route(ahead).first_attempt(Duration::from_millis(20)).open_blocking().expect("the outbox opens after a kill")
}

/// Sends for ever, to a broker that comes and goes, loses replies and hangs.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(work) = work() else { return };
    let dir = Path::new(&work[0]);
    let (seed, life): (u64, u64) = (work[1].parse().unwrap(), work[2].parse().unwrap());
    let mut rng = fastrand::Rng::with_seed(seed);
    let broker = broker(dir);
    if rng.bool() {
        broker.down();
    }
    let producer = open(dir, &broker, rng.bool());
    println!("open");
    let weather = broker.clone();
    let mut lost = lines(&dir.join("lost"));
    let mut luck = fastrand::Rng::with_seed(rng.u64(..));
    std::thread::spawn(move || {
        loop {
            match luck.u8(..8) {
                0 | 1 => weather.down(),
                2 => {
                    let count = luck.usize(1..20);
                    lost.write_all(format!("{count}\n").as_bytes()).unwrap();
                    weather.lose_replies(count);
                }
                3 => weather.pause(),
                _ => {
                    weather.resume();
                    weather.up();
                }
            }
            std::thread::sleep(Duration::from_micros(luck.u64(100..8_000)));
        }
    });
    let (tell, told) = sync_channel::<(String, outlast::SendFuture)>(32);
    let mut acks = lines(&dir.join("acked"));
    std::thread::spawn(move || {
        for (text, future) in told {
            let receipt = pollster::block_on(future).expect("there is room, and the disk works");
            acks.write_all(format!("{} {text}\n", receipt.id()).as_bytes()).unwrap();
        }
    });
    // Numbers of a later life are higher: what is pending from before comes first.
    for number in life * 1_000_000.. {
        let (key, topic) = (number % KEYS, if number % KEYS == 0 { "ahead" } else { "topic" });
        let text = format!("{key}:{number}:{}", "x".repeat(rng.usize(..600)));
        let sent = producer.send(Message::to(topic).key(key.to_string()).payload(text.clone()));
        let short = text.trim_end_matches('x').to_owned();
        if tell.send((short, sent)).is_err() {
            return;
        }
    }
}

/// The whole lines of a file: id, key, number. A torn last line was never said.
fn read(path: &Path) -> Vec<(String, u64, u64)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| {
        let (id, text) = line.split_once(' ')?;
        let mut parts = text.split(':');
        Some((id.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{}: {line:?}", path.display()))).collect()
}

struct Judged {
    acked: usize,
    delivered: usize,
    duplicates: usize,
}

/// Fails if anything was lost, invented or out of order, or if too much came twice.
fn judge(dir: &Path) -> Judged {
    let (acked, delivered) = (read(&dir.join("acked")), read(&dir.join("delivered")));
    let ids: HashSet<&str> = delivered.iter().map(|(id, ..)| id.as_str()).collect();
    let lost: Vec<_> = acked.iter().filter(|(id, ..)| !ids.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} lost: {:?}", lost.len(), acked.len(), &lost[..lost.len().min(5)]);
    let mut texts: HashMap<&str, (u64, u64)> = HashMap::new();
    let mut keys: HashMap<u64, Vec<u64>> = HashMap::new();
    for (id, key, number) in &delivered {
        let known = texts.entry(id).or_insert_with(|| {
            keys.entry(*key).or_default().push(*number);
            (*key, *number)
        });
        assert_eq!(*known, (*key, *number), "one id, one message");
        assert_eq!(number % KEYS, *key, "nothing is invented");
    }
    for (id, key, number) in &acked {
        assert_eq!(texts[id.as_str()], (*key, *number), "what was acknowledged is what arrived");
    }
    keys.iter().for_each(|(key, numbers)| assert_rising(&key.to_string(), numbers));
    let duplicates = delivered.len() - texts.len();
    let lost_replies = std::fs::read_to_string(dir.join("lost")).unwrap_or_default();
    let lost_replies: usize = lost_replies.lines().map(|line| line.parse::<usize>().unwrap_or(0)).sum();
    let bound = LIVES as usize * REDELIVERY + lost_replies;
    assert!(duplicates <= bound, "{duplicates} came twice; the bound is {bound} ({lost_replies} replies were lost)");
    Judged { acked: acked.len(), delivered: delivered.len(), duplicates }
}

/// One life, ended by SIGKILL, and how long it was given.
fn live_and_die(dir: &Path, seed: u64, life: u64, rng: &mut fastrand::Rng) {
    let delay = Duration::from_micros(rng.u64(..60_000));
    // Half of them in the opening, recovery included, half while it sends.
    let while_sending = rng.bool();
    let mut child = myself(&[&dir, &seed.to_string(), &life.to_string()])
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join(format!("stderr-{life}"))).unwrap())
        .spawn()
        .unwrap();
    if while_sending {
        use std::io::{BufRead, BufReader};
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = out.any(|line| line.unwrap().ends_with("open"));
        assert!(opened, "it never opened: {}", std::fs::read_to_string(dir.join(format!("stderr-{life}"))).unwrap());
    }
    std::thread::sleep(delay);
    let ended = child.try_wait().unwrap();
    let said = || std::fs::read_to_string(dir.join(format!("stderr-{life}"))).unwrap();
    assert!(ended.is_none(), "life {life} ended by itself ({ended:?}): {}", said());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!said().contains("panicked"), "life {life}: {}", said());
}

#[test]
fn what_was_acknowledged_survives_sigkill_at_any_time() {
    let cycles = setting("OUTLAST_TEST_KILLS", 100);
    let seed = setting("OUTLAST_TEST_SEED", fastrand::u64(..));
    println!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_KILLS={cycles}");
    let begun = Instant::now();
    let (mut acked, mut delivered, mut duplicates, mut kills) = (0, 0, 0, 0);
    for outbox in 0..cycles.div_ceil(LIVES) {
        let seed = seed.wrapping_add(outbox);
        let mut rng = fastrand::Rng::with_seed(seed);
        let dir = tempfile::TempDir::new().unwrap();
        println!("outbox {outbox} seed {seed}");
        for life in 1..=LIVES {
            live_and_die(dir.path(), rng.u64(..), life, &mut rng);
            kills += 1;
        }
        let broker = broker(dir.path());
        let producer = open(dir.path(), &broker, true);
        assert_eq!(producer.stats().set_aside, 0, "a kill damages nothing");
        let drained = producer.blocking_drained(LONG);
        assert!(drained.is_ok(), "{drained:?}: {:?} {:?}", producer.health(), producer.stats());
        producer.blocking_close(LONG).unwrap();
        let judged = judge(dir.path());
        acked += judged.acked;
        delivered += judged.delivered;
        duplicates += judged.duplicates;
    }
    println!("{kills} kills, {acked} acknowledged, {delivered} delivered, {duplicates} twice; {:?}", begun.elapsed());
    assert!(acked as u64 > kills * 10, "the children did not get far enough to prove anything");
}
