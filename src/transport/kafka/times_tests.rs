use super::*;
use crate::clock;
use crate::message::{Message, MessageId, Route};

const PAUSES: Pauses =
    Pauses { seldom: Duration::from_secs(60), often: Duration::from_secs(5), at_first: Duration::from_millis(200) };
const HOUR: i64 = 3_600_000;

/// A message of so many milliseconds ago; `given` by the application, or accepted then.
fn message(ago: i64, given: bool) -> Outgoing {
    let timestamp = clock::unix_millis() - ago;
    let message = if given { Message::to("t").timestamp(timestamp) } else { Message::to("t") };
    let route = Route { transport: "kafka".into(), destination: "t".into() };
    Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp, message }
}

fn topic(common: &Times, rules: Rules) -> TopicTimes {
    let times = TopicTimes::default();
    times.learn(common, "t", rules);
    times
}

#[test]
fn a_time_of_the_librarys_is_replaced_where_the_topic_is_against_it() {
    let common = Times::default();
    let times = topic(&common, Rules { retention: Some(2 * HOUR), ..Rules::default() });
    let (near, old) = (message(1_000, false), message(HOUR + 60_000, false));
    assert_eq!(times.stamp(&common, &near, true), Stamped { time: near.timestamp, accepted: None, ours: true });
    let stamped = times.stamp(&common, &old, true);
    assert_eq!(stamped.accepted, Some(old.timestamp));
    assert!((clock::unix_millis() - stamped.time).abs() < 60_000, "{stamped:?}");
    assert!(times.hold(&common, &old).is_none() && common.alerts().is_empty());
    assert!(times.is_overdue(Stamped { time: old.timestamp - HOUR, ..stamped }));
    assert!(!times.is_overdue(stamped));
}

/// It was accepted while this machine's clock was two hours ahead, which has been set since.
#[test]
fn a_time_of_acceptance_in_the_future_is_replaced() {
    let common = Times::default();
    let times = topic(&common, Rules { after: Some(HOUR), ..Rules::default() });
    let ahead = message(-2 * HOUR, false);
    assert_eq!(times.stamp(&common, &ahead, true).accepted, Some(ahead.timestamp));
}

#[test]
fn a_time_of_the_applications_is_held_or_sent_or_replaced_as_configured() {
    let rules = Rules { before: Some(5_000), ..Rules::default() };
    let (old, near) = (message(60_000, true), message(0, true));
    let hold = Times::default();
    let failure = topic(&hold, rules).hold(&hold, &old).expect("held");
    assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Lane));
    assert!(failure.reason.contains("message.timestamp.before.max.ms=5000"), "{failure}");
    assert!(topic(&hold, rules).hold(&hold, &near).is_none());
    // The broker's clock, or settings that have just changed, may be against a time that seems good.
    let times = topic(&hold, rules);
    let failure = times.refused(&hold, "t", times.stamp(&hold, &near, true)).expect("no verdict on the message");
    assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Lane));
    assert!(failure.reason.contains("expired-times=hold"), "{failure}");
    assert!(times.begin_asking(Instant::now() + PAUSES.often, &PAUSES), "the settings are read soon");

    let send = Times::new(ExpiredTimes::Send);
    let times = topic(&send, rules);
    assert!(times.hold(&send, &old).is_none());
    assert_eq!(times.stamp(&send, &old, true), Stamped { time: old.timestamp, accepted: None, ours: false });
    assert!(send.alerts()[0].contains("expired-times=send"), "{:?}", send.alerts());
    assert!(times.refused(&send, "t", times.stamp(&send, &old, true)).is_none(), "a verdict on the message");

    let restamp = Times::new(ExpiredTimes::Restamp);
    let times = topic(&restamp, rules);
    assert!(times.hold(&restamp, &old).is_none());
    assert_eq!(times.stamp(&restamp, &old, true).accepted, Some(old.timestamp));
    assert!(restamp.alerts()[0].contains("expired-times=restamp"), "{:?}", restamp.alerts());
}

