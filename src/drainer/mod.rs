//! Delivery: one [`Dispatcher`] a transport, which keeps lanes in order, and one drainer, which delivers what is
//! stored.
//!
//! A message's way: [`Dispatcher::send`] hands it to the transport or stores it; the transport's report, the log's
//! confirmation and the drainer's next attempt all come back to the same dispatcher. The drainer is a thin loop
//! around [`Drain::tick`].

mod dispatcher;
mod drain;
mod entry;
mod gate;
mod mailbox;
mod slot;
mod view;
mod window;

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use dispatcher::{Dispatcher, DispatcherOptions, route_hash};
pub use drain::{Drain, DrainOptions, Progress};
pub use entry::Verdict;
pub use mailbox::Mail;
pub use view::View;
pub use window::WindowLimits;

use crate::{clock, file_size};

/// How often counts and reasons are brought up to date while they change.
const VIEW_EVERY: Duration = Duration::from_millis(200);

/// Starts the drainer's thread. It ends when the dispatcher's mailbox is stopped. Should it panic, the view says so: what
/// is stored stays where it is, and nobody else would notice.
pub fn start(dispatcher: &Arc<Dispatcher>, options: DrainOptions) -> io::Result<JoinHandle<()>> {
    let dispatcher = Arc::clone(dispatcher);
    std::thread::Builder::new().name(format!("outlast-drain-{}", dispatcher.name())).spawn(move || {
        // What cannot be read is copied by this thread.
        file_size::block_signal();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&dispatcher, options))) {
            let reason = format!("the drainer panicked, what is stored waits for a restart: {}", words(&*panic));
            dispatcher.mailbox().stop();
            dispatcher.forget_watchers(0..=u64::MAX);
            let panicked = Some((reason.clone(), clock::unix_millis()));
            dispatcher.set_view(View { panicked, ..dispatcher.view() });
            // Last: whoever subscribed to these lines may be what panics.
            tracing::error!(transport = %dispatcher.name(), reason);
        }
    })
}

fn run(dispatcher: &Arc<Dispatcher>, options: DrainOptions) {
    let mut drain = Drain::new(Arc::clone(dispatcher), options);
    drain.remember();
    // Long enough ago that the first change is told at once.
    let mut viewed = Instant::now().checked_sub(VIEW_EVERY).unwrap_or_else(Instant::now);
    loop {
        let now = Instant::now();
        let Some(progress) = drain.tick(now) else { return };
        if now.duration_since(viewed) >= VIEW_EVERY {
            viewed = now;
            drain.publish();
        }
        if let Progress::Idle(until) = progress {
            let view = drain.is_view_old().then(|| viewed + VIEW_EVERY);
            dispatcher.mailbox().wait([until, view].into_iter().flatten().min());
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}
