//! The command line, as clap reads it.
//!
//! None of these types shows itself (`Debug`): a URL may hold a password. For the same reason `--to` is read as
//! text and parsed later, since clap repeats a value that it refuses; what it repeats of a URL in a wrong place is taken out
//! in `conceal`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::{Parser, Subcommand, ValueEnum};

use crate::produce::KeyFrom;
use crate::values::{at_least, path, size};

/// Where messages wait unless told otherwise: in the working directory, where it is seen.
const DEFAULT_OUTBOX: &str = "outlast-outbox";

/// Hands messages to Kafka or Redis without losing one.
#[derive(Parser)]
#[command(name = "outlast", version, max_term_width = 120)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Send each line of a file (or of standard input) as a message
    #[command(after_help = PRODUCE_HELP)]
    Produce(Produce),
    /// Deliver what an outbox still holds
    #[command(after_help = DRAIN_HELP)]
    Drain(Drain),
    /// Say what is pending in an outbox, and why; works beside a running producer
    #[command(after_help = LOOK_HELP)]
    Status(Status),
    /// Show pending messages, oldest first; works beside a running producer
    #[command(after_help = LOOK_HELP)]
    Peek(Peek),
    /// Look at, requeue or purge dead letters: messages the broker will never take
    #[command(after_help = DEAD_HELP)]
    Dead(Dead),
    /// Read everything in an outbox and say what is damaged; changes nothing, works beside a running producer
    #[command(after_help = CHECK_HELP)]
    Check(Check),
    /// Say whether an outbox can lie there and the broker bears the promise, and what to do if not; sends nothing
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// Put a damaged outbox in order; without --yes it only says what it would do. Not beside a running producer
    #[command(after_help = REPAIR_HELP)]
    Repair(Repair),
    /// Show an outage, a kill and a restart on an embedded broker, and check that nothing was lost
    #[cfg(feature = "kafka")]
    Demo(Demo),
    /// The broker of the demonstration
    #[cfg(feature = "kafka")]
    #[command(hide = true)]
    DemoBroker,
}

const PRODUCE_HELP: &str = "\
URL: kafka://host:port[,host:port]/TOPIC[?librdkafka.option=…]
     redis://[user[:password]@]host:port[/db]?stream=NAME, or rediss://… for TLS
A password comes from the URL, from --password-file or from the variable OUTLAST_PASSWORD.
DURATION: such as 500ms, 90s or 5m; SIZE: a number of bytes, such as 8388608, 8MiB or 8MB.

Exit code: 0 everything was delivered; 3 everything was accepted, some of it is still in the outbox (`outlast drain` \
delivers it) or became a dead letter (`outlast dead list`); 1 something was not accepted; 2 wrong usage.";

const DRAIN_HELP: &str = "\
URL: kafka://host:port[,host:port][?librdkafka.option=…]
     redis://[user[:password]@]host:port[/db], or rediss://… for TLS
Each message goes to the topic or stream that it was stored for; one that the URL names changes nothing.

Exit code: 0 everything was delivered; 3 some of it is still pending, or became a dead letter (`outlast dead list`); \
1 it could not be done; 2 wrong usage.";

const LOOK_HELP: &str = "Exit code: 0 it could be read; 1 it could not; 2 wrong usage.";

const DEAD_HELP: &str = "\
Exit code: 0 done; 1 it could not be done, or there is no such dead letter; 2 wrong usage.";

const CHECK_HELP: &str = "\
damage      acknowledged messages cannot be read, or nobody can say whether all can, or the outbox does not open
suspicious  something is not as it was written, and no acknowledged message is lost by it
harmless    something left over, or none of the outbox's

Exit code: 0 no damage; 1 damage, or the outbox cannot be read; 2 wrong usage.";

const DOCTOR_HELP: &str = "\
Run it as the user, and under the limits (ulimit), of the producer. An outbox that is there is read and left as it is; \
where none is yet, one file is written in the directory it would be made in, and removed. The broker is asked about \
itself, and about each topic or stream that the URL names or that messages are pending for.

