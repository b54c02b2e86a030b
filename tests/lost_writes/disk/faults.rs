//! What goes wrong with the disk while it runs, and what it was asked to sync.

use std::time::Duration;

/// Which syncs fail with EIO.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of this [site](site) alone; of all if there is none.
    pub site: Option<String>,
    /// So many of them succeed first.
    pub skip: usize,
    /// All behind it fail, too, wherever they are.
    pub for_good: bool,
}

/// Faults to come. Without any the disk works, and is fast.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub failing: Option<Rule>,
    /// How long each sync takes.
    pub delay: Duration,
    /// Bytes there is room for.
    pub capacity: Option<u64>,
}

/// The disk's notes.
#[derive(Default)]
pub struct Notes {
    /// The [site](site) of every sync, in order.
    pub syncs: Vec<String>,
    /// How many of them failed.
    pub failed: usize,
    broken: bool,
}

impl Notes {
    /// Whether this sync is one that fails.
    pub fn sync(&mut self, path: &str, faults: &mut Faults) -> bool {
        let here = site(path);
        let mut fails = self.broken;
        if let Some(rule) = &mut faults.failing
            && rule.site.as_ref().is_none_or(|site| *site == here)
        {
            if rule.skip == 0 {
                fails = true;
                self.broken = rule.for_good;
                faults.failing = None;
            } else {
                rule.skip -= 1;
            }
        }
        self.syncs.push(here);
        self.failed += usize::from(fails);
        fails
    }

    /// From here on syncs succeed again.
    pub fn mend(&mut self) {
        self.broken = false;
    }
}

/// A path without the numbers in it: `wal/free-#.seg`.
pub fn site(path: &str) -> String {
    let numbered = |word: &str| word.contains(|c: char| c.is_ascii_digit());
    let mut site = String::new();
    for word in path.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        match word.chars().last().filter(|c| !c.is_ascii_alphanumeric()) {
            Some(end) if numbered(word) => site.extend(['#', end]),
            None if numbered(word) => site.push('#'),
            _ => site.push_str(word),
        }
    }
    if site.is_empty() { "/".to_owned() } else { site }
}
