//! A producer of the simplest kind, and its notes on everything that was submitted and reported.
//!
//! All is under one lock, which is held while submitting, as the real producer holds its own. A clock that counts
//! submits and reports tells which came first.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Fault, Violation};
use crate::message::{Lane, MessageId, Outgoing};
use crate::transport::{Availability, Handover, Monitor, Outcome, Recipient, Ticket, Transport};

/// How many messages of a lane are handed over ahead of their reports.
const WINDOW: usize = 32;
/// `submit` must not block; a loaded machine may keep a thread waiting all the same.
const SUBMIT_LIMIT: Duration = Duration::from_secs(2);
/// How much longer than its grace `close` may take: threads have to end, on a loaded machine.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// One in so many messages that may be tried by themselves is.
const ALONE: usize = 8;
/// How soon a refused message is offered again when nobody says that things are better.
const OFFER_AGAIN: Duration = Duration::from_millis(5);

thread_local! {
    static SUBMITTING: Cell<bool> = const { Cell::new(false) };
}

/// One hand-over and what was said about it. Times are ticks of the lab's clock.
#[derive(Debug)]
pub(super) struct Attempt {
    pub message: Arc<Outgoing>,
    pub submitted: u64,
    pub reports: Vec<(u64, Outcome)>,
}

pub(super) struct Lab {
    transport: Arc<dyn Transport>,
    notes: Arc<Notes>,
    patience: Duration,
}

#[derive(Default)]
struct Notes {
    state: Mutex<State>,
    changed: Condvar,
    /// Apart, because it is noted by a thread that holds the other lock.
    within_submit: Mutex<Option<MessageId>>,
}

#[derive(Default)]
struct State {
    clock: u64,
    attempts: Vec<Attempt>,
    lanes: HashMap<Lane, Gate>,
    delivered: HashSet<MessageId>,
    last_refusal: String,
    violation: Option<Violation>,
}

#[derive(Default)]
struct Gate {
    owned: usize,
    closed: bool,
    /// A failure came: begin again at the oldest message that is not delivered.
    rewind: bool,
}

struct Witness {
    notes: Arc<Notes>,
    attempt: usize,
    message: Arc<Outgoing>,
}

impl Recipient for Witness {
    fn report(self: Arc<Self>, outcome: Outcome) {
        if SUBMITTING.get() {
            *lock(&self.notes.within_submit) = Some(self.message.id);
            return;
        }
        let mut guard = self.notes.lock();
        let state = &mut *guard;
        state.clock += 1;
        let Some(attempt) = state.attempts.get_mut(self.attempt) else { return };
        let first = attempt.reports.is_empty();
        let failed = matches!(outcome, Outcome::Failed { .. });
        attempt.reports.push((state.clock, outcome));
        if !failed {
            state.delivered.insert(self.message.id);
        }
        if let Some(gate) = self.message.lane.and_then(|lane| state.lanes.get_mut(&lane)) {
            gate.owned = gate.owned.saturating_sub(usize::from(first));
            gate.rewind |= failed;
            gate.closed = (gate.closed || failed) && gate.owned > 0;
        }
        drop(guard);
        self.notes.changed.notify_all();
    }
}

/// The messages of one lane, or one message without a lane, and how far they are.
struct Line {
    messages: Vec<Arc<Outgoing>>,
    next: usize,
}

/// When a fault strikes: after so many deliveries, and whether it has.
struct Course<'a> {
    fault: &'a Fault,
    strike_at: usize,
    struck: Option<Instant>,
    mended: bool,
}

impl Lab {
    pub(super) fn start(transport: Arc<dyn Transport>, patience: Duration) -> Result<Self, Violation> {
        let notes = Arc::new(Notes::default());
        let (heard, again) = (notes.clone(), notes.clone());
        let monitor = Monitor::new(
            1 << 20,
            move |_: Availability| heard.changed.notify_all(),
            move |_| again.changed.notify_all(),
        );
        transport.start(monitor).map_err(|error| Violation::NotStarted(error.to_string()))?;
        Ok(Self { transport, notes, patience })
    }

