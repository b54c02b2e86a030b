//! `outlast demo`: an outage, a kill and a restart, on an embedded broker, told as it happens.

mod broker;
mod check;
mod producer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::args::Demo;
use crate::exit::{Exit, Problem};
use crate::output::{self, count};

use broker::Broker;
use producer::{Acks, Producer};

pub use broker::run as run_broker;

const TOPIC: &str = "demo";
const PARTITIONS: i32 = 4;
/// Lines made up where no file is given.
const LINES: usize = 6_000;
/// Bytes of lines and what goes with them that the mock can keep even if all have one key: it drops the oldest
/// beyond 5 MiB a partition, and some may arrive twice.
const MAX_BYTES: usize = 4 << 20;
/// What a record takes beside its line.
const RECORD_OVERHEAD: usize = 100;

/// Plays the whole story; fails if an acknowledged line is not there or out of order.
pub fn run(args: &Demo) -> Result<Exit, Problem> {
    let begin = Instant::now();
    let text = input(args)?;
    let lines = lines(&text)?;
    let dir = std::env::temp_dir().join(format!("outlast-demo-{}", std::process::id()));
    std::fs::create_dir(&dir).map_err(|e| Problem::failed(format!("{}: {e}", dir.display())))?;
    let exit = play(&lines, &dir).map_err(|problem| Problem {
        text: format!("{}\nEverything is left in {} to look at.", problem.text, dir.display()),
        ..problem
    })?;
    say(&format!("This took {:.1} s.", begin.elapsed().as_secs_f64()))?;
    if exit == Exit::Done {
        std::fs::remove_dir_all(&dir).map_err(|e| Problem::failed(format!("{}: {e}", dir.display())))?;
    } else {
        say(&format!("Everything is left in {} to look at.", dir.display()))?;
    }
    Ok(exit)
}

fn play(lines: &[&[u8]], dir: &Path) -> Result<Exit, Problem> {
    let file = save(lines, dir)?;
    let (third, two_thirds) = (lines.len() / 3, lines.len() * 2 / 3);

    let mut broker = Broker::start()?;
    say(&format!(
        "A broker starts at {}: librdkafka's mock, with a topic of {PARTITIONS} partitions.",
        broker.address
    ))?;
    let mut producer = Producer::start(dir, &broker.address, None, 1)?;
    say(&format!(
        "`outlast produce` starts as process {}, and gets the first third of {} lines.",
        producer.pid(),
        count(lines.len() as u64)
    ))?;
    producer.feed(&lines[..third]);
    tell(producer.wait_for_acks(third)?)?;

    broker.down()?;
    say("\nOUTAGE: the broker goes away. The producer gets the second third all the same.")?;
    producer.feed(&lines[third..two_thirds]);
    tell(producer.wait_for_acks(two_thirds)?)?;

    producer.feed(&lines[two_thirds..]);
    producer.wait_for_acks(two_thirds + (lines.len() - two_thirds) / 4)?;
    let killed = producer.kill()?;
    say("\nCRASH: while it gets the last third, the producer is killed (SIGKILL).")?;
    tell(killed)?;
    say("    what `outlast status` says of the outbox it left behind:")?;
    for line in status(dir)?.lines() {
        say(&format!("      {line}"))?;
    }

    let resume = killed.last + 1;
    say(&format!("\nRESTART: it is started again at line {}, behind the last one it acknowledged.", count(resume)))?;
    let mut producer = Producer::start(dir, &broker.address, Some(&file), resume)?;
    tell(producer.wait_for_acks(lines.len())?)?;

    say("\nRECOVERY: the broker comes back, and the outbox drains.")?;
    broker.up()?;
    let status = producer.wait()?;
    say(&format!("    the producer has ended: {status}"))?;
    verify(lines, &broker.address, status.success())
}

/// Reads everything back from the broker.
fn verify(lines: &[&[u8]], broker: &str, ended_well: bool) -> Result<Exit, Problem> {
    say("\nCHECK: everything is read back from the broker.")?;
    let verdict = check::check(broker, lines)?;
    let in_order = verdict.keys - verdict.disordered;
    for (what, number) in [
        ("lines acknowledged", lines.len()),
        ("records at the broker", verdict.records),
        ("lines lost", verdict.lost),
        ("delivered twice", verdict.duplicates),
    ] {
        say(&format!("    {what:<22}{:>7}", count(number as u64)))?;
    }
    say(&format!("    {:<22}{:>7} of {}", "keys in order", count(in_order as u64), count(verdict.keys as u64)))?;
    if verdict.duplicates > 0 {
        say("    (Twice: lines that were accepted but not yet logged at the kill, and so were sent again.)")?;
    }
    let good = ended_well && verdict.lost == 0 && verdict.disordered == 0;
    say(if good { "\nNothing was lost, and every key is in order." } else { "\nTHIS IS NOT AS IT SHOULD BE." })?;
    Ok(if good { Exit::Done } else { Exit::Failed })
}

/// What the command of this name prints.
fn status(dir: &Path) -> Result<String, Problem> {
    let program = std::env::current_exe().map_err(Problem::failed)?;
    let output = Command::new(program).args(["status", "--outbox"]).arg(dir.join("outbox")).output();
    let output = output.map_err(Problem::failed)?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Problem::failed(String::from_utf8_lossy(&output.stderr).trim_end())),
    }
}

fn say(text: &str) -> Result<(), Problem> {
    output::line(text)
}

fn tell(acks: Acks) -> Result<(), Problem> {
    say(&format!(
        "    {} lines acknowledged so far: {} delivered to the broker, {} stored in the outbox",
        count(acks.all() as u64),
        count(acks.delivered as u64),
        count(acks.stored as u64)
    ))
}

/// The lines to send, as they are in the user's file, or made up.
fn input(args: &Demo) -> Result<Vec<u8>, Problem> {
    if let Some(file) = &args.input {
        return std::fs::read(file).map_err(|e| Problem::usage(format!("{}: {e}", file.display())));
    }
    let mut text = String::new();
    for n in 0..LINES {
        text.push_str(&format!("customer-{:03} order {n}: {} pieces\n", (n * n * 31 + n * 7) % 211, n % 17 + 1));
    }
    Ok(text.into_bytes())
}

/// As many of them as the broker can keep.
fn lines(text: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    let mut bytes = 0;
    let all = text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n');
    let lines: Vec<&[u8]> = all
        .take_while(|line| {
            bytes += line.len() + RECORD_OVERHEAD;
            bytes <= MAX_BYTES
        })
        .collect();
    if bytes > MAX_BYTES {
        say(&format!("The embedded broker cannot keep more than the first {} lines.", count(lines.len() as u64)))?;
    }
    match lines.len() {
        0..3 => Err(Problem::usage("the demonstration needs at least three lines, not longer than 1 MiB together")),
        _ => Ok(lines),
    }
}

fn save(lines: &[&[u8]], dir: &Path) -> Result<PathBuf, Problem> {
    let file = dir.join("lines");
    // Each with its newline: the last one may be empty.
    let text: Vec<u8> = lines.iter().flat_map(|line| line.iter().chain(b"\n")).copied().collect();
    std::fs::write(&file, text).map_err(|e| Problem::failed(format!("{}: {e}", file.display())))?;
    Ok(file)
}
