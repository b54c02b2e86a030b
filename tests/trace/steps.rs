//! What strace saw, as steps of a log, and whether they came in the right order.
//!
//! It assumes `strace -f -y` with whole strings, one line a call or a half of it. A call that failed, or never returned,
//! made nothing durable.

use std::collections::{HashMap, HashSet};

/// One system call begins or ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Write { file: String, messages: Vec<usize> },
    Written { file: String },
    Sync { file: String },
    Synced { file: String },
    Renamed { from: String, to: String },
    Removed { file: String },
    Ack { message: usize },
    Delivered,
}

/// Parses `strace -f -y`. Calls that failed leave no step of their end behind.
pub fn parse(trace: &str, wal: &str) -> Vec<Step> {
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
        "write" if call.starts_with("write(1<") && call.contains("<delivered") => Some(Step::Delivered),
        "write" if call.starts_with("write(1<") => {
            // Each log has acknowledgements of its own: of messages, and of dead letters.
            let word = if wal.ends_with("/dead") { "<dead " } else { "<ack " };
            Some(Step::Ack { message: *tokens(call, word).first()? })
        }
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
pub fn file_of(call: &str, wal: &str) -> Option<String> {
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
pub struct Seen {
    pub acks: usize,
    pub segments: usize,
    pub recycled: usize,
    pub faults: Vec<String>,
}

/// Follows the steps and notes each one that breaks the order.
pub fn check(steps: &[Step], wal: &str) -> Seen {
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
            Step::Delivered => {}
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

pub fn is_segment(path: &str) -> bool {
    path.ends_with(".seg") && !path.contains("/free-")
}
