use super::*;

fn refusal(name: &str, value: &str) -> String {
    match Settings::resolve(&KafkaConfig::new(["localhost:9092"]).option(name, value)) {
        Ok(_) => panic!("{name}={value} was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn options_that_break_the_promise_are_refused_with_the_right_form() {
    let cases = [
        ("acks", "1", "acks=all"),
        ("request.required.acks", "0", "acks=all"),
        ("enable.idempotence", "false", "enable.idempotence=true"),
        ("enable.gapless.guarantee", "false", "enable.gapless.guarantee=true"),
        ("message.timeout.ms", "5000", "message.timeout.ms=0"),
        ("delivery.timeout.ms", "5000", "message.timeout.ms=0"),
        ("retries", "3", "leave it out"),
        ("max.in.flight", "5", "max.in.flight=1"),
        ("delivery.report.only.error", "true", "delivery.report.only.error=false"),
        ("queuing.strategy", "lifo", "queuing.strategy=fifo"),
        ("transactional.id", "x", "leave it out"),
        ("bootstrap.servers", "x:1", "URL"),
        ("plugin.library.paths", "/tmp/x.so", "leave it out"),
        ("test.mock.num.brokers", "1", "mock"),
        ("partitioner", "round_robin", "consistent_random"),
    ];
    for (name, value, right) in cases {
        let text = refusal(name, value);
        assert!(text.contains(name) && text.contains(right), "{name}: {text}");
    }
    let same = KafkaConfig::new(["localhost"]).option("acks", "-1").option("enable.idempotence", "true");
    assert!(Settings::resolve(&same).is_ok(), "saying what is so anyway is no mistake");
}

#[test]
fn unknown_options_and_bad_values_are_refused_by_librdkafka_with_their_name() {
    assert!(refusal("lingr.ms", "5").contains("lingr.ms is unknown: did you mean linger.ms?"));
    // A property of topics, and one that is like no other.
    assert!(refusal("message_timeout_msec", "0").contains("did you mean message.timeout.ms?"));
    assert!(refusal("colour", "red").contains("the name of one of librdkafka's configuration properties"));
    assert!(refusal("linger.ms", "soon").contains("linger.ms"));
    assert!(refusal("compression.type", "lzma").contains("compression.type"));
}

#[test]
fn a_topic_among_the_options_is_sent_to_its_place() {
    for name in ["topic", "stream"] {
        assert!(refusal(name, "orders").contains("kafka://host:port/TOPIC"), "{name}");
    }
}

#[test]
fn brokers_are_host_and_port() {
    for bad in ["", ":9092", "host:0", "host:65536", "host:port", "a,b", "user:secret@host:1", "host/x:1"] {
        let error = Settings::resolve(&KafkaConfig::new([bad])).err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|text| text.contains("HOST:PORT")), "{bad:?}: {error:?}");
        assert!(!error.unwrap_or_default().contains("secret"));
    }
    for good in ["host", "host:9092", "[::1]:9092", "10.0.0.1:1"] {
        assert!(Settings::resolve(&KafkaConfig::new([good])).is_ok(), "{good}");
    }
    assert!(Settings::resolve(&KafkaConfig::default()).is_err());
}

#[test]
fn a_password_without_a_protocol_that_uses_it_is_refused() {
    assert!(refusal("sasl.password", "canary-secret").contains("sasl_ssl"));
    assert!(refusal("ssl.ca.location", "/etc/ca.pem").contains("security.protocol=ssl"));
}

#[test]
fn secrets_show_neither_in_debug_nor_in_errors_nor_in_log_lines() {
    let config = KafkaConfig::new(["localhost:9092"])
        .option("security.protocol", "sasl_plaintext")
        .option("sasl.mechanism", "PLAIN")
        .option("sasl.username", "canary-user")
        .option("sasl.password", "canary-secret")
        .option("linger.ms", "7");
    let shown = format!("{config:?}");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("PLAIN") && shown.contains('7') && shown.contains("sasl.password"), "{shown}");
    let settings = Settings::resolve(&config).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(settings.scrub("login canary-user/canary-secret failed"), "login …/… failed");
    let text = refusal("ssl.key.pem", "canary-secret");
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn requests_have_room_for_the_largest_message() {
    let plain = Settings::resolve(&KafkaConfig::new(["localhost:9092"])).unwrap_or_else(|error| panic!("{error}"));
    let client = plain.client(4 << 20, 32 << 20).unwrap_or_else(|error| panic!("{error}"));
    let max: usize = client.get("message.max.bytes").and_then(|v| v.parse().ok()).unwrap_or(0);
    // Whatever this run accepts: what lies in the outbox was accepted by one with other limits, perhaps.
    assert!(max > 256 << 20, "{max}");
    let small = KafkaConfig::new(["localhost:9092"]).option("message.max.bytes", "2000");
    let small = Settings::resolve(&small).unwrap_or_else(|error| panic!("{error}"));
    assert!(small.client(1 << 20, 32 << 20).is_err_and(|error| error.to_string().contains("message.max.bytes")));
}

