use super::*;
use crate::message::{Lane, Message, MessageId, Outgoing, Route};
use crate::transport::{Recipient, Ticket};

struct Deaf;

impl Recipient for Deaf {
    fn report(self: Arc<Self>, _: Outcome) {}
}

/// An ordered unit with one message for each lane number.
fn unit(lanes: &[u128]) -> Unit {
    let handover = |(number, lane): (usize, &u128)| {
        let route = Route { transport: "redis".into(), destination: "s".into() };
        let id = MessageId::new(1, number as u64);
        let message = Outgoing { id, route, lane: Some(Lane(*lane)), timestamp: 0, message: Message::to("s") };
        Handover { message: Arc::new(message), alone: false, ticket: Ticket::new(Arc::new(Deaf)) }
    };
    let atomic = lanes.iter().collect::<HashSet<_>>().len() < lanes.len();
    Unit { ordered: true, atomic, apart: false, messages: lanes.iter().enumerate().map(handover).collect() }
}

/// Replies as the client parses them from the wire; lines of their own, `[` opens the array of EXEC.
fn replies(lines: &[&str]) -> Vec<Value> {
    let parse = |line: &&str| redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap();
    match lines.iter().position(|line| *line == "[") {
        None => lines.iter().map(parse).collect(),
        Some(at) => {
            let array = Value::Array(lines[at + 1..].iter().map(parse).collect());
            lines[..at].iter().map(parse).chain([array]).collect()
        }
    }
}

fn words(unit: Unit, lines: &[&str]) -> (Vec<String>, bool) {
    let reading = unit.read(replies(lines), Context::default());
    let word = |(_, outcome): &Verdict| match outcome {
        Outcome::Delivered(position) => position.to_string(),
        Outcome::Failed { possibly_delivered: true, .. } => "perhaps".to_owned(),
        Outcome::Failed { failure, .. } => format!("{:?}", failure.class).to_lowercase(),
    };
    (reading.verdicts.iter().map(word).collect(), reading.broken.is_some())
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}", text.len())
}

#[test]
fn a_transaction_that_was_executed_says_where_each_message_lies() {
    let (one, two) = (bulk("5-0"), bulk("5-1"));
    let lines = ["+OK", "+QUEUED", "+QUEUED", "[", &one, &two];
    assert_eq!(words(unit(&[1, 1]), &lines), (vec!["5-0".to_owned(), "5-1".to_owned()], false));
}

#[test]
fn a_command_refused_in_the_queue_means_that_nothing_was_appended() {
    let abort = "-EXECABORT Transaction discarded because of previous errors.";
    let lines = ["+OK", "+QUEUED", "-OOM command not allowed when used memory > 'maxmemory'.", abort];
    assert_eq!(words(unit(&[1, 1]), &lines), (vec!["transient".to_owned(); 2], false));
}

#[test]
fn a_permanent_verdict_in_the_queue_is_none_on_its_companions() {
    let abort = "-EXECABORT Transaction discarded because of previous errors.";
    let lines = ["+OK", "+QUEUED", "-ERR Elements are too large to be stored", "+QUEUED", abort];
    let expected = ["transient", "permanent", "transient"].map(str::to_owned).to_vec();
    assert_eq!(words(unit(&[1, 1, 2]), &lines), (expected, false));
}

#[test]
fn exec_refused_by_the_servers_state_has_the_class_of_its_cause() {
    for (cause, class, broken) in [
        ("NOREPLICAS Not enough good replicas to write.", "transient", false),
        ("READONLY You can't write against a read only replica.", "transient", true),
        ("NOPERM No permissions to access a key", "hold", false),
    ] {
        let abort = format!("-EXECABORT Transaction discarded because of: {cause}");
        let lines = ["+OK", "+QUEUED", "+QUEUED", &abort];
        assert_eq!(words(unit(&[1, 1]), &lines), (vec![class.to_owned(); 2], broken), "{cause}");
    }
}

#[test]
fn a_key_of_another_type_holds_every_message_at_run_time() {
    let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value";
    let lines = ["+OK", "+QUEUED", "+QUEUED", "[", wrong, wrong];
    assert_eq!(words(unit(&[1, 1]), &lines), (vec!["hold".to_owned(); 2], false));
}

