//! What all clones of a producer share: routing, admission, the way into the dispatchers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{broadcast, oneshot};

use super::admission::{Admission, Queued};
use super::close::{CloseError, Closed};
use crate::clock;
use crate::config::{Config, MAX_FIELDS, MAX_HEADERS, Mode, Order};
use crate::drainer::{Dispatcher, Verdict};
use crate::error::{SendError, SendErrorKind};
use crate::forked::Maker;
use crate::message::{ACCEPTED_HEADER, Body, ID_HEADER, Lane, Message, Outgoing, Route};
use crate::outbox::{NoRoom, Outbox, Reservation, Share, StatusFile};
use crate::stats::Event;

/// Encoded bytes that may wait for the disk; beyond that, `send` waits as for space.
const QUEUED_BYTES: usize = 32 << 20;

/// How a route's messages are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoutePlan {
    pub mode: Mode,
    pub order: Order,
}

/// One transport, and how its routes are sent.
pub(super) struct Line {
    pub name: Arc<str>,
    pub dispatcher: Arc<Dispatcher>,
    pub default: RoutePlan,
    pub routes: HashMap<Arc<str>, RoutePlan>,
    /// Who waits for space. One queue a transport: what one of them fills is not waited for by the others' messages.
    pub admission: Admission,
}

impl Line {
    fn plan(&self, destination: &str) -> RoutePlan {
        if self.routes.is_empty() {
            return self.default;
        }
        self.routes.get(destination).copied().unwrap_or(self.default)
    }
}

/// A bell for the housekeeper.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    bell: Condvar,
}

impl Bell {
    pub fn ring(&self) {
        let first = !std::mem::replace(&mut *lock(&self.rung), true);
        if first {
            self.bell.notify_one();
        }
    }

    /// Waits until it rings, `wait` at most.
    pub fn wait(&self, wait: Duration) {
        let mut rung = lock(&self.rung);
        let until = Instant::now() + wait;
        while !*rung {
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            rung = self.bell.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *rung = false;
    }
}

/// What all clones share.
pub(super) struct Core {
    pub config: Config,
    /// The process that opened it: a fork has the data, and none of the threads.
    pub maker: Maker,
    pub outbox: Arc<Outbox>,
    pub lines: Vec<Line>,
    pub opened: SystemTime,
    pub closed: AtomicBool,
    pub bell: Arc<Bell>,
    pub events: broadcast::Sender<Event>,
    pub status: Mutex<StatusFile>,
    pub drainers: Mutex<Vec<JoinHandle<()>>>,
    pub housekeeper: Mutex<Option<JoinHandle<()>>>,
    /// How it ended, once it has.
    pub ended: Mutex<Option<Result<Closed, CloseError>>>,
    pub stop: AtomicBool,
}

/// A message that may be sent.
pub(super) struct Admitted {
    pub line: usize,
    pub message: Arc<Outgoing>,
    pub direct: bool,
}

impl Core {
    /// Checks a message and finds its way. Nothing has happened to it when this fails.
    pub fn admit(&self, mut message: Message) -> Result<Admitted, SendError> {
        let refuse = |kind, reason: String, message| Err(SendError::new(kind, reason, message));
        // Whatever becomes of it from here on, sending it again keeps the id.
        let id = *message.id.get_or_insert_with(|| self.outbox.next_id());
        if self.closed.load(Ordering::Acquire) {
            return refuse(SendErrorKind::Closed, "the producer is closed".into(), message);
        }
        let Some(line) = self.line_of(&message) else {
            let names: Vec<&str> = self.lines.iter().map(|line| &*line.name).collect();
            let wanted = message.via.clone().unwrap_or_default();
            let reason = format!("no transport `{wanted}` is configured; there are: {}", names.join(", "));
            return refuse(SendErrorKind::UnknownTransport, reason, message);
        };
        let (size, max) = (message.size(), self.config.max_message_bytes);
        if size > max {
            let reason = format!("key, headers and payload have {size} bytes; max_message_bytes is {max}");
            return refuse(SendErrorKind::TooLarge, reason, message);
        }
        if let Err(reason) = check(&message).and_then(|()| self.lines[line].dispatcher.transport().check(&message)) {
            return refuse(SendErrorKind::Invalid, reason, message);
        }
        let Line { name, .. } = &self.lines[line];
        let plan = self.lines[line].plan(&message.to);
        let route = Route { transport: Arc::clone(name), destination: Arc::clone(&message.to) };
        let lane = match (plan.order, &message.key) {
            (Order::None, _) | (Order::Key, None) => None,
            (Order::Key, Some(key)) => Some(Lane::of(&route, Some(key))),
            (Order::Route, _) => Some(Lane::of(&route, None)),
        };
        let timestamp = message.timestamp.unwrap_or_else(clock::unix_millis);
        let outgoing = Outgoing { id, route, lane, timestamp, message };
        if !self.outbox.fits(&outgoing) {
            let reason = "with all its names and headers the message does not fit into a segment of the outbox";
            return refuse(SendErrorKind::TooLarge, reason.into(), outgoing.message);
        }
        let outgoing = Arc::new(outgoing);
        Ok(Admitted { line, message: outgoing, direct: plan.mode == Mode::Direct })
    }

