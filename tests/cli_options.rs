//! The program's options and their bounds, slips in URLs, empty passwords, and passwords in wrong places, which no error
//! repeats.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Acks, Child, Output, RedisServer, run, run_with, unique, wait_until};

/// A broker that is not there: port 1 is privileged and unused.
const DEAD: &str = "redis://127.0.0.1:1?stream=orders";
/// For one thing to happen; generous, since the machine is shared.
const LIMIT: Duration = Duration::from_secs(120);

fn outlast(dir: &Path, words: &[&str], input: &[u8]) -> Output {
    let outbox = dir.join("outbox");
    let args: Vec<&str> = words.iter().copied().chain(["--outbox", outbox.to_str().expect("UTF-8")]).collect();
    run(&args, input)
}

#[track_caller]
fn says(output: &Output, code: i32, words: &[&str]) {
    let all = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, Some(code), "{all}");
    assert!(words.iter().all(|word| all.contains(word)), "{words:?}: {all}");
}

/// Waits until the process handles SIGTERM: before that it would just end.
fn wait_for_handler(pid: u32) {
    const TERM: u64 = 1 << (15 - 1);
    wait_until("it listens to signals", LIMIT, || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux says what is caught");
        u64::from_str_radix(caught.trim(), 16).expect("a mask") & TERM != 0
    });
}

#[test]
fn options_are_checked_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let produce = |more: [&'static str; 2]| [&["produce", "--to", DEAD][..], &more].concat();
    let small = "kafka://127.0.0.1:1/orders?message.max.bytes=2000";
    for (words, form) in [
        (produce(["--first-attempt", "0s"]), "at least 1ms"),
        (produce(["--first-attempt", "soon"]), "expected number"),
        (produce(["--max-message-bytes", "0"]), "--max-message-bytes: 0 is not between 1 and 16773120"),
        (produce(["--max-message-bytes", "17MiB"]), "--max-message-bytes: 17825792 is not between 1 and 16773120"),
        (produce(["--max-message-bytes", "8 miles"]), "8388608, 8MiB or 8MB"),
        (produce(["--max-message-bytes", "-1"]), "unexpected argument '-1'"),
        (produce(["--lock-wait", "5"]), "time unit needed"),
        (produce(["--stop-timeout", "999ms"]), "at least 1s"),
        // The outbox was made before the transport had its say.
        (vec!["produce", "--to", small], "message.max.bytes: 2000 is less than"),
        (vec!["drain", "--to", DEAD, "--lock-wait", "soon"], "--lock-wait"),
        (vec!["drain", "--to", DEAD, "--stop-timeout", "0s"], "at least 1s"),
        (vec!["dead", "requeue", "--all", "--lock-wait", "soon"], "--lock-wait"),
        (vec!["dead", "purge", "--all", "--lock-wait", "soon"], "--lock-wait"),
        (vec!["repair", "--lock-wait", "soon"], "--lock-wait"),
    ] {
        says(&outlast(dir.path(), &words, b"a line\n"), 2, &[form]);
        assert!(!dir.path().join("outbox").exists(), "{words:?}: the outbox was touched");
    }
}

#[test]
fn a_message_may_be_as_long_as_max_message_bytes_says() {
    let dir = tempfile::tempdir().unwrap();
    let produce = ["produce", "--to", DEAD, "--drain-timeout", "0s", "--max-message-bytes"];
    let with = |size: &str, line: usize| {
        outlast(dir.path(), &[&produce[..], &[size]].concat(), &[&b"x".repeat(line)[..], b"\n"].concat())
    };
    says(&with("10", 11), 1, &["longer than a message may be (10 bytes)"]);
    says(&with("10", 10), 3, &["1 line accepted"]);
    says(&with("8 MiB", 5_000_000), 3, &["1 line accepted"]);
    says(&with("16773120", 16_773_120), 3, &["1 line accepted"]);
    says(&with("1MiB", 1_048_577), 1, &["longer than a message may be (1048576 bytes)"]);
}

#[test]
fn a_message_is_stored_once_the_broker_has_taken_longer_than_first_attempt_says() {
    let (dir, server) = (tempfile::tempdir().unwrap(), RedisServer::up());
    let url = format!("redis://{}?stream=orders&response-timeout=10m", server.address());
    let mut runs = ["100ms", "10m"].map(|deadline| {
        let (outbox, acks) = (dir.path().join(deadline), Acks(dir.path().join(format!("acks-{deadline}"))));
        let words = ["produce", "--to", &url, "--first-attempt", deadline, "--outbox", outbox.to_str().unwrap()];
        let child = Child::spawn(&[&words[..], &["--ack-log", acks.0.to_str().unwrap()]].concat(), dir.path());
        (child, acks)
    });
    for (child, acks) in &mut runs {
        child.feed(&[b"before".to_vec()]);
        acks.wait_for(1, child, LIMIT);
    }
    server.stop();
    runs.iter_mut().for_each(|(child, _)| child.feed(&[b"while it hangs".to_vec()]));
    let [(hasty, acks), (patient, later)] = &mut runs;
    acks.wait_for(2, hasty, LIMIT);
    assert_eq!(acks.read()[1], (2, false), "stored");
    assert!(patient.is_running() && later.read().len() == 1, "it still waits for the broker");
    server.cont();
    later.wait_for(2, patient, LIMIT);
}

