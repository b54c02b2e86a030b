//! One librdkafka producer: hands messages to it, and turns its delivery reports into outcomes.
//!
//! Any error that comes out of it, and a success without an offset, gives the instance up, before the message is
//! reported on: nothing more is handed to it, and the owner of the instance retires it. The callbacks never drop
//! the producer, take no lock of the transport's but the book's, and never wait.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use tracing::{debug, warn};

use super::acks::Acks;
use super::book::{Book, Role, lock};
use super::config::{OwnLimits, Settings};
use super::credentials::Credentials;
use super::cuts::{Counting, Cut, Cuts};
use super::link::Link;
use super::log::Log;
use super::reaper::Reaper;
use super::share::Share;
use super::signal::Bell;
use super::times::{Stamped, Times};
use super::{classify, counts, ffi};
use crate::message::{ACCEPTED_HEADER, ID_HEADER, Outgoing, Position};
use crate::transport::{Class, Failure, Handover, Refused, Scope};

/// What an instance tells its owner.
#[derive(Debug)]
pub(super) enum Event {
    /// It was given up and has to be retired.
    GivenUp,
    /// Another one was made, to take over from the one at work.
    Renewed,
    /// librdkafka has trouble with a broker.
    Trouble(RDKafkaErrorCode, String),
    /// A broker closes the connection again and again when the first messages of these partitions are sent: the
    /// instance, and the evidence.
    Cut(u64, Vec<Cut>),
    /// The transport is closing.
    Closing,
}

/// Whom an instance speaks to.
#[derive(Clone)]
pub(super) struct Contacts {
    /// The owner.
    pub(super) events: Sender<Event>,
    /// Wakes who waits for a partition's first acknowledgement.
    pub(super) bell: Arc<Bell>,
    /// Learns of every acknowledgement.
    pub(super) link: Arc<Link>,
    /// Says which time a record is sent with.
    pub(super) times: Arc<Times>,
    /// The same, while it matters which broker it came from.
    pub(super) acks: Arc<Acks>,
    /// Destroys the producer in the end.
    pub(super) reaper: Arc<Reaper>,
}

/// A producer and the account of what it owns. Dropping it does not block.
pub(super) struct Instance {
    producer: Arc<ThreadedProducer<Callbacks>>,
    book: Arc<Book>,
    reaper: Arc<Reaper>,
    /// The number of the credentials it was made with.
    credentials: u64,
    limits: OwnLimits,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.reaper.destroy(Arc::clone(&self.producer));
    }
}

impl Instance {
    /// Makes a producer, which connects in the background.
    pub(super) fn new(
        client: &ClientConfig,
        settings: &Settings,
        credentials: &Credentials,
        role: Role,
        contacts: &Contacts,
    ) -> Result<Self, String> {
        let mut client = client.clone();
        credentials.apply(&mut client);
        let (book, reaper) = (Arc::new(Book::new(role)), Arc::clone(&contacts.reaper));
        let callbacks = Callbacks::new(Arc::clone(&book), contacts.clone(), Log::new(settings.clone()));
        let producer = client.create_with_context(callbacks).map_err(|error| settings.scrub(&error.to_string()))?;
        Ok(Self { producer: Arc::new(producer), book, reaper, credentials: credentials.number, limits: settings.own })
    }

    /// The number of the credentials it was made with.
    pub(super) fn credentials(&self) -> u64 {
        self.credentials
    }

