//! A disk in memory that loses what a disk may lose: for tests of the log, and of what is built on it.
//!
//! Each file has a live image and a durable one; a name is durable once its directory was synced. [`crash`] leaves the
//! durable images, with any of the unsynced writes in any order, torn into sectors of 512 bytes and now and then within
//! one, and with any prefix of each directory's unsynced changes of names. A failed write-back drops pages as Linux does:
//! what was dirty is clean and may be forgotten, each handle of the file hears of the error once, and its next sync says
//! yes. It is repeatable: the seed decides everything, if the calls come in the same order.
//!
//! It assumes what [`Storage`] assumes, and no more: it refuses to keep anything that nobody synced, but never damages
//! what was.
//!
//! [`crash`]: ModelStorage::crash

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{File, Storage};
pub use call::{Fault, Operation};
use image::Image;

mod call;
mod image;
#[cfg(test)]
mod tests;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

type Hook = Box<dyn FnMut(usize, &Operation) -> Option<Fault> + Send>;

/// See the module. Clones share the disk.
#[derive(Clone)]
pub struct ModelStorage(Arc<Mutex<Model>>);

struct Model {
    files: Vec<Image>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last sync of their directory, in order.
    changes: Vec<Change>,
    trace: Option<Vec<Operation>>,
    calls: usize,
    hook: Option<Hook>,
    read_hook: Option<Hook>,
    stopped: bool,
    /// Bytes that all files together may have.
    capacity: Option<u64>,
    rng: fastrand::Rng,
}

/// A change of names that no sync of the directory has made durable yet.
enum Change {
    Link { path: PathBuf, file: usize },
    Rename { from: PathBuf, to: PathBuf, file: usize },
    Unlink { path: PathBuf },
}

impl Change {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } | Self::Rename { to: path, .. } => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link { path, file } => {
                names.insert(path.clone(), *file);
            }
            Self::Rename { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Self::Unlink { path } => {
                names.remove(path);
            }
        }
    }
}

struct Handle {
    storage: ModelStorage,
    file: usize,
    /// Write-back errors of the file that a sync through this handle need not report any more.
    heard: AtomicU64,
}

