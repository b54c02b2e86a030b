//! A disk in memory that loses what a disk may lose: for tests of the log, and of what is built on it.
//!
//! Each file has a live image and a durable one; a name is durable once its directory was synced. [`crash`] leaves the
//! durable images, with any of the unsynced writes in any order, torn into sectors of 512 bytes, and with any prefix
//! of the unsynced changes of names. A failed sync drops pages as Linux does: what was dirty is clean, and the next
//! sync says yes. It is repeatable: the seed decides everything, if the calls come in the same order.
//!
//! [`crash`]: ModelStorage::crash

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{File, Storage};

const SECTOR: usize = 512;

/// A call to the storage, by the name the file had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file was created.
    Create(PathBuf),
    /// A file was opened.
    Open(PathBuf),
    /// Bytes were read.
    Read {
        /// The file.
        path: PathBuf,
        /// From where.
        offset: u64,
        /// How many at most.
        length: usize,
    },
    /// Bytes were written.
    Write {
        /// The file.
        path: PathBuf,
        /// To where.
        offset: u64,
        /// How many.
        length: usize,
    },
    /// Blocks were set aside.
    Allocate(PathBuf),
    /// A file was synced.
    Sync(PathBuf),
    /// A file was renamed.
    Rename(PathBuf, PathBuf),
    /// A file was removed.
    Unlink(PathBuf),
    /// A directory was synced.
    SyncDirectory(PathBuf),
}

impl Operation {
    /// Whether it changes something, or makes a change durable.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Open(_) | Self::Read { .. })
    }
}

/// What goes wrong at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this `errno`. A write may have been done in part; a sync loses what was dirty.
    Error(i32),
    /// The process dies: this call and all after it fail, until [`ModelStorage::kill`] or [`ModelStorage::crash`].
    Stop,
}

type Hook = Box<dyn FnMut(usize, &Operation) -> Option<Fault> + Send>;

/// See the module. Clones share the disk.
#[derive(Clone)]
pub struct ModelStorage(Arc<Mutex<Model>>);

struct Model {
    files: Vec<Image>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Changes of names since the last sync of the directory.
    renames: Vec<Operation>,
    trace: Vec<Operation>,
    calls: usize,
    hook: Option<Hook>,
    stopped: bool,
    rng: fastrand::Rng,
}

#[derive(Clone, Default)]
struct Image {
    path: PathBuf,
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

struct Handle {
    storage: ModelStorage,
    file: usize,
}

impl ModelStorage {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Model {
            files: Vec::new(),
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            renames: Vec::new(),
            trace: Vec::new(),
            calls: 0,
            hook: None,
            stopped: false,
            rng: fastrand::Rng::with_seed(seed),
        })))
    }

    /// Asks `hook` at each call that changes something what is to go wrong; it is given the number of the call, from 0.
    pub fn on_call(&self, hook: impl FnMut(usize, &Operation) -> Option<Fault> + Send + 'static) {
        let mut model = self.model();
        model.calls = 0;
        model.hook = Some(Box::new(hook));
    }

    /// Nothing goes wrong any more; the process, if it was stopped, is started again. Unsynced bytes are still there.
    pub fn kill(&self) {
        let mut model = self.model();
        model.hook = None;
        model.stopped = false;
        model.calls = 0;
    }

    /// What a power cut leaves: another disk.
    pub fn crash(&self, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let model = self.model();
        let mut names = model.durable.clone();
        let kept = rng.usize(..=model.renames.len());
        for change in &model.renames[..kept] {
            rename(&mut names, &model.live, change);
        }
        // A name whose file is gone cannot be told from one that points to it; keep what the durable names say.
        let after = Self::new(rng.u64(..));
        {
            let mut fresh = after.model();
            for (path, file) in names {
                let mut image = model.files[file].clone();
                image.tear(&mut rng);
                image.path.clone_from(&path);
                let number = fresh.files.len();
                fresh.files.push(image);
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
        self.model().trace.clone()
    }

    /// Forgets what was called.
    pub fn clear_trace(&self) {
        self.model().trace.clear();
    }

    /// A file's bytes.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let model = self.model();
        model.live.get(path).map(|&file| model.files[file].live.clone())
    }

    /// Replaces a file's bytes behind everybody's back, on the disk too; creates it if need be.
    pub fn set_bytes(&self, path: &Path, bytes: Vec<u8>) {
        let mut model = self.model();
        let image = Image { path: path.into(), durable: bytes.clone(), live: bytes, unsynced: Vec::new() };
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
        Arc::new(Handle { storage: self.clone(), file })
    }
}

