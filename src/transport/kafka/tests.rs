use super::*;

#[test]
fn only_what_kafka_can_take_passes_the_check() {
    let ok = [Message::to("orders"), Message::to("a.b_c-D9").tombstone(), Message::to("x".repeat(249)).partition(0)];
    for message in ok {
        assert_eq!(check(&message), Ok(()));
    }
    let bad = [
        (Message::to(""), "topic name"),
        (Message::to("."), "topic name"),
        (Message::to(".."), "topic name"),
        (Message::to("a b"), "topic name"),
        (Message::to("ä"), "topic name"),
        (Message::to("nul\0"), "topic name"),
        (Message::to("x".repeat(250)), "topic name"),
        (Message::to("t").fields([("a", "b")]), "field map"),
        (Message::to("t").header("", "v"), "header"),
        (Message::to("t").partition(-1), "partition -1"),
        (Message::to("t").timestamp(-5), "timestamp -5"),
        (Message::to("t").timestamp(0), "timestamp 0"),
    ];
    for (message, reason) in bad {
        let refused = check(&message);
        assert!(refused.as_ref().is_err_and(|text| text.contains(reason)), "{message:?}: {refused:?}");
    }
}
