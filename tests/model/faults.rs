//! What will go wrong in a life, and what has.

use outlast::internals::wal::{Fault, Operation};

use super::case::{Failing, What};

const EIO: i32 = 5;

/// See the module.
#[derive(Default)]
pub struct Faults {
    pub failing: Option<(usize, Failing)>,
    pub dies_at: Option<usize>,
    pub reads: Option<(usize, u8)>,
    pub read_calls: usize,
    /// Something failed in this life.
    pub fired: bool,
    pub sync_failed: bool,
    pub died: bool,
}

impl Faults {
    pub fn call(&mut self, number: usize, operation: &Operation) -> Option<Fault> {
        if self.dies_at.is_some_and(|at| number >= at) {
            self.died = true;
            return Some(Fault::Stop);
        }
        let (from, failing) = self.failing.as_mut()?;
        if number < *from || failing.many == 0 || !failing.what.is(operation) {
            return None;
        }
        failing.many -= 1;
        self.fired = true;
        self.sync_failed |= matches!(operation, Operation::Sync(_)) || failing.what == What::WriteBack;
        Some(match failing.what {
            What::WriteBack => Fault::WriteBack(failing.errno),
            _ => Fault::Error(failing.errno),
        })
    }

    pub fn read(&mut self) -> Option<Fault> {
        let number = self.read_calls;
        self.read_calls += 1;
        let (from, many) = self.reads.as_mut()?;
        if number < *from || *many == 0 {
            return None;
        }
        *many -= 1;
        self.fired = true;
        Some(Fault::Error(EIO))
    }
}

impl What {
    fn is(self, operation: &Operation) -> bool {
        match self {
            Self::Any => true,
            Self::Sync => matches!(operation, Operation::Sync(_)),
            Self::Write | Self::WriteBack => matches!(operation, Operation::Write { .. }),
            Self::Directory => {
                matches!(operation, Operation::SyncDirectory(_) | Operation::Rename(..) | Operation::Unlink(_))
            }
            Self::Space => matches!(operation, Operation::Create(_) | Operation::Allocate(_)),
        }
    }
}