/// The queue was 32 MiB whatever the window was, and a smaller one of the application's was taken for an outage whenever it
/// was full.
#[test]
fn librdkafkas_queue_has_room_for_the_window_and_at_least_for_one_message() {
    let plain = Settings::resolve(&KafkaConfig::new(["localhost:9092"])).unwrap_or_else(|error| panic!("{error}"));
    let client = plain.client(1 << 20, 256 << 20).unwrap_or_else(|error| panic!("{error}"));
    let kbytes: usize = client.get("queue.buffering.max.kbytes").and_then(|v| v.parse().ok()).unwrap_or(0);
    assert!(kbytes >= (256 + 256) << 10, "{kbytes}");
    let small = KafkaConfig::new(["localhost:9092"]).option("queue.buffering.max.kbytes", "1000");
    let small = Settings::resolve(&small).unwrap_or_else(|error| panic!("{error}"));
    assert!(small.client(500 << 10, 32 << 20).is_ok());
    let refused = small.client(1 << 20, 32 << 20).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("queue.buffering.max.kbytes") && refused.contains("1088"), "{refused}");
}

/// A message beyond the limit of the producer's own client was told as refused by the broker, and became a dead letter.
#[test]
fn a_limit_of_the_applications_own_is_named_as_such() {
    let route = crate::message::Route { transport: "kafka".into(), destination: "t".into() };
    let message = crate::message::Message::to("t").payload(vec![0; 3 << 20]);
    let id = crate::message::MessageId::new(1, 1);
    let outgoing = Outgoing { id, route, lane: None, timestamp: 1, message };
    let of = |name: &str, value: &str| {
        let config = KafkaConfig::new(["localhost:9092"]).option(name, value);
        Settings::resolve(&config).unwrap_or_else(|error| panic!("{error}")).own
    };
    use RDKafkaErrorCode::{MessageSizeTooLarge, QueueFull};
    for (option, value, code) in
        [("message.max.bytes", "2000000", MessageSizeTooLarge), ("queue.buffering.max.kbytes", "2000", QueueFull)]
    {
        let refused = of(option, value).refused(code, &outgoing).unwrap_or_default();
        assert!(refused.contains(option) && refused.contains(value) && refused.contains("3145728"), "{refused}");
    }
    let room = of("queue.buffering.max.kbytes", "4000").refused(QueueFull, &outgoing);
    assert_eq!(room, None, "it waits for room");
    assert_eq!(OwnLimits::default().refused(MessageSizeTooLarge, &outgoing), None);
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_is_refused_by_a_build_without_it() {
    assert!(refusal("security.protocol", "ssl").contains("feature `tls`"));
}

#[cfg(feature = "tls")]
#[test]
fn an_unreadable_certificate_is_refused_before_anything_starts() {
    let config = KafkaConfig::new(["localhost:9092"])
        .option("security.protocol", "ssl")
        .option("ssl.ca.location", "/nonexistent/ca.pem");
    let error = Settings::resolve(&config).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("/nonexistent/ca.pem"), "{error}");
}

/// Process substitution (`--password-file <(…)`) names a pipe, which can be read once.
#[test]
fn a_password_file_is_watched_and_a_pipe_is_not_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let url = |file: &std::path::Path| BrokerUrl {
        password: Some("canary-secret".to_owned()),
        password_file: Some(file.to_owned()),
        ..BrokerUrl::parse("kafka://alice@h:1").unwrap()
    };
    let file = directory.path().join("password");
    std::fs::write(&file, "canary-secret\n").unwrap();
    let config = KafkaConfig::from_url(&url(&file)).unwrap();
    assert_eq!(config.password_file.as_deref(), Some(&*file));
    assert!(!config.options.contains_key("sasl.password"));
    let refusal = |config: &KafkaConfig| Settings::resolve(config).err().map(|error| error.to_string());
    assert!(refusal(&config).is_some_and(|text| text.contains("sasl_ssl")), "it would have no effect");
    let twice = config.option("sasl.password", "canary-other").option("security.protocol", "sasl_ssl");
    assert!(refusal(&twice).is_some_and(|text| text.contains("two passwords") && !text.contains("canary")));

    let piped = KafkaConfig::from_url(&url(std::path::Path::new("/dev/null"))).unwrap();
    assert_eq!((piped.password_file, piped.options["sasl.password"].as_str()), (None, "canary-secret"));
}
