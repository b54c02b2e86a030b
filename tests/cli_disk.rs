//! Disks and outboxes that cannot be written: what the program says, and that nothing acknowledged is lost.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis", target_os = "linux"))]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Acks, Child, Disk, Output, log_lines, redis_address, run, seed, unique};

/// For one thing to happen.
const LIMIT: Duration = Duration::from_secs(90);
/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "127.0.0.1:1";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn url(server: &str, stream: &str) -> String {
    format!("redis://{server}?stream={stream}")
}

fn produce<'a>(url: &'a str, outbox: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["produce", "--key", "field:1", "--drain-timeout", "1s", "--to", url, "--outbox", text(outbox)];
    args.into_iter().chain(more.iter().copied()).collect()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.code, Some(code), "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
}

/// Delivers what is in the outbox to the real server, and returns what is in the stream then.
fn drain(outbox: &Path, stream: &str) -> Vec<Vec<u8>> {
    let url = url(&redis_address(), stream);
    let drained = run(&["drain", "--to", &url, "--outbox", text(outbox), "--timeout", "60s"], b"");
    assert_code(&drained, 0);
    let entries = common::redis::read_all(&redis_address(), stream);
    entries.into_iter().map(|entry| entry.field("payload").expect("a payload").to_vec()).collect()
}

/// All files of an outbox and what is in them, but for the process id in `LOCK`.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_none_or(|name| name != "LOCK") {
            found.insert(path.clone(), std::fs::read(&path).expect("a readable file"));
        }
    }
    found
}

#[test]
fn an_outbox_on_a_read_only_disk_is_refused_and_can_be_looked_at() {
    let Some(disk) = Disk::new(300) else { return };
    let (outbox, stream) = (disk.root().join("outbox"), unique("readonly"));
    let url = url(NOBODY, &stream);
    assert_code(&run(&produce(&url, &outbox, &[]), b"k 1\nk 2\nk 3\n"), 3);
    disk.remount("ro");
    let before = files(&outbox);
    let refused = run(&produce(&url, &outbox, &[]), b"k 4\n");
    assert_code(&refused, 1);
    assert!(refused.stderr.to_lowercase().contains("read-only"), "{}", refused.stderr);
    assert_code(&run(&["drain", "--to", &url, "--outbox", text(&outbox)], b""), 1);
    assert_code(&run(&["dead", "requeue", "--all", "--outbox", text(&outbox)], b""), 1);
    let status = run(&["status", "--outbox", text(&outbox)], b"");
    assert_code(&status, 0);
    assert!(status.stdout.contains("pending: 3 messages"), "{}", status.stdout);
    let peek = run(&["peek", "--outbox", text(&outbox)], b"");
    assert!(peek.code == Some(0) && peek.stdout.contains("k 3"), "{peek:?}");
    assert!(files(&outbox) == before, "something was written");
    disk.remount("rw");
    assert_eq!(drain(&outbox, &stream), [b"k 1", b"k 2", b"k 3"]);
}

#[test]
fn an_outbox_of_a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, stream) = (dir.path().join("outbox"), unique("newer"));
    let url = url(NOBODY, &stream);
    assert_code(&run(&produce(&url, &outbox, &[]), b"k 1\n"), 3);

    // Each in turn says that a later release wrote it, with a checksum that holds.
    let identity = outbox.join("IDENTITY");
    let segment = files(&outbox.join("wal")).into_keys().find(|path| !text(path).contains("free-")).expect("a segment");
    for (file, newer) in
        [(&identity, newer_identity as fn(&[u8]) -> Vec<u8>), (&segment, newer_segment as fn(&[u8]) -> Vec<u8>)]
    {
        let original = std::fs::read(file).unwrap();
        std::fs::write(file, newer(&original)).unwrap();
        let before = files(&outbox);
        for args in [
            produce(&url, &outbox, &[]),
            vec!["drain", "--to", &url, "--outbox", text(&outbox)],
            vec!["dead", "requeue", "--all", "--outbox", text(&outbox)],
            vec!["status", "--outbox", text(&outbox)],
            vec!["peek", "--outbox", text(&outbox)],
        ] {
            let output = run(&args, b"k 2\n");
            assert_code(&output, 1);
            let names = output.stderr.contains("format") && output.stderr.contains(text(file));
            assert!(names, "{args:?} should name the file and its format: {}", output.stderr);
        }
        assert!(files(&outbox) == before, "something was written");
        std::fs::write(file, original).unwrap();
    }
    assert_eq!(drain(&outbox, &stream), [b"k 1"]);
}

