//! The log beside the disk, in alternating rounds, as ratios: what a figure says about another machine is little, what
//! a ratio says is more.
//!
//! - Durable append: groups of 64 messages of 1 KiB into recycled segments, beside `pwrite` + `fdatasync` of as many
//!   bytes over a file that was written before. Expected: at least 0.7, with one group gathering while another is written.
//! - Opening with 1 GB pending, beside opening with nothing. Expected: at most 200 ms more.
//!
//! `cargo bench --bench append`; the directory is `OUTLAST_BENCH_DIR`, or the system's for temporary files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use outlast::internals::wal::{DiskStorage, EntryRef, Mark, Options, RouteTotal, Settled, Step, Wal};
use outlast::{Message, MessageId, Outgoing, Route};

const GROUP: u64 = 64;
const PAYLOAD: usize = 1024;
const ROUNDS: usize = 9;
/// Small enough that the log goes round its segments several times before it is measured.
const SEGMENT: u32 = 8 << 20;

fn messages() -> Vec<Outgoing> {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let message = |number| {
        let message = Message::to("orders").key(format!("customer-{number}")).payload(vec![number as u8; PAYLOAD]);
        Outgoing { id: MessageId::new(1, number), route: route.clone(), lane: None, timestamp: 0, message }
    };
    (0..GROUP).map(message).collect()
}

fn options() -> Options {
    Options { max_segments: 64, ..Options::new([1; 16], 1) }.with_segment_bytes(SEGMENT)
}

/// Appends groups and settles them. With `ahead` one gathers while the one before is on its way, as the log is made
/// for; without, each waits for the one before. How many messages share a sync depends on timing: see
/// [`messages_a_frame`].
fn append(wal: &Wal, messages: &[Outgoing], groups: usize, ahead: bool) -> Duration {
    let route = messages[0].route.clone();
    let bytes = messages.iter().map(|outgoing| outgoing.message.size() as u64).sum();
    let settle = |last: u64, told: &Receiver<bool>| {
        assert!(told.iter().filter(|ok| *ok).count() as u64 == GROUP, "every append is acknowledged");
        let totals = vec![RouteTotal { route: route.clone(), count: GROUP, bytes }];
        wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(last + 1 - GROUP, last)], totals });
    };
    let start = Instant::now();
    let mut before = None;
    for _ in 0..groups {
        let (tell, told) = channel();
        let mut last = 0;
        for outgoing in messages {
            let tell = tell.clone();
            last = wal.append(EntryRef::Message(outgoing), move |outcome| {
                let _ = tell.send(outcome.is_ok());
            });
        }
        drop(tell);
        if !ahead {
            settle(last, &told);
        } else if let Some((last, told)) = before.replace((last, told)) {
            settle(last, &told);
        }
    }
    if let Some((last, told)) = before {
        settle(last, &told);
    }
    start.elapsed()
}

/// Overwrites a file that was written before, in pieces of what a group takes.
fn overwrite(file: &fs::File, piece: &[u8], groups: usize, at: &mut u64) -> Duration {
    let start = Instant::now();
    for _ in 0..groups {
        if *at + piece.len() as u64 > u64::from(SEGMENT) {
            *at = 0;
        }
        file.write_all_at(piece, *at).expect("writes");
        file.sync_data().expect("syncs");
        *at += piece.len() as u64;
    }
    start.elapsed()
}

fn durable_append(directory: &Path, groups: usize) {
    let wal_directory = directory.join("wal");
    fs::create_dir(&wal_directory).expect("created");
    let (wal, _) = Wal::open(Arc::new(DiskStorage), &wal_directory, options()).expect("opens");
    let messages = messages();
    // The bytes of the messages themselves; header, metadata and padding are the log's own affair.
    let piece = vec![7; (GROUP as usize * PAYLOAD).next_multiple_of(4096)];
    let file =
        fs::File::options().create(true).truncate(true).write(true).open(directory.join("plain")).expect("created");
    for at in (0..u64::from(SEGMENT)).step_by(1 << 20) {
        file.write_all_at(&[1; 1 << 20], at).expect("writes");
    }
    file.sync_all().expect("syncs");
    let mut at = 0;
    // Round the segments, so that only recycled ones are measured.
    append(&wal, &messages, 5 * SEGMENT as usize / piece.len(), true);
    for ahead in [true, false] {
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let (log, plain) = if round % 2 == 0 {
                let log = append(&wal, &messages, groups, ahead);
                (log, overwrite(&file, &piece, groups, &mut at))
            } else {
                let plain = overwrite(&file, &piece, groups, &mut at);
                (append(&wal, &messages, groups, ahead), plain)
            };
            let rate = |time: Duration| (groups as u64 * GROUP) as f64 / time.as_secs_f64() / 1000.0;
            println!("  round {round}: log {:7.1}k msg/s, plain {:7.1}k msg/s", rate(log), rate(plain));
            ratios.push(plain.as_secs_f64() / log.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let how = if ahead { "one group gathers ahead" } else { "each group waits" };
        println!("durable append / overwrite + fdatasync, {how}: {:.2} (median of {ROUNDS})", ratios[ROUNDS / 2]);
        println!("  messages a frame, what is left of the log: {:.1}", messages_a_frame(&wal));
    }
    println!("  {:?}", wal.space());
    wal.close().expect("closes");
}

/// Whether the log syncs as often as the plain file: only then is the ratio one of like with like.
fn messages_a_frame(wal: &Wal) -> f64 {
    let reader = wal.reader();
    let mut cursor = reader.seek(1, None).expect("readable");
    let (mut frames, mut messages) = (0, 0);
    while let Step::Frame { records, .. } = reader.next(&mut cursor).expect("readable") {
        frames += 1;
        messages += records.len();
    }
    messages as f64 / f64::from(frames.max(1))
}

fn opening(directory: &Path, bytes: u64) {
    let open = |path: &Path| {
        let start = Instant::now();
        let (wal, recovered) = Wal::open(Arc::new(DiskStorage), path, Options::new([1; 16], 1)).expect("opens");
        let took = start.elapsed();
        wal.close().expect("closes");
        (took, recovered)
    };
    let (full, empty) = (directory.join("full"), directory.join("empty"));
    for path in [&full, &empty] {
        fs::create_dir(path).expect("created");
    }
    let (wal, _) = Wal::open(Arc::new(DiskStorage), &full, Options::new([1; 16], 1)).expect("opens");
    let messages = messages();
    let mut sent = 0;
    while sent < bytes {
        for outgoing in messages.iter().cycle().take(2048) {
            wal.append(EntryRef::Message(outgoing), |outcome| assert!(outcome.is_ok()));
            sent += PAYLOAD as u64;
        }
        wal.sync().expect("syncs");
    }
    wal.close().expect("closes");
    let mut more = Vec::new();
    for _ in 0..ROUNDS {
        let ((with, recovered), (without, _)) = (open(&full), open(&empty));
        let pending: u64 = recovered.state.routes.values().map(|pending| pending.count).sum();
        println!("  {pending} pending: {with:?}; none: {without:?}");
        more.push(with.saturating_sub(without));
    }
    more.sort();
    println!(
        "opening with {} MB pending: {:?} more (median of {ROUNDS}; expected <= 200 ms)",
        bytes >> 20,
        more[ROUNDS / 2]
    );
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (groups, bytes) = if measured { (300, 1 << 30) } else { (2, 1 << 20) };
    let at = std::env::var_os("OUTLAST_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let directory = tempfile::tempdir_in(at).expect("a directory");
    durable_append(directory.path(), groups);
    opening(directory.path(), bytes);
}