/// A run that has the outbox open until its input ends.
fn holder(dir: &Path) -> Child {
    let (outbox, acks) = (dir.join("outbox"), Acks(dir.join(unique("acks"))));
    let words = ["produce", "--to", DEAD, "--drain-timeout", "0s", "--outbox", outbox.to_str().unwrap(), "--ack-log"];
    let mut holder = Child::spawn(&[&words[..], &[acks.0.to_str().unwrap()]].concat(), dir);
    holder.feed(&[b"one".to_vec()]);
    acks.wait_for(1, &mut holder, LIMIT);
    holder
}

#[test]
fn an_outbox_that_is_held_is_waited_for_as_long_as_lock_wait_says() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    let commands: [(&[&str], i32); 6] = [
        (&["produce", "--to", DEAD, "--drain-timeout", "0s"], 3),
        (&["drain", "--to", DEAD, "--timeout", "0s"], 3),
        (&["dead", "requeue", "--all"], 0),
        (&["dead", "purge", "--all"], 0),
        (&["repair"], 0),
        (&["repair", "--yes"], 0),
    ];
    for (words, code) in commands {
        let mut holder = holder(dir.path());
        let begun = Instant::now();
        let refused = outlast(dir.path(), &[words, &["--lock-wait", "150ms"]].concat(), b"");
        says(&refused, 1, &[&holder.pid().to_string()]);
        assert!(begun.elapsed() >= Duration::from_millis(150), "{words:?} did not wait");

        let patient = [words, &["--lock-wait", "10m", "--outbox", outbox.to_str().unwrap()]].concat();
        let mut waiting = Child::spawn(&patient, dir.path());
        waiting.end_input();
        // Long enough to find it held; on a machine on which it is not, the run has nothing to wait for.
        std::thread::sleep(Duration::from_millis(200));
        assert!(waiting.is_running(), "{words:?}: {}", waiting.printed());
        holder.end_input();
        assert_eq!(holder.wait(LIMIT).code(), Some(3), "{}", holder.printed());
        assert_eq!(waiting.wait(LIMIT).code(), Some(code), "{words:?}: {}", waiting.printed());
    }
}

#[test]
fn a_signal_ends_the_wait_for_a_held_outbox() {
    let dir = tempfile::tempdir().unwrap();
    let mut holder = holder(dir.path());
    let outbox = dir.path().join("outbox");
    for command in ["produce", "drain"] {
        let words = [command, "--to", DEAD, "--lock-wait", "10m", "--stop-timeout", "10m", "--outbox"];
        let words = [&words[..], &[outbox.to_str().unwrap()]].concat();
        let mut child = Child::spawn(&words, dir.path());
        wait_for_handler(child.pid());
        child.terminate();
        assert_eq!(child.wait(LIMIT).code(), Some(1), "{}", child.printed());
        assert!(child.printed().contains("before the outbox was open"), "{}", child.printed());
    }
    assert!(holder.is_running());
}

