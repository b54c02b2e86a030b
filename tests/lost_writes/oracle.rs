//! What the world outside saw of a log under test, and the judgement on it.
//!
//! It lies on a disk that loses nothing: what was delivered goes to the file `delivered` before the log learns of it,
//! what was acknowledged to `acked`, behind the `Ok`. Everything about a message follows from its number, so that a changed
//! byte or an invented message shows.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use outlast::Message;
use outlast::testing::Broker;

pub const KEYS: u64 = 5;
/// The route that is always in write-ahead mode.
pub const AHEAD: &str = "ahead";
/// A route of the script of failing syncs: its messages wait from the first to the last life, so that whatever was
/// promised of them is seen to be kept.
pub const HELD: &str = "held";
/// Numbers of a later life are higher, since what is pending from before comes first.
pub const A_LIFE: u64 = 1_000_000;
/// Stands for a payload that no message has.
const NOBODY: u64 = u64::MAX;

/// Below it all messages are large, so that a segment of 64 KiB holds few of them.
const LARGE: u64 = 1_000;
/// Each of these has a key of its own.
pub const LONE: std::ops::Range<u64> = 900..1_000;

pub fn key(number: u64) -> u64 {
    if LONE.contains(&number) { number } else { number % KEYS }
}

/// Up to 600 bytes, or 6,000: in every other life half of them are, so that each frame needs a segment of its own.
pub fn payload(number: u64) -> String {
    let mixed = (number ^ 0x5bf0_3635).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let rare = if number / A_LIFE % 2 == 1 { 2 } else { 50 };
    let length = if number < LARGE || mixed % rare == 1 { 6_000 } else { mixed as usize % 600 };
    format!("{number}:{}", "x".repeat(length))
}

pub fn message(number: u64) -> Message {
    let topic = match key(number) {
        0 => AHEAD,
        1 if (10..LARGE).contains(&number) => HELD,
        _ => "topic",
    };
    Message::to(topic).key(key(number).to_string()).payload(payload(number))
}

/// Appends lines, one write each.
pub struct Lines(File);

impl Lines {
    pub fn to(dir: &Path, name: &str) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap())
    }

    pub fn put(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).expect("the oracle's disk works");
    }

    /// What arrived, by the id it came under. Bytes that no message has are put down as a number that none has.
    pub fn delivered(&mut self, id: &str, payload: &[u8]) {
        let text = std::str::from_utf8(payload).unwrap_or_default();
        let number = text.split(':').next().and_then(|number| number.parse().ok());
        let number = number.filter(|number| self::payload(*number) == text).unwrap_or(NOBODY);
        self.put(&format!("{id} {number}"));
    }
}

/// A broker that puts down what it takes.
pub fn broker(dir: &Path) -> Broker {
    let broker = Broker::new();
    let mut delivered = Lines::to(dir, "delivered");
    broker.append_to(move |message| {
        delivered.delivered(&message.id.to_string(), message.payload.as_deref().unwrap_or_default());
    });
    broker
}

/// How much has been acknowledged.
pub fn acked_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("acked")).map_or(0, |metadata| metadata.len())
}

/// Forgets what was acknowledged after [`acked_bytes`] was asked.
pub fn forget_acks(dir: &Path, after: u64) {
    if let Ok(file) = OpenOptions::new().write(true).open(dir.join("acked")) {
        file.set_len(after).expect("the oracle's disk works");
    }
}

/// The whole lines of a file: id and number. A torn last line was never said.
fn read(dir: &Path, name: &str) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line: &str| line.split_once(' ').and_then(|(id, number)| Some((id.to_owned(), number.parse().ok()?)));
    whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{name}: {line:?}"))).collect()
}

/// What became of the messages.
#[derive(Debug, Default)]
pub struct Verdict {
    pub acked: usize,
    pub duplicates: usize,
    /// Numbers that were acknowledged, never arrived, and do not lie in the dead letters either.
    pub lost: Vec<u64>,
    /// What else must not be.
    pub wrong: Vec<String>,
}

/// Judges by the files in `dir`; the log must have been drained, and what it has of dead letters lie in `dead`.
pub fn judge(dir: &Path) -> Verdict {
    let (acked, delivered) = (read(dir, "acked"), read(dir, "delivered"));
    let mut verdict = Verdict { acked: acked.len(), ..Verdict::default() };
    let mut firsts: HashMap<&str, u64> = HashMap::new();
    let mut keys: HashMap<u64, Vec<u64>> = HashMap::new();
    for (id, number) in &delivered {
        let known = *firsts.entry(id).or_insert_with(|| {
            keys.entry(key(*number)).or_default().push(*number);
            *number
        });
        if known != *number || *number == NOBODY {
            verdict.wrong.push(format!("{id} brought {number}, before {known}: invented, or not whole"));
        }
    }
    let dead: HashSet<String> = read(dir, "dead").into_iter().map(|(id, _)| id).collect();
    for (id, number) in &acked {
        match firsts.get(id.as_str()) {
            None if dead.contains(id) => {}
            None => verdict.lost.push(*number),
            Some(arrived) if arrived != number => verdict.wrong.push(format!("{id} is {number}, {arrived} arrived")),
            Some(_) => {}
        }
    }
    for (key, numbers) in &keys {
        if let Some(pair) = numbers.windows(2).find(|pair| pair[0] >= pair[1]) {
            verdict.wrong.push(format!("key {key}: {} came before {}", pair[0], pair[1]));
        }
    }
    verdict.duplicates = delivered.len() - firsts.len();
    verdict
}

impl Verdict {
    /// Fails if anything was lost, invented or out of order.
    #[track_caller]
    pub fn assert_clean(&self, what: &str) {
        let some = &self.lost[..self.lost.len().min(5)];
        assert!(self.lost.is_empty(), "{what}: {} of {} lost: {some:?}", self.lost.len(), self.acked);
        assert!(self.wrong.is_empty(), "{what}: {:?}", &self.wrong[..self.wrong.len().min(5)]);
    }
}
