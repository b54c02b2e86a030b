//! The demonstration's producer: `outlast produce` in a process of its own, so that it can be killed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::exit::Problem;

/// How long the demonstration waits for something to happen before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// Lines handed over at a time, and the pause behind them: so that a kill finds the producer at work.
const SIP: usize = 50;
const PAUSE: Duration = Duration::from_millis(5);

/// Lines acknowledged, as the log of acknowledgements has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    pub delivered: usize,
    pub stored: usize,
    /// The last line.
    pub last: u64,
}

impl Acks {
    /// Reads the log; half a line at its end was never said.
    pub fn read(log: &Path) -> Result<Self, Problem> {
        let text = match std::fs::read_to_string(log) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Problem::failed(format!("{}: {e}", log.display()))),
        };
        let mut acks = Self::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if let Some((number, state)) = line.split_once('\t') {
                acks.last = number.parse().map_err(|e| Problem::failed(format!("{}: {line}: {e}", log.display())))?;
                // The last line of the input may lack its newline: a further field says so.
                if state.starts_with("delivered") { acks.delivered += 1 } else { acks.stored += 1 }
            }
        }
        Ok(acks)
    }

    /// Lines acknowledged one way or the other.
    pub fn all(self) -> usize {
        self.delivered + self.stored
    }
}

/// A running producer.
pub struct Producer {
    process: Child,
    /// To the thread that feeds it: a producer that does not read holds up nobody else. The end of this is the end of
    /// its input.
    lines: Option<Sender<Vec<u8>>>,
    log: PathBuf,
    said: PathBuf,
}

impl Producer {
    /// Starts it in `dir`, where its outbox and its log of acknowledgements are. It reads `input` from line `from`
    /// on, or what it is fed.
    pub fn start(dir: &Path, broker: &str, input: Option<&Path>, from: u64) -> Result<Self, Problem> {
        let program = std::env::current_exe().map_err(Problem::failed)?;
        let (log, said) = (dir.join("acks"), dir.join(format!("producer-{from}.log")));
        let stderr = File::create(&said).map_err(Problem::failed)?;
        let process = Command::new(program)
            .args(["produce", "--key", "field:1", "--window", "500", "--drain-timeout", "60s", "--from-line"])
            .arg(from.to_string())
            .args(["--to", &format!("kafka://{broker}/{}", super::TOPIC), "--ack-log"])
            .arg(&log)
            .arg("--outbox")
            .arg(dir.join("outbox"))
            .arg(input.unwrap_or(Path::new("-")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|e| Problem::failed(format!("the producer's process: {e}")))?;
        let (lines, to_feed) = mpsc::channel::<Vec<u8>>();
        let mut producer = Self { process, lines: Some(lines), log, said };
        let Some(mut stdin) = producer.process.stdin.take() else { return Err(producer.problem("has no input")) };
        let feeder = thread::Builder::new().name("feeder".into()).spawn(move || {
            for bytes in to_feed {
                // Who is gone reads nothing more: whoever waits for its acknowledgements sees that.
                if stdin.write_all(&bytes).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
                thread::sleep(PAUSE);
            }
        });
        feeder.map_err(Problem::failed)?;
        Ok(producer)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Hands it lines, and does not wait until it has read them.
    pub fn feed(&self, lines: &[&[u8]]) {
        let Some(feeder) = &self.lines else { return };
        for sip in lines.chunks(SIP) {
            // If the feeder is gone, so is the producer.
            let _ = feeder.send(joined(sip));
        }
    }

    /// Waits until `count` lines are acknowledged.
    pub fn wait_for_acks(&mut self, count: usize) -> Result<Acks, Problem> {
        let begin = Instant::now();
        loop {
            let ended = self.process.try_wait().map_err(Problem::failed)?;
            let acks = Acks::read(&self.log)?;
            if acks.all() >= count {
                return Ok(acks);
            }
            if let Some(status) = ended {
                return Err(self.problem(&format!("ended early ({status})")));
            }
            if begin.elapsed() > PATIENCE {
                return Err(self.problem(&format!("has acknowledged {} of {count} lines only", acks.all())));
            }
            thread::sleep(LOOK);
        }
    }

    /// SIGKILL; returns what it had acknowledged until then.
    pub fn kill(mut self) -> Result<Acks, Problem> {
        self.process.kill().and_then(|()| self.process.wait()).map_err(Problem::failed)?;
        Acks::read(&self.log)
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<ExitStatus, Problem> {
        self.lines = None;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().map_err(Problem::failed)? {
                return Ok(status);
            }
            if begin.elapsed() > 2 * PATIENCE {
                return Err(self.problem("does not end"));
            }
            thread::sleep(LOOK);
        }
    }

    fn problem(&self, what: &str) -> Problem {
        let said = std::fs::read(&self.said).unwrap_or_default();
        Problem::failed(format!("the producer {what}; it said:\n{}", String::from_utf8_lossy(&said)))
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Where the demonstration ends early.
        if let Ok(None) = self.process.try_wait() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn joined(lines: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes
}