    fn line_of(&self, message: &Message) -> Option<usize> {
        match &message.via {
            None => (!self.lines.is_empty()).then_some(0),
            Some(name) => self.lines.iter().position(|line| line.name == *name),
        }
    }

    /// Sends an admitted message, or queues it for space. The place in its lane is fixed when this returns.
    pub fn enter(&self, admitted: Admitted, wait: bool) -> Result<Entered, SendError> {
        // Whoever waits for space goes first: the order of a lane is the order of `send`. What one thread sends, one
        // after the other, sees its own queue; between threads there is no order.
        let admission = &self.lines[admitted.line].admission;
        if admission.len() == 0
            && let Ok(reservation) = self.room(&admitted)
        {
            let verdict = self.dispatch(&admitted, reservation);
            return Ok(Entered::Sent { message: admitted.message, verdict });
        }
        let mut queue = admission.lock();
        let room = if queue.is_empty() { self.room(&admitted) } else { Err(NoRoom::Full) };
        match room {
            Ok(reservation) => {
                let verdict = self.dispatch(&admitted, reservation);
                drop(queue);
                Ok(Entered::Sent { message: admitted.message, verdict })
            }
            Err(_) if !wait => {
                let message = Message::clone(&admitted.message.message);
                let reason = "the outbox is full, and `try_send` does not wait for space";
                Err(SendError::new(SendErrorKind::Full, reason, message))
            }
            // Closed meanwhile: nobody looks into the queue any more. Whoever closes says so before the last look.
            Err(_) if self.closed.load(Ordering::Acquire) => {
                let message = Message::clone(&admitted.message.message);
                Err(SendError::new(SendErrorKind::Closed, "the producer was closed", message))
            }
            Err(_) => {
                let (sender, receiver) = oneshot::channel();
                let deadline = clock::after(Instant::now(), self.config.space_wait);
                let (message, line) = (Arc::clone(&admitted.message), admitted.line);
                let ticket = queue.push(admitted, deadline, sender);
                drop(queue);
                self.bell.ring();
                Ok(Entered::Queued { message, line, ticket, verdict: receiver })
            }
        }
    }

    fn room(&self, admitted: &Admitted) -> Result<Option<Reservation>, NoRoom> {
        if self.outbox.queued_bytes() > QUEUED_BYTES {
            return Err(NoRoom::Full);
        }
        // What will be stored at once leaves alone what is kept for first attempts.
        let direct = admitted.direct && !self.lines[admitted.line].dispatcher.is_gated(&admitted.message);
        let share = if direct { Share::FirstAttempt } else { Share::Stored };
        match self.outbox.reserve(&admitted.message, share) {
            Ok(reservation) => Ok(Some(reservation)),
            // A broken disk does not keep a healthy broker from being used; what fails there is told so.
            Err(NoRoom::Broken(_)) => Ok(None),
            Err(NoRoom::Full) => Err(NoRoom::Full),
        }
    }

