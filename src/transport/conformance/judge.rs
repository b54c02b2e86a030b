//! Holds the reports against each other and against what the broker has.

use std::collections::HashMap;
use std::sync::Arc;

use super::lab::Attempt;
use super::{Entry, Subject, Violation};
use crate::message::{Body, Header, Lane, MessageId, Outgoing, Position};
use crate::transport::Outcome;

/// Judges one destination: what was sent there, each attempt at it, and what arrived.
pub(super) fn judge(
    subject: &dyn Subject,
    destination: &str,
    messages: &[Arc<Outgoing>],
    attempts: &[Attempt],
) -> Result<(), Violation> {
    one_report_each(attempts)?;
    nothing_passed_a_failure(attempts)?;
    positions_rise(attempts)?;
    let entries = subject.contents(destination).map_err(Violation::Unreadable)?;
    let sent: HashMap<MessageId, &Outgoing> = messages.iter().map(|message| (message.id, &**message)).collect();
    for entry in &entries {
        let message = sent.get(&entry.id).ok_or(Violation::Invented { id: entry.id })?;
        unaltered(subject, message, entry)?;
    }
    copies_are_accounted_for(messages, attempts, &entries)?;
    first_appends_in_order(&sent, &entries)
}

fn one_report_each(attempts: &[Attempt]) -> Result<(), Violation> {
    match attempts.iter().find(|attempt| attempt.reports.len() > 1) {
        Some(attempt) => Err(Violation::ReportedTwice { id: attempt.message.id }),
        None => Ok(()),
    }
}

/// The prefix rule: what was submitted behind a message before that message's failure was told, fails.
fn nothing_passed_a_failure(attempts: &[Attempt]) -> Result<(), Violation> {
    let mut last_told: HashMap<Lane, (u64, MessageId)> = HashMap::new();
    for attempt in attempts {
        let (Some(lane), Some((told, outcome))) = (attempt.message.lane, attempt.reports.first()) else { continue };
        let id = attempt.message.id;
        match outcome {
            Outcome::Failed { .. } => {
                let last = last_told.entry(lane).or_insert((*told, id));
                *last = (*last).max((*told, id));
            }
            Outcome::Delivered(_) => match last_told.get(&lane) {
                Some(&(told, failed)) if told > attempt.submitted => return Err(Violation::Overtaken { id, failed }),
                _ => {}
            },
        }
    }
    Ok(())
}

fn positions_rise(attempts: &[Attempt]) -> Result<(), Violation> {
    let mut places: HashMap<Position, MessageId> = HashMap::new();
    let mut lanes: HashMap<Lane, (Position, MessageId)> = HashMap::new();
    for attempt in attempts {
        let Some((_, Outcome::Delivered(position))) = attempt.reports.first() else { continue };
        let (position, later) = (*position, attempt.message.id);
        if let Some(earlier) = places.insert(position, later) {
            return Err(Violation::Positions { earlier, later });
        }
        let Some(lane) = attempt.message.lane else { continue };
        match lanes.insert(lane, (position, later)) {
            Some((before, earlier)) if before > position => return Err(Violation::Positions { earlier, later }),
            _ => {}
        }
    }
    Ok(())
}

fn unaltered(subject: &dyn Subject, sent: &Outgoing, entry: &Entry) -> Result<(), Violation> {
    let message = &sent.message;
    let headers: Vec<&Header> =
        message.headers().iter().filter(|header| subject.keeps_null_headers() || header.value.is_some()).collect();
    let no_fields = Vec::new();
    let (key, fields) = match message.body() {
        Body::Fields(fields) => (entry.key.as_ref(), fields),
        Body::Payload(_) => (message.key_bytes(), &no_fields),
    };
    let altered = |what: String| Err(Violation::Altered { id: sent.id, what });
    if entry.key.as_ref() != key {
        return altered(format!("key {:?} instead of {key:?}", entry.key));
    }
    if entry.payload.as_ref() != message.payload_bytes() {
        let length = |payload: Option<&bytes::Bytes>| payload.map(bytes::Bytes::len);
        let (is, was) = (length(entry.payload.as_ref()), length(message.payload_bytes()));
        return altered(format!("the payload (lengths {is:?} and {was:?})"));
    }
    if &entry.fields != fields {
        return altered(format!("fields {:?} instead of {fields:?}", entry.fields));
    }
    if entry.headers.iter().ne(headers.iter().copied()) {
        return altered(format!("headers {:?} instead of {headers:?}", entry.headers));
    }
    Ok(())
}

fn copies_are_accounted_for(
    messages: &[Arc<Outgoing>],
    attempts: &[Attempt],
    entries: &[Entry],
) -> Result<(), Violation> {
    let mut copies: HashMap<MessageId, usize> = HashMap::new();
    for entry in entries {
        *copies.entry(entry.id).or_default() += 1;
    }
    let (mut certain, mut possible) = (HashMap::new(), HashMap::new());
    for attempt in attempts {
        let counts = match attempt.reports.first() {
            Some((_, Outcome::Delivered(_))) => &mut certain,
            Some((_, Outcome::Failed { possibly_delivered: true, .. })) => &mut possible,
            _ => continue,
        };
        *counts.entry(attempt.message.id).or_insert(0) += 1;
    }
    for id in messages.iter().map(|message| message.id) {
        let count = |counts: &HashMap<MessageId, usize>| counts.get(&id).copied().unwrap_or(0);
        let (copies, certain, possible) = (count(&copies), count(&certain), count(&possible));
        if copies < certain {
            return Err(Violation::Missing { id });
        }
        if copies > certain + possible {
            return Err(Violation::Duplicate { id, copies, accounted: certain + possible });
        }
    }
    Ok(())
}

fn first_appends_in_order(sent: &HashMap<MessageId, &Outgoing>, entries: &[Entry]) -> Result<(), Violation> {
    let mut furthest: HashMap<Lane, MessageId> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    for id in entries.iter().map(|entry| entry.id).filter(|id| seen.insert(*id)) {
        let Some(lane) = sent.get(&id).and_then(|message| message.lane) else { continue };
        // Ids of one run are numbered in the order of the lanes.
        match furthest.insert(lane, id) {
            Some(later) if later > id => return Err(Violation::OutOfOrder { earlier: id, later }),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Route};

    /// No transport can be written that reports twice (a ticket is used up), so the notes are made by hand.
    #[test]
    fn a_second_report_is_found() {
        let route = Route { transport: "t".into(), destination: "d".into() };
        let id = MessageId::new(1, 1);
        let message = Arc::new(Outgoing { id, route, lane: None, timestamp: 0, message: Message::to("d") });
        let report = |tick| (tick, Outcome::Delivered(Position::Offset { partition: 0, offset: tick as i64 }));
        let attempt = |reports| Attempt { message: message.clone(), submitted: 1, reports };
        assert_eq!(one_report_each(&[attempt(vec![report(2)])]), Ok(()));
        let twice = one_report_each(&[attempt(vec![report(2), report(3)])]);
        assert_eq!(twice, Err(Violation::ReportedTwice { id }));
    }
}
