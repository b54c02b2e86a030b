//! What others may see of the drainer: why routes wait.

use std::collections::HashMap;
use std::sync::Arc;

use super::drain::Drain;
use crate::clock;
use crate::message::Route;
use crate::schedule::BlockKey;
use crate::stats::BlockedStats;
use crate::transport::Class;

/// Reasons, as the drainer last told them.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Why the broker cannot be reached, and since when (milliseconds since 1970).
    pub down: Option<(String, i64)>,
    /// Why the whole transport waits, though its broker can be reached.
    pub transport: Option<BlockedStats>,
    /// Why routes wait.
    pub routes: HashMap<Route, BlockedStats>,
    /// The last error of each route, also when it has passed.
    pub last_errors: HashMap<Route, Arc<str>>,
    /// Why the log cannot be read.
    pub read_error: Option<String>,
    /// That the drainer has panicked, and when: nothing stored is delivered any more.
    pub panicked: Option<(String, i64)>,
}

/// Routes whose last error is kept.
pub(super) const LAST_ERRORS: usize = 1_000;

impl Drain {
    /// Whether something changed since the last publication.
    pub fn is_view_old(&self) -> bool {
        self.view_changed
    }

    /// Brings the view up to date.
    pub fn publish(&mut self) {
        if !std::mem::take(&mut self.view_changed) {
            return;
        }
        let mut view = self.dispatcher.view();
        view.down = self.down.as_ref().map(|failure| {
            let since = view.down.as_ref().map_or_else(clock::unix_millis, |(_, since)| *since);
            (failure.reason.clone(), since)
        });
        view.read_error = self.read_error().map(ToString::to_string);
        for (route, reason) in self.said.drain() {
            if view.last_errors.len() < LAST_ERRORS || view.last_errors.contains_key(&route) {
                view.last_errors.insert(route, reason);
            }
        }
        view.transport = None;
        view.routes.clear();
        for (key, block) in self.blocks.iter() {
            let Some(since) = clock::system_time(block.since) else { continue };
            let stats = BlockedStats {
                reason: block.reason.clone(),
                class: block.class,
                since,
                waiting: block.waiting,
                blocks: 1,
                attempts: block.attempts,
            };
            if key == BlockKey::Transport {
                view.transport = Some(stats);
                continue;
            }
            match view.routes.get_mut(&block.route) {
                None => {
                    view.routes.insert(block.route.clone(), stats);
                }
                Some(known) => {
                    known.waiting += stats.waiting;
                    known.blocks += 1;
                    known.since = known.since.min(stats.since);
                    // What somebody has to mend is told before what passes by itself.
                    let urgency = |stats: &BlockedStats| (stats.class != Class::Transient, stats.attempts);
                    if urgency(&stats) > urgency(known) {
                        (known.attempts, known.reason, known.class) = (stats.attempts, stats.reason, stats.class);
                    }
                }
            }
        }
        self.dispatcher.set_view(view);
    }
}
