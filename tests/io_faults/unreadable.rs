//! What is told of messages that cannot be read, and for how long.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast::internals::wal::{DiskStorage, Storage};
use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Message, Producer, Receipt};

use crate::disk::{Call, FaultyDisk};
use crate::script::{settings, wait_until};

const LIMIT: Duration = Duration::from_secs(20);

/// More than is read ahead.
const STORED: usize = 200;

fn open(directory: &Path, broker: &Broker, disk: &FaultyDisk) -> Producer {
    settings(directory, broker).storage(Arc::new(disk.clone()) as Arc<dyn Storage>).open_blocking().expect("opens")
}

/// A producer that has to read from the disk what another one stored.
fn with_stored(broker: &Broker) -> (tempfile::TempDir, FaultyDisk, Producer) {
    let directory = crate::directory();
    let disk = FaultyDisk::over(Arc::new(DiskStorage), None);
    let producer = open(directory.path(), broker, &disk);
    let messages = (0..STORED).map(|number| {
        let payload = format!("a:{number}:{}", "x".repeat(2_500));
        producer.send(Message::to("orders").key("a").payload(payload))
    });
    for sent in messages.collect::<Vec<_>>() {
        let receipt = pollster::block_on(sent).expect("is accepted");
        assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
    }
    producer.blocking_close(LIMIT).expect("closes");
    let producer = open(directory.path(), broker, &disk);
    (directory, disk, producer)
}

fn tells(producer: &Producer) -> bool {
    producer.health().alerts.iter().any(|alert| alert.starts_with("outbox: stored messages cannot be read"))
}

#[test]
fn nobody_is_told_of_a_disk_that_works_again_while_the_broker_is_away() {
    let broker = Broker::new();
    broker.down();
    let (_directory, disk, producer) = with_stored(&broker);
    disk.fail_from_now_on(Call::Read);
    broker.up();
    wait_until("it is told", LIMIT, || tells(&producer));
    broker.down();
    disk.mend();
    wait_until("nobody says it any more", LIMIT, || !tells(&producer));
    assert_eq!(producer.stats().pending, STORED as u64);
    broker.up();
    producer.blocking_drained(LIMIT).expect("everything is delivered");
    producer.blocking_close(LIMIT).expect("closes");
}

#[test]
fn what_was_passed_over_and_cannot_be_read_is_told_of() {
    let broker = Broker::new();
    broker.reject("orders", Class::Hold);
    let (_directory, disk, producer) = with_stored(&broker);
    wait_until("all were passed over", LIMIT, || {
        let stats = producer.stats();
        stats.routes.iter().any(|route| route.blocked.as_ref().is_some_and(|blocked| blocked.waiting == STORED as u64))
    });
    disk.fail_from_now_on(Call::Read);
    broker.accept("orders");
    wait_until("it is told", LIMIT, || tells(&producer));
    disk.mend();
    producer.blocking_drained(LIMIT).expect("everything is delivered");
    wait_until("nobody says it any more", LIMIT, || !tells(&producer));
    producer.blocking_close(LIMIT).expect("closes");
}