#[test]
fn a_topic_whose_settings_cannot_be_read_leaves_the_time_and_health_says_so() {
    let (common, times) = (Times::default(), TopicTimes::default());
    times.fail("not authorized".to_owned(), Why::Refused);
    let old = message(60_000, false);
    assert_eq!(times.stamp(&common, &message(0, false), true).accepted, None);
    assert!(common.alerts().is_empty(), "a time of now matters to no topic");
    assert_eq!(times.stamp(&common, &old, true).accepted, None);
    assert!(common.alerts()[0].contains("not authorized"), "{:?}", common.alerts());
    assert!(times.hold(&common, &message(60_000, true)).is_none());
    assert!(!times.learn(&common, "t", Rules::default()), "nothing was held back");
    assert!(common.alerts().is_empty());
}

/// Without the settings, or where they have just changed, the broker's refusal is the first that is heard of it.
#[test]
fn a_refused_time_of_the_librarys_is_no_verdict_on_the_message() {
    let (common, times) = (Times::default(), TopicTimes::default());
    times.fail("not authorized".to_owned(), Why::Refused);
    let accepted = message(60_000, false);
    let first = times.stamp(&common, &accepted, true);
    assert_eq!(times.refused(&common, "t", first).expect("none").class, Class::Fatal);
    let second = times.stamp(&common, &accepted, true);
    assert_eq!(second.accepted, Some(accepted.timestamp));
    // The time of delivery is refused, too: the clocks differ.
    assert_eq!(times.refused(&common, "t", second).expect("none").class, Class::Fatal);
    let third = times.stamp(&common, &accepted, true);
    assert!((second.time - third.time - HOUR).abs() < 60_000, "{second:?} {third:?}");
    assert!(common.alerts()[0].contains("3600 s ahead"), "{:?}", common.alerts());
    // Neither another topic nor what is not tried by itself is concerned, before the time is proven to be good.
    let is_of_now = |stamped: Stamped| (clock::unix_millis() - stamped.time).abs() < 60_000;
    let other = topic(&common, Rules { before: Some(5_000), ..Rules::default() });
    assert!(is_of_now(other.stamp(&common, &accepted, true)) && is_of_now(other.stamp(&common, &accepted, false)));
    assert!(is_of_now(times.stamp(&common, &accepted, false)));
    times.passed_alone(third);
    assert!(!is_of_now(times.stamp(&common, &accepted, false)));
    let last = (0..1_000).find_map(|_| {
        let failure = times.refused(&common, "t", times.stamp(&common, &accepted, true)).expect("never a verdict");
        (failure.class != Class::Fatal).then_some(failure)
    });
    let last = last.expect("the search ends");
    assert_eq!((last.class, last.scope), (Class::Hold, Scope::Route));
}

#[test]
fn settings_are_read_more_often_while_a_message_waits_for_a_change() {
    let (common, now) = (Times::default(), Instant::now());
    let times = TopicTimes::default();
    assert!(times.begin_asking(now, &PAUSES) && !times.begin_asking(now, &PAUSES), "one question at a time");
    assert!(!times.is_settled() && !times.has_waited(PAUSES.often, now));
    assert!(times.has_waited(PAUSES.often, now + PAUSES.often));
    let rules = Rules { before: Some(5_000), ..Rules::default() };
    assert!(!times.learn(&common, "t", rules) && times.is_settled());
    assert!(!times.begin_asking(now + PAUSES.often, &PAUSES));
    assert!(times.hold(&common, &message(60_000, true)).is_some());
    assert!(times.begin_asking(now + PAUSES.often, &PAUSES));
    assert!(!times.learn(&common, "t", rules), "nothing new");
    assert!(times.learn(&common, "t", Rules::default()), "what was held back may go");
    times.forget();
    assert!(!times.is_settled() && times.begin_asking(now, &PAUSES));
}