/// Whatever hangs: here it is a standard error that takes nothing more.
#[test]
fn a_process_that_cannot_end_in_order_ends_when_stop_timeout_is_over() {
    let dir = tempfile::tempdir().unwrap();
    for (command, more) in [("produce", "--drain-timeout"), ("drain", "--timeout")] {
        // It is there, and something is pending, for `drain`.
        says(&outlast(dir.path(), &["produce", "--to", DEAD, "--drain-timeout", "0s"], b"x\n"), 3, &[]);
        let (_unread, mut full) = std::io::pipe().unwrap();
        // What a pipe of Linux holds.
        full.write_all(&[b'\n'; 65_536]).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_outlast"))
            .args([command, "--to", DEAD, more, "10m", "--stop-timeout", "1s", "--outbox"])
            .arg(dir.path().join("outbox"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(full)
            .spawn()
            .unwrap();
        wait_for_handler(process.id());
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begun = Instant::now();
        let ended = loop {
            match process.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if begun.elapsed() > LIMIT => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let _ = process.kill();
        let status = ended.expect("it ends by itself");
        assert_eq!((status.code(), status.signal()), (Some(1), None), "{command}");
        says(&outlast(dir.path(), &["check"], b""), 0, &["no damage"]);
    }
}

#[test]
fn an_option_that_is_unknown_is_named_with_the_one_that_was_probably_meant() {
    let dir = tempfile::tempdir().unwrap();
    for (url, words) in [
        ("redis://127.0.0.1:1?streem=p", &["streem", "no option of a Redis URL", "did you mean stream?"][..]),
        ("redis://127.0.0.1:1?stream=p&maxlne=5", &["maxlne", "did you mean maxlen?"]),
        ("redis://127.0.0.1:1?stream=p&colour=5", &["colour", "stream, maxlen, minid"]),
        ("redis://u:p@127.0.0.1:1?streem=p", &["did you mean stream?"]),
        ("kafka://127.0.0.1:1/p?lingr.ms=5", &["lingr.ms is unknown", "did you mean linger.ms?"]),
        ("kafka://127.0.0.1:1/p?compresion.type=lz4", &["did you mean compression.type?"]),
        ("kafka://127.0.0.1:1/p?queue_buffering_max_mesages=4", &["did you mean queue.buffering.max.messages?"]),
        ("kafka://127.0.0.1:1?topic=p", &["option topic is unknown", "kafka://host:port/TOPIC"]),
        ("kafka://127.0.0.1:1?stream=p", &["option stream is unknown", "kafka://host:port/TOPIC"]),
    ] {
        let output = outlast(dir.path(), &["produce", "--to", url], b"");
        says(&output, 2, words);
        assert!(!output.stderr.contains("names no topic"), "{}", output.stderr);
        assert!(!dir.path().join("outbox").exists());
    }
    let produce = ["produce", "--to", DEAD, "--drain-timeout", "0s", "--outbox"];
    let outbox = dir.path().join("outbox");
    let args = [&produce[..], &[outbox.to_str().unwrap()]].concat();
    let misspelt = run_with(&args, b"", &[("OUTLAST_PASSWD", "hunter2canary")]);
    says(&misspelt, 0, &["OUTLAST_PASSWD is not read; did you mean OUTLAST_PASSWORD?"]);
    assert!(!misspelt.stderr.contains("hunter2canary"));
    assert_eq!(run(&args, b"").stderr.matches("did you mean").count(), 0);
}

/// clap repeats a value in a wrong place; and a URL in the place of a path was shown as a file that is not there.
#[test]
fn a_password_in_a_wrong_place_is_not_repeated() {
    const CANARY: &str = "hunter2canary";
    let dir = tempfile::tempdir().unwrap();
    let urls = [
        format!("redis://user:{CANARY}@127.0.0.1:1?stream=orders"),
        format!("kafka://127.0.0.1:1/orders?security.protocol=sasl_ssl&sasl.password={CANARY}"),
    ];
    let shapes: [&[&str]; 38] = [
        &["URL"],
        &["produce", "URL"],
        &["produce", "--to", DEAD, "URL"],
        &["produce", "--to", DEAD, "-", "URL"],
        &["produce", "--tp", "URL"],
        &["produce", "--tp=URL"],
        &["produce", "--URL"],
        &["produce", "-URL"],
        &["produce", "--from=URL"],
        &["produce", "--to", DEAD, "--outbox", "URL"],
        &["produce", "--to", DEAD, "--ack-log=URL"],
        &["produce", "--to", DEAD, "--password-file", "URL"],
        &["produce", "--to", DEAD, "--mode", "URL"],
        &["produce", "--to", DEAD, "--mode=URL"],
        &["produce", "--to", DEAD, "--format", "URL"],
        &["produce", "--to", DEAD, "--key", "URL"],
        &["produce", "--to", DEAD, "--on-bad-line", "URL"],
        &["produce", "--to", DEAD, "--from-line", "URL"],
        &["produce", "--to", DEAD, "--window", "URL"],
        &["produce", "--to", DEAD, "--drain-timeout", "URL"],
        &["produce", "--to", DEAD, "--first-attempt", "URL"],
        &["produce", "--to", DEAD, "--max-message-bytes", "URL"],
        &["produce", "--to", DEAD, "--lock-wait", "URL"],
        &["produce", "--to", DEAD, "--stop-timeout", "URL"],
        &["drain", "URL"],
        &["drain", "--to", DEAD, "--outbox", "URL"],
        &["drain", "--to", DEAD, "--timeout", "URL"],
        &["status", "URL"],
        &["status", "--outbox", "URL"],
        &["peek", "--limit", "URL"],
        &["dead", "URL"],
        &["dead", "list", "--outbox", "URL"],
        &["dead", "show", "URL"],
        &["dead", "purge", "--id", "URL"],
        &["dead", "requeue", "--outbox=URL", "--all"],
        &["check", "--outbox", "URL"],
        &["repair", "--outbox", "URL"],
        &["demo", "URL"],
    ];
    for url in &urls {
        for shape in shapes {
            let words: Vec<String> = shape.iter().map(|word| word.replace("URL", url)).collect();
            let output = run(&words, b"a line\n");
            assert_eq!(output.code, Some(2), "{words:?}: {output:?}");
            assert!(!format!("{output:?}").contains(CANARY), "{words:?}: {output:?}");
            assert!(!output.stderr.is_empty(), "{words:?} says nothing");
        }
    }
    // Without its scheme, and where a character that is not escaped makes something else of the password.
    for words in [
        vec!["produce".to_owned(), format!("user:{CANARY}@127.0.0.1")],
        vec!["produce".to_owned(), "--to".to_owned(), format!("user:{CANARY}@127.0.0.1")],
        vec!["produce".to_owned(), "--to".to_owned(), format!("redis://user:1?{CANARY}=x@127.0.0.1")],
        vec!["produce".to_owned(), "--to".to_owned(), format!("redis://user:1?maxlen={CANARY}@127.0.0.1")],
        vec!["drain".to_owned(), "--to".to_owned(), format!("kafka://user:1?{CANARY}=x@127.0.0.1")],
        vec!["drain".to_owned(), "--to".to_owned(), format!("kafka://user:1/{CANARY}@127.0.0.1")],
    ] {
        let (outbox, words) = (dir.path().join("outbox"), words.iter().map(String::as_str));
        std::fs::create_dir_all(&outbox).unwrap();
        let output = outlast(dir.path(), &words.collect::<Vec<_>>(), b"a line\n");
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(!format!("{output:?}").contains(CANARY), "{output:?}");
        assert_eq!(std::fs::read_dir(&outbox).unwrap().count(), 0, "nothing was touched");
    }
}

/// It was sent as `AUTH ""`, which Redis refuses where no password is set.
#[test]
fn an_empty_password_is_no_password() {
    let (dir, server) = (tempfile::tempdir().unwrap(), RedisServer::up());
    let address = server.address();
    common::redis::command(address, &["ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all"]);
    let stream = unique("empty");
    for (number, (url, password)) in [
        (format!("redis://:@{address}?stream={stream}"), None),
        (format!("redis://{address}?stream={stream}"), Some("")),
        // A user who needs none has one that is empty.
        (format!("redis://app:@{address}?stream={stream}"), None),
    ]
    .into_iter()
    .enumerate()
    {
        let outbox = dir.path().join("outbox");
        let words = ["produce", "--to", &url, "--outbox", outbox.to_str().unwrap(), "--drain-timeout", "10s"];
        let environment: Vec<(&str, &str)> =
            password.map(|password| ("OUTLAST_PASSWORD", password)).into_iter().collect();
        let output = run_with(&words, b"a line\n", &environment);
        says(&output, 0, &["1 line accepted"]);
        assert_eq!(common::redis::read_all(address, &stream).len(), number + 1, "{url}");
    }
    // A user without any is still a slip.
    let user = format!("redis://app@{address}?stream={stream}");
    says(&outlast(dir.path(), &["produce", "--to", &user], b""), 2, &["a user is named without a password"]);
    let sasl = "security.protocol=sasl_plaintext&sasl.mechanism=PLAIN";
    for url in [
        format!("kafka://user:@127.0.0.1:1/orders?{sasl}"),
        format!("kafka://127.0.0.1:1/orders?{sasl}&sasl.username=user&sasl.password="),
    ] {
        let output = outlast(dir.path(), &["produce", "--to", &url], b"");
        says(&output, 2, &["sasl.password is empty"]);
    }
    says(&outlast(dir.path(), &["produce", "--to", "kafka://:@127.0.0.1:1/orders"], b""), 0, &[]);
}

/// It waited for ever, unless all of what was pending was for another broker.
#[test]
fn drain_ends_when_all_that_is_left_is_for_another_broker() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("others"));
    let address = common::redis_address();
    for url in ["kafka://127.0.0.1:1/orders", &format!("redis://127.0.0.1:1?stream={stream}")] {
        says(&outlast(dir.path(), &["produce", "--to", url, "--drain-timeout", "0s"], b"x\ny\n"), 3, &[]);
    }
    let outbox = dir.path().join("outbox");
    let words = ["drain", "--to", &format!("redis://{address}"), "--outbox", outbox.to_str().unwrap()];
    let mut child = Child::spawn(&words, dir.path());
    assert_eq!(child.wait(LIMIT).code(), Some(3), "{}", child.printed());
    assert!(child.printed().contains("2 messages delivered"), "{}", child.printed());
    assert!(child.printed().contains("still pending: 2 messages"), "{}", child.printed());
    assert_eq!(common::redis::read_all(&address, &stream).len(), 2);
}
