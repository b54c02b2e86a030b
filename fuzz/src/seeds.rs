//! What the corpus begins with: real records, frames, segments and files. `make_the_corpus` in `tests/fuzz_corpus.rs`
//! writes them; what a fuzzer finds on top is kept beside them by hand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use outlast::internals::outbox::ledger::keys::{self, EntryRow, LaneKey, LaneRow, ParkedKey, ParkedRow};
use outlast::internals::outbox::probe::encode_identity;
use outlast::internals::outbox::{Blocked, LedgerStatus, Lifecycle, RouteStatus, Status, Tally, TransportStatus};
use outlast::internals::wal::{DeadLetter, EntryRef, Mark, ModelStorage, RouteTotal, Settled, probe};

use super::examine::{self, Life, OUTBOX};

const BLOCK: usize = 4096;

/// The folder, the name and the bytes of each file.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    let (log, dead) = (log(), dead_letters());
    for (at, frame) in log.values().chain(dead.values()).flat_map(|file| frames(file)).enumerate() {
        // Every kind of frame and record comes among the first and the last.
        if at % 3 == 0 || frame[5] != 0 {
            add("frame", &format!("mended-{at}"), [&[1], frame].concat());
        }
        for (tag, content) in records(frame) {
            add("record", &format!("tag-{tag}"), [&[first_byte(tag)], content].concat());
        }
        let (count, records) = (frame[56], frame[60]);
        if at % 6 == 0 {
            add("frame", &format!("body-{at}"), [&[2, count, records], &frame[80..]].concat());
        }
    }
    let all: Vec<_> = log.iter().map(|(path, bytes)| (number(path), bytes)).collect();
    for (number, bytes) in &all {
        add("segment", &format!("placed-{number}"), [&[0, 1][..], &piece(bytes, 5)].concat());
    }
    let (_, first) = all.first().expect("a segment");
    add("segment", "long-frame", [&[0, 1][..], &long_frame(piece(first, 1))].concat());
    for (name, mode, flags) in [("killed", 0u8, 1u8), ("power-cut", 1, 5), ("cut", 0, 3)] {
        add("log", name, files(mode, &all, flags));
    }
    add("log", "first-missing", files(0, &all[1..], 1));
    add("log", "middle-missing", files(1, &[&all[..1], &all[2..]].concat(), 1));
    outbox(&all, &dead, &mut add);
    operations(&mut add);
    rows(&mut add);
    texts(&mut add);
    seeds.sort();
    seeds.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
    seeds
}

type Add<'a> = &'a mut dyn FnMut(&'static str, &str, Vec<u8>);

fn first_byte(tag: u8) -> u8 {
    (0..=u8::MAX).find(|&byte| super::record::tag(byte) == tag).unwrap_or(tag)
}

fn number(path: &std::path::Path) -> u64 {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    u64::from_str_radix(name.trim_start_matches("free-"), 16).unwrap_or(0)
}

/// Small messages in frames of their own, settled in part, over several segments.
fn log() -> BTreeMap<PathBuf, Vec<u8>> {
    let storage = ModelStorage::new(1);
    let mut life = Life::begin_with(&storage, examine::options()).expect("an empty log opens");
    let told = Arc::default();
    for number in 1..=16 {
        let outgoing = examine::message(number, &[number as u8; 9]);
        let lsn = life.append(&outgoing, &told);
        life.run();
        if number % 5 == 1 {
            let totals = vec![RouteTotal { route: outgoing.route.clone(), count: 1, bytes: 10 }];
            life.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals });
        }
    }
    segments(&storage)
}

fn dead_letters() -> BTreeMap<PathBuf, Vec<u8>> {
    let storage = ModelStorage::new(2);
    let mut life = Life::begin_with(&storage, examine::options()).expect("an empty log opens");
    for number in 1..=3 {
        let (outgoing, reason) = (examine::message(number, b"x"), "too large".to_owned());
        let letter = DeadLetter { lsn: number, outgoing, reason, attempts: 2, first_failure: 5, last_failure: 6 };
        life.wal.append(EntryRef::Dead(&letter), |outcome| assert!(outcome.is_ok()));
        life.run();
    }
    segments(&storage)
}