impl ModelStorage {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Model {
            files: Vec::new(),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            changes: Vec::new(),
            trace: Some(Vec::new()),
            calls: 0,
            hook: None,
            read_hook: None,
            stopped: false,
            capacity: None,
            rng: fastrand::Rng::with_seed(seed),
        })))
    }

    /// Asks `hook` at each call that changes something what is to go wrong; it is given the number of the call, from 0.
    pub fn on_call(&self, hook: impl FnMut(usize, &Operation) -> Option<Fault> + Send + 'static) {
        let mut model = self.model();
        model.calls = 0;
        model.hook = Some(Box::new(hook));
    }

    /// The same for calls that only read.
    pub fn on_read(&self, hook: impl FnMut(usize, &Operation) -> Option<Fault> + Send + 'static) {
        self.model().read_hook = Some(Box::new(hook));
    }

    /// From the next call on the process is dead, as after [`Fault::Stop`].
    pub fn stop(&self) {
        self.model().stopped = true;
    }

    /// How many calls that change something there have been since [`on_call`](Self::on_call).
    pub fn calls(&self) -> usize {
        self.model().calls
    }

    /// All files together may have so many bytes; then there is no space on the device.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.model().capacity = bytes;
    }

    /// Bytes of all files together.
    pub fn used(&self) -> u64 {
        self.model().used()
    }

    /// Calls are not noted any more: where nobody asks for them, and seeds are many.
    pub fn without_trace(self) -> Self {
        self.model().trace = None;
        self
    }

    /// Nothing goes wrong any more, but that the disk may be full; the process, if it was stopped, is started again. Unsynced bytes are still there.
    pub fn kill(&self) {
        let mut model = self.model();
        model.hook = None;
        model.read_hook = None;
        model.stopped = false;
        model.calls = 0;
    }

    /// What a power cut leaves: another disk.
    pub fn crash(&self, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let model = self.model();
        let after = Self::new(rng.u64(..));
        {
            let mut fresh = after.model();
            fresh.capacity = model.capacity;
            fresh.trace = model.trace.is_some().then(Vec::new);
            for (path, file) in model.names_left(&mut rng) {
                let number = fresh.files.len();
                fresh.files.push(model.files[file].crash(path.clone(), &mut rng));
                fresh.live.insert(path.clone(), number);
                fresh.durable.insert(path, number);
            }
        }
        after
    }

    /// A copy of the disk with everything on it, to be damaged and looked at.
    pub fn copy(&self) -> Self {
        let model = self.model();
        let copy = Self::new(0);
        {
            let mut fresh = copy.model();
            fresh.files.clone_from(&model.files);
            fresh.live.clone_from(&model.live);
            fresh.durable.clone_from(&model.live);
        }
        copy
    }

    /// What was called, in order.
    pub fn trace(&self) -> Vec<Operation> {
        self.model().trace.clone().unwrap_or_default()
    }

    /// Forgets what was called.
    pub fn clear_trace(&self) {
        self.model().trace.iter_mut().for_each(Vec::clear);
    }

    /// A file's bytes.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let model = self.model();
        model.live.get(path).map(|&file| model.files[file].live.clone())
    }

    /// Replaces a file's bytes behind everybody's back, on the disk too; creates it if need be.
    pub fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        let mut model = self.model();
        let image = Image::durable(path.into(), bytes);
        if let Some(&file) = model.live.get(path) {
            model.files[file] = image;
            return;
        }
        let file = model.files.len();
        model.files.push(image);
        model.live.insert(path.into(), file);
        model.durable.insert(path.into(), file);
    }

    /// Changes some bytes of a file behind everybody's back.
    pub fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        if let Some(mut bytes) = self.bytes(path) {
            edit(&mut bytes);
            self.set_bytes(path, bytes);
        }
    }

    /// The names of all files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.model().live.keys().cloned().collect()
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, file: usize) -> Arc<dyn File> {
        let heard = AtomicU64::new(self.model().files[file].heard());
        Arc::new(Handle { storage: self.clone(), file, heard })
    }
}

impl Model {
    /// The names after a power cut: the durable ones, and a prefix of each directory's changes since.
    fn names_left(&self, rng: &mut fastrand::Rng) -> BTreeMap<PathBuf, usize> {
        let mut names = self.durable.clone();
        let mut directories: Vec<_> = self.changes.iter().map(Change::directory).collect();
        directories.dedup();
        directories.sort_unstable();
        directories.dedup();
        for directory in directories {
            let changes = self.changes.iter().filter(|change| change.directory() == directory);
            let kept = rng.usize(..=changes.clone().count());
            changes.take(kept).for_each(|change| change.apply(&mut names));
        }
        names
    }

    fn used(&self) -> u64 {
        self.live.values().map(|&file| self.files[file].live.len() as u64).sum()
    }

