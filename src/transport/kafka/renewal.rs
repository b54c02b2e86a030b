//! Replaces the client when files it was made with have changed: certificates, keys, authorities, a password.
//!
//! The connections of the client at work go on with what they were made with, so nothing is in a hurry. The next client is
//! made and tried first; only when a broker has let it in, or no broker answers the one at work, does it take over. New
//! messages wait meanwhile, for the moment that it takes to have all reports on what the former client owns; if that takes
//! longer the former one goes on, and it is tried again later. What cannot be
//! used (no certificate, a key of another certificate, nothing that a broker accepts) leaves the former client at work, and
//! `health` warns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::Shared;
use super::book::lock;
use super::credentials::Credentials;
use super::ffi;
use super::instance::{Event, Instance, closed, handed_back};
use super::rebuild;
use crate::transport::{Class, Failure, Scope};

/// How long changed files may be unusable before it is an alert: a certificate and its key are two files, which are
/// replaced one after the other.
const ALERT_AFTER: Duration = Duration::from_secs(4);
/// How long a broker may take to answer the next client before other work is done.
const ANSWER: Duration = Duration::from_secs(1);
/// After so long a client that no broker lets in is made anew: librdkafka would wait longer and longer between its attempts.
/// The time doubles with each client for the same contents of the files: what is wrong may stay so for days, and brokers
/// count, and log, logins that fail.
const ANEW: Duration = Duration::from_secs(3);
const ANEW_AT_MOST: Duration = Duration::from_secs(60);
/// How long the former client may take to report on what it owns, while new messages wait. Then it goes on, or is given up
/// if it cannot.
const REPORTS: Duration = Duration::from_secs(2);
/// After so long it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What the threads share about it.
#[derive(Default)]
pub(super) struct Renewal {
    /// The client that is to take over.
    next: Mutex<Option<Instance>>,
    /// Whether one is taking over at the moment.
    switching: AtomicBool,
    /// Why changed files are not in use.
    warning: Mutex<Option<String>>,
}

impl Renewal {
    /// Whether a client is taking over at the moment: the former one may own messages.
    pub(super) fn is_switching(&self) -> bool {
        self.switching.load(Ordering::Acquire)
    }

    /// Why changed files are not in use, if that has been so for longer than a replacement takes.
    pub(super) fn warning(&self) -> Option<String> {
        lock(&self.warning).clone()
    }
}

/// A client that is not at work yet.
struct Trial {
    credentials: Arc<Credentials>,
    instance: Instance,
    made: Instant,
    /// After so long it is made anew.
    patience: Duration,
}

impl Trial {
    fn new(credentials: Arc<Credentials>, instance: Instance, made: Instant) -> Self {
        Self { credentials, instance, made, patience: ANEW }
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.made) >= self.patience
    }

    fn renew(&mut self, instance: Instance, now: Instant) {
        (self.instance, self.made) = (instance, now);
        self.patience = self.patience.saturating_mul(2).min(ANEW_AT_MOST);
    }
}

/// What is known of the files; the upkeep thread's own.
#[derive(Default)]
pub(super) struct Watch {
    trial: Option<Trial>,
    /// Since when changed files have not been in use, and why.
    unused: Option<(Instant, String)>,
    /// When the keeper was last asked to let a client take over.
    offered: Option<Instant>,
}

impl Watch {
    /// Looks whether files changed, and goes on with a client that is being tried. Blocks for [`ANSWER`] at most, and for
    /// as long as reading the files takes.
    pub(super) fn tick(&mut self, shared: &Shared, now: Instant) {
        match shared.settings.credentials.changed() {
            Ok(None) => {}
            Ok(Some(credentials)) if credentials.is_same(&shared.settings.credentials.current()) => {
                (self.trial, self.unused) = (None, None);
            }
            Ok(Some(credentials)) => self.try_out(shared, credentials, now),
            Err(reason) => {
                self.trial = None;
                self.not_used(now, reason);
            }
        }
        if let Some(trial) = self.trial.take() {
            self.go_on(shared, trial, now);
        }
        if lock(&shared.renewal.next).is_some()
            && self.offered.is_none_or(|offered| now.saturating_duration_since(offered) >= AGAIN)
        {
            self.offer(shared, now);
        }
        self.warn(shared, now);
    }

    fn offer(&mut self, shared: &Shared, now: Instant) {
        self.offered = Some(now);
        // The keeper may have ended, with the transport.
        let _ = shared.events.send(Event::Renewed);
    }

    fn try_out(&mut self, shared: &Shared, credentials: Credentials, now: Instant) {
        self.trial = None;
        shared.settings.credentials.conceal(&credentials);
        let credentials = Arc::new(credentials);
        match shared.settings.try_with(&credentials).and_then(|()| shared.instance_with(&credentials)) {
            Ok(instance) => self.trial = Some(Trial::new(credentials, instance, now)),
            Err(reason) => self.not_used(now, shared.settings.credentials.name_file(&reason)),
        }
    }