problem     a producer would not start, could not deliver, or what is acknowledged could be lost
note        a limit of the set-up, or something that could not be checked

Exit code: 0 no problem; 1 problems; 2 wrong usage.";

const REPAIR_HELP: &str = "\
Nothing is deleted: what is taken out of its place lies in the outbox under damaged/, with a line in MANIFEST there.
Messages in a damaged frame are given up, because its checksum covers all of them together; the bytes are kept.

Exit code: without --yes, 0 if there is nothing to do, else 1; with it, 0 if no damage remains, else 1; 2 wrong usage.";

#[derive(clap::Args)]
pub struct Check {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Doctor {
    /// The outbox's directory, there or not
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX)]
    pub outbox: PathBuf,
    /// The broker, as for `produce`; without it, only what is local is checked
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// A file whose first line is the password; else the variable OUTLAST_PASSWORD is looked at
    #[arg(long, value_name = "FILE", requires = "to")]
    pub password_file: Option<PathBuf>,
    /// How long the broker may take to answer, such as 30s
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Repair {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Do it
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub lock: LockWait,
}

/// For commands that take the outbox's lock.
#[derive(clap::Args)]
pub struct LockWait {
    /// If another process has the outbox open, wait this long for it, such as 90s or 5m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub lock_wait: Duration,
}

/// For commands that end in order when a signal asks them to.
#[derive(clap::Args)]
pub struct StopTimeout {
    /// After Ctrl-C or SIGTERM: end within this long, and store what is still in flight by then; at least 1s. The default
    /// fits within the 10s of `docker stop`
    #[arg(long, value_name = "DURATION", default_value = "8s",
        value_parser = humantime::parse_duration.try_map(|it| at_least(Duration::from_secs(1), it)))]
    pub stop_timeout: Duration,
}

#[derive(clap::Args)]
pub struct Broker {
    /// The broker; for `produce` also the topic or stream
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// A file whose first line is the password; else the variable OUTLAST_PASSWORD is looked at
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub password_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Produce {
    #[command(flatten)]
    pub broker: Broker,
    /// The outbox's directory; made if it is not there
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// direct: to the broker first, to the outbox if that fails; write-ahead: to the outbox first
    #[arg(long, value_enum, default_value = "direct")]
    pub mode: Mode,
    /// lines: a line is a message; json: the same, and it must be a JSON document
    #[arg(long, value_enum, default_value = "lines")]
    pub format: Format,
    /// What messages are keyed by: none, field:N (the Nth blank-separated field; a line without it goes without a
    /// key), json:/POINTER (with --format json: a string's text, a number or boolean as it is written)
    #[arg(long, value_name = "KEY", default_value = "none")]
    pub key: KeyFrom,
    /// What happens at a line that is not what --format and --key ask for, or is too long
    #[arg(long, value_enum, default_value = "stop")]
    pub on_bad_line: OnBadLine,
    /// Leave a last line that has no newline for the next run; else it is sent as it is, and --ack-log says so
    #[arg(long)]
    pub leave_unterminated: bool,
    /// Start at this line of the input, counted from 1. Behind a line that --ack-log has as unterminated: that line is
    /// sent again first, whole, if it has its newline by now
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    pub from_line: u64,
    /// Lines read past the last one acknowledged, at most
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub window: u32,
    /// A file that gets LINE<TAB>delivered or LINE<TAB>stored for each accepted line, in the order of the input, up to
    /// the first that is not accepted (to go on behind its last line leaves none out), and <TAB>unterminated behind a last
    /// line without newline; appended to if it is there
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub ack_log: Option<PathBuf>,
    /// At the end of the input: wait this long, such as 90s or 5m, for what is on the way or pending
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
    /// In --mode direct: how long the broker may take to acknowledge a message before it is stored as well, at least 1ms
    #[arg(long, value_name = "DURATION", default_value = "5s",
        value_parser = humantime::parse_duration.try_map(|it| at_least(Duration::from_millis(1), it)))]
    pub first_attempt: Duration,
    /// Bytes of a line and its key, at most; 16MiB less 4KiB is the highest limit. Kafka's own limit is 1MiB, unless
    /// `message.max.bytes` there is higher
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size)]
    pub max_message_bytes: usize,
    #[command(flatten)]
    pub lock: LockWait,
    #[command(flatten)]
    pub stop: StopTimeout,
    /// Print the summary as JSON, on standard output
    #[arg(long)]
    pub json: bool,
    /// The input; - is standard input
    #[arg(value_name = "FILE", default_value = "-", value_parser = path())]
    pub input: PathBuf,
}