/// A volume with an `fsGroup` gives its group every file at each mount, and the outbox refused to open after each restart.
/// What the file system does not let the owner put right is said, and no reason to stop.
#[test]
fn an_outbox_that_a_volume_gave_to_its_group_opens_and_says_so_once() {
    let Some(disk) = Disk::new(300) else { return };
    let (outbox, url) = (disk.root().join("outbox"), url(NOBODY, &unique("group")));
    assert_code(&run(&produce(&url, &outbox, &[]), b"k 1\n"), 3);
    let kept = outbox.join("damaged/MANIFEST");
    std::fs::write(&kept, "").unwrap();
    let sh = |script: &str| {
        let done = std::process::Command::new("sh").args(["-c", script, text(&outbox)]).status().expect("sh runs");
        assert!(done.success(), "{script}");
    };
    let mount = |more: &str| {
        sh(&format!("chgrp -R 2000 \"$0\"; chmod -R g+rwX \"$0\"; find \"$0\" -type d -exec chmod g+s {{}} +{more}"));
    };
    let drain = || run(&["drain", "--to", &url, "--outbox", text(&outbox), "--timeout", "0s"], b"");
    let is_private = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0;

    mount("");
    let opened = drain();
    assert_code(&opened, 3);
    assert_eq!(opened.stderr.matches("their rights are removed").count(), 1, "{}", opened.stderr);
    assert!(["", "wal", "dead", "ledger", "damaged"].iter().all(|name| is_private(&outbox.join(name))));
    // Those of the ledger are sled's, which makes them anew, as the umask has it.
    let ours = files(&outbox).into_keys().filter(|path| !path.starts_with(outbox.join("ledger")));
    assert_eq!(ours.filter(|path| !is_private(path)).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    let again = drain();
    assert_code(&again, 3);
    assert!(!again.stderr.contains("other users"), "{}", again.stderr);

    mount("; chattr +i \"$0/damaged/MANIFEST\"");
    let opened = drain();
    sh("chattr -i \"$0/damaged/MANIFEST\"");
    assert_code(&opened, 3);
    let said = "does not let that be changed";
    assert!(opened.stderr.matches(said).count() == 1 && opened.stderr.contains("MANIFEST"), "{}", opened.stderr);
    assert!(is_private(&outbox.join("wal")) && !is_private(&kept));

    mount("; chmod o+w \"$0\"");
    let refused = drain();
    assert_code(&refused, 1);
    assert!(refused.stderr.contains("may be written to by every user (mode 0772)"), "{}", refused.stderr);
}

/// It was called full: each line waited for space that no such disk can have.
#[test]
fn a_disk_that_is_too_small_for_one_line_is_called_so_at_the_start() {
    let Some(disk) = Disk::new(16) else { return };
    let (outbox, url) = (disk.root().join("outbox"), url(NOBODY, &unique("small")));
    let refused = run(&produce(&url, &outbox, &[]), b"k 1\n");
    assert_code(&refused, 1);
    for part in ["is too small: ", " bytes are free", "needs ", "set segment_bytes to ", "max_message_bytes to "] {
        assert!(refused.stderr.contains(part), "no {part:?}: {}", refused.stderr);
    }
    // The settings that it names do.
    let number = |after: &str| {
        let (_, rest) = refused.stderr.split_once(after).expect("it is named");
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().expect("a number")
    };
    let (segment, message) = (number("set segment_bytes to "), number("max_message_bytes to "));
    let builder = outlast::Producer::builder().outbox(&outbox).url(&url).segment_bytes(segment);
    let producer = builder.max_message_bytes(message as usize).open_blocking().expect("it fits");
    let stored = producer.blocking_send(outlast::Message::to("p").payload(vec![b'x'; 1_000]));
    assert!(matches!(stored, Ok(outlast::Receipt::Stored { .. })), "{stored:?}");
    producer.blocking_close(LIMIT).expect("it closes");
    // An outbox that holds something is opened, whatever the settings.
    let drained = run(&["drain", "--to", &url, "--outbox", text(&outbox), "--timeout", "0s"], b"");
    assert_code(&drained, 3);
}

/// `outlast 1 ID CRC`, twice, as of version 2.
fn newer_identity(bytes: &[u8]) -> Vec<u8> {
    let line = std::str::from_utf8(bytes).unwrap().lines().next().unwrap();
    let id = line.split(' ').nth(2).expect("an id");
    let words = format!("outlast 2 {id}");
    format!("{words} {:08x}\n\n", crc32fast::hash(words.as_bytes())).repeat(2).into_bytes()
}

/// The header as FORMAT.md has it, as of version 2.
fn newer_segment(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[8] = 2;
    let crc = crc32fast::hash(&[&bytes[48..56], &bytes[..100]].concat());
    bytes[100..104].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Lines of which some 12,000 take a segment.
fn long_lines(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let padding = vec![b'x'; 4_000];
    log_lines(seed, count).into_iter().map(|line| [line, padding.clone()].concat()).collect()
}

#[test]
fn on_a_full_disk_the_run_waits_and_goes_on_when_space_returns() {
    let seed = seed("full disk, waited for");
    let Some(disk) = Disk::new(400) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (outbox, stream) = (disk.root().join("outbox"), unique("full"));
    let (url, acks) = (url(NOBODY, &stream), Acks(dir.path().join("acks")));
    let lines = long_lines(seed, 25_000);
    let mut child = Child::spawn(&produce(&url, &outbox, &["--window", "500", "--ack-log", text(&acks.0)]), dir.path());
    child.feed(&lines[..100]);
    acks.wait_for(100, &mut child, LIMIT);
    disk.fill(8 << 20);
    child.feed_until_killed(&lines[100..]);
    // What was prepared is used up, and nothing more comes.
    let mut last = 0;
    common::wait_until("the disk is full", LIMIT, || {
        std::thread::sleep(Duration::from_secs(3));
        std::mem::replace(&mut last, acks.last()) == acks.last()
    });
    assert!(last < lines.len() as u64, "all of it fitted");
    let status = run(&["status", "--outbox", text(&outbox)], b"");
    assert!(status.code == Some(0) && status.stdout.to_lowercase().contains("no space"), "{status:?}");
    println!("full behind line {last}");

    disk.free();
    acks.wait_for(lines.len(), &mut child, LIMIT);
    child.kill();
    assert!(child.printed().lines().count() < 100, "it repeats itself: {}", child.printed());
    assert!(drain(&outbox, &stream) == lines, "an acknowledged line is missing, or out of order");
}

#[test]
fn on_a_disk_that_stays_full_the_run_ends_and_goes_on_where_it_stopped() {
    let seed = seed("full disk");
    let Some(disk) = Disk::new(400) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (outbox, stream) = (disk.root().join("outbox"), unique("full"));
    let (nobody, acks) = (url(NOBODY, &stream), Acks(dir.path().join("acks")));
    let file = dir.path().join("lines");
    let lines = long_lines(seed, 25_000);
    std::fs::write(&file, lines.join(&b'\n')).unwrap();
    disk.fill(100 << 20);
    let more = ["--window", "500", "--json", "--ack-log", text(&acks.0)];
    let stopped = run(&[produce(&nobody, &outbox, &more), vec![text(&file)]].concat(), b"");
    assert_code(&stopped, 1);
    assert!(stopped.stderr.contains("full"), "{}", stopped.stderr);
    let summary: serde_json::Value = serde_json::from_str(&stopped.stdout).expect("a summary");
    let next = summary["next_line"].as_u64().expect("where to go on");
    assert_eq!(acks.last() + 1, next, "{}", stopped.stderr);

    disk.free();
    let (url, next) = (url(&redis_address(), &stream), next.to_string());
    let more = ["--ack-log", text(&acks.0), "--from-line", &next, "--drain-timeout", "60s", text(&file)];
    let args: Vec<&str> =
        ["produce", "--key", "field:1", "--to", &url, "--outbox", text(&outbox)].into_iter().chain(more).collect();
    assert_code(&run(&args, b""), 0);
    assert_eq!(acks.read().len(), lines.len());
    assert!(drain(&outbox, &stream) == lines, "an acknowledged line is missing, or out of order");
}

#[test]
fn a_disk_that_becomes_read_only_in_mid_run_loses_nothing_acknowledged() {
    let seed = seed("read-only disk");
    let Some(mut disk) = Disk::new(400) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (outbox, stream) = (disk.root().join("outbox"), unique("erofs"));
    let (nobody, acks) = (url(NOBODY, &stream), Acks(dir.path().join("acks")));
    let lines = log_lines(seed, 10_000);
    let mut child =
        Child::spawn(&produce(&nobody, &outbox, &["--window", "500", "--ack-log", text(&acks.0)]), dir.path());
    child.feed(&lines[..3_000]);
    acks.wait_for(2_000, &mut child, LIMIT);
    disk.abort();
    child.feed_until_killed(&lines[3_000..]);
    assert_eq!(child.wait(LIMIT).code(), Some(1), "{}", child.printed());
    let printed = child.printed();
    assert!(printed.to_lowercase().contains("read-only file system"), "{printed}");
    assert!(printed.contains("was not accepted") && printed.contains("--from-line"), "{printed}");
    let accepted = acks.last() as usize;
    println!("read-only behind line {accepted}");

    disk.repair();
    let arrived = drain(&outbox, &stream);
    assert!(arrived.len() >= accepted, "{} of {accepted} acknowledged lines arrived", arrived.len());
    assert!(arrived[..] == lines[..arrived.len()], "a line is missing, or out of order");
}

#[test]
fn with_a_read_only_disk_and_a_healthy_broker_direct_sends_go_on() {
    let Some(disk) = Disk::new(400) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (outbox, stream) = (disk.root().join("outbox"), unique("erofs"));
    let (url, acks) = (url(&redis_address(), &stream), Acks(dir.path().join("acks")));
    let lines: Vec<Vec<u8>> = (1..=2_000).map(|n| format!("k {n}").into_bytes()).collect();
    let mut child = Child::spawn(&produce(&url, &outbox, &["--ack-log", text(&acks.0)]), dir.path());
    child.feed(&lines[..500]);
    acks.wait_for(500, &mut child, LIMIT);
    disk.abort();
    child.feed(&lines[500..]);
    acks.wait_for(2_000, &mut child, LIMIT);
    assert!(acks.read().into_iter().all(|(_, delivered)| delivered));
    child.kill();
    let entries = common::redis::read_all(&redis_address(), &stream);
    let arrived: Vec<&[u8]> = entries.iter().filter_map(|entry| entry.field("payload")).collect();
    assert_eq!(arrived, lines);
}