    /// The trouble librdkafka had last with a broker.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.producer.client().context().trouble).as_ref().map(|trouble| trouble.reason.clone())
    }

    /// Whether a broker did not let it in of late: a login was refused, or one side does not trust the other's certificate.
    pub(super) fn is_locked_out(&self, now: Instant) -> bool {
        let trouble = lock(&self.producer.client().context().trouble);
        trouble.as_ref().is_some_and(|trouble| trouble.is_recent_refusal(now))
    }

    /// The account.
    pub(super) fn book(&self) -> &Book {
        &self.book
    }

    /// Hands a message over. Does not block.
    // The message comes back on the rare way, and a box on the frequent one would cost more.
    #[allow(clippy::result_large_err)]
    pub(super) fn send(&self, handover: Handover, partition: i32, share: &Arc<Share>) -> Result<(), Refused> {
        if let Some(reason) = self.book.given_up() {
            return Err(Refused { handover, failure: Arc::new(handed_back(&reason)) });
        }
        let now = Instant::now();
        if self.book.awaits_proof(share, now) {
            let text = "the first message of this producer instance is not acknowledged yet";
            let failure = no_room(&handover.message, partition, text);
            return Err(Refused { handover, failure: Arc::new(failure) });
        }
        let Handover { message, alone, ticket } = handover;
        let is_alone = self.book.role() == Role::Solo;
        let stamped = share.times().stamp(&self.producer.client().context().contacts.times, &message, is_alone);
        let slot = self.book.enter(ticket, share, message.message.size(), stamped, now);
        let Err((error, _)) = self.producer.send(record(&message, partition, stamped, slot)) else {
            return Ok(());
        };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let failure = self.not_taken(code, &message, partition);
        match self.book.withdraw(slot) {
            Some(ticket) => Err(Refused { handover: Handover { message, alone, ticket }, failure: Arc::new(failure) }),
            // Retired in the meantime, and reported failed: it is no longer the caller's.
            None => Ok(()),
        }
    }

    /// Why librdkafka did not take a message.
    fn not_taken(&self, code: RDKafkaErrorCode, message: &Outgoing, partition: i32) -> Failure {
        // It only says that there was a fatal error before; the reason is known elsewhere.
        if code == RDKafkaErrorCode::Fatal && self.check_fatal() {
            return self.book.given_up().map_or_else(closed, |reason| handed_back(&reason));
        }
        if let Some(limit) = self.limits.refused(code, message) {
            let text = format!("{}[{partition}]: message {}: {limit}", message.route.destination, message.id);
            return Failure::new(Class::Hold, Scope::Lane, text);
        }
        if code == RDKafkaErrorCode::QueueFull {
            return no_room(message, partition, "librdkafka's queue is full");
        }
        let failure = classify::judge(code).failure(code, &message.route.destination, partition);
        if failure.class == Class::Fatal {
            self.give_up(failure.clone());
        }
        failure
    }

    /// Gives the instance up.
    pub(super) fn give_up(&self, failure: Failure) {
        self.producer.client().context().give_up(failure);
    }

    /// Purges until nothing is owned, at first what waits, after `patience` also what is in flight; reports
    /// failed what librdkafka never reported on. `hurry` ends the patience. Blocks, for `patience` and two seconds at
    /// most; call it from the owner's thread only, and drop the instance after it.
    pub(super) fn retire(&self, patience: Duration, hurry: impl Fn() -> bool) {
        /// How often what librdkafka has put back into its queue is purged again.
        const PURGE_EVERY: Duration = Duration::from_millis(100);
        /// How long the reports of the last purge may take to come.
        const LAST_REPORTS: Duration = Duration::from_secs(2);
        if self.book.wait_empty(Duration::ZERO) {
            return;
        }
        let reason = self.book.given_up().map_or_else(closed, |reason| handed_back(&reason));
        // librdkafka must not send what it puts back into its queue while that is being purged.
        ffi::raise_fatal(self.producer.client());
        let deadline = Instant::now() + patience;
        loop {
            // Not blocking: a broker thread that is looking up a name would keep us until it has found it.
            self.producer.purge(PurgeConfig::default().queue().non_blocking());
            let left = deadline.saturating_duration_since(Instant::now());
            if self.book.wait_empty(PURGE_EVERY.min(left)) {
                return;
            }
            if left.is_zero() || hurry() {
                break;
            }
        }
        self.producer.purge(PurgeConfig::default().queue().inflight().non_blocking());
        if self.book.wait_empty(LAST_REPORTS) {
            return;
        }
        let reason = Arc::new(reason);
        let messages = self
            .book
            .settle_rest(|ticket, suspicion| ticket.failed(suspicion.unwrap_or_else(|| Arc::clone(&reason)), true));
        warn!(messages, "librdkafka never reported on some messages; they count as failed");
    }

    /// Gives the instance up if librdkafka has raised a fatal error in it; says whether it has.
    pub(super) fn check_fatal(&self) -> bool {
        let Some((code, text)) = self.producer.client().fatal_error() else { return false };
        let verdict = classify::judge(code);
        let (class, scope) = if verdict.class == Class::Hold { (Class::Hold, Scope::Transport) } else { FATAL };
        let text = self.producer.client().context().log.scrub(&text);
        self.give_up(Failure::new(class, scope, format!("{} ({code:?}): {text}", verdict.hint)));
        true
    }

    /// The client, for metadata.
    pub(super) fn client(&self) -> &rdkafka::client::Client<Callbacks> {
        self.producer.client()
    }
}

