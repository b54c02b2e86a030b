//! A life: a process that sends as fast as it may, to a broker that comes and goes, until it is killed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use outlast::admin::{self, Selection};
use outlast::testing::Broker;
use outlast::{Builder, Config, Mode, Order, Producer, RouteConfig, SendFuture};

use rustix::process::Signal;

use crate::oracle::{self, AHEAD, Answers, Bounds, KEYS, LOOSE, Lines, NUMBERS, POISON, Tally};
use crate::shows::{LONG, builder_from, myself};
use crate::storage::die;

/// First messages in flight.
const WINDOW: usize = 64;
/// What one kill may make the broker see twice.
pub const REDELIVERY: usize = 200;
/// How long a child that is to end by itself is given.
const ENDS: Duration = Duration::from_secs(10);
/// Threads that send, each with its own keys.
const SENDERS: u64 = 2;

/// The settings all lives share.
pub fn builder(dir: &Path, broker: &Broker) -> Builder {
    let config = Config { window_messages: WINDOW, redelivery_window: REDELIVERY, ..Config::default() };
    let ahead = RouteConfig { destination: AHEAD.into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let loose = RouteConfig { destination: LOOSE.into(), order: Some(Order::None), ..RouteConfig::default() };
    builder_from(Producer::builder().config(config), dir, broker)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        // An eighth is for dead letters, each of which takes a block: more than five lives leave on a quick machine.
        .max_bytes(64 << 20)
        .first_attempt(Duration::from_millis(20))
        .space_wait(Duration::from_millis(5))
        .route(ahead)
        .route(loose)
}

/// Sends until it is killed, or has had so many answers: then it kills itself. `opened` is called before the first.
pub fn send(dir: &Path, seed: u64, life: u64, answers: usize, opened: impl FnOnce()) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let broker = oracle::broker(dir);
    if rng.bool() {
        broker.down();
    }
    if rng.u8(..4) == 0 {
        broker.accept_message(POISON);
    }
    let mode = if rng.bool() { Mode::Direct } else { Mode::WriteAhead };
    let max_bytes = [512 << 10, 1 << 20, 8 << 20][rng.usize(..3)];
    let producer =
        builder(dir, &broker).mode(mode).max_bytes(max_bytes).open_blocking().expect("it opens after a kill");
    println!("open");
    opened();
    let luck = fastrand::Rng::with_seed(rng.u64(..));
    let lost = Lines::to(dir, "lost-replies");
    let left = &AtomicUsize::new(answers);
    std::thread::scope(|scope| {
        scope.spawn(|| weather(&broker, luck, lost));
        for sender in 0..SENDERS {
            let (tell, told) = sync_channel::<(u64, Option<SendFuture>)>(32);
            let answers = Answers::to(dir);
            scope.spawn(move || put_down(&told, answers, left));
            let producer = &producer;
            scope.spawn(move || {
                for number in (life * NUMBERS..).filter(|number| number % KEYS % SENDERS == sender) {
                    let future = producer.send(oracle::message(number));
                    // Somebody stops watching. What waits for space would be withdrawn by that.
                    let is_dropped = oracle::is_unwatched(number) && format!("{future:?}").contains("sent");
                    tell.send((number, (!is_dropped).then_some(future))).expect("it is listened to");
                }
            });
        }
    });
}

fn put_down(told: &Receiver<(u64, Option<SendFuture>)>, mut answers: Answers, left: &AtomicUsize) {
    for (number, future) in told {
        match future {
            Some(future) => answers.put(number, &pollster::block_on(future)),
            None => answers.nobody_watched(number),
        }
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            die();
        }
    }
}

/// The broker comes, goes, hangs and loses replies.
fn weather(broker: &Broker, mut luck: fastrand::Rng, mut lost: Lines) {
    loop {
        match luck.u8(..8) {
            0 | 1 => broker.down(),
            2 => {
                let count = luck.usize(1..20);
                lost.put(format_args!("{count}"));
                broker.lose_replies(count);
            }
            3 => broker.pause(),
            4 => {
                // It hangs, and then breaks with what it holds.
                broker.pause();
                std::thread::sleep(Duration::from_micros(luck.u64(100..4_000)));
                broker.down();
                broker.resume();
            }
            _ => {
                broker.resume();
                broker.up();
            }
        }
        std::thread::sleep(Duration::from_micros(luck.u64(100..8_000)));
    }
}

/// An operator sends the dead letters again, or throws them away.
pub fn mend(dir: &Path, what: &str) {
    let changed = match what {
        "requeue" => admin::requeue(dir.join("outbox"), Selection::All),
        "purge" => admin::purge(dir.join("outbox"), Selection::All),
        other => panic!("{other}?"),
    };
    // A life that was killed early may have made no outbox.
    if let Err(error) = changed {
        assert_eq!(error.kind(), admin::AdminErrorKind::NoOutbox, "{error}");
    }
}

