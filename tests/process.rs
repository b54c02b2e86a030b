//! What the process around an outbox may do: fork without `exec`, and have a limit on the size of a file.
//!
//! Each test does it in a process of its own, this program run again for one of its helpers.
#![cfg(all(feature = "cli", feature = "redis", feature = "testing", target_os = "linux"))]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Acks, Child, Output, run, wait_until};
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use outlast::internals::outbox::{Directory, DirectoryOptions, Outbox, OutboxOptions};
use outlast::{Message, Producer, Receipt, SendErrorKind};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// For one thing to happen.
const LIMIT: Duration = Duration::from_secs(90);
/// A broker that is not there: port 1 is privileged and unused.
const DOWN: &str = "redis://127.0.0.1:1?stream=p";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A helper of this program in a process of its own; it is killed when this is dropped.
struct Helper {
    process: std::process::Child,
    said: BufReader<std::process::ChildStdout>,
    /// A fork of it, which is killed likewise.
    fork: Option<Pid>,
}

impl Helper {
    fn start(name: &str, outbox: &Path, what: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", name, "--nocapture"])
            .env("OUTLAST_TEST_PATH", outbox)
            .env("OUTLAST_TEST_WHAT", what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let said = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, said, fork: None }
    }

    /// Waits for a line that begins with `word`, and returns the rest of it.
    #[track_caller]
    fn hear(&mut self, word: &str) -> String {
        let mut all = String::new();
        loop {
            let before = all.len();
            let read = self.said.read_line(&mut all).expect("its output can be read");
            assert!(read > 0, "it ended without a word of {word}: {all}");
            if let Some(rest) = all[before..].strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Lets it go on.
    fn go_on(&mut self) {
        self.process.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it listens");
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(begun.elapsed() < LIMIT, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(fork) = self.fork {
            let _ = nix::sys::signal::kill(fork, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// In a helper: where, and what to do there.
fn asked() -> (PathBuf, String) {
    let path = std::env::var_os("OUTLAST_TEST_PATH").expect("run by its test");
    (path.into(), std::env::var("OUTLAST_TEST_WHAT").expect("run by its test"))
}

/// In a helper: waits until the test says so.
fn wait_for_the_test() {
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn say(text: &str) {
    // Behind what the harness has begun a line with.
    println!("\n{text}");
}

fn producer(outbox: &Path) -> Producer {
    let builder = Producer::builder().outbox(outbox).url(DOWN).segment_bytes(1 << 20).max_message_bytes(64 << 10);
    builder.max_bytes(16 << 20).space_wait(Duration::from_millis(300)).open_blocking().expect("it opens")
}

fn drain(outbox: &Path) -> Output {
    run(&["drain", "--to", DOWN, "--outbox", text(outbox), "--timeout", "0s"], b"")
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("a list").count()
}

fn open_locks() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("a list").flatten();
    files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.ends_with("LOCK"))).count()
}

/// What a fork has inherited.
enum Inherited {
    Producer(Producer),
    Outbox(Box<Outbox>),
    Directory(Directory),
}

impl Inherited {
    fn open(outbox: &Path, what: &str) -> Self {
        match what {
            "producer" => Self::Producer(producer(outbox)),
            "outbox" => {
                let options = OutboxOptions { max_bytes: Some(16 << 20), ..OutboxOptions::new(outbox) };
                let options = OutboxOptions { segment_bytes: 1 << 20, max_message_bytes: 64 << 10, ..options };
                Self::Outbox(Box::new(Outbox::open(&options).expect("it opens")))
            }
            _ => Self::Directory(Directory::open(outbox, &DirectoryOptions::default()).expect("it opens")),
        }
    }

    /// As the parent ends with it.
    fn close(self) {
        match self {
            Self::Producer(producer) => drop(producer.blocking_close(LIMIT).expect("it closes")),
            Self::Outbox(outbox) => {
                outbox.close().expect("it closes");
                outbox.release();
            }
            Self::Directory(directory) => directory.release(),
        }
    }
}

/// The child's exit code says what it found after its drop.
fn in_the_child(inherited: Inherited) -> i32 {
    if let Inherited::Producer(producer) = &inherited {
        // What would wait for the parent's threads says that it cannot.
        if producer.blocking_close(LIMIT).is_ok() || producer.blocking_drained(LIMIT).is_ok() {
            return 3;
        }
    }
    drop(inherited);
    match (threads(), open_locks()) {
        (1, 0) => 0,
        (1, _) => 4,
        _ => 5,
    }
}

#[test]
#[ignore = "a helper of the tests below"]
fn forks_and_the_child_drops_it() {
    let (outbox, what) = asked();
    let mine = Inherited::open(&outbox, &what);
    // SAFETY: the child only allocates, which the C library allows after a fork of several threads, drops what the test is
    // about, reads lists of files, and ends by `_exit`.
    match unsafe { fork() }.expect("it forks") {
        ForkResult::Child => {
            // A panic must not unwind into a copy of the harness, whose end would pass for a success.
            let code = std::panic::catch_unwind(AssertUnwindSafe(|| in_the_child(mine))).unwrap_or(6);
            // SAFETY: ends the process at once, without destructors.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let begun = Instant::now();
            let ended = loop {
                match waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("it can be waited for") {
                    WaitStatus::StillAlive if begun.elapsed() < LIMIT => std::thread::sleep(Duration::from_millis(5)),
                    ended => break ended,
                }
            };
            say(&format!("child: {ended:?}"));
            wait_for_the_test();
            mine.close();
            say("closed");
            wait_for_the_test();
        }
    }
}

/// Its drop unlocked what it shares with the parent, so that a second process opened the outbox beside the first; or it
/// joined threads that a fork does not have.
#[test]
fn a_fork_that_drops_what_it_inherited_leaves_the_outbox_to_its_parent() {
    for what in ["directory", "outbox", "producer"] {
        let temp = tempfile::tempdir().expect("tempdir");
        let outbox = temp.path().join("outbox");
        let mut helper = Helper::start("forks_and_the_child_drops_it", &outbox, what);
        let child = helper.hear("child: ");
        assert!(child.starts_with("Exited(") && child.ends_with(", 0)"), "{what}: {child}");
        let refused = drain(&outbox);
        assert_eq!(refused.code, Some(1), "{what}: {refused:?}");
        let named =
            format!("in use: {} is held by the process with pid {}\n", text(&outbox.join("LOCK")), helper.process.id());
        assert!(refused.stderr.contains(&named), "{what}: {}", refused.stderr);
        helper.go_on();
        helper.hear("closed");
        let free = drain(&outbox);
        assert_eq!(free.code, Some(0), "{what}: {free:?}");
        helper.go_on();
        assert!(helper.ended().success(), "{what}");
    }
}

#[test]
#[ignore = "a helper of the test below"]
fn forks_and_ends() {
    let (outbox, what) = asked();
    let _mine = Inherited::open(&outbox, &what);
    // SAFETY: the child only waits to be killed.
    match unsafe { fork() }.expect("it forks") {
        ForkResult::Child => loop {
            // SAFETY: returns after a signal, if at all.
            unsafe { libc::pause() };
        },
        ForkResult::Parent { child } => {
            say(&format!("child: {child}"));
            wait_for_the_test();
            // SAFETY: ends the process at once, without destructors, as a kill would.
            unsafe { libc::_exit(0) }
        }
    }
}

/// The file names the process that took the lock, which had died, and the operator looked for it in vain.
#[test]
fn a_fork_that_holds_the_lock_is_named_where_its_parent_has_died() {
    let temp = tempfile::tempdir().expect("tempdir");
    let outbox = temp.path().join("outbox");
    let mut helper = Helper::start("forks_and_ends", &outbox, "producer");
    let child = helper.hear("child: ");
    helper.fork = child.parse().ok().map(Pid::from_raw);
    let parent = helper.process.id();
    let status = run(&["status", "--outbox", text(&outbox)], b"").stdout;
    assert!(status.starts_with(&format!("held by process {parent}\n")), "as long as that lives: {status}");
    helper.go_on();
    helper.ended();
    let refused = drain(&outbox);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let named = format!("is held by the process with pid {child}, a fork that inherited it from pid {parent}");
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
    let status = run(&["status", "--outbox", text(&outbox)], b"").stdout;
    assert!(status.starts_with(&format!("held by process {child}\n")), "{status}");
    let fork = helper.fork.take().expect("a pid");
    nix::sys::signal::kill(fork, nix::sys::signal::Signal::SIGKILL).expect("it lives");
    wait_until("the lock is free", LIMIT, || drain(&outbox).code == Some(0));
}

/// Signals that the calling thread blocks, and that the process ignores and catches.
fn signals() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("it is there");
    status.lines().filter(|line| ["SigBlk", "SigIgn", "SigCgt"].contains(&&line[..6])).map(str::to_owned).collect()
}

fn limit_files_to(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).expect("the limit can be lowered");
}

#[test]
#[ignore = "a helper of the test below"]
fn has_a_limit_on_files() {
    let (outbox, _) = asked();
    let before = signals();
    limit_files_to(Some(100 << 10));
    let producer = producer(&outbox);
    let full = producer.blocking_send(Message::to("p").payload("1")).expect_err("no segment can be made");
    assert!(full.kind() == SendErrorKind::Full && full.is_retryable() && !full.possibly_delivered(), "{full}");
    assert!(full.to_string().contains("File too large"), "{full}");
    let alerts = producer.health().alerts;
    assert!(alerts.iter().any(|alert| alert.starts_with("disk: ") && alert.contains("RLIMIT_FSIZE")), "{alerts:?}");
    limit_files_to(None);
    let begun = Instant::now();
    let stored = loop {
        match producer.blocking_send(Message::to("p").payload("2")) {
            Ok(receipt) => break receipt,
            Err(error) => assert!(begun.elapsed() < LIMIT && error.kind() == SendErrorKind::Full, "{error}"),
        }
    };
    assert!(matches!(stored, Receipt::Stored { .. }), "{stored:?}");
    // What is written at the end, on this thread's behalf; whether a seal was still to be written is a matter of time.
    limit_files_to(Some(0));
    let _ = producer.blocking_close(LIMIT);
    assert_eq!(signals(), before, "the application's are as they were");
    say("all is well");
    // And do what they did: the application's own write ends it.
    limit_files_to(Some(1_000));
    let written = std::fs::write(outbox.with_file_name("own"), [0; 10_000]);
    say(&format!("{written:?}"));
}

/// The kernel's signal at the limit killed the producer, and the application with it.
#[test]
fn a_limit_on_the_size_of_files_is_a_full_disk_and_ends_no_process() {
    let temp = tempfile::tempdir().expect("tempdir");
    let outbox = temp.path().join("outbox");
    let mut helper = Helper::start("has_a_limit_on_files", &outbox, "");
    helper.hear("all is well");
    assert_eq!(helper.ended().signal(), Some(libc::SIGXFSZ));
    let status = run(&["status", "--outbox", text(&outbox)], b"");
    assert!(status.stdout.contains("pending: 1 messages"), "{status:?}");
}

#[test]
fn the_program_waits_at_a_limit_on_the_size_of_files_and_goes_on_beyond_it() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (outbox, acks) = (temp.path().join("outbox"), Acks(temp.path().join("acks")));
    let args =
        ["produce", "--to", DOWN, "--outbox", text(&outbox), "--ack-log", text(&acks.0), "--drain-timeout", "0s"];
    let mut child = Child::spawn_limited(&args, temp.path(), 1_000);
    child.feed(&[b"one".to_vec()]);
    let status = || run(&["status", "--outbox", text(&outbox)], b"").stdout;
    wait_until("it says why it waits", LIMIT, || {
        assert!(child.is_running(), "{}", child.printed());
        outbox.join("IDENTITY").exists() && status().contains("File too large")
    });
    assert_eq!(acks.last(), 0);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.pid()).expect("a pid"));
    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(pid, Resource::Fsize, unlimited).expect("it lives");
    acks.wait_for(1, &mut child, LIMIT);
    child.end_input();
    assert_eq!(child.wait(LIMIT).code(), Some(3), "{}", child.printed());

    // What it writes itself, too, to a file that may not be written to.
    let script = "ulimit -S -f 0; exec \"$0\" status --outbox \"$1\" > \"$2\"";
    let mut shell = Command::new("bash");
    let out = temp.path().join("out");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_outlast"), text(&outbox), text(&out)]);
    let limited = shell.output().expect("bash runs");
    let said = String::from_utf8_lossy(&limited.stderr);
    assert!(limited.status.code() == Some(1) && said.contains("standard output: File too large"), "{limited:?}");
}
