//! `outlast drain`: delivers what an outbox still holds.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use outlast::Producer;

use crate::args::Drain;
use crate::exit::{Exit, Problem};
use crate::open::{self, Destination, GRACE_AFTER_WAIT};
use crate::output::{self, counted};
use crate::signals::Stop;

/// "Until it is done": a hundred years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Waits until nothing is pending, or the time is up, or a signal comes.
pub fn run(args: &Drain) -> Result<Exit, Problem> {
    let destination = Destination::parse(&args.broker)?;
    let outbox = args.outbox.display();
    if !args.outbox.is_dir() {
        return Err(Problem::failed(format!("there is no outbox at {outbox}")));
    }
    let mut stop = Stop::listen()?;
    let producer = open::open(destination.config(&args.outbox))?;
    let dead_before = producer.stats().dead;
    refuse_another_broker(&producer)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(Problem::failed)?;
    let closed = runtime.block_on(async {
        {
            let mut drained = pin!(producer.drained(args.timeout.unwrap_or(FOR_EVER)));
            poll_fn(|cx| if stop.poll(cx).is_ready() { Poll::Ready(()) } else { drained.as_mut().poll(cx).map(drop) })
                .await;
        }
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
