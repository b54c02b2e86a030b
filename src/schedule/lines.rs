//! How many log lines of a kind are written: a handful at a time, and how many were left out.
//!
//! A hundred thousand lanes that fail together are one piece of news, not a hundred thousand.

use std::time::{Duration, Instant};

/// Lines in a window.
const LINES: u64 = 20;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(10);

/// The count of one kind of line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines {
    since: Option<Instant>,
    lines: u64,
}

impl Lines {
    /// Whether a line may be written now; with it goes how many were left out in the window before.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        let mut suppressed = 0;
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            suppressed = self.lines.saturating_sub(LINES);
            *self = Self { since: Some(now), lines: 0 };
        }
        self.lines += 1;
        (self.lines <= LINES).then_some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_short_and_counted() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let written = (0..1_000).filter(|_| lines.admit(now).is_some()).count();
        assert_eq!(written as u64, LINES);
        assert_eq!(lines.admit(now + WINDOW), Some(1_000 - LINES));
        assert_eq!(lines.admit(now + WINDOW), Some(0));
    }
}