    /// Whether a file may grow to so many bytes.
    fn make_room(&self, file: usize, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(self.files[file].live.len()) as u64;
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => Err(io::Error::from_raw_os_error(ENOSPC)),
            _ => Ok(()),
        }
    }

    /// Notes a call, and says whether it fails.
    fn call(&mut self, operation: Operation) -> io::Result<()> {
        match self.fault(operation) {
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Stop) => Err(io::Error::from_raw_os_error(EIO)),
            Some(Fault::WriteBack(_)) | None => Ok(()),
        }
    }

    /// Notes a call, and says what goes wrong with it.
    fn fault(&mut self, operation: Operation) -> Option<Fault> {
        if self.stopped {
            return Some(Fault::Stop);
        }
        let number = self.calls;
        let fault = if operation.changes() {
            self.calls += 1;
            self.hook.as_mut().and_then(|hook| hook(number, &operation))
        } else {
            self.read_hook.as_mut().and_then(|hook| hook(number, &operation))
        };
        if let Some(trace) = &mut self.trace {
            trace.push(operation);
        }
        self.stopped |= fault == Some(Fault::Stop);
        fault
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.live.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for ModelStorage {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut model = self.model();
        model.call(Operation::Create(path.into()))?;
        if model.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = model.files.len();
        model.files.push(Image::durable(path.into(), Vec::new()));
        model.live.insert(path.into(), file);
        model.changes.push(Change::Link { path: path.into(), file });
        drop(model);
        Ok(self.handle(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut model = self.model();
        model.call(Operation::Open(path.into()))?;
        let file = model.find(path)?;
        drop(model);
        Ok(self.handle(file))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.call(Operation::Rename(from.into(), to.into()))?;
        let file = model.find(from)?;
        model.live.remove(from);
        model.live.insert(to.into(), file);
        model.files[file].path = to.into();
        model.changes.push(Change::Rename { from: from.into(), to: to.into(), file });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.call(Operation::Unlink(path.into()))?;
        model.find(path)?;
        model.live.remove(path);
        model.changes.push(Change::Unlink { path: path.into() });
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let model = self.model();
        let inside = model.live.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.call(Operation::SyncDirectory(directory.into()))?;
        let (synced, others) = std::mem::take(&mut model.changes)
            .into_iter()
            .partition::<Vec<_>, _>(|change| change.directory() == Some(directory));
        model.changes = others;
        let model = &mut *model;
        synced.iter().for_each(|change| change.apply(&mut model.durable));
        Ok(())
    }
}

impl Handle {
    fn path(&self, model: &Model) -> PathBuf {
        model.files[self.file].path.clone()
    }
}

impl File for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        model.call(Operation::Read { path, offset, length: buffer.len() })?;
        let model = &mut *model;
        model.files[self.file].forget(&mut model.rng);
        let live = &model.files[self.file].live;
        let start = live.len().min(offset as usize);
        let length = buffer.len().min(live.len() - start);
        buffer[..length].copy_from_slice(&live[start..start + length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        let dead = model.stopped;
        let fault = model.fault(Operation::Write { path, offset, length: bytes.len() });
        let called = match fault {
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Stop) => Err(io::Error::from_raw_os_error(EIO)),
            Some(Fault::WriteBack(_)) | None => model.make_room(self.file, offset as usize + bytes.len()),
        };
        let model = &mut *model;
        // A write that fails, or that the process dies in, may have been done in part.
        let done = match called {
            Ok(()) => bytes.len(),
            Err(_) if dead => 0,
            Err(_) => model.rng.usize(..=bytes.len()),
        };
        model.files[self.file].write(offset as usize, &bytes[..done]);
        if let Some(Fault::WriteBack(errno)) = fault {
            model.files[self.file].fail_write_back(errno, &mut model.rng);
        }
        called
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        model.call(Operation::Allocate(path))?;
        model.make_room(self.file, length as usize)?;
        let image = &mut model.files[self.file];
        if image.live.len() < length as usize {
            image.live.resize(length as usize, 0);
        }
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        model.call(Operation::Truncate(path))?;
        model.files[self.file].live.truncate(length as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        let fault = model.fault(Operation::Sync(path));
        let model = &mut *model;
        let image = &mut model.files[self.file];
        match fault {
            // A process that died made no call.
            Some(Fault::Stop) => return Err(io::Error::from_raw_os_error(EIO)),
            Some(Fault::Error(errno) | Fault::WriteBack(errno)) => image.fail_write_back(errno, &mut model.rng),
            None => image.sync(),
        }
        let mut heard = self.heard.load(Ordering::Relaxed);
        let error = image.hear(&mut heard);
        self.heard.store(heard, Ordering::Relaxed);
        error.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn forget_pages(&self) -> io::Result<()> {
        self.storage.model().files[self.file].forget_clean();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let model = self.storage.model();
        Ok(model.files[self.file].live.len() as u64)
    }
}
