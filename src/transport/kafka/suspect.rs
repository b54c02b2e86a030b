//! What is done about a broker that closes the connection instead of refusing what it was sent ([`cuts`](super::cuts)).
//!
//! librdkafka would send the same batch for ever. So the producing instance is given up, which hands everything back,
//! and the next one sends smaller batches; where the batch was one message already, that message is reported such that
//! the drainer tries it by itself. There, if the connection breaks [`ENOUGH`](super::cuts::ENOUGH) times again, the
//! verdict depends on whether the same broker has acknowledged other messages since the trial before: only then the
//! message is to blame. Otherwise its key waits, with the reason, and it is tried by itself again.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::batch::LEAST;
use super::cuts::Cut;
use super::share::Share;
use super::topics::Topic;
use crate::message::{MessageId, Outgoing};
use crate::transport::{Class, Failure, Scope};

/// The producing instance cannot deliver the first messages of some partitions: has smaller batches sent, or the messages
/// tried by themselves. For the keeper thread.
pub(super) fn act(shared: &Shared, instance: u64, cuts: &[Cut]) {
    let Some(instance) = shared.seat.current().filter(|current| current.book().id() == instance) else {
        // It was given up meanwhile.
        return;
    };
    let now = Instant::now();
    let mut reason = None;
    // Decided for all of them before the size changes.
    let (limit, is_least) = (shared.batch.current(), shared.batch.is_least());
    let (mut messages, mut bytes) = (0, 0);
    for cut in cuts {
        let Some((topic, share)) = place(shared, cut) else { continue };
        let Some(head) = instance.book().head(&share) else { continue };
        let place = format!("{}[{}]", cut.topic, cut.partition);
        let text = format!("{place}: the broker closed the connection {} times, each time after", cut.cuts);
        if head.messages == 1 || head.bytes >= limit || is_least {
            let text = format!("{text} the same message of {} bytes was sent; it is tried by itself", head.bytes);
            share.suspect();
            if head.bytes >= LEAST {
                // Others as large need not bring the next instance down first.
                topic.state().refused(head.bytes, now);
            }
            instance.book().suspect(head, Failure::new(Class::Permanent, Scope::Lane, &*text));
            reason.get_or_insert(text);
        } else {
            (messages, bytes) = (head.messages.max(messages), head.total_bytes.max(bytes));
            reason.get_or_insert(format!("{text} the same batch was sent; smaller ones are tried"));
        }
    }
    let Some(reason) = reason else { return };
    shared.batch.refused((messages, bytes));
    instance.give_up(Failure::new(Class::Fatal, Scope::Transport, reason));
}

fn place(shared: &Shared, cut: &Cut) -> Option<(Arc<Topic>, Arc<Share>)> {
    let topic = shared.topics.find(&cut.topic)?;
    let index = usize::try_from(cut.partition).ok()?;
    let share = Arc::clone(topic.state().shares.get(index)?);
    Some((topic, share))
}

/// The verdict on a message that the broker closed the connection for while it was tried by itself.
pub(super) fn verdict(outgoing: &Outgoing, cut: &Cut, others_pass: bool) -> Failure {
    let (id, size): (MessageId, usize) = (outgoing.id, outgoing.message.size());
    let text = format!(
        "{}[{}]: the broker closes the connection when message {id} ({size} bytes) is sent, {} times by itself",
        cut.topic, cut.partition, cut.cuts
    );
    if others_pass {
        let text = format!("{text}, and takes others: larger than the broker's socket.request.max.bytes?");
        Failure::new(Class::Permanent, Scope::Lane, text)
    } else {
        // It may be the broker, or something on the way there, that takes no message at all.
        let text = format!(
            "{text}; it has taken no other since: larger than its socket.request.max.bytes, or something on the way"
        );
        Failure::new(Class::Hold, Scope::Lane, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Route};

    #[test]
    fn only_while_others_pass_the_message_is_to_blame() {
        let route = Route { transport: "kafka".into(), destination: "t".into() };
        let message = Message::to("t").payload(vec![0; 500]);
        let outgoing = Outgoing { id: MessageId::new(1, 2), route, lane: None, timestamp: 1, message };
        let cut = Cut { topic: "t".into(), partition: 4, broker: 1, cuts: 3 };
        for (others_pass, class) in [(true, Class::Permanent), (false, Class::Hold)] {
            let failure = verdict(&outgoing, &cut, others_pass);
            assert_eq!((failure.class, failure.scope), (class, Scope::Lane));
            let id = outgoing.id.to_string();
            for part in ["t[4]", "500 bytes", "socket.request.max.bytes", &id] {
                assert!(failure.reason.contains(part), "{failure}");
            }
        }
    }
}
