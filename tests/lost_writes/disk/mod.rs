//! A disk that forgets what was not synced: a FUSE file system in this process's memory, for a program in another.
//!
//! A file's bytes are durable once it was synced, a name once its directory was, and nothing else is:
//! [`Disk::unmount`] gives the image, [`Image::cut`] what a power cut leaves of it, and a fresh mount of that has nothing
//! cached. It assumes that the program under test is dead before the disk is unmounted, and that nobody in this process
//! touches a file on it while a lock of its state is held. It refuses what nothing under test does: links, devices,
//! renames between directories, holes.
//!
//! Needs `/dev/fuse`, and to be root or to have `fusermount3` (Debian: `fuse3`).

mod content;
mod faults;
mod image;
mod mount;
mod names;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, MountOption};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use faults::Notes;
pub use faults::{Faults, Rule};
pub use image::Image;
use mount::{Mounted, State, lock};

/// What a power cut takes of that which was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    Everything,
    /// The page cache was written back just in time.
    Nothing,
    /// Each sector, length and directory by itself; whole with this probability.
    Random {
        kept: f64,
    },
}

impl Loss {
    pub fn draw(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..8) {
            0 | 1 => Self::Everything,
            2 => Self::Nothing,
            _ => Self::Random { kept: *rng.choice(&[0.05, 0.5, 0.95]).unwrap_or(&0.5) },
        }
    }
}

/// A mounted image; unmounted when this is dropped.
pub struct Disk {
    directory: TempDir,
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts an image. Fails the test where that is impossible.
    #[track_caller]
    pub fn mount(image: Image) -> Self {
        let directory = tempfile::Builder::new().prefix("lost-writes-").tempdir().expect("a mount point");
        let state = State { image, faults: Faults::default(), notes: Notes::default() };
        let state = Arc::new(Mutex::new(state));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lost-writes".into()), MountOption::NoAtime];
        let session = fuser::spawn_mount(Mounted(Arc::clone(&state)), directory.path(), &config);
        let session = session.unwrap_or_else(|error| {
            panic!(
                "no FUSE file system can be mounted here: {error}. It takes /dev/fuse, and root or the package fuse3"
            )
        });
        Self { directory, state, session: Some(session) }
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// From now on this goes wrong; nothing else.
    pub fn set(&self, faults: Faults) {
        let mut state = lock(&self.state);
        state.notes.mend();
        state.faults = faults;
    }

    /// The sites of all syncs so far, in order, and how many syncs failed.
    pub fn syncs(&self) -> (Vec<String>, usize) {
        let state = lock(&self.state);
        (state.notes.syncs.clone(), state.notes.failed)
    }

    /// What is on it and in its cache at this moment, whatever happens to it later.
    pub fn image(&self) -> Image {
        lock(&self.state).image.clone()
    }

    /// Unmounts it, and gives what is on it and in its cache.
    #[track_caller]
    pub fn unmount(mut self) -> Image {
        if let Some(session) = self.session.take() {
            let ended = match detach(self.root()) {
                Ok(()) => session.join(),
                Err(_) => session.umount_and_join(),
            };
            // Whoever reads from the kernel while it is unmounted hears now and then that the connection was aborted.
            let ended = ended.or_else(|error| match error.kind() {
                io::ErrorKind::ConnectionAborted => Ok(()),
                _ => Err(error),
            });
            ended.expect("the file system ends");
        }
        lock(&self.state).image.clone()
    }
}

/// Only root may; others have a program for it, which `fuser` knows.
fn detach(root: &Path) -> rustix::io::Result<()> {
    rustix::mount::unmount(root, UnmountFlags::DETACH)
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.session.is_some() && detach(self.root()).is_err() {
            // Its own drop unmounts.
            self.session = None;
        }
    }
}
