//! The names in one directory: as they are seen, as they are after a power cut, and every change in between.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use fastrand::Rng;

use super::Loss;

/// A name is given to a file, or taken away. A rename is two of these that are done together.
type Change = Vec<(OsString, Option<u64>)>;

/// Names and the files they belong to.
#[derive(Clone, Default)]
pub struct Names {
    live: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    changes: Vec<Change>,
}

impl Names {
    pub fn get(&self, name: &OsStr) -> Option<u64> {
        self.live.get(name).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&OsString, u64)> {
        self.live.iter().map(|(name, file)| (name, *file))
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    pub fn give(&mut self, name: &OsStr, file: u64) {
        self.change(vec![(name.into(), Some(file))]);
    }

    pub fn take(&mut self, name: &OsStr) {
        self.change(vec![(name.into(), None)]);
    }

    pub fn rename(&mut self, from: &OsStr, to: &OsStr, file: u64) {
        self.change(vec![(from.into(), None), (to.into(), Some(file))]);
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.changes.push(change);
    }

    /// A sync of the directory that succeeds. One that fails changes nothing: names go through the file system's
    /// journal, which writes them with its next commit or makes the whole file system read-only.
    pub fn sync(&mut self) {
        self.changes.drain(..).for_each(|change| apply(&mut self.durable, &change));
    }

    /// What is there after a power cut: of the changes since the last sync the first so many.
    pub fn cut(&self, loss: Loss, rng: &mut Rng) -> Self {
        let count = self.changes.len();
        let survive = match loss {
            Loss::Everything => 0,
            Loss::Nothing => count,
            Loss::Random { kept } if rng.f64() < kept => count,
            Loss::Random { .. } => rng.usize(..=count),
        };
        let mut names = self.durable.clone();
        self.changes[..survive].iter().for_each(|change| apply(&mut names, change));
        Self { live: names.clone(), durable: names, changes: Vec::new() }
    }
}

fn apply(names: &mut BTreeMap<OsString, u64>, change: &Change) {
    for (name, file) in change {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
}
