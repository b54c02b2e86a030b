//! The program `outlast` as a child process, and the log of what it acknowledged.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// What a finished run of the program said.
#[derive(Debug)]
pub struct Output {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the program to its end, with `input` as its standard input.
pub fn run<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> Output {
    run_with(args, input, &[])
}

/// The same, with variables in its environment.
pub fn run_with<S: AsRef<OsStr>>(args: &[S], input: &[u8], environment: &[(&str, &str)]) -> Output {
    let mut child = program()
        .args(args)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    std::thread::scope(|scope| {
        scope.spawn(move || match stdin.write_all(input) {
            // It may well end before it has read everything.
            Err(e) if e.kind() != ErrorKind::BrokenPipe => panic!("writing to the program: {e}"),
            _ => {}
        });
        let output = child.wait_with_output().expect("the program ends");
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    })
}

/// The exit code of a run whose standard output nobody reads any more, and what it said on standard error.
pub fn run_unread<S: AsRef<OsStr>>(args: &[S], input: &[u8]) -> (Option<i32>, String) {
    let mut command = program();
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(broken_pipe())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Little enough for the pipe.
    child.stdin.take().expect("a pipe").write_all(input).expect("a pipe takes some lines");
    let output = child.wait_with_output().expect("the program ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A pipe whose reader has gone.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A run of the program in the background; it is killed when this is dropped.
pub struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Child {
    /// Starts the program; what it prints goes to a file `run-N.log` in `dir`. Its standard input is a pipe: see
    /// [`feed`](Self::feed).
    pub fn spawn<S: AsRef<OsStr>>(args: &[S], dir: &Path) -> Self {
        let number = (0..).find(|n| !dir.join(format!("run-{n}.log")).exists()).unwrap_or(0);
        let log = dir.join(format!("run-{number}.log"));
        let file = File::create(&log).expect("a file for the program's output");
        let stdout = file.try_clone().expect("a second handle").into();
        Self::start(args, stdout, file.into(), log)
    }

    /// Starts the program with a standard error that nobody reads any more; its standard output goes to a file in `dir`.
    pub fn spawn_unheard<S: AsRef<OsStr>>(args: &[S], dir: &Path) -> Self {
        let log = dir.join("unheard.log");
        let file = File::create(&log).expect("a file for the program's output");
        Self::start(args, file.into(), broken_pipe(), log)
    }

    /// The same as `spawn` with `ulimit -f`, in units of 1,024 bytes where bash is the shell, as a soft limit.
    pub fn spawn_limited<S: AsRef<OsStr>>(args: &[S], dir: &Path, limit: u32) -> Self {
        let log = dir.join("limited.log");
        let file = File::create(&log).expect("a file for the program's output");
        let mut command = Command::new("bash");
        let script = format!("ulimit -S -f {limit}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_outlast")]);
        command.env_remove("OUTLAST_PASSWORD").env_remove("RUST_LOG");
        let stdout = file.try_clone().expect("a second handle").into();
        Self::start_as(command, args, stdout, file.into(), log)
    }

    fn start<S: AsRef<OsStr>>(args: &[S], stdout: Stdio, stderr: Stdio, log: PathBuf) -> Self {
        Self::start_as(program(), args, stdout, stderr, log)
    }

    fn start_as<S: AsRef<OsStr>>(mut command: Command, args: &[S], stdout: Stdio, stderr: Stdio, log: PathBuf) -> Self {
        let started = command.args(args).stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn();
        let mut process = started.expect("the program starts");
        Self { stdin: process.stdin.take(), process, log }
    }

    /// Hands it lines; returns when it has read them, but for what fits into a pipe.
    #[track_caller]
    pub fn feed(&mut self, lines: &[Vec<u8>]) {
        let stdin = self.stdin.as_mut().expect("its input is still open");
        let written = lines.iter().try_for_each(|line| stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")));
        if let Err(e) = written {
            panic!("feeding the program: {e}; it printed:\n{}", self.printed());
        }
    }

    /// Hands it lines in the background, for as long as it lives.
    pub fn feed_until_killed(&mut self, lines: &[Vec<u8>]) {
        let mut stdin = self.stdin.take().expect("its input is still open");
        let lines = lines.to_vec();
        std::thread::spawn(move || {
            // Ends with a broken pipe, as is meant.
            lines.iter().try_for_each(|line| stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")))
        });
    }

    /// The end of its input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("the child can be waited for").is_none()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGINT, as from Ctrl-C.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("the child is alive");
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.process.kill().expect("the child can be killed");
        self.process.wait().expect("the child can be waited for");
    }

    /// Waits for its end; fails the test, showing what it printed, after `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(start.elapsed() < limit, "the program still runs after {limit:?}; it printed:\n{}", self.printed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// The file of `--ack-log`: what the program said it accepted.
pub struct Acks(pub PathBuf);

impl Acks {
    /// Every complete line of it: the input line's number, and whether it was delivered (else stored).
    pub fn read(&self) -> Vec<(u64, bool)> {
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Vec::new(),
            Err(e) => panic!("{}: {e}", self.0.display()),
        };
        // A killed program may have left half a line behind: that one was never said.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete.lines().map(|line| Self::parse(line).unwrap_or_else(|| panic!("in the ack log: {line:?}"))).collect()
    }

    fn parse(line: &str) -> Option<(u64, bool)> {
        let (number, state) = line.split_once('\t')?;
        let state = state.strip_suffix("\tunterminated").unwrap_or(state);
        let delivered = match state {
            "delivered" => true,
            "stored" => false,
            _ => return None,
        };
        Some((number.parse().ok()?, delivered))
    }

    /// The last line acknowledged, zero if there is none.
    pub fn last(&self) -> u64 {
        self.read().last().map_or(0, |(line, _)| *line)
    }

    /// Waits until at least `count` lines are acknowledged; fails the test, showing what the program printed, when
    /// it ends before that or `limit` passes.
    #[track_caller]
    pub fn wait_for(&self, count: usize, child: &mut Child, limit: Duration) {
        let start = Instant::now();
        while self.read().len() < count {
            let running = child.is_running();
            assert!(
                running && start.elapsed() < limit || self.read().len() >= count,
                "{} of {count} lines acknowledged after {:?}; the program (running: {running}) printed:\n{}",
                self.read().len(),
                start.elapsed(),
                child.printed()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outlast"));
    command.env_remove("OUTLAST_PASSWORD").env_remove("RUST_LOG");
    command
}
