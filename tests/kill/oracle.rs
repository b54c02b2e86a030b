//! What the world outside the killed process saw, and the judgement on it.
//!
//! Nothing that is judged lies in the process that is killed: what the broker took goes to the file `delivered`, in one
//! write a message, before it is reported; what was accepted to `acked`, behind the `Ok`; what was refused to
//! `refused`. Everything about a message follows from its number, so that a changed byte or an invented message shows.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::AddAssign;
use std::path::Path;

use outlast::testing::Broker;
use outlast::{Message, SendErrorKind, admin};

use crate::shows::assert_rising;

/// Keys there are; the route of each is its own.
pub const KEYS: u64 = 6;
/// What the broker refuses for good.
pub const POISON: &str = "POISON";
/// The route in write-ahead mode.
pub const AHEAD: &str = "ahead";
/// The route without order.
pub const LOOSE: &str = "loose";

/// Numbers of a life, about. Those of a later one are higher: what is pending from before comes first.
pub const NUMBERS: u64 = 1_000_000;
/// Below it all messages are large, so that a segment holds few of them.
pub const LARGE: u64 = 1_000;

/// Spreads the numbers, so that length and kind look random and are known to both sides.
fn mixed(number: u64) -> u64 {
    let mixed = (number ^ 0x5bf0_3635).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

pub fn key(number: u64) -> u64 {
    number % KEYS
}

/// Whether the broker refuses it for good: one in forty.
pub fn is_poison(number: u64) -> bool {
    mixed(number) % 40 == 7
}

/// Whether its future is dropped: one in five.
pub fn is_unwatched(number: u64) -> bool {
    (mixed(number) >> 40) % 5 == 2
}

fn topic(number: u64) -> &'static str {
    match key(number) {
        0 => AHEAD,
        1 => LOOSE,
        _ => "topic",
    }
}

fn payload(number: u64) -> String {
    let poison = if is_poison(number) { POISON } else { "" };
    let is_large = number < LARGE || mixed(number) % 50 == 3;
    let length = if is_large { 6_000 } else { (mixed(number) >> 20) as usize % 600 };
    format!("{}:{number}:{poison}{}", key(number), "x".repeat(length))
}

pub fn message(number: u64) -> Message {
    Message::to(topic(number)).key(key(number).to_string()).payload(payload(number))
}

/// Appends lines, one write each. A kill may tear one, for want of memory even in its middle: a whole one ends in `END`.
pub struct Lines(File);

/// The end of a whole line.
const END: &str = " .";

impl Lines {
    pub fn to(dir: &Path, name: &str) -> Self {
        let mut file = OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap();
        // Whoever wrote before may have torn its last line.
        file.write_all(b"\n").expect("the oracle's disk works");
        Self(file)
    }

    pub fn put(&mut self, line: fmt::Arguments<'_>) {
        self.0.write_all(format!("{line}{END}\n").as_bytes()).expect("the oracle's disk works");
    }
}

/// The whole lines of a file, in words. A torn one was never said.
pub fn read(dir: &Path, name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    // Without its last line feed a line may still be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let words = |line: &str| line.strip_suffix(END).map(|line| line.split(' ').map(str::to_owned).collect());
    whole.lines().filter_map(words).collect()
}

/// A broker that puts down what it takes, and refuses poison.
pub fn broker(dir: &Path) -> Broker {
    let broker = Broker::new();
    let mut file = Lines::to(dir, "delivered");
    broker.append_to(move |message| {
        let payload = message.payload.expect("a payload");
        let number = std::str::from_utf8(&payload).ok().and_then(|text| text.split(':').nth(1)).expect("a number");
        let key = String::from_utf8(message.key.expect("a key").to_vec()).expect("text");
        let crc = crc32fast::hash(&payload);
        file.put(format_args!("{} {number} {} {key} {crc:08x}", message.id, message.destination));
    });
    broker.reject_message(POISON);
    broker
}

/// Puts down what became of the messages one thread sent.
pub struct Answers {
    acked: Lines,
    refused: Lines,
    implied: Lines,
    unwatched: Vec<u64>,
}

impl Answers {
    pub fn to(dir: &Path) -> Self {
        let lines = |name| Lines::to(dir, name);
        Self { acked: lines("acked"), refused: lines("refused"), implied: lines("implied"), unwatched: Vec::new() }
    }