#[derive(clap::Args)]
pub struct Drain {
    #[command(flatten)]
    pub broker: Broker,
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Give up waiting after this long, such as 90s or 5m; without it, wait until everything is delivered
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub lock: LockWait,
    #[command(flatten)]
    pub stop: StopTimeout,
}

#[derive(clap::Args)]
pub struct Status {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Peek {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Messages to show, at most
    #[arg(long, value_name = "N", default_value = "10")]
    pub limit: usize,
    /// Print a line of JSON a message, payloads as text where they are text, else in hexadecimal digits
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Dead {
    #[command(subcommand)]
    pub command: DeadCommand,
}

#[derive(Subcommand)]
pub enum DeadCommand {
    /// One line a dead letter
    List(DeadList),
    /// Everything about some of them
    Show(DeadShow),
    /// Make them pending again, behind what is pending now, in the order in which they were sent; not beside a running
    /// producer
    Requeue(DeadRequeue),
    /// Throw them away for good; not beside a running producer
    Purge(DeadChange),
}

#[derive(clap::Args)]
pub struct DeadList {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Print a line of JSON a dead letter
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct DeadShow {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    /// Print a line of JSON a dead letter
    #[arg(long)]
    pub json: bool,
    /// Their numbers, as `list` shows them
    #[arg(value_name = "NUMBER", required = true)]
    pub numbers: Vec<u64>,
}

#[derive(clap::Args)]
pub struct DeadChange {
    /// The outbox's directory
    #[arg(long, value_name = "DIR", default_value = DEFAULT_OUTBOX, value_parser = path())]
    pub outbox: PathBuf,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub lock: LockWait,
}

#[derive(clap::Args)]
pub struct DeadRequeue {
    #[command(flatten)]
    pub change: DeadChange,
    /// Where a Kafka topic refuses a time that the application gave, send the time of delivery; the application's goes
    /// into the header outlast-accepted
    #[arg(long)]
    pub restamp: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// All of them
    #[arg(long)]
    pub all: bool,
    /// The one with this message id
    #[arg(long, value_name = "ID")]
    pub id: Option<outlast::MessageId>,
    /// Those of a route, such as kafka/orders
    #[arg(long, value_name = "TRANSPORT/DESTINATION")]
    pub route: Option<String>,
    /// Their numbers, as `list` shows them
    #[arg(value_name = "NUMBER")]
    pub numbers: Vec<u64>,
}

#[cfg(feature = "kafka")]
#[derive(clap::Args)]
pub struct Demo {
    /// Lines to send; without it, some are made up
    #[arg(value_name = "FILE", value_parser = path())]
    pub input: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    Direct,
    WriteAhead,
}

impl From<Mode> for outlast::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Direct => Self::Direct,
            Mode::WriteAhead => Self::WriteAhead,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Lines,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnBadLine {
    /// Stop reading there; what was sent is settled
    Stop,
    /// Go on; such lines are counted and reported at the end
    Skip,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_selection_of_dead_letters_is_never_left_to_chance() {
        for (words, legal) in [
            (vec!["--all"], true),
            (vec!["1", "2"], true),
            (vec!["--route", "kafka/orders"], true),
            (vec![], false),
            (vec!["--all", "1"], false),
        ] {
            let line = ["outlast", "dead", "purge", "--outbox", "x"].into_iter().chain(words.clone());
            assert_eq!(Args::try_parse_from(line).is_ok(), legal, "{words:?}");
        }
    }
}
