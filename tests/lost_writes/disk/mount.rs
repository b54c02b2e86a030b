//! The calls of the kernel, answered from the image.
//!
//! Nothing is cached above: files are opened for direct I/O, names and attributes are valid for no time. Advisory locks
//! are the kernel's own, and so is `sync_file_range`, which never gets here: it is no sync.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;

use super::content::Content;
use super::faults::{Faults, Notes};
use super::image::{Image, Kind, ROOT};
use super::names::Names;

/// Answers of the kernel's own memory are not wanted.
const NEVER: Duration = Duration::ZERO;
const BLOCK: u64 = 4096;
/// The size told to whoever asks, while there is no limit.
const ROOMY: u64 = 1 << 30;
const GENERATION: Generation = Generation(0);

/// What the mount and its holder share.
pub struct State {
    pub image: Image,
    pub faults: Faults,
    pub notes: Notes,
}

impl State {
    fn attributes(&self, file: u64) -> Result<FileAttr, Errno> {
        let node = self.image.node(file)?;
        let size = node.length() as u64;
        let kind = match node.kind {
            Kind::File(_) => FileType::RegularFile,
            Kind::Directory(_) => FileType::Directory,
        };
        Ok(FileAttr {
            ino: INodeNo(file),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: node.mode,
            nlink: u32::from(node.linked),
            uid: node.owner.0,
            gid: node.owner.1,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        })
    }

    /// Refuses to make a file longer than there is room.
    fn room(&self, file: u64, length: usize) -> Result<(), Errno> {
        let more = length.saturating_sub(self.image.content(file)?.length()) as u64;
        match self.faults.capacity {
            Some(capacity) if more > 0 && self.image.used() + more > capacity => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    fn sync(&mut self, file: u64) -> Result<(), Errno> {
        let path = self.image.node(file)?.path.clone();
        if self.notes.sync(&path, &mut self.faults) {
            self.image.fail_sync(file)?;
            return Err(Errno::EIO);
        }
        self.image.sync(file)
    }

    fn resize(&mut self, file: u64, length: u64) -> Result<(), Errno> {
        self.room(file, length as usize)?;
        self.image.content_mut(file)?.set_length(length as usize);
        Ok(())
    }

    fn write(&mut self, file: u64, offset: u64, bytes: &[u8], flags: OpenFlags) -> Result<(), Errno> {
        self.room(file, offset as usize + bytes.len())?;
        self.image.content_mut(file)?.write(offset as usize, bytes);
        let flags = OFlags::from_bits_retain(flags.0 as u32);
        // Kinder than a disk has to be: what was written before goes along.
        if flags.intersects(OFlags::DSYNC | OFlags::SYNC) { self.sync(file) } else { Ok(()) }
    }
}

/// The file system, as the kernel calls it.
pub struct Mounted(pub Arc<Mutex<State>>);

/// What a panicking test leaves behind is still served: the program under test shall not hang.
pub fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mounted {
    fn sync(&self, file: INodeNo, reply: ReplyEmpty) {
        let delay = lock(&self.0).faults.delay;
        if delay.is_zero() {
            return answer(lock(&self.0).sync(file.0), reply);
        }
        // Everything else goes on meanwhile.
        let state = Arc::clone(&self.0);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            answer(lock(&state).sync(file.0), reply);
        });
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(result: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&NEVER, &attributes, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = lock(&self.0);
        entry(state.image.lookup(parent.0, name).and_then(|file| state.attributes(file)), reply);
    }

    fn getattr(&self, _: &Request, file: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).attributes(file.0) {
            Ok(attributes) => reply.attr(&NEVER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        file: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let mut change = || {
            if let Some(size) = size {
                state.resize(file.0, size)?;
            }
            let node = state.image.node_mut(file.0)?;
            node.mode = mode.map_or(node.mode, |mode| (mode & 0o7777) as u16);
            node.owner = (uid.unwrap_or(node.owner.0), gid.unwrap_or(node.owner.1));
            state.attributes(file.0)
        };
        match change() {
            Ok(attributes) => reply.attr(&NEVER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut state = lock(&self.0);
        let (kind, owner) = (Kind::Directory(Names::default()), (request.uid(), request.gid()));
        let made = state.image.create(parent.0, name, kind, mode & !umask, owner);
        entry(made.and_then(|file| state.attributes(file)), reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut state = lock(&self.0);
        let (kind, owner) = (Kind::File(Content::default()), (request.uid(), request.gid()));
        let made = state.image.create(parent.0, name, kind, mode & !umask, owner);
        match made.and_then(|file| state.attributes(file)) {
            Ok(attributes) => {
                reply.created(&NEVER, &attributes, GENERATION, FileHandle(0), FopenFlags::FOPEN_DIRECT_IO)
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(lock(&self.0).image.remove(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(lock(&self.0).image.remove(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != newparent || !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        answer(lock(&self.0).image.rename(parent.0, name, newname), reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).image.content(file.0) {
            Ok(content) => reply.data(content.read(offset as usize, size as usize)),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).write(file.0, offset, data, flags) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        file: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = lock(&self.0);
        let grown = match state.image.content(file.0).map(|content| content.length() as u64) {
            Ok(now) if now < offset + length => state.resize(file.0, offset + length),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno),
        };
        answer(grown, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, file: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(file, reply);
    }

    fn fsyncdir(&self, _: &Request, file: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(file, reply);
    }

    fn readdir(&self, _: &Request, file: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let state = lock(&self.0);
        let names = match state.image.names(file.0) {
            Ok(names) => names,
            Err(errno) => return reply.error(errno),
        };
        // Where `..` leads is nobody's business: the kernel knows by itself.
        let dots = [(OsStr::new("."), file.0), (OsStr::new(".."), ROOT)];
        let entries = dots.into_iter().chain(names.iter().map(|(name, file)| (name.as_os_str(), file)));
        for (place, (name, file)) in entries.enumerate().skip(offset as usize) {
            let kind = state.attributes(file).map_or(FileType::RegularFile, |attributes| attributes.kind);
            if reply.add(INodeNo(file), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = lock(&self.0);
        let total = state.faults.capacity.unwrap_or(ROOMY);
        let free = total.saturating_sub(state.image.used()) / BLOCK;
        reply.statfs(total / BLOCK, free, free, 1 << 20, 1 << 20, BLOCK as u32, 255, BLOCK as u32);
    }
}