    /// A message was sent and its future dropped.
    pub fn nobody_watched(&mut self, number: u64) {
        if topic(number) != LOOSE && !is_poison(number) {
            self.unwatched.push(number);
        }
    }

    pub fn put(&mut self, number: u64, answer: &Result<outlast::Receipt, outlast::SendError>) {
        match answer {
            Ok(receipt) => {
                self.acked.put(format_args!("{} {number}", receipt.id()));
                // A lane keeps its order, so what was sent before it on its lane is safe as well.
                let implied = self.unwatched.extract_if(.., |earlier| key(*earlier) == key(number));
                implied.for_each(|earlier| self.implied.put(format_args!("{earlier}")));
            }
            Err(error) => {
                let kind = error.kind();
                self.refused.put(format_args!("{number} {kind:?} {}", error.possibly_delivered()));
            }
        }
    }
}

/// How many messages were answered, one way or the other.
pub fn answered(dir: &Path) -> usize {
    read(dir, "acked").len() + read(dir, "refused").len()
}

/// How many messages were refused in this way.
pub fn refusals(dir: &Path, kind: &str) -> usize {
    read(dir, "refused").iter().filter(|line| line[1] == kind).count()
}

/// Puts down which messages lie dead, before an operator throws them away or sends them again.
pub fn note_dead(dir: &Path, name: &str) {
    let mut file = Lines::to(dir, name);
    for letter in admin::dead_letters(dir.join("outbox")).unwrap() {
        file.put(format_args!("{}", letter.id));
    }
}

/// What is allowed.
pub struct Bounds {
    pub kills: usize,
    /// Messages that each kill may make the broker see twice.
    pub window: usize,
    /// How `send` may refuse a message.
    pub refusals: &'static [SendErrorKind],
    /// Two processes sent at a time: order holds within what each had accepted.
    pub side_by_side: bool,
}

impl Bounds {
    pub fn new(kills: usize, window: usize) -> Self {
        Self { kills, window, refusals: &[SendErrorKind::Full], side_by_side: false }
    }
}

/// Figures, for the line at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub kills: usize,
    pub acked: usize,
    pub delivered: usize,
    pub duplicates: usize,
    pub bound: usize,
    pub dead: usize,
    pub refused: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.kills += other.kills;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.duplicates += other.duplicates;
        self.bound += other.bound;
        self.dead += other.dead;
        self.refused += other.refused;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, acked, delivered, duplicates, bound, dead, refused } = self;
        write!(f, "{kills} kills, {acked} acknowledged, 0 lost, {delivered} delivered, {dead} dead, ")?;
        write!(f, "{refused} refused, {duplicates} duplicates (bound {bound})")
    }
}

/// Judges an outbox that was drained and closed. Fails if anything acknowledged is gone, anything is invented, changed
/// or out of order, or too much came twice.
pub fn judge(dir: &Path, bounds: &Bounds) -> Tally {
    let delivered = read(dir, "delivered");
    let numbers = as_sent(&delivered);
    let dead = dead_as_sent(dir);
    let acked = read(dir, "acked");
    let purged: HashSet<String> = read(dir, "purged").into_iter().flatten().collect();
    let is_kept = |id: &str| numbers.contains_key(id) || dead.contains_key(id) || purged.contains(id);
    let lost: Vec<_> = acked.iter().filter(|line| !is_kept(&line[0])).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged are lost: {:?}",
        lost.len(),
        acked.len(),
        &lost[..lost.len().min(5)]
    );
    for line in &acked {
        let known = numbers.get(&line[0]).or_else(|| dead.get(&line[0]));
        assert!(known.is_none_or(|number| *number == line[1]), "acknowledged {line:?}, arrived as {known:?}");
    }
    let arrived: HashSet<&str> = numbers.values().map(String::as_str).collect();
    // Where the disk may refuse, what nobody watched may have been refused.
    let is_implied = !bounds.refusals.contains(&SendErrorKind::Storage);
    let implied = if is_implied { read(dir, "implied") } else { Vec::new() };
    let lost: Vec<_> = implied.iter().flatten().filter(|number| !arrived.contains(number.as_str())).collect();
    assert!(
        lost.is_empty(),
        "{} of {} that nobody watched, and behind which their lane was acknowledged, are lost: {:?}",
        lost.len(),
        implied.len(),
        &lost[..lost.len().min(5)]
    );
    if bounds.side_by_side {
        let accepted: HashSet<&str> = acked.iter().map(|line| line[0].as_str()).collect();
        assert_in_order(delivered.iter().filter(|line| accepted.contains(line[0].as_str())), life_and_key);
    } else {
        assert_in_order(delivered.iter(), |line| line[3].clone());
    }
    let refused = judge_refusals(dir, &arrived, bounds);
    let lost_replies: usize = read(dir, "lost-replies").iter().map(|line| line[0].parse::<usize>().unwrap()).sum();
    let bound = bounds.kills * bounds.window + lost_replies + read(dir, "requeued").len();
    let duplicates = delivered.len() - numbers.len();
    assert!(duplicates <= bound, "{duplicates} came twice; the bound is {bound} ({lost_replies} replies were lost)");
    let (acked, delivered, dead) = (acked.len(), delivered.len(), dead.len());
    Tally { kills: bounds.kills, acked, delivered, duplicates, bound, dead, refused }
}