    /// Lets the client take over if a broker lets it in, or none answers the one at work.
    fn go_on(&mut self, shared: &Shared, mut trial: Trial, now: Instant) {
        let answered = ffi::ping(trial.instance.client(), ANSWER).is_ok();
        let why = trial.instance.trouble();
        if !answered
            && trial.is_due(now)
            && let Ok(fresh) = shared.instance_with(&trial.credentials)
        {
            trial.renew(fresh, now);
        }
        if answered || !shared.link.is_up() {
            shared.settings.credentials.accept(trial.credentials);
            *lock(&shared.renewal.next) = Some(trial.instance);
            self.offer(shared, now);
            self.unused = None;
            return;
        }
        let why = why.unwrap_or_else(|| "no answer in time".to_owned());
        self.not_used(now, format!("no broker accepts them: {why}"));
        self.trial = Some(trial);
    }

    fn not_used(&mut self, now: Instant, why: String) {
        let since = self.unused.take().map_or(now, |(since, _)| since);
        self.unused = Some((since, why));
    }

    /// Warns for as long as it is so, once it has been so for longer than a replacement takes.
    fn warn(&self, shared: &Shared, now: Instant) {
        let lasting = self.unused.as_ref().filter(|(since, _)| now.saturating_duration_since(*since) >= ALERT_AFTER);
        let warning = lasting.map(|(_, why)| {
            format!("changed certificates, keys or passwords are not in use, but the former ones: {why}")
        });
        let mut before = lock(&shared.renewal.warning);
        if let (None, Some(warning)) = (&*before, &warning) {
            tracing::warn!("{warning}");
        }
        *before = warning;
    }
}

/// Lets the next client take over. For the keeper alone, as it waits for the former one's reports.
///
/// The order of each key holds as in a rebuild: the next client gets nothing before the former one has reported on all it
/// owns. If any of that failed, what waited is handed back, for it was submitted later. While a partition is stalled none
/// takes over, for all others would have to wait for it; unless it may be stalled because the former client is not let in.
pub(super) fn switch(shared: &Shared) {
    let now = Instant::now();
    let Some(former) = shared.seat.current().filter(|former| former.book().given_up().is_none()) else {
        // It is about to be rebuilt, with the same credentials; or the transport closes.
        discard(shared);
        return;
    };
    if shared.topics.is_stalled(now) && !must_go(shared, &former) {
        return;
    }
    let Some(next) = lock(&shared.renewal.next).take() else { return };
    shared.renewal.switching.store(true, Ordering::Release);
    take_over(shared, &former, next);
    shared.topics.renew(Instant::now());
    shared.renewal.switching.store(false, Ordering::Release);
    shared.doubt();
}

fn take_over(shared: &Shared, former: &Arc<Instance>, next: Instance) {
    // From now on messages wait, for the metadata thread to ask the next client about their topics.
    shared.topics.renew(Instant::now());
    let reason = Failure::new(Class::Transient, Scope::Transport, "the Kafka client is being replaced");
    if shared.seat.vacate(reason).is_none() {
        return;
    }
    // Also what an answer to the former one has made ready in between.
    shared.topics.renew(Instant::now());
    if !has_reported(shared, former) {
        if !shared.is_stopped() && !must_go(shared, former) {
            *lock(&shared.renewal.next) = Some(next);
            shared.seat.restore(Arc::clone(former));
            rebuild::vacate_if_stopped(shared);
            return;
        }
        former.give_up(given_up(shared));
        rebuild::retire(shared, former);
    }
    // As after a rebuild; it counts for the client after the next, which is made already.
    shared.batch.refused(former.book().too_large());
    if let Some(reason) = former.book().given_up() {
        shared.topics.fail_waiting(&Arc::new(handed_back(&reason)));
    }
    if !shared.is_stopped() {
        shared.seat.occupy(next);
        rebuild::vacate_if_stopped(shared);
        tracing::info!("the Kafka client was replaced: files it was made with had changed");
    }
}

/// Whether the former client cannot go on.
fn must_go(shared: &Shared, former: &Instance) -> bool {
    former.book().given_up().is_some() || former.is_locked_out(Instant::now()) || !shared.link.is_up()
}

fn given_up(shared: &Shared) -> Failure {
    if shared.is_stopped() {
        return closed();
    }
    let text = "brokers do not let the client in that was made before files changed";
    Failure::new(Class::Transient, Scope::Transport, text)
}

/// Drops the next client: another one takes its place.
pub(super) fn discard(shared: &Shared) {
    drop(lock(&shared.renewal.next).take());
}

/// Waits until the former client has reported on all it owns, for [`REPORTS`] at most; says whether it has.
fn has_reported(shared: &Shared, former: &Instance) -> bool {
    /// How often it is looked whether there is still something to wait for.
    const LOOK: Duration = Duration::from_millis(50);
    let (book, deadline) = (former.book(), Instant::now() + REPORTS);
    while !book.wait_empty(LOOK) {
        if book.given_up().is_some() || shared.is_stopped() || Instant::now() >= deadline {
            return book.wait_empty(Duration::ZERO);
        }
    }
    true
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Has a client ready to take over.
    pub(in super::super) fn offer(shared: &Shared) {
        let next = shared.instance().unwrap_or_else(|error| panic!("{error}"));
        *lock(&shared.renewal.next) = Some(next);
    }
}