    /// Delivers every message, lanes in a turn that `random` decides, beginning again where something failed.
    pub(super) fn deliver(
        &self,
        messages: Vec<Arc<Outgoing>>,
        random: &mut fastrand::Rng,
        fault: Option<&Fault>,
    ) -> Result<(), Violation> {
        let total = messages.len();
        let mut lines = into_lines(messages);
        let mut course = fault.map(|fault| Course { fault, strike_at: total / 3, struck: None, mended: false });
        let mut quiet_since = Instant::now();
        loop {
            random.shuffle(&mut lines);
            let before = self.notes.lock().clock;
            let mut taken = false;
            for line in &mut lines {
                taken |= self.offer(line, random);
            }
            self.breach()?;
            let delivered = self.notes.lock().delivered.len();
            if let Some(course) = &mut course {
                course.proceed(delivered);
            }
            if delivered >= total && course.as_ref().is_none_or(|course| course.mended) && self.nothing_owned() {
                return self.breach();
            }
            let mut state = self.notes.lock();
            if !taken && state.clock == before {
                state = self.notes.wait(state, OFFER_AGAIN);
            }
            if taken || state.clock != before {
                quiet_since = Instant::now();
            } else if quiet_since.elapsed() > self.patience {
                return Err(self.stuck(&state, &lines));
            }
        }
    }

    /// Hands over a few messages of a line, now and then one to be tried by itself; says whether any was taken.
    fn offer(&self, line: &mut Line, random: &mut fastrand::Rng) -> bool {
        let mut taken = false;
        for _ in 0..random.usize(1..8) {
            let mut state = self.notes.lock();
            let lane = line.messages.first().and_then(|message| message.lane);
            if let Some(lane) = lane {
                let gate = state.lanes.entry(lane).or_default();
                if gate.closed || gate.owned >= WINDOW {
                    break;
                }
                if std::mem::take(&mut gate.rewind) {
                    line.next = 0;
                }
            } else if line.next > 0 && !state.is_delivered(line) && state.is_open(line) {
                line.next = 0;
            }
            while line.messages.get(line.next).is_some_and(|message| state.delivered.contains(&message.id)) {
                line.next += 1;
            }
            let Some(message) = line.messages.get(line.next) else { break };
            // Nothing of its lane is owned, and nothing follows it before it was reported on.
            let alone = lane.is_none_or(|lane| state.lanes.get(&lane).is_none_or(|gate| gate.owned == 0))
                && random.usize(0..ALONE) == 0;
            if !self.submit(&mut state, message, alone) {
                break;
            }
            if let Some(gate) = lane.and_then(|lane| state.lanes.get_mut(&lane)) {
                gate.closed |= alone;
            }
            line.next += 1;
            taken = true;
        }
        taken
    }

    /// Hands one message over; says whether it was taken.
    fn submit(&self, state: &mut State, message: &Arc<Outgoing>, alone: bool) -> bool {
        state.clock += 1;
        let attempt = state.attempts.len();
        state.attempts.push(Attempt { message: message.clone(), submitted: state.clock, reports: Vec::new() });
        if let Some(lane) = message.lane {
            state.lanes.entry(lane).or_default().owned += 1;
        }
        let witness = Witness { notes: self.notes.clone(), attempt, message: message.clone() };
        let ticket = Ticket::new(Arc::new(witness));
        let begun = Instant::now();
        SUBMITTING.set(true);
        let submitted = self.transport.submit(Handover { message: message.clone(), alone, ticket });
        SUBMITTING.set(false);
        let took = begun.elapsed();
        if took > SUBMIT_LIMIT {
            state.violation.get_or_insert(Violation::SubmitBlocked { id: message.id, took });
        }
        let Err(refused) = submitted else { return true };
        refused.handover.ticket.withdraw();
        state.last_refusal.clone_from(&refused.failure.reason);
        state.attempts.pop();
        state.clock -= 1;
        if let Some(gate) = message.lane.and_then(|lane| state.lanes.get_mut(&lane)) {
            gate.owned -= 1;
        }
        false
    }

