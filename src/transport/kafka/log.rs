//! librdkafka's log lines as `tracing` events: scrubbed of secrets, and no more than a handful a second.

use std::sync::Mutex;
use std::time::Instant;

use rdkafka::config::RDKafkaLogLevel as Level;
use tracing::{debug, error, info, warn};

use super::book::lock;
use super::config::Settings;
use super::ffi;
use crate::schedule::Lines;

/// Passes the lines of one instance on.
pub(super) struct Log {
    settings: Settings,
    /// A connection that fails says so at each attempt, for hours.
    lines: Mutex<Lines>,
}

impl Log {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, lines: Mutex::default() }
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
        let Some(suppressed) = lock(&self.lines).admit(Instant::now()) else { return };
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
}
