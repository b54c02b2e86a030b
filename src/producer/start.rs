//! From checked settings to running threads.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::admission::Admission;
use super::core::{Core, Line, RoutePlan, lock};
use super::housekeeper;
use super::open_error::{OpenError, OpenErrorKind};
use crate::clock;
use crate::config::{Config, OnPoison, Order, RouteConfig};
use crate::drainer::{self, Dispatcher, DispatcherOptions, DrainOptions, Mail, WindowLimits, route_hash};
use crate::message::Route;
use crate::outbox::Outbox;
use crate::schedule::Backoff;
use crate::stats::Event;
use crate::transport::{Monitor, Transport};

/// How long an open waits at most for the first segments to be made ready: a few milliseconds are usual, and nothing is
/// waited for once making them has failed. A disk that is slow or busy takes seconds to give a segment its blocks, and a
/// `try_send` right after an open that did not wait for it would be refused, as if the outbox were full.
const MADE_READY: Duration = Duration::from_secs(10);

/// A transport, its name, and the order that its routes keep unless they say otherwise.
pub(super) type Named = (Arc<str>, Order, Arc<dyn Transport>);

/// One transport's dispatcher and settings. Every route of the configuration names its transport by now.
pub(super) fn make_line(
    config: &Config,
    window: WindowLimits,
    outbox: &Arc<Outbox>,
    events: &broadcast::Sender<Event>,
    owned_everywhere: &Arc<AtomicUsize>,
    (name, order, transport): Named,
) -> Line {
    let default = RoutePlan { mode: config.mode, order };
    let of_line = |route: &&RouteConfig| route.transport.as_ref() == Some(&name);
    let plan = |route: &RouteConfig| RoutePlan {
        mode: route.mode.unwrap_or(default.mode),
        order: route.order.unwrap_or(default.order),
    };
    let routes: HashMap<Arc<str>, RoutePlan> =
        config.routes.iter().filter(of_line).map(|route| (Arc::clone(&route.destination), plan(route))).collect();
    let events = events.clone();
    let backlog: HashSet<u64> = outbox.found().pending.iter().map(|(route, _)| route_hash(route)).collect();
    let options = DispatcherOptions {
        name: Arc::clone(&name),
        transport,
        outbox: Arc::clone(outbox),
        slots: config.slots,
        window,
        owned_everywhere: Arc::clone(owned_everywhere),
        first_attempt: config.first_attempt,
        // Nobody may be listening: then there is nothing to tell.
        events: Arc::new(move |event| drop(events.send(event))),
    };
    Line { name, dispatcher: Dispatcher::new(options, backlog), default, routes, admission: Admission::default() }
}

/// Starts transports, drainers and the housekeeper.
pub(super) fn start(core: &Arc<Core>) -> Result<(), OpenError> {
    let failed = |text: String| OpenError::new(OpenErrorKind::Transport, text);
    // Weak: the outbox is held by the dispatchers, and so are the transports.
    let dispatchers: Vec<Weak<Dispatcher>> = core.lines.iter().map(|line| Arc::downgrade(&line.dispatcher)).collect();
    let bell = Arc::clone(&core.bell);
    core.outbox.on_change(move || {
        for dispatcher in dispatchers.iter().filter_map(Weak::upgrade) {
            dispatcher.mailbox().kick();
        }
        bell.ring();
    });
    // Whoever may not wait for space finds some from the beginning. `on_change` rings when there is more.
    let until = Instant::now() + MADE_READY;
    while core.outbox.prepare() && Instant::now() < until {
        core.bell.wait(until.saturating_duration_since(Instant::now()));
    }
    for line in &core.lines {
        let post = |dispatcher: &Weak<Dispatcher>, mail| {
            if let Some(dispatcher) = dispatcher.upgrade() {
                dispatcher.mailbox().post(mail);
            }
        };
        let (news, routes) = (Arc::downgrade(&line.dispatcher), Arc::downgrade(&line.dispatcher));
        let monitor = Monitor::new(
            core.config.max_message_bytes,
            move |availability| post(&news, Mail::Available(availability)),
            move |route: &Route| post(&routes, Mail::RouteUp(route_hash(route))),
        )
        .window_bytes(core.config.window_bytes);
        let name = &line.name;
        line.dispatcher.transport().start(monitor).map_err(|error| failed(format!("transport `{name}`: {error}")))?;
    }
    // Only now: whatever cannot work has said so, and nothing was handed over.
    for line in &core.lines {
        let thread = drainer::start(&line.dispatcher, drain_options(&core.config, core.lines.len(), line));
        let thread = thread.map_err(|error| failed(format!("transport `{}`: no thread: {error}", line.name)))?;
        lock(&core.drainers).push(thread);
    }
    let thread = housekeeper::start(core).map_err(|error| failed(format!("no thread: {error}")))?;
    *lock(&core.housekeeper) = Some(thread);
    Ok(())
}

fn drain_options(config: &Config, transports: usize, line: &Line) -> DrainOptions {
    let poison: HashMap<Arc<str>, OnPoison> = config
        .routes
        .iter()
        .filter(|route| route.transport.as_ref() == Some(&line.name))
        .filter_map(|route| Some((Arc::clone(&route.destination), route.on_poison?)))
        .collect();
    let default = config.on_poison;
    DrainOptions {
        backoff: Backoff { base: config.backoff_base, cap: config.backoff_cap, ..Backoff::default() },
        window: config.window_of_each(transports),
        redelivery_window: config.redelivery_window,
        max_attempts: config.max_attempts,
        rate: config.drain_rate.and_then(NonZeroU32::new),
        most_lanes: crate::config::BLOCKED_LANES,
        on_poison: Arc::new(move |destination| poison.get(destination).copied().unwrap_or(default)),
        seed: clock::random_u64(),
    }
}

/// One line at start if something is pending: how much, how old, where to.
pub(super) fn tell_of_backlog(core: &Core) {
    let found = core.outbox.found();
    for damage in &found.damage {
        tracing::error!(
            segment = damage.segment, first_lsn = damage.first_lsn, last_lsn = damage.last_lsn,
            reason = %damage.reason, "damage in the outbox"
        );
    }
    let count: u64 = found.pending.iter().map(|(_, pending)| pending.count).sum();
    if count == 0 {
        return;
    }
    let bytes: u64 = found.pending.iter().map(|(_, pending)| pending.bytes).sum();
    let oldest = found.pending.iter().map(|(_, pending)| pending.oldest).min().unwrap_or_default();
    let age = Duration::from_millis(clock::unix_millis().saturating_sub(oldest).max(0).unsigned_abs());
    let routes: Vec<String> = found.pending.iter().map(|(route, _)| route.to_string()).collect();
    for (route, pending) in &found.pending {
        if !core.lines.iter().any(|line| line.name == route.transport) {
            tracing::warn!(%route, count = pending.count, "these wait for a transport that is not configured");
        }
    }
    tracing::info!(count, bytes, oldest_age = ?age, routes = %routes.join(", "), "messages are pending from before");
}
