//! No acknowledgement before the sync, and none for anything in a segment whose name is not durable: shown by the
//! system calls of a process that stores messages, rotating and recycling segments, as strace saw them (DESIGN.md 1.2,
//! 3.1; RELIABILITY.md, row 8). The same of dead letters, in their own log, before anybody is told of them; and of a
//! process that finds messages of one that was killed: it syncs what it trusts before it delivers or acknowledges
//! anything, and writes into no segment it found.
//!
//! strace notes the end of a call before the thread goes on, so what the trace says happened first did happen first.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod shows;
#[path = "trace/steps.rs"]
mod steps;

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use outlast::testing::Broker;
use outlast::{Fate, Message, Mode, Producer, Receipt};
use shows::{LONG, builder, under, work};
use steps::{Seen, Step, check, file_of, is_segment, parse};

const MESSAGES: usize = 1_200;
const TOGETHER: usize = 8;
const BURIED: usize = 30;

/// Runs the child under strace, and returns what it did to its logs: of messages, of dead letters.
fn trace(what: &str, directory: &Path) -> [(Vec<Step>, String); 2] {
    let log = directory.join(format!("strace-{what}"));
    let mut strace = Command::new("strace");
    let calls = "trace=pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,rename,renameat,renameat2,\
                 unlink,unlinkat";
    strace.args(["-f", "-y", "-s", "1000000", "-e", calls, "-e", "signal=none", "-o"]).arg(&log);
    let output = under(strace, &[&directory, &what])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .expect("strace runs: this test cannot do without it (Debian: apt-get install strace)");
    let killed = what == "killed" && String::from_utf8_lossy(&output.stdout).contains("<end>");
    assert!(output.status.success() || killed, "{}", String::from_utf8_lossy(&output.stderr));
    let trace = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    ["outbox/wal", "outbox/dead"].map(|log| {
        let log = directory.join(log).to_str().unwrap().to_owned();
        for unknown in ["write", "writev", "pwritev", "pwritev2", "sync_file_range"].map(|call| format!(" {call}(")) {
            let touches = trace.lines().find(|line| line.contains(&unknown) && file_of(line, &log).is_some());
            assert_eq!(touches, None, "this test does not know what that does to the log");
        }
        (parse(&trace, &log), log)
    })
}

#[track_caller]
fn in_good_order(steps: &[Step], wal: &str) -> Seen {
    let seen = check(steps, wal);
    assert!(seen.faults.is_empty(), "out of order: {:#?}", &seen.faults[..seen.faults.len().min(10)]);
    seen
}

#[test]
fn an_acknowledgement_follows_the_sync_of_its_segment_and_of_the_directory() {
    let dir = tempfile::TempDir::new().unwrap();
    let [(steps, wal), _] = trace("store", dir.path());
    let seen = in_good_order(&steps, &wal);
    assert_eq!(seen.acks, MESSAGES);
    assert!(seen.segments >= 12, "rotation was meant to be seen: {seen:?}");
    assert!(seen.recycled >= 4, "recycling was meant to be seen: {seen:?}");
    doctored_traces_are_found_out(&steps, &wal);
}

#[test]
fn a_dead_letter_is_told_of_when_its_log_is_synced() {
    let dir = tempfile::TempDir::new().unwrap();
    let [(steps, wal), (dead_steps, dead)] = trace("bury", dir.path());
    in_good_order(&steps, &wal);
    let seen = in_good_order(&dead_steps, &dead);
    assert_eq!(seen.acks, BURIED);
    let without = dead_steps.iter().filter(|step| !matches!(step, Step::Synced { .. })).cloned().collect::<Vec<_>>();
    assert!(check(&without, &dead).faults.len() >= BURIED, "no sync: not found out");
}

