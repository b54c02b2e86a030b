//! A line on the terminal that moves: how much was accepted, how much waits, and why.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use outlast::Producer;

use crate::output;

/// How often the line changes.
const INTERVAL: Duration = Duration::from_millis(200);

/// The line, and the counters it shows.
pub struct Progress {
    /// Lines the broker acknowledged.
    pub delivered: Arc<AtomicU64>,
    /// Lines that went to the outbox.
    pub stored: Arc<AtomicU64>,
    thread: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Progress {
    /// Shows progress, if standard error is a terminal.
    pub fn start(producer: &Producer) -> Self {
        let (delivered, stored) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut thread = None;
        if std::io::stderr().is_terminal() {
            let over = Arc::new(AtomicBool::new(false));
            let show = Show { producer: producer.clone(), delivered: delivered.clone(), stored: stored.clone() };
            let until = over.clone();
            // Without a thread to draw it there is no line, and no harm.
            let drawn = thread::Builder::new().name("progress".into()).spawn(move || show.run(&until));
            thread = drawn.ok().map(|handle| (over, handle));
        }
        Self { delivered, stored, thread }
    }

    /// Takes the line away.
    pub fn finish(self) {
        if let Some((over, handle)) = self.thread {
            over.store(true, Ordering::Relaxed);
            handle.thread().unpark();
            // It only draws; if it panicked, the panic was printed.
            let _ = handle.join();
        }
    }
}

struct Show {
    producer: Producer,
    delivered: Arc<AtomicU64>,
    stored: Arc<AtomicU64>,
}

impl Show {
    fn run(&self, over: &AtomicBool) {
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style);
        while !over.load(Ordering::Relaxed) {
            bar.set_message(self.text());
            bar.tick();
            thread::park_timeout(INTERVAL);
        }
        bar.finish_and_clear();
    }

    fn text(&self) -> String {
        let stats = self.producer.stats();
        let mut text = format!(
            "{} delivered, {} stored",
            output::count(self.delivered.load(Ordering::Relaxed)),
            output::count(self.stored.load(Ordering::Relaxed))
        );
        if stats.pending > 0 {
            text.push_str(&format!("; {} pending", output::count(stats.pending)));
        }
        let blocked =
            stats.routes.iter().find_map(|route| route.blocked.as_ref().map(|blocked| (&route.route, blocked)));
        if let Some((route, blocked)) = blocked {
            text.push_str(&format!(" ({route}: {})", blocked.reason));
        }
        text
    }
}
