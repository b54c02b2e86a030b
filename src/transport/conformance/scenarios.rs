//! What is sent in each part of the suite.

use std::sync::Arc;
use std::time::Duration;

use super::lab::Lab;
use super::{Fault, Subject, Violation, judge};
use crate::message::{Lane, Message, MessageId, Outgoing, Route};

/// Every shape of a message that the transport says it could take.
pub(super) fn bytes_arrive_as_they_were_handed_over(subject: &dyn Subject, seed: u64) -> Result<(), Violation> {
    let to = subject.destination("bytes");
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut messages = vec![
        Message::to(&*to).key("k").payload("plain"),
        Message::to(&*to).payload("no key"),
        Message::to(&*to).key("k").tombstone(),
        Message::to(&*to).key("k").payload(""),
        Message::to(&*to).key("").payload("the empty key is a key"),
        Message::to(&*to).key(every_byte.clone()).payload(every_byte.repeat(64)),
        Message::to(&*to).key("k").payload("h").header("a", "1").header("b", every_byte).header("a", "2"),
        Message::to(&*to).key("k").payload("h").header("empty", "").null_header("null").header("ünïcode", "ü"),
        Message::to(&*to).key("k").payload("line\r\nbreaks\n"),
        Message::to(&*to).key("k").payload(vec![b'x'; 512 * 1024]),
    ];
    if subject.takes_fields() {
        messages.push(Message::to(&*to).key("k").fields([("b", "2"), ("a", ""), ("b", "3")]).header("h", "v"));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let messages: Vec<_> = numbered(messages, &mut random).collect();
    settle(subject, &to, messages, &mut random, None)
}

/// Many keys, many messages, and some without order among them.
pub(super) fn each_lane_keeps_its_order(subject: &dyn Subject, seed: u64) -> Result<(), Violation> {
    let to = subject.destination("order");
    let mut random = fastrand::Rng::with_seed(seed ^ 1);
    let messages: Vec<_> = numbered(traffic(&to, 16, 1600, &mut random), &mut random).collect();
    settle(subject, &to, messages, &mut random, None)
}

/// The same with a fault in the middle.
pub(super) fn the_prefix_rule_holds(subject: &dyn Subject, seed: u64, fault: &Fault) -> Result<(), Violation> {
    let to = subject.destination("fault");
    let mut random = fastrand::Rng::with_seed(seed ^ 2);
    let messages: Vec<_> = numbered(traffic(&to, 8, 1200, &mut random), &mut random).collect();
    settle(subject, &to, messages, &mut random, Some(fault))
}

/// Hands over and closes, at once and with some grace.
pub(super) fn closing_reports_everything(subject: &dyn Subject, seed: u64) -> Result<(), Violation> {
    for grace in [Duration::ZERO, Duration::from_secs(2)] {
        let to = subject.destination("close");
        let mut random = fastrand::Rng::with_seed(seed ^ 3);
        let messages: Vec<_> = numbered(traffic(&to, 4, 400, &mut random), &mut random).collect();
        let lab = Lab::start(subject.transport(), subject.patience())?;
        let taken = lab.hand_over(&messages);
        let attempts = lab.close(grace)?;
        judge::judge(subject, &to, &messages[..taken], &attempts)?;
    }
    Ok(())
}

fn settle(
    subject: &dyn Subject,
    to: &str,
    messages: Vec<Arc<Outgoing>>,
    random: &mut fastrand::Rng,
    fault: Option<&Fault>,
) -> Result<(), Violation> {
    let lab = Lab::start(subject.transport(), subject.patience())?;
    let delivered = lab.deliver(messages.clone(), random, fault);
    if let Err(violation) = delivered {
        // The broker is left as it was found, and the transport ended, before the verdict.
        fault.inspect(|fault| (fault.mend)());
        let _ = lab.close(Duration::ZERO);
        return Err(violation);
    }
    let attempts = lab.close(Duration::from_secs(5))?;
    // A fault that met no message has proven nothing: show what it did.
    let met = fault.map_or("no fault", |fault| fault.name);
    println!("{to}: {met}: {} messages took {} hand-overs", messages.len(), attempts.len());
    judge::judge(subject, to, &messages, &attempts)
}

/// Messages of `keys` keys in a random turn, one in twenty without a key.
fn traffic(to: &str, keys: usize, count: usize, random: &mut fastrand::Rng) -> Vec<Message> {
    let mut one = |number| {
        let payload = format!("{number}:{}", "x".repeat(random.usize(0..200)));
        let message = Message::to(to).payload(payload).header("n", format!("{number}"));
        if random.usize(0..20) == 0 { message } else { message.key(format!("key-{}", random.usize(0..keys))) }
    };
    (0..count).map(&mut one).collect()
}

fn numbered(messages: Vec<Message>, random: &mut fastrand::Rng) -> impl Iterator<Item = Arc<Outgoing>> {
    let incarnation = random.u64(1..);
    messages.into_iter().zip(1..).map(move |(message, number)| {
        let route = Route { transport: "conformance".into(), destination: message.destination().into() };
        let lane = message.key_bytes().map(|key| Lane::of(&route, Some(key)));
        let id = MessageId::new(incarnation, number);
        Arc::new(Outgoing { id, route, lane, timestamp: 1_700_000_000_000 + number as i64, message })
    })
}
