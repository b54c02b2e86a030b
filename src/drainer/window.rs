//! How much a transport may own at a time: in all, and of each partition.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::config;
use crate::message::Outgoing;

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct WindowLimits {
    /// Messages in all.
    pub messages: usize,
    /// Bytes in all.
    pub bytes: usize,
}

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The window.
    Window,
    /// The share of the message's partition.
    Partition,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    messages: usize,
    bytes: usize,
}

/// What the transport owns of one partition.
#[derive(Debug)]
struct Partition {
    share: Share,
    drained: usize,
    /// When something was last reported on, or entered while nothing was owned.
    moved: Instant,
    /// One of its messages: the first that entered.
    message: Arc<Outgoing>,
}

/// A partition that owns something.
#[derive(Debug)]
pub struct Resting<'a> {
    /// The route's hash.
    pub route: u64,
    /// Its number.
    pub partition: i32,
    /// Since when nothing was reported on.
    pub since: Instant,
    /// A message that went there.
    pub message: &'a Arc<Outgoing>,
}

/// What the transport owns now.
#[derive(Debug)]
pub struct Window {
    limits: WindowLimits,
    all: Share,
    drained: usize,
    partitions: HashMap<(u64, i32), Partition>,
    /// What all transports of the producer own.
    everywhere: Arc<AtomicUsize>,
}

/// What enters and leaves a window.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The message.
    pub message: &'a Arc<Outgoing>,
    /// The route's hash.
    pub route: u64,
    /// The partition, where it is known.
    pub partition: Option<i32>,
    /// Bytes of the message.
    pub bytes: usize,
    /// It comes from the log.
    pub drained: bool,
}

impl Window {
    /// An empty window; what enters is counted in `everywhere`, too.
    pub fn new(limits: WindowLimits, everywhere: Arc<AtomicUsize>) -> Self {
        Self { limits, all: Share::default(), drained: 0, partitions: HashMap::new(), everywhere }
    }

    /// Takes a message in. One message always fits into an empty window, and into a partition that owns nothing.
    pub fn enter(&mut self, load: Load<'_>) -> Result<(), Full> {
        let over = |share: Share, messages: usize, bytes: usize| {
            share.messages > 0 && (share.messages >= messages || share.bytes + load.bytes > bytes)
        };
        if over(self.all, self.limits.messages, self.limits.bytes) {
            return Err(Full::Window);
        }
        if let Some(partition) = load.partition {
            let known = self.partitions.get(&(load.route, partition));
            if known.is_some_and(|known| over(known.share, config::PARTITION_MESSAGES, config::PARTITION_BYTES)) {
                return Err(Full::Partition);
            }
            self.enter_partition(load, partition);
        }
        self.all.messages += 1;
        self.everywhere.fetch_add(1, Ordering::AcqRel);
        self.all.bytes += load.bytes;
        self.drained += usize::from(load.drained);
        Ok(())
    }

    /// A message that is in goes to another partition than was thought.
    pub fn relocate(&mut self, load: Load<'_>, partition: i32) {
        self.leave_partition(load);
        self.enter_partition(load, partition);
    }

    fn enter_partition(&mut self, load: Load<'_>, partition: i32) {
        let entered = self.partitions.entry((load.route, partition)).or_insert_with(|| Partition {
            share: Share::default(),
            drained: 0,
            moved: Instant::now(),
            message: Arc::clone(load.message),
        });
        entered.share.messages += 1;
        entered.share.bytes += load.bytes;
        entered.drained += usize::from(load.drained);
    }

    /// Lets a message out.
    pub fn leave(&mut self, load: Load<'_>) {
        if self.all.messages > 0 {
            self.all.messages -= 1;
            self.everywhere.fetch_sub(1, Ordering::AcqRel);
        }
        self.all.bytes = self.all.bytes.saturating_sub(load.bytes);
        self.drained -= usize::from(load.drained).min(self.drained);
        self.leave_partition(load);
    }

    fn leave_partition(&mut self, load: Load<'_>) {
        let Some(partition) = load.partition else { return };
        let key = (load.route, partition);
        let Some(left) = self.partitions.get_mut(&key) else { return };
        left.share.messages = left.share.messages.saturating_sub(1);
        if left.share.messages == 0 {
            self.partitions.remove(&key);
            return;
        }
        left.share.bytes = left.share.bytes.saturating_sub(load.bytes);
        left.drained -= usize::from(load.drained).min(left.drained);
        left.moved = Instant::now();
    }

    /// Messages owned.
    pub fn messages(&self) -> usize {
        self.all.messages
    }

    /// Messages that all transports own together.
    pub fn everywhere(&self) -> usize {
        self.everywhere.load(Ordering::Acquire)
    }

    /// Messages owned that came from the log.
    pub fn drained(&self) -> usize {
        self.drained
    }

    /// Messages owned of one partition.
    pub fn of_partition(&self, route: u64, partition: i32) -> usize {
        self.partitions.get(&(route, partition)).map_or(0, |owned| owned.share.messages)
    }

    /// Messages owned of some partitions, their bytes, and how many of them came from the log.
    pub fn of_partitions(&self, which: impl Fn(u64, i32) -> bool) -> (usize, usize, usize) {
        let chosen = self.partitions.iter().filter(|((route, partition), _)| which(*route, *partition));
        chosen.fold((0, 0, 0), |sum, (_, owned)| {
            (sum.0 + owned.share.messages, sum.1 + owned.share.bytes, sum.2 + owned.drained)
        })
    }

    /// The partitions that own something.
    pub fn resting(&self) -> impl Iterator<Item = Resting<'_>> {
        self.partitions.iter().map(|(&(route, partition), owned)| Resting {
            route,
            partition,
            since: owned.moved,
            message: &owned.message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, MessageId, Route};

    fn message() -> Arc<Outgoing> {
        let route = Route { transport: "kafka".into(), destination: "t".into() };
        let id = MessageId::new(1, 1);
        Arc::new(Outgoing { id, route, lane: None, timestamp: 1, message: Message::to("t") })
    }

    fn load(message: &Arc<Outgoing>, partition: i32, bytes: usize) -> Load<'_> {
        Load { message, route: 1, partition: Some(partition), bytes, drained: false }
    }

    #[test]
    fn one_partition_cannot_fill_the_window() {
        let message = message();
        let mut window = Window::new(WindowLimits { messages: 10_000, bytes: 32 << 20 }, Arc::default());
        let entered = (0..5_000).take_while(|_| window.enter(load(&message, 0, 10)).is_ok()).count();
        assert_eq!(entered, config::PARTITION_MESSAGES);
        assert_eq!(window.enter(load(&message, 0, 10)), Err(Full::Partition));
        assert_eq!(window.enter(load(&message, 1, 10)), Ok(()));
        window.leave(load(&message, 0, 10));
        assert_eq!(window.enter(load(&message, 0, 10)), Ok(()));
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone() {
        let message = message();
        let mut window = Window::new(WindowLimits { messages: 10, bytes: 100 }, Arc::default());
        assert_eq!(window.enter(load(&message, 0, 500)), Ok(()));
        assert_eq!(window.enter(load(&message, 1, 1)), Err(Full::Window));
        window.leave(load(&message, 0, 500));
        assert_eq!((window.enter(load(&message, 1, 1)), window.messages()), (Ok(()), 1));
    }
}
