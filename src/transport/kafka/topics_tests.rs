use std::time::{Duration, Instant};

use super::*;

fn topic(now: Instant) -> Topic {
    Topic::new(Route { transport: "kafka".into(), destination: "t".into() }, now)
}

/// A topic that was missing for a moment, or unused for ten minutes, came back with nothing owned, while librdkafka still
/// had messages of it: its partitions could own twice as much, and what was reported later counted below zero.
#[test]
fn what_a_topic_owns_outlasts_what_is_known_of_it() {
    let now = Instant::now();
    let topics = Topics::default();
    let owned = {
        let topic = topics.of(&topic(now).route, now);
        let mut state = topic.state();
        state.know(vec![true; 2]);
        state.shares[1].enter(10, true, now);
        state.knowledge = Knowledge::Missing(Arc::new(Failure::new(Class::Hold, Scope::Route, "gone")));
        state.know(vec![true; 3]);
        assert!(!state.shares[1].is_empty() && state.shares.len() == 3);
        state.know(vec![true]);
        Arc::clone(&state.shares[1])
    };
    let later = now + FORGET_AFTER * 2;
    assert_eq!(topics.sweep(later).len(), 1);
    owned.leave(10, true, later);
    assert_eq!(topics.sweep(later).len(), 0);
}

#[test]
fn the_smallest_refused_size_is_remembered_for_a_while_and_until_a_larger_one_passes() {
    let now = Instant::now();
    let topic = topic(now);
    let mut state = topic.state();
    state.refused(900, now);
    state.refused(700, now);
    state.refused(800, now);
    state.passed(600, now);
    assert_eq!(state.refused_size(now), Some(700));
    assert_eq!(state.refused_size(now + REFUSAL_HOLDS), None);
    state.passed(700, now);
    assert_eq!(state.refused_size(now), None);
}

#[test]
fn keyless_messages_avoid_a_partition_that_has_no_leader_or_keeps_what_it_owns() {
    let now = Instant::now();
    let topic = topic(now);
    let mut state = topic.state();
    assert_eq!(state.choose(now, Duration::ZERO), None);
    state.know(vec![true, true, false]);
    state.shares[0].enter(10, true, now);
    let later = now + crate::transport::kafka::share::STALLED;
    assert!(state.is_stalled(later));
    assert!((0..50).all(|_| state.choose(later, Duration::ZERO) == Some(1)));
}

/// What is sent while the last of them are handed back hears why the topic is of no use, not that it has to wait for them.
#[test]
fn a_missing_topic_is_told_of_also_while_what_waited_is_handed_back() {
    let now = Instant::now();
    let topic = topic(now);
    let mut state = topic.state();
    state.reporting = true;
    state.know(vec![true]);
    assert_eq!(state.refusal(now).expect("it would overtake").class, Class::Transient);
    state.knowledge = Knowledge::Missing(Arc::new(Failure::new(Class::Hold, Scope::Route, "gone")));
    assert_eq!(state.refusal(now).expect("of no use").class, Class::Hold);
}
