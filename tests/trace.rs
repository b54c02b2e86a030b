//! No acknowledgement before the sync, and none for anything in a segment whose name is not durable: shown by the
//! system calls of a process that stores messages, rotating and recycling segments, as strace saw them (DESIGN.md 1.2,
//! 3.1).
//!
//! strace notes the end of a call before the thread goes on, so what the trace says happened first did happen first.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod shows;

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use outlast::testing::Broker;
use outlast::{Message, Mode, Receipt};
use shows::{LONG, builder, under, work};

const MESSAGES: usize = 1_200;
const TOGETHER: usize = 8;

/// One system call begins or ends.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Write { file: String, messages: Vec<usize> },
    Written { file: String },
    Sync { file: String },
    Synced { file: String },
    Renamed { from: String, to: String },
    Removed { file: String },
    Ack { message: usize },
}

/// Parses `strace -f -y`. Calls that failed leave no step of their end behind.
fn parse(trace: &str, wal: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut begun: HashMap<String, String> = HashMap::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ').map(|(pid, rest)| (pid, rest.trim_start())) else { continue };
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            steps.extend(begin(start, wal));
            begun.insert(pid.to_owned(), start.to_owned());
        } else if rest.starts_with("<... ") {
            let start = begun.remove(pid).unwrap_or_else(|| panic!("the end of no call: {line}"));
            steps.extend(end(&start, rest, wal));
        } else {
            steps.extend(begin(rest, wal));
            steps.extend(end(rest, rest, wal));
        }
    }
    steps
}

fn begin(call: &str, wal: &str) -> Option<Step> {
    let name = call.split('(').next()?;
    match name {
        "pwrite64" => {
            let file = file_of(call, wal)?;
            Some(Step::Write { file, messages: tokens(call, "<message ") })
        }
        // A first acknowledgement in a line of libtest's is one all the same.
        "write" if call.starts_with("write(1<") => Some(Step::Ack { message: *tokens(call, "<ack ").first()? }),
        "fdatasync" | "fsync" => Some(Step::Sync { file: file_of(call, wal)? }),
        _ => None,
    }
}

fn end(call: &str, result: &str, wal: &str) -> Option<Step> {
    let returned: i64 = result.rsplit(" = ").next()?.split_whitespace().next()?.parse().ok()?;
    if returned < 0 {
        return None;
    }
    let paths = || call.split('"').skip(1).step_by(2).map(str::to_owned);
    match call.split('(').next()? {
        "pwrite64" => Some(Step::Written { file: file_of(call, wal)? }),
        "fdatasync" | "fsync" => Some(Step::Synced { file: file_of(call, wal)? }),
        "rename" | "renameat" | "renameat2" => {
            let (from, to) = (paths().next()?, paths().nth(1)?);
            to.starts_with(wal).then_some(Step::Renamed { from, to })
        }
        "unlink" | "unlinkat" => paths().next().filter(|file| file.starts_with(wal)).map(|file| Step::Removed { file }),
        _ => None,
    }
}

/// The path that `-y` shows of the first descriptor, if it is the log's.
fn file_of(call: &str, wal: &str) -> Option<String> {
    let path = call.split_once('<')?.1.split_once('>')?.0;
    path.starts_with(wal).then(|| path.to_owned())
}

fn tokens(call: &str, before: &str) -> Vec<usize> {
    let numbers = call.split(before).skip(1).map(|rest| rest.split_once('>').map(|(number, _)| number.parse()));
    numbers.map(|number| number.expect("a whole token").expect("a number")).collect()
}

/// What is known of a file of the log.
#[derive(Default)]
struct File {
    /// Messages in writes that have begun and are not covered by a sync.
    unsynced: HashSet<usize>,
    /// Messages that a sync which has begun will cover.
    syncing: HashSet<usize>,
    synced: HashSet<usize>,
    /// Writes that have not ended, and writes that have but are not covered by a sync.
    writing: usize,
    dirty: bool,
    syncing_dirty: bool,
    /// A sync of it never returned, or failed.
    failed: bool,
    /// Its present name is not covered by a sync of the directory.
    unnamed: bool,
    naming: bool,
}

/// What was seen, so that a test can say that it saw enough.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    acks: usize,
    segments: usize,
    recycled: usize,
    faults: Vec<String>,
}