fn segments(storage: &ModelStorage) -> BTreeMap<PathBuf, Vec<u8>> {
    let segments = storage.paths().into_iter().filter(|path| !path.to_string_lossy().contains("free-"));
    segments.filter_map(|path| Some((path.clone(), storage.bytes(&path)?))).collect()
}

/// The frames of a segment, from its first on.
fn frames(segment: &[u8]) -> Vec<&[u8]> {
    let starts = (BLOCK..segment.len()).step_by(BLOCK);
    starts.filter_map(|at| Some(&segment[at..at + probe::frame_length(&segment[at..])?])).collect()
}

fn records(frame: &[u8]) -> Vec<(u8, &[u8])> {
    let (mut body, mut records) = (&frame[80..], Vec::new());
    while let Some((header, rest)) = body.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let (content, rest) = rest.split_at(length);
        records.push((header[0], content));
        body = rest;
    }
    records
}

/// A segment as [`examine::file`] takes it.
fn piece(segment: &[u8], flags: u8) -> Vec<u8> {
    let frames = frames(segment);
    let mut piece = vec![flags, 1 + frames.len() as u8];
    for part in std::iter::once(&segment[..104]).chain(frames) {
        piece.push(0);
        piece.extend_from_slice(&(part.len() as u16).to_le_bytes());
        piece.extend_from_slice(part);
    }
    piece
}

/// The segment says that it is 1 GiB long, and its first group that it is half of that: it was allocated.
fn long_frame(mut piece: Vec<u8>) -> Vec<u8> {
    // Behind flags, count, gap and length.
    piece[5 + 12..5 + 16].copy_from_slice(&(1u32 << 30).to_le_bytes());
    let group = piece.windows(6).position(|bytes| bytes == b"OLFR\x01\0").expect("a group");
    piece[group + 64..group + 68].copy_from_slice(&(1u32 << 29).to_le_bytes());
    piece
}

fn files(mode: u8, segments: &[(u64, &Vec<u8>)], flags: u8) -> Vec<u8> {
    let mut log = vec![mode, 7, segments.len() as u8 - 1];
    for (number, bytes) in segments {
        log.extend_from_slice(&[2, *number as u8]);
        log.extend(piece(bytes, flags));
    }
    log
}

fn outbox(log: &[(u64, &Vec<u8>)], dead: &BTreeMap<PathBuf, Vec<u8>>, add: Add<'_>) {
    let dead = dead.values().next().expect("a segment");
    for (name, mode, identity) in [("opened", 1, true), ("looked-at", 0, true), ("without-identity", 1, false)] {
        let mut files = vec![mode, log.len() as u8 + u8::from(identity)];
        if identity {
            files.extend_from_slice(&[1, 0]);
        }
        for (number, bytes) in log {
            files.extend_from_slice(&[7, *number as u8]);
            files.extend(piece(bytes, 1));
        }
        files.extend_from_slice(&[4, 1]);
        files.extend(piece(dead, 1));
        add("outbox", name, files);
    }
}

/// Sequences of every kind of operation, from a generator that is easy to say.
fn operations(add: Add<'_>) {
    for seed in 0..6u64 {
        let mut state = seed + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        add("operations", &format!("random-{seed}"), (0..200 + 40 * seed).map(|_| next()).collect());
        add("round_trip", &format!("random-{seed}"), (0..400).map(|_| next() & 0x1f).collect());
    }
}

fn rows(add: Add<'_>) {
    let row = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    add("ledger", "entry-key", row(0, &keys::entry_key(258)));
    let entry = EntryRow { segment: 1, offset: 4096, count: 3, bytes: 1 << 16, time: -5 };
    add("ledger", "entry", row(1, &entry.encode()));
    add("ledger", "parked-key", row(2, &ParkedKey { route: 1, lane: 2, lsn: 3 }.encode()));
    add("ledger", "parked", row(3, &ParkedRow { segment: 1, offset: 8192, index: 2, partition: -1 }.encode()));
    add("ledger", "lane-key", row(4, &LaneKey { route: 1, lane: 2 }.encode()));
    let lane = LaneRow { attempts: 2, class: 1, first_failure: 5, last_failure: 6, error: "größer".into() };
    add("ledger", "lane", row(5, &lane.encode()));
    add("ledger", "meta", row(6, &keys::meta_value(9)));
}

