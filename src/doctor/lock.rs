//! Who has the outbox open.

use std::path::Path;

use super::disk;
use crate::finding::{Code, Finding};
use crate::outbox::{Holder, Paths, holder};

/// Looks who holds the outbox's lock.
///
/// A shared lock is tried without waiting, on a descriptor of its own that is only read, and given back at once: the same
/// look that `outlast status` takes, and a producer's start bears with it. `/proc/locks` would not do: it is Linux', and
/// shows no other container's.
pub fn check(paths: &Paths) -> (Option<Holder>, Vec<Finding>) {
    match holder(&paths.lock()) {
        Ok(None) => (None, Vec::new()),
        Ok(Some(holder)) => {
            let found = held(&paths.lock(), &holder);
            (Some(holder), vec![found])
        }
        Err(error) => (None, vec![disk::refusal(&error)]),
    }
}

fn held(path: &Path, holder: &Holder) -> Finding {
    let what = format!("the outbox is in use: {holder} holds its lock, and a second producer would not start");
    let advice =
        "if that is the producer meant to have it, nothing; else stop it, or give this one a directory of its own";
    Finding::problem(Code::LockHeld, path.display(), what, advice)
}