/// Follows the steps and notes each one that breaks the order.
fn check(steps: &[Step], wal: &str) -> Seen {
    let mut files: HashMap<String, File> = HashMap::new();
    let mut seen = Seen::default();
    let mut current: Option<String> = None;
    let mut freed = HashSet::new();
    // Once it was so, it may be recycled, because it is delivered and that is recorded.
    let mut durable: HashSet<usize> = HashSet::new();
    for step in steps {
        match step {
            Step::Write { file, messages } => {
                if let Some(before) = current.as_ref().filter(|before| *before != file && is_segment(file)) {
                    let before_file = files.entry(before.clone()).or_default();
                    if before_file.writing > 0 || before_file.dirty || before_file.syncing_dirty || before_file.failed {
                        seen.faults.push(format!("{file} is written before {before} is synced"));
                    }
                }
                if is_segment(file) {
                    current = Some(file.clone());
                }
                let known = files.entry(file.clone()).or_default();
                known.unsynced.extend(messages);
                known.writing += 1;
            }
            Step::Written { file } => {
                let known = files.entry(file.clone()).or_default();
                (known.writing, known.dirty) = (known.writing - 1, true);
            }
            Step::Sync { file } if file == wal => files.values_mut().for_each(|file| file.naming = file.unnamed),
            Step::Synced { file } if file == wal => {
                for (name, file) in &mut files {
                    file.unnamed &= !std::mem::take(&mut file.naming);
                    if !file.unnamed && is_segment(name) {
                        durable.extend(&file.synced);
                    }
                }
            }
            Step::Sync { file } => {
                let known = files.entry(file.clone()).or_default();
                // A write that still runs is not covered.
                if known.writing == 0 {
                    // What an earlier sync did not confirm, no later one does.
                    known.failed |= known.syncing_dirty;
                    known.syncing = std::mem::take(&mut known.unsynced);
                    known.syncing_dirty = std::mem::take(&mut known.dirty);
                }
            }
            Step::Synced { file } => {
                let known = files.entry(file.clone()).or_default();
                known.synced.extend(std::mem::take(&mut known.syncing));
                known.syncing_dirty = false;
                if !known.unnamed && is_segment(file) {
                    durable.extend(&known.synced);
                }
            }
            Step::Renamed { from, to } => {
                let mut file = files.remove(from).unwrap_or_default();
                (file.unnamed, file.naming) = (true, false);
                if is_segment(to) {
                    seen.segments += 1;
                    seen.recycled += usize::from(freed.contains(from));
                    // Messages of an earlier life are not this segment's.
                    file = File { unnamed: true, ..File::default() };
                } else {
                    freed.insert(to.clone());
                    current = current.filter(|current| current != from);
                }
                files.insert(to.clone(), file);
            }
            Step::Removed { file } => drop(files.remove(file)),
            Step::Ack { message } => {
                seen.acks += 1;
                if !durable.contains(message) {
                    let places: Vec<_> = files
                        .iter()
                        .filter(|(_, file)| file.synced.contains(message) || file.unsynced.contains(message))
                        .map(|(name, file)| (name, file.synced.contains(message), file.unnamed))
                        .collect();
                    seen.faults
                        .push(format!("{message} is acknowledged too early: (file, synced, unnamed) {places:?}"));
                }
            }
        }
    }
    seen
}

fn is_segment(path: &str) -> bool {
    path.ends_with(".seg") && !path.contains("/free-")
}

