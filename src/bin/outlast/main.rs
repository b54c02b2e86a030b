//! The program `outlast`: lines in, messages out, none lost. A thin layer over the library's public surface.

mod args;
mod check;
mod conceal;
mod dead;
#[cfg(feature = "kafka")]
mod demo;
mod doctor;
mod drain;
mod exit;
mod open;
mod output;
mod peek;
mod produce;
mod repair;
mod signals;
mod status;
mod values;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;

use args::{Args, Command};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return conceal::exit(&error),
    };
    log_to_stderr();
    block_file_size_signal();
    let done = match args.command {
        Command::Produce(args) => produce::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Peek(args) => peek::run(&args),
        Command::Dead(args) => dead::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Repair(args) => repair::run(&args),
        #[cfg(feature = "kafka")]
        Command::Demo(args) => demo::run(&args),
        #[cfg(feature = "kafka")]
        Command::DemoBroker => demo::run_broker(),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(problem) => {
            output::say(&problem.text);
            problem.exit.into()
        }
    }
}

/// A log of acknowledgements, or standard output, that would exceed the limit on the size of a file (`ulimit -f`) is an
/// error to report, not an end by SIGXFSZ. Before the first thread, so that all of them inherit it.
fn block_file_size_signal() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    if let Err(error) = signals.thread_block() {
        output::say(format_args!("SIGXFSZ cannot be blocked: {error}"));
    }
}

/// What is logged unless `RUST_LOG` says otherwise: warnings, without what the clients of the brokers say about the same
/// events, which the drainer tells once. What a server's settings put at risk nobody else tells.
const LOG: &str = "warn,outlast::transport=error,outlast::transport::redis::connect=warn,outlast::librdkafka=off";

/// Standard output is for results.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // What cannot be written would be told of by a panic, on whatever thread had something to say.
        .log_internal_errors(false)
        .init();
}
