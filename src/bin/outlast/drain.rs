//! `outlast drain`: delivers what an outbox still holds.

use std::time::{Duration, Instant};

use outlast::Producer;

use crate::args::Drain;
use crate::exit::{Exit, Problem};
use crate::open::{self, Destination, GRACE_AFTER_WAIT};
use crate::output::{self, counted};
use crate::signals::Stop;

/// How often it is looked whether what is still pending is for other brokers. Costs a thread and a look at the counts.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until nothing is pending, or the time is up, or a signal comes.
pub fn run(args: &Drain) -> Result<Exit, Problem> {
    let destination = Destination::parse(&args.broker)?;
    let outbox = args.outbox.display();
    if !args.outbox.is_dir() {
        return Err(Problem::failed(format!("there is no outbox at {outbox}")));
    }
    let builder = open::check(destination.config(&args.outbox, args.lock.lock_wait))?;
    let mut stop = Stop::listen(args.stop.stop_timeout)?;
    let producer = open::open(builder, &mut stop)?;
    let dead_before = producer.stats().dead;
    refuse_another_broker(&producer)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Problem::failed)?;
    let closed = runtime.block_on(async {
        // `close` says what is still pending.
        let _ = stop.or(drained(&producer, args.timeout)).await;
        producer.close(GRACE_AFTER_WAIT).await
    });
    let closed = closed.map_err(Problem::failed)?;
    let stats = producer.stats();
    let dead = stats.dead.saturating_sub(dead_before);
    output::say(format_args!("{} delivered", counted(stats.retries_succeeded, "message")));
    if dead > 0 {
        let letters = counted(dead, "dead letter");
        output::say(format_args!("{letters} more; see: outlast dead list --outbox {outbox}"));
    }
    if closed.pending > 0 {
        let messages = counted(closed.pending, "message");
        output::say(format_args!("still pending: {messages}; why: outlast status --outbox {outbox}"));
    }
    Ok(if closed.pending > 0 || dead > 0 { Exit::Pending } else { Exit::Done })
}

/// Waits until nothing for this broker is pending, for `timeout` at most.
async fn drained(producer: &Producer, timeout: Option<Duration>) {
    let begun = Instant::now();
    loop {
        let left = timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(begun.elapsed()));
        let asked = Instant::now();
        match producer.drained(left.min(LOOK)).await {
            Ok(()) => return,
            // The time is up; or it could not be waited for, and asking on and on would not change that.
            Err(_) if left <= LOOK || asked.elapsed() < LOOK => return,
            // What is for others waits for them, not for us.
            Err(waiting) if waiting.pending <= open::for_others(&producer.stats()) => return,
            Err(_) => {}
        }
    }
}

/// Nothing would ever be delivered, and nobody told why.
fn refuse_another_broker(producer: &Producer) -> Result<(), Problem> {
    let stats = producer.stats();
    let waiting = stats.routes.iter().filter(|route| route.pending > 0).count();
    let others = open::not_configured(&stats).len();
    // What was for this broker may have been delivered meanwhile.
    if others == 0 || others < waiting || stats.retries_succeeded > 0 {
        return Ok(());
    }
    // It has done nothing; what this cannot write, nobody misses.
    let _ = producer.blocking_close(Duration::ZERO);
    Err(Problem::usage("--to: nothing of what is pending is for this broker; name the one it was stored for"))
}