    /// Hands over all it can, in order, without waiting for reports; says how many were taken.
    pub(super) fn hand_over(&self, messages: &[Arc<Outgoing>]) -> usize {
        let begun = Instant::now();
        let mut taken = 0;
        while taken < messages.len() && begun.elapsed() < self.patience {
            let mut state = self.notes.lock();
            if self.submit(&mut state, &messages[taken], false) {
                taken += 1;
            } else if taken > 0 {
                break;
            } else {
                drop(self.notes.wait(state, OFFER_AGAIN));
            }
        }
        taken
    }

    /// Closes, which must report on everything and take little longer than `grace`.
    pub(super) fn close(self, grace: Duration) -> Result<Vec<Attempt>, Violation> {
        let begun = Instant::now();
        self.transport.close(grace);
        let took = begun.elapsed();
        let state = self.notes.lock();
        let unreported = state.attempts.iter().filter(|attempt| attempt.reports.is_empty()).count();
        drop(state);
        if unreported > 0 || took > grace + CLOSE_LIMIT {
            return Err(Violation::Close { grace, took, unreported });
        }
        self.breach()?;
        Ok(std::mem::take(&mut self.notes.lock().attempts))
    }

    fn nothing_owned(&self) -> bool {
        self.notes.lock().attempts.iter().all(|attempt| !attempt.reports.is_empty())
    }

    fn breach(&self) -> Result<(), Violation> {
        if let Some(id) = *lock(&self.notes.within_submit) {
            return Err(Violation::ReportedWithinSubmit { id });
        }
        self.notes.lock().violation.take().map_or(Ok(()), Err)
    }

    fn stuck(&self, state: &State, lines: &[Line]) -> Violation {
        if let Some(attempt) = state.attempts.iter().find(|attempt| attempt.reports.is_empty()) {
            return Violation::NoReport { id: attempt.message.id, patience: self.patience };
        }
        let left = lines.iter().flat_map(|line| &line.messages).find(|message| !state.delivered.contains(&message.id));
        let id = left.map_or(MessageId::new(0, 0), |message| message.id);
        Violation::Refused { id, reason: state.last_refusal.clone() }
    }
}

impl State {
    /// Of a message without a lane. Not of a lane by its last message: a transport that breaks the rule passes one by.
    fn is_delivered(&self, line: &Line) -> bool {
        line.messages.first().is_some_and(|message| self.delivered.contains(&message.id))
    }

    /// Whether a message without a lane is owned by nobody, and may be offered (again).
    fn is_open(&self, line: &Line) -> bool {
        let id = line.messages.first().map(|message| message.id);
        self.attempts
            .iter()
            .rev()
            .find(|attempt| Some(attempt.message.id) == id)
            .is_none_or(|last| !last.reports.is_empty())
    }
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Course<'_> {
    fn proceed(&mut self, delivered: usize) {
        match self.struck {
            None if delivered >= self.strike_at => {
                (self.fault.inflict)();
                self.struck = Some(Instant::now());
            }
            Some(since) if !self.mended && since.elapsed() >= self.fault.lasts => {
                (self.fault.mend)();
                self.mended = true;
            }
            _ => {}
        }
    }
}

fn into_lines(messages: Vec<Arc<Outgoing>>) -> Vec<Line> {
    let mut lanes: HashMap<Lane, Line> = HashMap::new();
    let mut lines = Vec::new();
    for message in messages {
        match message.lane {
            Some(lane) => {
                lanes.entry(lane).or_insert_with(|| Line { messages: Vec::new(), next: 0 }).messages.push(message);
            }
            None => lines.push(Line { messages: vec![message], next: 0 }),
        }
    }
    lines.extend(lanes.into_values());
    // A map's order is the process's whim; the seed is to decide alone.
    lines.sort_by_key(|line| line.messages.first().map(|message| message.id));
    lines
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