    fn dispatch(&self, admitted: &Admitted, reservation: Option<Reservation>) -> oneshot::Receiver<Verdict> {
        let dispatcher = &self.lines[admitted.line].dispatcher;
        dispatcher.send(Arc::clone(&admitted.message), admitted.direct, reservation)
    }

    /// How many messages wait for space.
    pub fn waiting_for_space(&self) -> usize {
        self.lines.iter().map(|line| line.admission.len()).sum()
    }

    /// Lets in what waits for space, in order, as far as there is room; tells those whose time is up.
    pub fn let_in(&self, now: Instant) {
        self.lines.iter().for_each(|line| self.let_in_to(line, now));
    }

    fn let_in_to(&self, line: &Line, now: Instant) {
        let mut queue = line.admission.lock();
        while let Some(first) = queue.front_mut() {
            let Some(verdict) = first.waiter.take_if(|waiter| !waiter.is_closed()) else {
                // Withdrawn: the future was dropped.
                queue.pop();
                continue;
            };
            if self.closed.load(Ordering::Acquire) {
                let _ = verdict.send(Queued::Rejected(SendErrorKind::Closed, "the producer was closed".into()));
                queue.pop();
                continue;
            }
            match self.room(&first.admitted) {
                Ok(reservation) => {
                    // Dispatched under the queue's lock, so that nobody behind it gets in before it.
                    let _ = verdict.send(Queued::Sent(self.dispatch(&first.admitted, reservation)));
                }
                Err(_) if first.deadline <= now => {
                    let waited = self.config.space_wait;
                    let why = self.outbox.broken().map_or(String::new(), |why| format!(": {why}"));
                    let reason = format!("the outbox is full, and no space came free within {waited:?}{why}");
                    let _ = verdict.send(Queued::Rejected(SendErrorKind::Full, reason));
                }
                Err(_) => {
                    first.waiter = Some(verdict);
                    return;
                }
            }
            queue.pop();
        }
    }
}

/// Where a message went.
pub(super) enum Entered {
    /// To its dispatcher.
    Sent {
        /// The message.
        message: Arc<Outgoing>,
        /// What becomes of it.
        verdict: oneshot::Receiver<Verdict>,
    },
    /// Into the queue for space.
    Queued {
        /// The message.
        message: Arc<Outgoing>,
        /// Its transport, of those there are.
        line: usize,
        /// Its place in that one's queue.
        ticket: u64,
        /// What becomes of it.
        verdict: oneshot::Receiver<Queued>,
    },
}

/// What no transport could take.
fn check(message: &Message) -> Result<(), String> {
    if message.to.is_empty() {
        return Err("the message names no topic or stream".into());
    }
    let headers = message.headers.len();
    if headers > MAX_HEADERS {
        return Err(format!("{headers} headers; at most {MAX_HEADERS}"));
    }
    for header in &message.headers {
        if header.name.is_empty() {
            return Err("a header without a name".into());
        }
        if let Some((name, what)) = reserved(header.name.as_bytes()) {
            return Err(format!("a header of the name `{name}`, which carries {what}"));
        }
    }
    if let Body::Fields(fields) = &message.body
        && fields.len() > MAX_FIELDS
    {
        return Err(format!("{} fields; at most {MAX_FIELDS}", fields.len()));
    }
    if let Body::Fields(fields) = &message.body
        && let Some((name, what)) = fields.iter().find_map(|(name, _)| reserved(name))
    {
        return Err(format!("a field of the name `{name}`, which carries {what}"));
    }
    if message.partition.is_some_and(|partition| partition < 0) {
        return Err("a partition below 0; leave it out for the partitioner to choose".into());
    }
    Ok(())
}

/// The name, if it is one that the library keeps to itself, and what it carries.
fn reserved(name: &[u8]) -> Option<(&'static str, &'static str)> {
    const NAMES: [(&str, &str); 2] = [(ID_HEADER, "the message id"), (ACCEPTED_HEADER, "the time of acceptance")];
    NAMES.into_iter().find(|(reserved, _)| reserved.as_bytes() == name)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
