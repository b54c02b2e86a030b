//! librdkafka's log lines as `tracing` events: scrubbed of secrets, and no more than a handful a second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel as Level;
use tracing::{debug, error, info, warn};

use super::book::lock;
use super::config::Settings;
use super::ffi;

/// A connection that fails says so at each attempt, for hours.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Passes the lines of one instance on.
pub(super) struct Log {
    settings: Settings,
    window: Mutex<Window>,
}

struct Window {
    since: Instant,
    lines: u32,
}

impl Log {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, window: Mutex::new(Window { since: Instant::now(), lines: 0 }) }
    }

    /// A text without secrets.
    pub(super) fn scrub(&self, text: &str) -> String {
        self.settings.scrub(text)
    }

    /// Passes a line on, unless there were too many of late. Debug lines were asked for and all pass.
    pub(super) fn line(&self, level: Level, facility: &str, text: &str) {
        // That the gapless guarantee is "experimental" was considered, and is no news to an operator; nor is the fatal
        // error that the transport raises when it retires an instance, and be it because it closes.
        let known = facility == "CONFWARN" && text.contains("enable.gapless.guarantee")
            || facility == "FATAL" && text.contains(ffi::GIVEN_UP);
        if known || matches!(level, Level::Debug) {
            debug!(target: "outlast::librdkafka", facility, "{}", self.scrub(text));
            return;
        }
        let Some(suppressed) = self.admit(Instant::now()) else { return };
        let text = self.scrub(text);
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                error!(target: "outlast::librdkafka", facility, suppressed, "{text}");
            }
            Level::Warning => warn!(target: "outlast::librdkafka", facility, suppressed, "{text}"),
            Level::Notice | Level::Info => info!(target: "outlast::librdkafka", facility, suppressed, "{text}"),
            Level::Debug => {}
        }
    }

    /// Whether a line may pass, and how many did not in the window before.
    fn admit(&self, now: Instant) -> Option<u32> {
        let mut window = lock(&self.window);
        let mut suppressed = 0;
        if now.duration_since(window.since) >= WINDOW {
            suppressed = window.lines.saturating_sub(LINES);
            *window = Window { since: now, lines: 0 };
        }
        window.lines += 1;
        (window.lines <= LINES).then_some(suppressed)
    }
}
