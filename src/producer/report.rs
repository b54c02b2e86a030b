//! Counts and reasons: for `stats`, `health` and the file `status`.

use std::sync::atomic::Ordering;

use super::core::{Core, Line, lock};
use crate::clock;
use crate::drainer::View;
use crate::message::Route;
use crate::outbox::{
    Blocked, LedgerState, LedgerStatus, Lifecycle, RouteStatus, Snapshot, Status, Tally, TransportStatus,
};
use crate::stats::{BlockedStats, Health, RouteStats, Stats, TransportStats, about};
use crate::transport::Class;

impl Core {
    /// Counts now.
    pub fn stats(&self) -> Stats {
        let snapshot = self.outbox.snapshot();
        let mut stats = Stats {
            dead: snapshot.dead.0,
            dead_bytes: snapshot.dead.1,
            set_aside: snapshot.set_aside,
            waiting_for_space: self.waiting_for_space(),
            ..Stats::default()
        };
        let mut routes: std::collections::BTreeMap<Route, RouteStats> = snapshot
            .pending
            .into_iter()
            .map(|(route, pending)| {
                let stats = RouteStats {
                    route: route.clone(),
                    pending: pending.count,
                    pending_bytes: pending.bytes,
                    oldest: clock::system_time(pending.oldest).filter(|_| pending.oldest != i64::MAX),
                    blocked: None,
                    last_error: None,
                };
                (route, stats)
            })
            .collect();
        for line in &self.lines {
            let View { down, panicked, transport, routes: blocked, last_errors, .. } = line.dispatcher.view();
            let of = |route: &Route| RouteStats {
                route: route.clone(),
                pending: 0,
                pending_bytes: 0,
                oldest: None,
                blocked: None,
                last_error: None,
            };
            for (route, error) in last_errors {
                routes.entry(route.clone()).or_insert_with(|| of(&route)).last_error = Some(error.to_string());
            }
            for (route, why) in blocked {
                routes.entry(route.clone()).or_insert_with(|| of(&route)).blocked = Some(why);
            }
            stats.transports.push(transport_stats(line, panicked.or(down), transport));
            let counters = &line.dispatcher.counters;
            stats.attempts += counters.attempts.load(Ordering::Relaxed);
            stats.delivered += counters.delivered.load(Ordering::Relaxed);
            stats.stored += counters.stored.load(Ordering::Relaxed);
            stats.retries_succeeded += counters.redelivered.load(Ordering::Relaxed);
        }
        for route in routes.values_mut().filter(|route| route.pending > 0) {
            if !self.lines.iter().any(|line| line.name == route.route.transport) {
                route.blocked = Some(self.not_configured(route));
            }
        }
        stats.routes = routes.into_values().collect();
        stats.pending = stats.routes.iter().map(|route| route.pending).sum();
        stats.pending_bytes = stats.routes.iter().map(|route| route.pending_bytes).sum();
        stats.oldest = stats.routes.iter().filter_map(|route| route.oldest).min();
        stats.gated_lanes = stats.transports.iter().map(|transport| transport.gated_slots).sum();
        stats
    }

    /// What keeps pending messages from being delivered, if anything is known to.
    pub fn what_holds(&self) -> Option<String> {
        let stats = self.stats();
        let down = stats.transports.iter().find(|transport| !transport.up);
        let down = down.map(|transport| about(&transport.name, transport.reason.as_deref().unwrap_or("down")));
        let blocked = stats.routes.iter().find_map(|route| Some((&route.route, route.blocked.as_ref()?)));
        down.or_else(|| blocked.map(|(route, blocked)| about(&route.destination, &blocked.reason)))
    }

    /// Why messages wait that were stored for a transport this producer does not have.
    fn not_configured(&self, route: &RouteStats) -> BlockedStats {
        let reason = format!("no transport `{}` is configured", route.route.transport);
        let (since, waiting) = (self.opened, route.pending);
        BlockedStats { reason, class: Class::Hold, since, waiting, blocks: 1, attempts: 0 }
    }

