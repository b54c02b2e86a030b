//! Each sync takes two seconds: nobody but who waits for the disk notices (RELIABILITY.md 25).
//!
//! The caller has a runtime of one thread, with a ticker on it. If anything blocked that thread for a sync, the ticker would
//! miss two seconds; it may miss a quarter of that, for a machine that does much else.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{Mode, Producer, Receipt, RouteConfig};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::children::{Running, wait_to_be_told};
use crate::disk::{Disk, Faults, Image};
use crate::oracle::{AHEAD, LONE, message};
use crate::shows::{LONG, builder};

/// What a sync takes.
const SYNC: Duration = Duration::from_secs(2);
/// What everything else may take.
const SOON: Duration = Duration::from_millis(500);
const BEAT: Duration = Duration::from_millis(5);

#[test]
fn a_slow_disk_blocks_no_other_task_and_no_direct_send() {
    let notes = tempfile::TempDir::new().expect("a directory");
    let disk = Disk::mount(Image::new());
    let slow = || disk.set(Faults { delay: SYNC, ..Faults::default() });
    let words = ["slow", disk.root().to_str().expect("UTF-8")].map(str::to_owned);
    let mut child = Running::start(&words, notes.path(), "stderr");
    // Once made, so that the start under test has few syncs to wait for.
    child.wait_for_line("made");
    slow();
    child.tell();
    child.wait_for_line("done");
    disk.set(Faults::default());
    child.tell();
    let status = child.wait();
    println!("{}", child.said());
    assert!(status.success());
}

/// In the child.
pub fn slow(disk: &Path) {
    let broker = Broker::new();
    open(disk, &broker).open_blocking().expect("it opens").blocking_close(LONG).expect("it closes");
    println!("made");
    wait_to_be_told();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(on_one_thread(disk, &broker));
}

fn open(disk: &Path, broker: &Broker) -> outlast::Builder {
    let ahead = RouteConfig { destination: AHEAD.into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    builder(disk, broker).route(ahead)
}

/// Runs `work` beside a ticker, and fails if that misses its beat.
async fn with_a_beat<T>(what: &str, work: impl Future<Output = T>) -> T {
    let (stop, stopped) = watch::channel(false);
    let ticker = tokio::spawn(async move {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !*stopped.borrow() {
            sleep(BEAT).await;
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        longest
    });
    let begun = Instant::now();
    let done = work.await;
    stop.send_replace(true);
    let longest = ticker.await.expect("the ticker ends");
    eprintln!("{what}: {:?}; the longest beat {longest:?}", begun.elapsed());
    assert!(longest < SOON, "{what}: other tasks were blocked for {longest:?}");
    done
}

#[track_caller]
fn at_once<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = call();
    assert!(begun.elapsed() < SOON, "{what} took {:?}", begun.elapsed());
    done
}

async fn on_one_thread(disk: &Path, broker: &Broker) {
    let producer = with_a_beat("open", open(disk, broker).open()).await.expect("it opens");
    let ahead = || message(5);
    let mut lone = LONE.map(message);
    let mut next = || lone.next().expect("enough of them");

    // A direct send needs room in the outbox, too. After a start, and while a first segment is being opened, it waits until
    // another is ready, for several syncs.
    with_a_beat("the first messages", async {
        producer.send(next()).await.expect("it is delivered");
        producer.send(ahead()).await.expect("it is stored");
        producer.send(next()).await.expect("it is delivered");
    })
    .await;
    with_a_beat("a message that is stored first, direct ones meanwhile", async {
        let stored = tokio::spawn(at_once("send", || producer.send(ahead())));
        let begun = Instant::now();
        for _ in 0..20 {
            let sending = Instant::now();
            let receipt = producer.send(next()).await.expect("it is delivered");
            assert!(receipt.is_delivered() && sending.elapsed() < SOON, "{receipt:?} after {:?}", sending.elapsed());
        }
        let receipt = stored.await.expect("the task ends").expect("it is stored");
        assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
        assert!(begun.elapsed() > SYNC - SOON, "the disk was slow: {:?}", begun.elapsed());
    })
    .await;

    with_a_beat("trying, and dropping", async {
        for _ in 0..20 {
            let ahead = at_once("try_send", || producer.try_send(ahead())).expect("there is room");
            let direct = at_once("try_send", || producer.try_send(next())).expect("there is room");
            at_once("dropping", || drop((ahead, direct)));
            sleep(BEAT).await;
        }
    })
    .await;

    broker.down();
    with_a_beat("an outage", async {
        let futures: Vec<_> = (0..20).map(|_| at_once("send", || producer.send(next()))).collect();
        for future in futures {
            let receipt = future.await.expect("it is stored");
            assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
        }
    })
    .await;
    broker.up();
    with_a_beat("draining", producer.drained(LONG)).await.expect("it drains");
    println!("done");
    wait_to_be_told();
    with_a_beat("closing", close(&producer)).await;
}

async fn close(producer: &Producer) {
    producer.close(LONG).await.expect("it closes");
}