/// The record of a message. The timestamp is never 0, which librdkafka would take for "now": the transport's
/// `check` refuses it.
fn record(outgoing: &Outgoing, partition: i32, stamped: Stamped, slot: usize) -> BaseRecord<'_, [u8], [u8], usize> {
    let message = &outgoing.message;
    let id = outgoing.id.to_bytes();
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len() + 2);
    for header in &message.headers {
        headers = headers.insert(Header { key: &header.name, value: header.value.as_deref() });
    }
    headers = headers.insert(Header { key: ID_HEADER, value: Some(&id[..]) });
    if let Some(accepted) = stamped.accepted {
        headers = headers.insert(Header { key: ACCEPTED_HEADER, value: Some(&accepted.to_string()) });
    }
    let mut record = BaseRecord::with_opaque_to(&outgoing.route.destination, slot)
        .partition(partition)
        .timestamp(stamped.time)
        .headers(headers);
    record.key = message.key.as_deref();
    record.payload = message.payload_bytes().map(|payload| &payload[..]);
    record
}

const FATAL: (Class, Scope) = (Class::Fatal, Scope::Transport);

/// The failure of a message that has to wait for a report on its partition: that makes room.
pub(super) fn no_room(message: &Outgoing, partition: i32, why: &str) -> Failure {
    let text = format!("{}[{partition}]: {why}", message.route.destination);
    Failure::new(Class::Transient, Scope::Partition(partition), text)
}

/// The failure of messages that an instance gave back because of `reason`, which was another one's, unless it
/// concerns the whole transport.
pub(super) fn handed_back(reason: &Failure) -> Failure {
    let text = format!("handed back, the producer instance is being rebuilt after: {}", reason.reason);
    let everyones = (reason.class, reason.scope) == (Class::Hold, Scope::Transport);
    let (class, scope) = if everyones { (Class::Hold, Scope::Transport) } else { FATAL };
    Failure::new(class, scope, text)
}

/// The failure of what a closing transport still owned.
pub(super) fn closed() -> Failure {
    Failure::new(Class::Transient, Scope::Transport, "the transport was closed before the broker acknowledged")
}

/// What librdkafka calls.
pub(super) struct Callbacks {
    book: Arc<Book>,
    contacts: Contacts,
    log: Log,
    /// The trouble told last, until it was told again.
    told: Mutex<Option<(RDKafkaErrorCode, String)>>,
    /// How often connections broke while the same first message was under way.
    cuts: Mutex<Cuts>,
    /// What it said about a broker last.
    trouble: Mutex<Option<Trouble>>,
}

/// What librdkafka said about a broker.
struct Trouble {
    at: Instant,
    reason: String,
    /// A person has to do something about it.
    is_refusal: bool,
}

impl Trouble {
    fn is_recent_refusal(&self, now: Instant) -> bool {
        /// librdkafka says so at each attempt to connect, which are at most `reconnect.backoff.max.ms` (10 s) and half of
        /// that as jitter apart.
        const HOLDS: Duration = Duration::from_secs(16);
        self.is_refusal && now.saturating_duration_since(self.at) < HOLDS
    }
}

impl Callbacks {
    fn new(book: Arc<Book>, contacts: Contacts, log: Log) -> Self {
        let counting = if book.role() == Role::Solo { Counting::Single } else { Counting::Batches };
        let cuts = Mutex::new(Cuts::new(counting));
        Self { book, contacts, log, told: Mutex::default(), cuts, trouble: Mutex::default() }
    }

    /// rdkafka 0.39 tells each error event twice, one right after the other. Whether this is the second time.
    fn is_echo(&self, code: RDKafkaErrorCode, reason: &str) -> bool {
        let mut told = lock(&self.told);
        if told.take_if(|(before, text)| *before == code && text == reason).is_some() {
            return true;
        }
        *told = Some((code, reason.to_owned()));
        false
    }