    /// What an operator should know, most urgent first.
    pub fn health(&self) -> Health {
        let stats = self.stats();
        let snapshot = self.outbox.snapshot();
        let mut alerts = Vec::new();
        if let Some(reason) = &snapshot.storage {
            alerts.push(format!("disk: {reason}"));
        }
        for line in &self.lines {
            if let Some(error) = line.dispatcher.view().read_error {
                alerts.push(format!("outbox: stored messages cannot be read: {error}"));
            }
        }
        for transport in stats.transports.iter().filter(|transport| !transport.up) {
            alerts.push(about(&transport.name, transport.reason.as_deref().unwrap_or("down")));
        }
        for transport in stats.transports.iter().filter(|transport| transport.up) {
            alerts.extend(transport.throttled.as_ref().map(|throttled| about(&transport.name, throttled)));
        }
        alerts.extend(self.transport_alerts());
        for route in &stats.routes {
            if let Some(blocked) = route.blocked.as_ref().filter(|blocked| blocked.class != Class::Transient) {
                alerts.push(format!("{}: {}; {} waiting", route.route, blocked.reason, blocked.waiting));
            }
        }
        if stats.waiting_for_space > 0 {
            alerts.push(format!("the outbox is full; {} messages wait for space", stats.waiting_for_space));
        }
        if stats.set_aside > 0 {
            alerts.push(format!("{} messages could not be read and were set aside", stats.set_aside));
        }
        let damage = &self.outbox.found().damage;
        if let Some(first) = damage.first() {
            let (count, segment, reason) = (damage.len(), first.segment, &first.reason);
            alerts.push(format!(
                "damage found when the outbox was opened: {count}, first in segment {segment}: {reason}"
            ));
        }
        if let LedgerState::Rebuilding { reason, .. } | LedgerState::Off { reason, .. } = &snapshot.ledger.state {
            alerts.push(format!("ledger: {reason}"));
        }
        if stats.dead > 0 {
            alerts.push(format!("{} dead letters", stats.dead));
        }
        Health { alerts }
    }

    /// What the transports have to say although messages are taken.
    fn transport_alerts(&self) -> Vec<String> {
        let of = |line: &Line| {
            let alerts = line.dispatcher.transport().alerts();
            alerts.iter().map(|alert| about(&line.name, alert)).collect::<Vec<_>>()
        };
        self.lines.iter().flat_map(of).collect()
    }

    /// Brings the file `status` up to date, at most once a second.
    pub fn write_status(&self, state: Lifecycle) {
        let stats = self.stats();
        let snapshot = self.outbox.snapshot();
        let status = self.status(&stats, &snapshot, state);
        let now = std::time::Instant::now();
        let mut file = lock(&self.status);
        let written = self.outbox.check_owner().and_then(|()| match state {
            Lifecycle::Closed => file.write(&status, now).map(|()| true),
            Lifecycle::Running | Lifecycle::Unknown => file.offer(&status, now),
        });
        if let Err(error) = written {
            tracing::debug!(%error, "the file `status` could not be written");
        }
    }

    fn status(&self, stats: &Stats, snapshot: &Snapshot, state: Lifecycle) -> Status {
        let millis = |time: std::time::SystemTime| {
            let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        let blocked = |blocked: &BlockedStats| Blocked { reason: blocked.reason.clone(), since: millis(blocked.since) };
        let routes = stats.routes.iter().filter(|route| route.pending > 0 || route.blocked.is_some());
        Status {
            pid: std::process::id(),
            outbox: format!("{:032x}", u128::from_be_bytes(self.outbox.id())),
            incarnation: format!("{:016x}", self.outbox.incarnation()),
            state,
            routes: routes
                .map(|route| RouteStatus {
                    transport: route.route.transport.to_string(),
                    destination: route.route.destination.to_string(),
                    pending: Tally { count: route.pending, bytes: route.pending_bytes },
                    oldest_time: route.oldest.map(millis),
                    blocked: route.blocked.as_ref().map(blocked),
                    ..RouteStatus::default()
                })
                .collect(),
            transports: stats
                .transports
                .iter()
                .map(|transport| TransportStatus {
                    name: transport.name.to_string(),
                    down: transport.reason.as_ref().map(|reason| Blocked {
                        reason: reason.clone(),
                        since: transport.since.map_or_else(clock::unix_millis, millis),
                    }),
                    throttled: transport.throttled.clone(),
                })
                .collect(),
            notes: self.transport_alerts(),
            dead: Tally { count: stats.dead, bytes: stats.dead_bytes },
            set_aside: stats.set_aside,
            ledger: LedgerStatus::from(&snapshot.ledger),
            storage: snapshot
                .storage
                .as_ref()
                .map(|reason| Blocked { reason: reason.clone(), since: clock::unix_millis() }),
            ..Status::default()
        }
    }
}

fn transport_stats(line: &Line, down: Option<(String, i64)>, blocked: Option<BlockedStats>) -> TransportStats {
    let (reason, since) = match (down, blocked) {
        (Some((reason, since)), _) => (Some(reason), clock::system_time(since)),
        (None, Some(blocked)) => (Some(blocked.reason), Some(blocked.since)),
        (None, None) => (None, None),
    };
    TransportStats {
        name: std::sync::Arc::clone(&line.name),
        up: reason.is_none(),
        reason,
        since,
        throttled: line.dispatcher.transport().throttled(),
        in_flight: line.dispatcher.in_flight().0,
        gated_slots: line.dispatcher.gated_slots(),
    }
}
