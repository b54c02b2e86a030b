//! How much a transport may own at a time: in all, and of each partition.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config;

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

/// What the transport owns now.
#[derive(Debug)]
pub struct Window {
    limits: WindowLimits,
    all: Share,
    drained: usize,
    partitions: HashMap<(u64, i32), Share>,
    /// What all transports of the producer own.
    everywhere: Arc<AtomicUsize>,
}

/// What enters and leaves a window.
#[derive(Clone, Copy, Debug)]
pub struct Load {
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
    pub fn enter(&mut self, load: Load) -> Result<(), Full> {
        let over = |share: Share, messages: usize, bytes: usize| {
            share.messages > 0 && (share.messages >= messages || share.bytes + load.bytes > bytes)
        };
        if over(self.all, self.limits.messages, self.limits.bytes) {
            return Err(Full::Window);
        }
        if let Some(partition) = load.partition {
            let share = self.partitions.entry((load.route, partition)).or_default();
            if over(*share, config::PARTITION_MESSAGES, config::PARTITION_BYTES) {
                return Err(Full::Partition);
            }
            share.messages += 1;
            share.bytes += load.bytes;
        }
        self.all.messages += 1;
        self.everywhere.fetch_add(1, Ordering::AcqRel);
        self.all.bytes += load.bytes;
        self.drained += usize::from(load.drained);
        Ok(())
    }

    /// A message that is in goes to another partition than was thought.
    pub fn relocate(&mut self, load: Load, partition: i32) {
        self.leave_partition(load);
        let share = self.partitions.entry((load.route, partition)).or_default();
        share.messages += 1;
        share.bytes += load.bytes;
    }

    /// Lets a message out.
    pub fn leave(&mut self, load: Load) {
        if self.all.messages > 0 {
            self.all.messages -= 1;
            self.everywhere.fetch_sub(1, Ordering::AcqRel);
        }
        self.all.bytes = self.all.bytes.saturating_sub(load.bytes);
        self.drained -= usize::from(load.drained).min(self.drained);
        self.leave_partition(load);
    }

    fn leave_partition(&mut self, load: Load) {
        if let Some(partition) = load.partition {
            let key = (load.route, partition);
            if let Some(share) = self.partitions.get_mut(&key) {
                share.messages = share.messages.saturating_sub(1);
                share.bytes = share.bytes.saturating_sub(load.bytes);
                if share.messages == 0 {
                    self.partitions.remove(&key);
                }
            }
        }
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
        self.partitions.get(&(route, partition)).map_or(0, |share| share.messages)
    }

    /// Messages owned of some partitions, and their bytes.
    pub fn of_partitions(&self, which: impl Fn(u64, i32) -> bool) -> (usize, usize) {
        let chosen = self.partitions.iter().filter(|((route, partition), _)| which(*route, *partition));
        chosen.fold((0, 0), |sum, (_, share)| (sum.0 + share.messages, sum.1 + share.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(partition: i32, bytes: usize) -> Load {
        Load { route: 1, partition: Some(partition), bytes, drained: false }
    }

    #[test]
    fn one_partition_cannot_fill_the_window() {
        let mut window = Window::new(WindowLimits { messages: 10_000, bytes: 32 << 20 }, Arc::default());
        let entered = (0..5_000).take_while(|_| window.enter(load(0, 10)).is_ok()).count();
        assert_eq!(entered, config::PARTITION_MESSAGES);
        assert_eq!(window.enter(load(0, 10)), Err(Full::Partition));
        assert_eq!(window.enter(load(1, 10)), Ok(()));
        window.leave(load(0, 10));
        assert_eq!(window.enter(load(0, 10)), Ok(()));
    }

    #[test]
    fn a_message_larger_than_the_window_goes_alone() {
        let mut window = Window::new(WindowLimits { messages: 10, bytes: 100 }, Arc::default());
        assert_eq!(window.enter(load(0, 500)), Ok(()));
        assert_eq!(window.enter(load(1, 1)), Err(Full::Window));
        window.leave(load(0, 500));
        assert_eq!((window.enter(load(1, 1)), window.messages()), (Ok(()), 1));
    }
}