    /// Keeps trouble in mind. "Disconnected" follows each refusal, and says less than it.
    fn note(&self, code: RDKafkaErrorCode, reason: &str) {
        let (at, is_refusal) = (Instant::now(), classify::judge(code).class == Class::Hold);
        let mut trouble = lock(&self.trouble);
        let better = is_refusal || !trouble.as_ref().is_some_and(|before| before.is_recent_refusal(at));
        // "All brokers are down" says nothing about any of them.
        if better && code != RDKafkaErrorCode::AllBrokersDown {
            *trouble = Some(Trouble { at, reason: reason.to_owned(), is_refusal });
        }
    }

    fn give_up(&self, failure: Failure) {
        let reason = failure.reason.clone();
        if self.book.give_up(failure) {
            warn!(%reason, "Kafka producer instance given up");
            // An owner that is gone has retired the instance already.
            let _ = self.contacts.events.send(Event::GivenUp);
        }
    }

    fn failed(
        &self,
        code: RDKafkaErrorCode,
        message: &rdkafka::message::BorrowedMessage<'_>,
        slot: usize,
    ) -> (Failure, bool) {
        let possibly = ffi::possibly_persisted(message);
        let purged = matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight);
        if purged && let Some(suspicion) = self.book.suspicion(slot) {
            // librdkafka takes a request that was cut off half-way for one that was never sent; so do we, for the
            // broker reads nothing of it.
            return (Failure::clone(&suspicion), possibly);
        }
        let failure = match (code, self.book.given_up()) {
            (RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight, Some(reason)) => handed_back(&reason),
            _ => classify::judge(code).failure(code, message.topic(), message.partition()),
        };
        (failure, possibly)
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.log.line(level, facility, text);
    }

    fn stats_raw(&self, json: &[u8]) {
        let Some(counts) = counts::read(json) else { return };
        let throttle = counts.brokers.values().map(|broker| broker.throttle).max().unwrap_or_default();
        self.contacts.link.throttled(throttle, Instant::now());
        let mut cuts = lock(&self.cuts).observe(&counts);
        match self.book.role() {
            _ if cuts.is_empty() => {}
            Role::Producing => {
                let _ = self.contacts.events.send(Event::Cut(self.book.id(), cuts));
            }
            // One message is all there is.
            Role::Solo => self.book.note_cut(cuts.remove(0)),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        let reason = self.log.scrub(reason);
        // What the transport raised itself it knows.
        if self.is_echo(code, &reason) || reason.contains(ffi::GIVEN_UP) {
            return;
        }
        debug!(?code, reason, "librdkafka reports trouble");
        self.note(code, &reason);
        // Whether it is fatal only the client can tell, which is not at hand here: the owner asks it.
        let _ = self.contacts.events.send(Event::Trouble(code, reason));
    }
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        match result {
            Ok(message) if message.offset() >= 0 => {
                let now = Instant::now();
                self.contacts.link.acknowledged(now);
                self.contacts.acks.acknowledged(now, || ffi::broker_of(message));
                let position = Position::Offset { partition: message.partition(), offset: message.offset() };
                if self.book.acknowledge(slot, now, |ticket| ticket.delivered(position)) {
                    self.contacts.bell.ring();
                }
            }
            Ok(message) => {
                let place = format!("{}[{}]", message.topic(), message.partition());
                let text = format!("{place}: acknowledged without an offset, which is no acknowledgement");
                let failure = Failure::new(Class::Fatal, Scope::Transport, text);
                self.give_up(failure.clone());
                self.book.settle(slot, |ticket| ticket.failed(Arc::new(failure), true));
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                if classify::is_too_large(code) {
                    self.book.refused_as_too_large(slot);
                }
                if code == RDKafkaErrorCode::InvalidTimestamp {
                    self.book.refused_for_its_time(slot);
                }
                let (failure, possibly) = self.failed(code, message, slot);
                self.give_up(failure.clone());
                self.book.settle(slot, |ticket| ticket.failed(Arc::new(failure), possibly));
            }
        }
    }
}
