//! A disk whose n-th call of a kind fails: once, each time from then on, or together with every other call.
//!
//! It stands over another storage and passes on what does not fail. What fails is not done at all, but for a torn
//! write, of which the first half is. A fault is taken away with
//! [`FaultyDisk::mend`].

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outlast::internals::wal::{File, Storage};

/// The calls of the seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    Create,
    Open,
    OpenRead,
    Read,
    Write,
    Allocate,
    Sync,
    Length,
    Rename,
    Unlink,
    List,
    SyncDirectory,
}

pub const CALLS: [Call; 12] = [
    Call::Create,
    Call::Open,
    Call::OpenRead,
    Call::Read,
    Call::Write,
    Call::Allocate,
    Call::Sync,
    Call::Length,
    Call::Rename,
    Call::Unlink,
    Call::List,
    Call::SyncDirectory,
];

impl Call {
    /// Whether it changes something, or makes a change durable.
    pub fn changes(self) -> bool {
        !matches!(self, Self::OpenRead | Self::Read | Self::Length | Self::List)
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Eio,
    NoSpace,
    Quota,
    Interrupted,
    /// The first half is written; then it is EIO.
    Torn,
}

pub const ERRORS: [Error; 5] = [Error::Eio, Error::NoSpace, Error::Quota, Error::Interrupted, Error::Torn];

impl Error {
    fn errno(self) -> i32 {
        match self {
            Self::Eio | Self::Torn => 5,
            Self::NoSpace => 28,
            Self::Quota => 122,
            Self::Interrupted => 4,
        }
    }
}

/// How long it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    Once,
    /// Every call of the kind, until it is mended.
    Kind,
    /// Every call that changes something, if this one does, else every call that does not.
    Disk,
}

pub const LASTING: [Lasting; 3] = [Lasting::Once, Lasting::Kind, Lasting::Disk];

/// The fault of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub call: Call,
    /// The which of its kind it is, from zero.
    pub number: usize,
    pub error: Error,
    pub lasting: Lasting,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {:?} {:?}", self.call, self.number, self.error, self.lasting)
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn named<T: fmt::Debug + Copy>(all: &[T], name: Option<&str>) -> Result<T, String> {
            let named = all.iter().find(|one| name.is_some_and(|name| format!("{one:?}") == name));
            named.copied().ok_or_else(|| format!("{name:?} is none of {all:?}"))
        }
        let mut words = text.split_whitespace();
        let call = named(&CALLS, words.next())?;
        let number = words.next().and_then(|word| word.parse().ok()).ok_or("a number is missing")?;
        Ok(Self { call, number, error: named(&ERRORS, words.next())?, lasting: named(&LASTING, words.next())? })
    }
}

/// See the module. Clones are one disk.
#[derive(Clone)]
pub struct FaultyDisk {
    under: Arc<dyn Storage>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    counts: [usize; CALLS.len()],
    plan: Option<Plan>,
    failed: usize,
    mended: bool,
}

impl FaultyDisk {
    pub fn over(under: Arc<dyn Storage>, plan: Option<Plan>) -> Self {
        Self { under, state: Arc::new(Mutex::new(State { plan, ..State::default() })) }
    }

    /// How many calls of each kind there were.
    pub fn counts(&self) -> Vec<(Call, usize)> {
        CALLS.into_iter().zip(self.state().counts).collect()
    }

    /// How many calls failed.
    pub fn failed(&self) -> usize {
        self.state().failed
    }

    /// Whether calls fail at the moment, and go on to.
    pub fn is_failing(&self) -> bool {
        let state = self.state();
        state.failed > 0 && !state.mended && state.plan.is_some_and(|plan| plan.lasting != Lasting::Once)
    }

    /// Each call of the kind fails with EIO, until it is mended.
    pub fn fail_from_now_on(&self, call: Call) {
        let mut state = self.state();
        let number = state.counts[call as usize];
        state.plan = Some(Plan { call, number, error: Error::Eio, lasting: Lasting::Kind });
        (state.failed, state.mended) = (0, false);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        self.state().mended = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; the error that it fails with, if it does.
    fn call(&self, call: Call) -> Result<(), Error> {
        let mut state = self.state();
        let number = state.counts[call as usize];
        state.counts[call as usize] += 1;
        let Some(plan) = state.plan.filter(|_| !state.mended) else { return Ok(()) };
        let begins = plan.call == call && plan.number == number;
        let goes_on = state.failed > 0
            && match plan.lasting {
                Lasting::Once => false,
                Lasting::Kind => plan.call == call,
                Lasting::Disk => plan.call.changes() == call.changes(),
            };
        if !begins && !goes_on {
            return Ok(());
        }
        state.failed += 1;
        Err(plan.error)
    }

    fn checked(&self, call: Call) -> io::Result<()> {
        self.call(call).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { disk: self.clone(), under: file })
    }
}

impl Storage for FaultyDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.checked(Call::Create)?;
        Ok(self.file(self.under.create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.checked(Call::Open)?;
        Ok(self.file(self.under.open(path)?))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.checked(Call::OpenRead)?;
        Ok(self.file(self.under.open_read(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.checked(Call::Rename)?;
        self.under.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.checked(Call::Unlink)?;
        self.under.unlink(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.checked(Call::List)?;
        self.under.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.checked(Call::SyncDirectory)?;
        self.under.sync_directory(directory)
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    under: Arc<dyn File>,
}

impl File for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.checked(Call::Read)?;
        self.under.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.call(Call::Write).or_else(|error| {
            if error == Error::Torn {
                self.under.write_at(&bytes[..bytes.len() / 2], offset)?;
            }
            Err(io::Error::from_raw_os_error(error.errno()))
        })?;
        self.under.write_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.disk.checked(Call::Allocate)?;
        self.under.allocate(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.checked(Call::Sync)?;
        self.under.sync_data()
    }

    fn forget_pages(&self) -> io::Result<()> {
        self.under.forget_pages()
    }

    fn length(&self) -> io::Result<u64> {
        self.disk.checked(Call::Length)?;
        self.under.length()
    }
}
