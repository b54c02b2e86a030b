//! `outlast drain`: delivers what an outbox still holds.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::args::Drain;
use crate::exit::{Exit, Problem};
use crate::open::{self, Destination, GRACE_AFTER_WAIT};
use crate::output::count;
use crate::signals::Stop;

/// "Until it is done": a hundred years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Waits until nothing is pending, or the time is up, or a signal comes.
pub fn run(args: &Drain) -> Result<Exit, Problem> {
    let destination = Destination::parse(&args.broker)?;
    let outbox = args.outbox.display();
    if !args.outbox.is_dir() {
        return Err(Problem::failed(format!("{outbox}: there is no outbox")));
    }
    let mut stop = Stop::listen()?;
    let producer = open::open(destination.config(&args.outbox))?;
    let before = producer.stats();
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
    let dead = producer.stats().dead.saturating_sub(before.dead);
    let gone = before.pending.saturating_sub(closed.pending + dead);
    eprintln!("outlast: {} messages delivered", count(gone));
    if dead > 0 {
        eprintln!("outlast: {} messages became dead letters; see: outlast dead list --outbox {outbox}", count(dead));
    }
    if closed.pending > 0 {
        eprintln!(
            "outlast: {} messages are still pending; why: outlast status --outbox {outbox}",
            count(closed.pending)
        );
    }
    Ok(if closed.pending > 0 || dead > 0 { Exit::Pending } else { Exit::Done })
}
