//! Which directory `ledger/N` is used next.
//!
//! A sled that was given up may still run, and if it wakes it writes by path. So a number is never used again once
//! its database was given up: not by a later ledger of this process either, which is why the process keeps a list.
//! Another process cannot have such a sled: the outbox's lock keeps it out until this one has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many databases of one outbox a process gives up before it goes on without.
pub const MAX_STRIKES: u32 = 3;

/// What this process knows of an outbox's ledgers.
#[derive(Debug, Default)]
struct Known {
    /// The highest number it has used.
    highest: u64,
    /// Those whose sled may still run.
    leaked: BTreeSet<u64>,
    /// How many it has given up.
    strikes: u32,
}

/// One item an outbox that this process has opened.
static KNOWN: Mutex<BTreeMap<PathBuf, Known>> = Mutex::new(BTreeMap::new());

fn known() -> MutexGuard<'static, BTreeMap<PathBuf, Known>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chooses the number to open: the highest there is, or with `fresh` one that nobody has used.
pub fn choose(ledger: &Path, fresh: bool) -> io::Result<u64> {
    let found = list(ledger)?.into_iter().max().unwrap_or(0);
    let mut known = known();
    let known = known.entry(ledger.to_path_buf()).or_default();
    let usable = found > 0 && found >= known.highest && !known.leaked.contains(&found);
    let number = if usable && !fresh { found } else { found.max(known.highest).saturating_add(1) };
    known.highest = number;
    Ok(number)
}

/// Notes that a database was given up, and says how many have been. Without a number none was begun; `alive` says
/// whether its sled may still run.
pub fn give_up(ledger: &Path, number: Option<u64>, alive: bool) -> u32 {
    let mut known = known();
    let known = known.entry(ledger.to_path_buf()).or_default();
    if let (Some(number), true) = (number, alive) {
        known.leaked.insert(number);
    }
    known.strikes += 1;
    known.strikes
}

/// How many databases of this outbox the process has given up.
pub fn strikes(ledger: &Path) -> u32 {
    known().get(ledger).map_or(0, |known| known.strikes)
}

/// Removes the directories of numbers below `current` on which no sled of this process may run.
pub fn remove_old(ledger: &Path, current: u64) {
    let numbers = match list(ledger) {
        Ok(numbers) => numbers,
        Err(error) => return tracing::warn!(%error, "cannot list the ledger's directories"),
    };
    let leaked = known().get(ledger).map(|known| known.leaked.clone()).unwrap_or_default();
    for number in numbers.into_iter().filter(|number| *number < current && !leaked.contains(number)) {
        let path = directory(ledger, number);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old ledger");
        }
    }
}

/// The directory of a number.
pub fn directory(ledger: &Path, number: u64) -> PathBuf {
    ledger.join(number.to_string())
}

/// The numbers there are.
fn list(ledger: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(ledger)? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else { continue };
        // `007` and `+7` are not ours.
        if number > 0 && name == *number.to_string() {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(ledger: &Path, names: &[&str]) {
        for name in names {
            fs::create_dir(ledger.join(name)).expect("mkdir");
        }
    }

    #[test]
    fn the_highest_is_opened_again_and_a_fresh_one_lies_above() {
        let temp = tempfile::tempdir().expect("tempdir");
        assert_eq!(choose(temp.path(), false).expect("chosen"), 1);
        make(temp.path(), &["2", "10", "007", "x", "-3"]);
        assert_eq!(choose(temp.path(), false).expect("chosen"), 10);
        assert_eq!(choose(temp.path(), true).expect("chosen"), 11);
        assert_eq!(choose(temp.path(), true).expect("chosen"), 12, "not even if it was never made");
    }

    #[test]
    fn a_number_that_was_given_up_is_never_opened_again_nor_removed_while_its_sled_may_run() {
        let temp = tempfile::tempdir().expect("tempdir");
        make(temp.path(), &["1", "2", "3"]);
        assert_eq!(choose(temp.path(), false).expect("chosen"), 3);
        assert_eq!(give_up(temp.path(), Some(3), true), 1);
        assert_eq!(choose(temp.path(), false).expect("chosen"), 4);
        make(temp.path(), &["4"]);
        remove_old(temp.path(), 4);
        let mut left = list(temp.path()).expect("listed");
        left.sort_unstable();
        assert_eq!(left, [3, 4]);
        fs::remove_dir(temp.path().join("4")).expect("rmdir");
        assert_eq!(choose(temp.path(), false).expect("chosen"), 5, "removed by hand, still used once");
    }
}
