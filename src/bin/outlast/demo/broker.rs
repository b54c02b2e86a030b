//! The demonstration's broker: librdkafka's mock cluster, in a process of its own.
//!
//! It answers the commands of its standard input, one a line, and ends with it: it never outlives the demonstration.
//! The mock keeps what it holds in memory, 5 MiB a partition. So an outage is not its end: it stops listening and
//! drops its connections.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rdkafka::mocking::MockCluster;

use super::{PARTITIONS, TOPIC};
use crate::exit::{Exit, Problem};
use crate::output;

/// The broker's number in its cluster of one.
const BROKER: i32 = 1;

/// Is the broker, until standard input ends: `outlast demo-broker`.
pub fn run() -> Result<Exit, Problem> {
    let cluster = MockCluster::new(1).map_err(Problem::failed)?;
    cluster.create_topic(TOPIC, PARTITIONS, 1).map_err(Problem::failed)?;
    output::line(&cluster.bootstrap_servers())?;
    for line in std::io::stdin().lock().lines() {
        let done = match line.map_err(Problem::failed)?.as_str() {
            "down" => cluster.broker_down(BROKER),
            "up" => cluster.broker_up(BROKER),
            other => return Err(Problem::usage(format!("unknown command {other:?}"))),
        };
        done.map_err(Problem::failed)?;
        output::line("done")?;
    }
    Ok(Exit::Done)
}

/// The process, as the demonstration sees it.
pub struct Broker {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// `host:port`.
    pub address: String,
}

impl Broker {
    /// Starts it and waits until it says where it is.
    pub fn start() -> Result<Self, Problem> {
        let program = std::env::current_exe().map_err(Problem::failed)?;
        let mut process = Command::new(program)
            .arg("demo-broker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Problem::failed(format!("the broker's process: {e}")))?;
        let (Some(commands), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Problem::failed("the broker's process has no pipes"));
        };
        let mut broker =
            Self { process, commands: Some(commands), answers: BufReader::new(answers), address: String::new() };
        broker.address = broker.answer()?;
        Ok(broker)
    }

    /// It stops listening and drops its connections.
    pub fn down(&mut self) -> Result<(), Problem> {
        self.command("down")
    }

    /// It listens again.
    pub fn up(&mut self) -> Result<(), Problem> {
        self.command("up")
    }

    fn command(&mut self, command: &str) -> Result<(), Problem> {
        let written = self.commands.as_mut().map_or(Ok(()), |commands| writeln!(commands, "{command}"));
        written.map_err(|e| Problem::failed(format!("the broker's process: {e}")))?;
        self.answer().map(drop)
    }

    fn answer(&mut self) -> Result<String, Problem> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Err(Problem::failed("the broker's process ended early")),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(e) => Err(Problem::failed(format!("the broker's process: {e}"))),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.commands = None;
        let _ = self.process.wait();
    }
}