fn texts(add: Add<'_>) {
    let identity = encode_identity(&OUTBOX);
    add("identity", "whole", identity.clone().into_bytes());
    add("identity", "one-line", identity.as_bytes()[identity.len() / 2..].to_vec());
    add("identity", "damaged", identity.replacen("outlast", "outlasx", 1).into_bytes());
    let blocked = || Some(Blocked { reason: "topic unknown".into(), since: 1_795_168_980_000 });
    let route = RouteStatus {
        transport: "kafka".into(),
        destination: "orders".into(),
        pending: Tally { count: 1204, bytes: 60_000 },
        oldest_time: Some(5),
        blocked: blocked(),
        blocked_lanes: 2,
        lane_reason: blocked(),
    };
    let status = Status {
        version: 1,
        pid: 7,
        state: Lifecycle::Running,
        routes: vec![route],
        transports: vec![TransportStatus { name: "kafka".into(), down: blocked(), throttled: None }],
        dead: Tally { count: 3, bytes: 4 },
        set_aside: 5,
        ledger: LedgerStatus { state: "off".into(), trouble: blocked(), directory: 2, rows_dropped: 1 },
        storage: blocked(),
        ..Status::default()
    };
    add("status", "full", serde_json::to_vec(&status).expect("a report"));
    add("status", "newer", br#"{"version":9,"state":"paused","news":[1]}"#.to_vec());
    add("status", "empty", b"{}".to_vec());
    add(
        "config",
        "small",
        br#"{"outbox":"/o","transports":[{"url":"kafka://broker:9092"}],"first_attempt":"2s"}"#.to_vec(),
    );
    add("config", "full", br#"{"outbox":"/o","transports":[{"name":"a","url":"redis://u:hunter2@h:1/2?stream=s","password":"hunter2"}],"mode":"write-ahead","on_poison":"hold","routes":[{"transport":"a","destination":"d","mode":"direct","order":"route","on_poison":"dead-letter"}],"first_attempt":"5s","space_wait":"1m 30s","lock_wait":"0s","window_messages":100,"window_bytes":33554432,"redelivery_window":200,"max_message_bytes":1000,"max_bytes":1073741824,"segment_bytes":65536,"slots":64,"max_attempts":3,"drain_rate":4,"backoff_base":"100ms","backoff_cap":"30s"}"#.to_vec());
    add("config", "wrong", br#"{"slots":3,"max_attempts":0,"segment_bytes":5,"backoff_cap":"1ns"}"#.to_vec());
    let urls = [
        ("kafka", "\0kafka://a:9092,[::1]:9093,c/my.topic?linger.ms=5&client.id=x%20y"),
        ("redis", "\0rediss://me:s%3Acret@h:1234/3?stream=log&timeout=1"),
        ("plain", "\0redis://h"),
        ("secret", "\u{1}redis://user:\n@host:6379/1?stream=s"),
        ("secret-kafka", "\u{1}kafka://a:1,user:x\n@host/topic?acks=all"),
    ];
    urls.into_iter().for_each(|(name, url)| add("url", name, url.as_bytes().to_vec()));
    add("lines", "acks", b"\x006\tdelivered\n7\tsto".to_vec());
    add("lines", "acks-unterminated", b"\x006\tdelivered\r\n7\tstored\tunterminated\n".to_vec());
    add("lines", "acks-cut", b"\x00\x00\x00\x007\tstored\n8\t\x00\x00".to_vec());
    add(
        "lines",
        "json-keys",
        b"\x03\xff\x00\x01\x03\xef\xbb\xbf{\"a\":1e2,\"a\":18446744073709551617}\r\n{\"\\u0061\":\"\\ud800\"}".to_vec(),
    );
    add("lines", "key", b"\x01json:/a/0/b".to_vec());
    add("lines", "plain", b"\x02\x20\x01\x00\x01a b\n\n  c d e\r\nlast".to_vec());
    add("lines", "json", b"\x03\xff\x00\x01\x04{\"a\":[{\"b\":17}]}\n{\"a\":[{\"b\":\"x y\"}]}\n[".to_vec());
}