#[test]
fn what_a_killed_process_left_is_synced_before_it_is_trusted_and_never_written() {
    let dir = tempfile::TempDir::new().unwrap();
    trace("killed", dir.path());
    let found: HashSet<String> = std::fs::read_dir(dir.path().join("outbox/wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .filter(|path| is_segment(path))
        .collect();
    let last = found.iter().max().expect("the killed process left segments").clone();
    let [(steps, wal), _] = trace("recover", dir.path());
    let seen = in_good_order(&steps, &wal);
    assert_eq!(seen.acks, TOGETHER);
    found_in_good_order(&steps, &wal, &found, &last).unwrap_or_else(|fault| panic!("out of order: {fault}"));
    for wanted in [&last, &wal] {
        let synced = |step: &&Step| !matches!(step, Step::Synced { file } if file == wanted);
        let without: Vec<Step> = steps.iter().filter(synced).cloned().collect();
        assert!(found_in_good_order(&without, &wal, &found, &last).is_err(), "{wanted} not synced: not found out");
    }
}

/// The last segment and the directory are synced before anything is delivered or acknowledged, and no segment that was
/// found is written to while it has its name.
fn found_in_good_order(steps: &[Step], wal: &str, found: &HashSet<String>, last: &str) -> Result<(), String> {
    let trusts = |step: &Step| matches!(step, Step::Delivered | Step::Ack { .. });
    let first = steps.iter().position(trusts).ok_or("nothing was delivered")?;
    for wanted in [last, wal] {
        let synced = |step: &Step| matches!(step, Step::Synced { file } if file == wanted);
        if !steps[..first].iter().any(synced) {
            return Err(format!("{wanted} is trusted and was not synced"));
        }
    }
    let mut found = found.clone();
    for step in steps {
        match step {
            Step::Renamed { from, .. } => drop(found.remove(from)),
            Step::Write { file, .. } if found.contains(file) => {
                return Err(format!("{file} was found, and is written"));
            }
            _ => {}
        }
    }
    Ok(())
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
    // Of a message in the new segment: acks of the one before may be printed late.
    let written: HashSet<_> = steps[renamed..]
        .iter()
        .filter_map(|step| if let Step::Write { messages, .. } = step { Some(messages) } else { None })
        .flatten()
        .collect();
    let is_new = |step: &Step| matches!(step, Step::Ack { message } if written.contains(message));
    let ack = renamed + steps[renamed..].iter().position(is_new).unwrap();
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

#[cfg(feature = "planted")]
/// Runs one of the tests above in a process that does something wrong, which has to fail, and without, which has not.
#[track_caller]
fn is_caught(planted: &str, test: &str) {
    for name in [planted, ""] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("OUTLAST_PLANTED", name)
            .output()
            .expect("the test binary runs");
        let text = String::from_utf8_lossy(&output.stderr);
        let caught = !output.status.success() && text.contains("out of order");
        assert_eq!(caught, !name.is_empty(), "planted {name:?}: {text}");
        assert!(caught || output.status.success(), "planted {name:?}: it failed for another reason: {text}");
    }
}

#[cfg(feature = "planted")]
#[test]
fn planted_ack_before_sync_is_caught() {
    is_caught("ack-before-sync", "an_acknowledgement_follows_the_sync_of_its_segment_and_of_the_directory");
}

#[cfg(feature = "planted")]
#[test]
fn planted_skip_directory_sync_is_caught() {
    is_caught("skip-directory-sync", "an_acknowledgement_follows_the_sync_of_its_segment_and_of_the_directory");
}

#[cfg(feature = "planted")]
#[test]
fn planted_write_into_found_is_caught() {
    is_caught("write-into-found", "what_a_killed_process_left_is_synced_before_it_is_trusted_and_never_written");
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

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
    match work[1].as_str() {
        "bury" => broker.reject_message("poison"),
        "killed" => broker.down(),
        "recover" => broker.append_to(|_| say("<delivered>")),
        _ => {}
    }
    let producer = builder.open_blocking().unwrap();
    match work[1].as_str() {
        "store" => store(&producer, MESSAGES),
        "bury" => bury(&producer),
        "killed" => {
            store(&producer, 3 * TOGETHER);
            say("<end>");
            // SIGKILL, as far as the outbox can tell.
            std::process::abort();
        }
        "recover" => store(&producer, TOGETHER),
        other => panic!("{other} is no work"),
    }
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}

/// Stores messages, which are delivered at once, and writes a line for each one that was acknowledged.
fn store(producer: &Producer, count: usize) {
    let mut number = 0;
    while number < count {
        let sent: Vec<_> = (number..number + TOGETHER)
            .map(|number| {
                let payload = format!("<message {number}>{}", "x".repeat(number % 7 * 300));
                (number, producer.send(Message::to("topic").key(format!("{}", number % 3)).payload(payload)))
            })
            .collect();
        for (number, future) in sent {
            let receipt = pollster::block_on(future).unwrap();
            assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
            say(&format!("<ack {number}>"));
        }
        number += TOGETHER;
    }
}

/// Sends what the broker will never take, and writes a line when it is known to lie in the dead letters.
fn bury(producer: &Producer) {
    for number in 0..BURIED {
        let payload = format!("<message {number}>poison{}", "x".repeat(number % 7 * 300));
        let receipt = producer.blocking_send(Message::to("topic").key(format!("{number}")).payload(payload)).unwrap();
        let Receipt::Stored { delivery, .. } = receipt else { panic!("{receipt:?}") };
        match pollster::block_on(delivery) {
            Fate::Dead(_) => say(&format!("<dead {number}>")),
            other => panic!("{other:?}"),
        }
    }
}