/// Each id's number. Fails unless every message came to its place as it was sent, under one id.
fn as_sent(delivered: &[Vec<String>]) -> HashMap<String, String> {
    let mut numbers = HashMap::new();
    let mut ids = HashMap::new();
    for line in delivered {
        let number: u64 = line[1].parse().unwrap();
        let crc = format!("{:08x}", crc32fast::hash(payload(number).as_bytes()));
        let sent = [topic(number).to_owned(), key(number).to_string(), crc];
        assert_eq!(line[2..], sent, "message {number} is invented or was changed");
        let first = numbers.entry(line[0].clone()).or_insert_with(|| line[1].clone());
        assert_eq!(*first, line[1], "id {} stands for two messages", line[0]);
        let id = ids.entry(number).or_insert(&line[0]);
        assert_eq!(*id, &line[0], "message {number} came under two ids");
    }
    numbers
}

/// The dead letters' ids and numbers. Only poison may be dead.
fn dead_as_sent(dir: &Path) -> HashMap<String, String> {
    let letters = admin::dead_letters(dir.join("outbox")).unwrap();
    letters
        .into_iter()
        .map(|letter| {
            let text = String::from_utf8(letter.payload.expect("a payload").to_vec()).expect("text");
            let number: u64 = text.split(':').nth(1).expect("a number").parse().expect("a number");
            assert_eq!(text, payload(number), "a dead letter was changed");
            assert!(is_poison(number), "message {number} is dead and is no poison: {}", letter.reason);
            (letter.id.to_string(), number.to_string())
        })
        .collect()
}

/// A process's own part of a key.
fn life_and_key(line: &[String]) -> String {
    let number: u64 = line[1].parse().unwrap();
    format!("{} of life {}", line[3], number / NUMBERS)
}

/// Each lane's messages first came in the order in which they were sent; what was dead and sent again gave up its place.
fn assert_in_order<'a>(delivered: impl Iterator<Item = &'a Vec<String>>, lane: impl Fn(&[String]) -> String) {
    let mut lanes: HashMap<String, Vec<u64>> = HashMap::new();
    let mut seen = HashSet::new();
    for line in delivered.filter(|line| line[2] != LOOSE) {
        let number: u64 = line[1].parse().unwrap();
        if seen.insert(&line[0]) && !is_poison(number) {
            lanes.entry(lane(line)).or_default().push(number);
        }
    }
    lanes.iter().for_each(|(lane, numbers)| assert_rising(lane, numbers));
}

/// What was refused as certainly not delivered never came.
fn judge_refusals(dir: &Path, arrived: &HashSet<&str>, bounds: &Bounds) -> usize {
    let refused = read(dir, "refused");
    for line in &refused {
        let allowed = bounds.refusals.iter().any(|kind| format!("{kind:?}") == line[1]);
        assert!(allowed, "message {} was refused: {}", line[0], line[1]);
        let denied = line[2] == "false" && arrived.contains(line[0].as_str());
        assert!(!denied, "message {} was refused as {} and arrived all the same", line[0], line[1]);
    }
    refused.len()
}