#[test]
fn a_message_that_overtook_a_refused_one_of_its_lane_is_not_called_delivered() {
    let id = bulk("5-0");
    let lines = ["+OK", "+QUEUED", "+QUEUED", "+QUEUED", "[", "-ERR odd", &id, &id];
    let expected = ["hold", "perhaps", "5-0"].map(str::to_owned).to_vec();
    assert_eq!(words(unit(&[1, 1, 2]), &lines), (expected, false));
}

#[test]
fn a_refused_multi_lets_each_reply_speak_for_itself_and_ends_the_connection() {
    let id = bulk("5-0");
    let noperm = "-NOPERM User a has no permissions to run the 'multi' command";
    let lines = [noperm, &id, "-OOM x", &id, "-ERR EXEC without MULTI"];
    let expected = ["5-0", "transient", "perhaps"].map(str::to_owned).to_vec();
    assert_eq!(words(unit(&[1, 1, 1]), &lines), (expected, true));
}

#[test]
fn replies_that_make_no_sense_leave_the_fate_open_and_end_the_connection() {
    let perhaps = vec!["perhaps".to_owned(); 2];
    let cases: [&[&str]; 4] = [
        &["+OK"],
        &["+OK", "+QUEUED", "+QUEUED", "$-1"],
        &["+OK", "+QUEUED", "+QUEUED", "[", "+QUEUED"],
        &["+OK", "+QUEUED", "+QUEUED", "[", ":1", "$3\r\nabc"],
    ];
    for lines in cases {
        assert_eq!(words(unit(&[1, 1]), lines), (perhaps.clone(), true), "{lines:?}");
    }
}

#[test]
fn messages_of_different_lanes_go_without_a_transaction() {
    let (pipeline, replies) = unit(&[1]).pipeline(&RedisConfig::default());
    assert_eq!((pipeline.len(), replies), (1, 1));
    let (pipeline, replies) = unit(&[1, 1]).pipeline(&RedisConfig::default());
    assert_eq!((pipeline.len(), replies), (4, 4));
    assert_eq!(words(unit(&[1]), &[&bulk("7-3")]), (vec!["7-3".to_owned()], false));
    let (pipeline, replies) = unit(&[1, 2, 3]).pipeline(&RedisConfig::default());
    assert_eq!((pipeline.len(), replies), (3, 3));
    let expected = ["7-3", "transient", "7-4"].map(str::to_owned).to_vec();
    assert_eq!(words(unit(&[1, 2, 3]), &[&bulk("7-3"), "-OOM x", &bulk("7-4")]), (expected, false));
}

#[test]
fn a_ping_that_finds_the_server_unfit_ends_the_connection() {
    assert!(!words(unit(&[]), &["+PONG"]).1);
    assert!(!words(unit(&[]), &["-NOPERM no ping"]).1);
    assert!(words(unit(&[]), &["-LOADING Redis is loading the dataset in memory"]).1);
}

#[test]
fn an_error_is_explained_by_what_the_route_asks_for() {
    let trim = Trim::MinId("5-0".to_owned());
    let context = Context { key_type: Some("hash"), trim: Some(&trim), version: Some("6.0.16") };
    let reason = |line: &str, context| match &unit(&[1]).read(replies(&[line]), context).verdicts[0].1 {
        Outcome::Failed { failure, .. } => failure.reason.clone(),
        other => panic!("{other:?}"),
    };
    let syntax = reason("-ERR syntax error", context);
    assert!(syntax.contains("minid") && syntax.contains("6.2") && syntax.contains("6.0.16"), "{syntax}");
    assert!(!reason("-ERR syntax error", Context::default()).contains("minid"));
    let wrong = reason("-WRONGTYPE Operation against a key", context);
    assert!(wrong.contains("it is a hash") && !wrong.contains("minid"), "{wrong}");
}

#[test]
fn a_message_that_is_too_large_is_no_fault_of_what_else_is_on_the_connection() {
    let reading = unit(&[1]).read(replies(&["-ERR Protocol error: invalid bulk length"]), Context::default());
    let Outcome::Failed { failure, possibly_delivered: false } = &reading.verdicts[0].1 else { panic!() };
    assert_eq!((failure.class, failure.scope), (Class::Permanent, Scope::Lane));
    let broken = reading.broken.expect("the server closes the connection");
    assert_eq!((broken.class, broken.scope), (Class::Transient, Scope::Transport));
}