/// Applies a change of names. A created file is found by the name it has now or had then.
fn rename(names: &mut BTreeMap<PathBuf, usize>, live: &BTreeMap<PathBuf, usize>, change: &Operation) {
    match change {
        Operation::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Operation::Unlink(path) => {
            names.remove(path);
        }
        Operation::Create(path) => {
            names.extend(live.get(path).map(|&file| (path.clone(), file)));
        }
        _ => {}
    }
}

impl Model {
    /// Notes a call, and says whether it fails.
    fn call(&mut self, operation: Operation) -> io::Result<()> {
        if self.stopped {
            return Err(io::Error::from_raw_os_error(5));
        }
        let fault = if operation.changes() {
            let number = self.calls;
            self.calls += 1;
            self.hook.as_mut().and_then(|hook| hook(number, &operation))
        } else {
            None
        };
        self.trace.push(operation);
        match fault {
            None => Ok(()),
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Stop) => {
                self.stopped = true;
                Err(io::Error::from_raw_os_error(5))
            }
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.live.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Image {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.live, offset, bytes);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    /// Some of the unsynced sectors reach the disk, in any order.
    fn tear(&mut self, rng: &mut fastrand::Rng) {
        let mut sectors = Vec::new();
        for (offset, bytes) in self.unsynced.drain(..) {
            let mut at = 0;
            while at < bytes.len() {
                let end = bytes.len().min(at + SECTOR - (offset + at) % SECTOR);
                sectors.push((offset + at, bytes[at..end].to_vec()));
                at = end;
            }
        }
        // All, none, or each by itself: the first two are likely and would be rare otherwise.
        let chance = [0.0, 0.5, 0.9, 1.0][rng.usize(..4)];
        rng.shuffle(&mut sectors);
        for (offset, bytes) in sectors {
            if rng.f64() < chance {
                put(&mut self.durable, offset, &bytes);
            }
        }
        self.live.clone_from(&self.durable);
    }
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

impl Storage for ModelStorage {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut model = self.model();
        model.call(Operation::Create(path.into()))?;
        if model.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = model.files.len();
        model.files.push(Image { path: path.into(), ..Image::default() });
        model.live.insert(path.into(), file);
        model.renames.push(Operation::Create(path.into()));
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
        model.renames.push(Operation::Rename(from.into(), to.into()));
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut model = self.model();
        model.call(Operation::Unlink(path.into()))?;
        model.find(path)?;
        model.live.remove(path);
        model.renames.push(Operation::Unlink(path.into()));
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
        model.durable = model.live.clone();
        model.renames.clear();
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
        let live = &model.files[self.file].live;
        let start = live.len().min(offset as usize);
        let length = buffer.len().min(live.len() - start);
        buffer[..length].copy_from_slice(&live[start..start + length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        let called = model.call(Operation::Write { path, offset, length: bytes.len() });
        let model = &mut *model;
        // A write that fails, or that the process dies in, may have been done in part.
        let done = if called.is_ok() { bytes.len() } else { model.rng.usize(..=bytes.len()) };
        model.files[self.file].write(offset as usize, &bytes[..done]);
        called
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        model.call(Operation::Allocate(path))?;
        let image = &mut model.files[self.file];
        if image.live.len() < length as usize {
            image.live.resize(length as usize, 0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut model = self.storage.model();
        let path = self.path(&model);
        let called = model.call(Operation::Sync(path));
        let model = &mut *model;
        let image = &mut model.files[self.file];
        match called {
            Ok(()) => {
                for (offset, bytes) in std::mem::take(&mut image.unsynced) {
                    put(&mut image.durable, offset, &bytes);
                }
                image.durable.resize(image.live.len().max(image.durable.len()), 0);
                Ok(())
            }
            Err(error) => {
                if !model.stopped {
                    // Pages are marked clean though they did not all reach the disk: live still shows them.
                    let live = image.live.clone();
                    image.tear(&mut model.rng);
                    image.live = live;
                }
                Err(error)
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        let model = self.storage.model();
        Ok(model.files[self.file].live.len() as u64)
    }
}