/// One life, ended by SIGKILL: at a random time of its opening, recovery included, at a random time while it sends, or
/// after so many answers, however slow the machine is. Now and then it is an operator's.
pub fn live_and_die(dir: &Path, life: u64, rng: &mut fastrand::Rng) {
    if life > 1 && rng.u8(..8) == 0 && admin::inspect(dir.join("outbox")).is_ok() {
        return mend_and_die(dir, life, rng);
    }
    let (seed, way) = (rng.u64(..).to_string(), rng.u8(..3));
    let answers = if way == 0 { rng.u64(1..400) } else { u64::from(u32::MAX) };
    let mut child = start(dir, life, &[&"send", &dir, &seed, &life.to_string(), &answers.to_string()]);
    if way == 0 {
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "life {life} ended: {}", said(dir, life));
    } else {
        if way == 1 {
            wait_for_open(dir, life, &mut child);
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..60_000)));
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "life {life} ended by itself ({ended:?}): {}", said(dir, life));
    }
    kill(dir, life, &mut child);
}

/// An operator's life, ended by SIGKILL if it is not over by then.
fn mend_and_die(dir: &Path, life: u64, rng: &mut fastrand::Rng) {
    let (what, note) = if rng.bool() { ("requeue", "requeued") } else { ("purge", "purged") };
    oracle::note_dead(dir, note);
    let mut child = start(dir, life, &[&"mend", &dir, &what]);
    std::thread::sleep(Duration::from_micros(rng.u64(..60_000)));
    let ended = child.try_wait().unwrap();
    assert!(ended.is_none_or(|status| status.success()), "life {life} failed ({ended:?}): {}", said(dir, life));
    kill(dir, life, &mut child);
}

/// A child that does not outlive the test: one that sends for ever would fill the disk.
pub struct Life(Child);

impl Life {
    pub fn of(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Deref for Life {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Life {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // It has ended already, but for a test that fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a child, whose complaints are kept.
pub fn start(dir: &Path, life: u64, work: &[&dyn AsRef<OsStr>]) -> Life {
    Life::of(&mut command(dir, life, work))
}

/// A child that is not started yet.
pub fn command(dir: &Path, life: u64, work: &[&dyn AsRef<OsStr>]) -> Command {
    let stderr = File::create(dir.join(format!("stderr-{life}"))).unwrap();
    let mut command = myself(work);
    command.stdout(Stdio::piped()).stderr(stderr);
    command
}

/// Waits for a child to end by itself: not longer than [`ENDS`] after it has opened, or has not opened in as long.
pub fn wait_for_end(child: &mut Child) -> Option<ExitStatus> {
    let (open, opened) = sync_channel::<()>(0);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    std::thread::spawn(move || {
        let _ = lines.any(|line| line.ends_with("open"));
        // That is what is waited for. It also comes if the child ends before.
        drop(open);
        // A pipe that nobody reads would be an error to the child.
        lines.for_each(drop);
    });
    let _ = opened.recv_timeout(ENDS);
    let begun = Instant::now();
    loop {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || begun.elapsed() > ENDS {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns when a child has opened its outbox.
pub fn wait_for_open(dir: &Path, life: u64, child: &mut Child) {
    let opened = BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap().ends_with("open"));
    assert!(opened, "life {life} never opened: {}", said(dir, life));
}

/// What a child complained of.
pub fn said(dir: &Path, life: u64) -> String {
    std::fs::read_to_string(dir.join(format!("stderr-{life}"))).unwrap()
}

/// SIGKILL. Fails if the child panicked before.
pub fn kill(dir: &Path, life: u64, child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!said(dir, life).contains("panicked"), "life {life}: {}", said(dir, life));
}

/// The last life: everything is drained. If asked, the dead letters are sent again before, to a broker that takes them.
pub fn drain(dir: &Path, requeue: bool) {
    let broker = oracle::broker(dir);
    if requeue && admin::inspect(dir.join("outbox")).is_ok() {
        oracle::note_dead(dir, "requeued");
        mend(dir, "requeue");
        broker.accept_message(POISON);
    }
    let producer = builder(dir, &broker).open_blocking().expect("it opens after a kill");
    assert_eq!(producer.stats().set_aside, 0, "a kill damages nothing");
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?}: {:?} {:?}", producer.health(), producer.stats());
    assert_eq!(producer.stats().set_aside, 0, "a kill damages nothing");
    producer.blocking_close(LONG).unwrap();
}

/// Drains and judges. Where the dead letters were sent again, nothing may be left.
pub fn drain_and_judge(dir: &Path, kills: usize, requeue: bool) -> Tally {
    drain(dir, requeue);
    let tally = oracle::judge(dir, &Bounds::new(kills, REDELIVERY));
    assert!(!requeue || tally.dead == 0, "{} dead letters were sent again and are still there", tally.dead);
    tally
}