#[test]
fn an_acknowledgement_follows_the_sync_of_its_segment_and_of_the_directory() {
    let dir = tempfile::TempDir::new().unwrap();
    let (log, wal) = (dir.path().join("strace"), dir.path().join("outbox/wal"));
    let wal = wal.to_str().unwrap();
    let mut strace = Command::new("strace");
    let calls = "trace=pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,rename,renameat,renameat2,\
                 unlink,unlinkat";
    strace.args(["-f", "-y", "-s", "1000000", "-e", calls, "-e", "signal=none", "-o"]).arg(&log);
    let output = under(strace, &[&dir.path()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .expect("strace runs: this test cannot do without it (Debian: apt-get install strace)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    for unknown in ["write", "writev", "pwritev", "pwritev2", "sync_file_range"].map(|call| format!(" {call}(")) {
        let touches = trace.lines().find(|line| line.contains(&unknown) && file_of(line, wal).is_some());
        assert_eq!(touches, None, "this test does not know what that does to the log");
    }
    let steps = parse(&trace, wal);
    let seen = check(&steps, wal);
    assert!(seen.faults.is_empty(), "{:#?}", &seen.faults[..seen.faults.len().min(10)]);
    assert_eq!(seen.acks, MESSAGES);
    assert!(seen.segments >= 12, "rotation was meant to be seen: {seen:?}");
    assert!(seen.recycled >= 4, "recycling was meant to be seen: {seen:?}");
    doctored_traces_are_found_out(&steps, wal);
}

/// The checker sees what it is for: each of these takes one thing out of the real trace, or moves it.
fn doctored_traces_are_found_out(steps: &[Step], wal: &str) {
    let faults = |steps: Vec<Step>, what: &str| {
        let seen = check(&steps, wal);
        assert!(!seen.faults.is_empty(), "{what}: not found out");
        seen.faults
    };
    let is_sync = |step: &Step| matches!(step, Step::Synced { file } if is_segment(file));
    let has_messages = |step: &Step| matches!(step, Step::Write { messages, .. } if !messages.is_empty());

    let without: Vec<Step> = steps.iter().filter(|step| !is_sync(step)).cloned().collect();
    assert!(faults(without, "no segment is ever synced").len() >= MESSAGES);

    let without = steps.iter().filter(|step| !matches!(step, Step::Synced { file } if file == wal)).cloned().collect();
    assert!(faults(without, "the directory is never synced").len() >= MESSAGES);

    // An ack moved before the sync that made its message durable, in the middle of a segment.
    let write = steps.len() / 2 + steps[steps.len() / 2..].iter().position(has_messages).unwrap();
    let Step::Write { messages, .. } = &steps[write] else { unreachable!("it was looked for") };
    let sync = write + steps[write..].iter().position(is_sync).unwrap();
    let ack = steps.iter().position(|step| *step == Step::Ack { message: messages[0] }).unwrap();
    let mut moved = steps.to_vec();
    let early = moved.remove(ack);
    moved.insert(sync, early);
    assert_eq!(faults(moved, "an ack before its sync").len(), 1);

    // The sync of the directory behind one rotation is moved behind the next ack.
    let named = |step: &Step| matches!(step, Step::Renamed { to, .. } if is_segment(to));
    let renamed = steps.len() / 2 + steps[steps.len() / 2..].iter().position(named).unwrap();
    let ack = renamed + steps[renamed..].iter().position(|step| matches!(step, Step::Ack { .. })).unwrap();
    let directory = |step: &&Step| matches!(step, Step::Synced { file } | Step::Sync { file } if file == wal);
    let late: Vec<Step> = steps[renamed..ack].iter().filter(directory).cloned().collect();
    let mut moved = steps[..renamed].to_vec();
    moved.extend(steps[renamed..ack].iter().filter(|step| !directory(step)).cloned());
    moved.push(steps[ack].clone());
    moved.extend(late);
    moved.extend_from_slice(&steps[ack + 1..]);
    assert!(!faults(moved, "an ack in a new segment before the directory's sync").is_empty());

    // What the segment before that one got is never synced.
    let before = steps[..renamed].iter().rev().find(|step| is_sync(step)).unwrap();
    let torn = steps.iter().filter(|step| *step != before).cloned().collect();
    let found = faults(torn, "a segment is used before the one before is synced");
    assert!(found.iter().any(|fault| fault.contains("is written before")), "{found:?}");
}

#[test]
fn a_failed_or_torn_call_is_not_taken_for_a_sync() {
    let wal = "/o/wal";
    let calls = |sync: &str| {
        format!(
            "7  rename(\"/o/wal/free-1.seg\", \"/o/wal/1.seg\") = 0\n\
             7  pwrite64(5</o/wal/1.seg>, \"<message 3>\", 11, 0 <unfinished ...>\n\
             8  write(2<pipe:[1]>, \"x\", 1) = 1\n\
             7  <... pwrite64 resumed>) = 11\n\
             {sync}\n\
             7  fsync(6</o/wal>) = 0\n\
             9  write(1<pipe:[1]>, \"<ack 3>\\n\", 8) = 8\n"
        )
    };
    let faults = |sync| check(&parse(&calls(sync), wal), wal).faults.len();
    assert_eq!(faults("7  fdatasync(5</o/wal/1.seg>) = 0"), 0);
    assert_eq!(faults("7  fdatasync(5</o/wal/1.seg>) = -1 EIO (Input/output error)"), 1);
    assert_eq!(faults("7  fdatasync(5</o/wal/1.seg> <unfinished ...>"), 1);
    assert_eq!(faults("7  fdatasync(5</o/wal/2.seg>) = 0"), 1);
}

/// Stores messages, which are delivered at once, and writes a line for each one that was acknowledged.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(work) = work() else { return };
    let broker = Broker::new();
    let builder = builder(Path::new(&work[0]), &broker)
        .mode(Mode::WriteAhead)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        // So little that it has to be used again and again.
        .max_bytes(6 * (64 << 10));
    let producer = builder.open_blocking().unwrap();
    let mut number = 0;
    while number < MESSAGES {
        let sent: Vec<_> = (number..number + TOGETHER)
            .map(|number| {
                let payload = format!("<message {number}>{}", "x".repeat(number % 7 * 300));
                (number, producer.send(Message::to("topic").key(format!("{}", number % 3)).payload(payload)))
            })
            .collect();
        for (number, future) in sent {
            let receipt = pollster::block_on(future).unwrap();
            assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
            let mut out = std::io::stdout().lock();
            writeln!(out, "<ack {number}>").unwrap();
            out.flush().unwrap();
        }
        number += TOGETHER;
    }
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}
