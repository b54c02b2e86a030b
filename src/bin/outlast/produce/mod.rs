//! `outlast produce`: each line of the input becomes a message.

mod ack_log;
mod feed;
mod key;
mod lines;
mod progress;
mod pump;
mod summary;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use outlast::Config;

use crate::args::{Format, Produce};
use crate::exit::{Exit, Problem};
use crate::open::{self, Destination};
use crate::output;
use crate::signals::Stop;

use ack_log::{AckLog, Last};
use feed::{Extent, Feed};
use key::Composer;
use progress::Progress;
use pump::Pump;
use summary::Summary;

pub use key::KeyFrom;

/// Sends the lines, settles them, says how it went.
pub fn run(args: &Produce) -> Result<Exit, Problem> {
    let begin = Instant::now();
    let destination = Destination::parse(&args.broker)?;
    let config = config(args, &destination);
    // First: a slip in an option may be why there is no topic.
    let builder = open::check(config.clone())?;
    let Some(name) = &destination.name else {
        return Err(Problem::usage(
            "--to: names no topic or stream; expected kafka://host:port/TOPIC or redis://host:port?stream=NAME",
        ));
    };
    if matches!(args.key, KeyFrom::Json(_)) && args.format != Format::Json {
        return Err(Problem::usage("--key json:… needs --format json"));
    }
    let composer = Composer { destination: name.clone(), format: args.format, key: args.key.clone() };
    let input = input(&args.input)?;
    let (limit, redelivery) = (config.max_message_bytes, config.redelivery_window);
    let mut stop = Stop::listen(args.stop.stop_timeout)?;
    let producer = open::open(builder, &mut stop)?;
    let dead_before = producer.stats().dead;
    let mut log = AckLog::open(args.ack_log.as_deref()).map_err(|e| problem_with_log(args, &e))?;
    let extent = extent(args, log.last, limit);
    if args.ack_log.is_some() {
        log.notes().iter().for_each(output::say);
        if let Some(last) = log.last.filter(|last| last.line >= args.from_line) {
            output::say(format_args!(
                "the log has line {} already; what is sent again arrives twice (to go on behind it: --from-line {})",
                last.line,
                last.line.saturating_add(1)
            ));
        }
        output::say(format_args!(
            "if this is killed, at most {} duplicates: {} lines read past the last one logged (--window), {} messages \
         in flight (they keep their id)",
            output::count(u64::from(args.window) + redelivery as u64),
            output::count(args.window.into()),
            output::count(redelivery as u64),
        ));
    }

    let feed = Feed::start(input, extent, composer).map_err(Problem::failed)?;
    let progress = Progress::start(&producer);
    let pump = Pump::new(&producer, feed, log, stop, args, &progress);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Problem::failed)?;
    let ended = runtime.block_on(pump.run(args.drain_timeout));
    progress.finish();

    let dead = producer.stats().dead.saturating_sub(dead_before);
    let summary = Summary::new(ended, dead, begin.elapsed());
    if args.json {
        output::json(&summary)?;
    }
    for line in summary.in_words(args) {
        output::say(line);
    }
    Ok(summary.exit())
}

/// What is read. Behind a line that the log has as `unterminated`, that line comes first: it may have grown since it was
/// sent, and its rest is no line of its own. It is sent again, whole, once it has its newline.
fn extent(args: &Produce, last: Option<Last>, limit: usize) -> Extent {
    let behind = |last: &Last| last.unterminated && last.line.checked_add(1) == Some(args.from_line);
    let sent_unterminated = last.filter(behind).map(|last| last.line).filter(|line| *line > 0);
    Extent {
        from: sent_unterminated.unwrap_or(args.from_line),
        limit,
        leave_unterminated: args.leave_unterminated,
        sent_unterminated,
    }
}

/// The defaults, with windows that fit `--window`: a smaller one means fewer duplicates after a kill.
fn config(args: &Produce, destination: &Destination) -> Config {
    let defaults = destination.config(&args.outbox, args.lock.lock_wait);
    let window_messages = defaults.window_messages.min(args.window as usize);
    // What is in flight, and as much again that is delivered but not yet recorded.
    let redelivery_window = defaults.redelivery_window.min(2 * window_messages);
    Config {
        mode: args.mode.into(),
        first_attempt: args.first_attempt,
        max_message_bytes: args.max_message_bytes,
        window_messages,
        redelivery_window,
        ..defaults
    }
}

fn input(path: &Path) -> Result<Box<dyn Read + Send>, Problem> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(std::io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    });
    match file {
        Ok(file) => Ok(Box::new(file)),
        Err(e) => Err(Problem::usage(format!("{}: {e}", path.display()))),
    }
}

fn problem_with_log(args: &Produce, error: &std::io::Error) -> Problem {
    let path = args.ack_log.as_deref().unwrap_or(Path::new(""));
    Problem::failed(format!("--ack-log {}: {error}", path.display()))
}
