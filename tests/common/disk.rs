//! A small disk of a test's own: an image on a loop device, which can be filled, and become read-only.
//!
//! Mounting takes root, or a sudo that asks for no password. Where neither is to be had, [`skip`] says what becomes of the
//! test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A mounted ext4 file system; it is unmounted when this is dropped.
pub struct Disk {
    directory: TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes one; `None` where that cannot be done (see [`skip`]).
    pub fn new(megabytes: u64) -> Option<Self> {
        Self::on(tempfile::tempdir().expect("a temporary directory"), megabytes)
    }

    /// The same with its image in this directory.
    pub fn on(directory: TempDir, megabytes: u64) -> Option<Self> {
        let mut disk = Self { directory, mounted: false };
        let image = File::create(disk.image()).expect("an image");
        image.set_len(megabytes << 20).expect("a sparse image");
        fs::create_dir(disk.root()).expect("a mount point");
        let owner = format!("root_owner={}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        // Nothing is kept back for root: full is full, whoever runs the tests.
        let made = run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", &owner]).arg(disk.image()));
        match made.and_then(|()| disk.mount()) {
            Ok(()) => Some(disk),
            Err(why) => skip(&why),
        }
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// A file that leaves about so many bytes free.
    pub fn fill(&self, leave: u64) {
        let stat = rustix::fs::statvfs(self.root()).expect("a file system");
        let bytes = (stat.f_bavail * stat.f_frsize).checked_sub(leave).expect("more is free than is to be left");
        let file = File::create(self.ballast()).expect("a file");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).expect("the space is free");
    }

    /// Takes that file away.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("the disk is full");
    }

    fn ballast(&self) -> PathBuf {
        self.root().join("ballast")
    }

    /// Read-only, or writable again. Nothing on it may be open for writing.
    pub fn remount(&self, option: &str) {
        let done = run(root("mount").arg("-o").arg(format!("remount,{option}")).arg(self.root()));
        done.unwrap_or_else(|why| panic!("remount,{option}: {why}"));
    }

    /// Read-only from one moment to the next, as after an error of the device, whatever is open on it.
    pub fn abort(&self) {
        self.remount("abort");
    }

    /// What an operator does then. Nothing on it may be open.
    pub fn repair(&mut self) {
        self.unmount().expect("nothing holds it");
        // 1: errors were found, and corrected.
        let checked = Command::new("e2fsck").env("PATH", path()).arg("-fy").arg(self.image()).output();
        let checked = checked.expect("e2fsck runs");
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        self.mount().expect("it can be mounted again");
    }

    fn mount(&mut self) -> Result<(), String> {
        run(root("mount").args(["-o", "loop"]).arg(self.image()).arg(self.root()))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        run(root("umount").arg(self.root()))?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            // What holds it goes away with the test.
            let _ = run(root("umount").arg("--lazy").arg(self.root()));
        }
    }
}

/// What needs a mount that cannot be had: a failure in CI, elsewhere left out, which is said past the harness, as it
/// keeps to itself what a passing test prints.
pub fn skip<T>(why: &str) -> Option<T> {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let text = format!("{test}: nothing can be mounted here, as root or by sudo without a password: {why}");
    assert!(std::env::var_os("CI").is_none(), "{text}");
    let _ = writeln!(std::io::stderr(), "SKIPPED, in whole or in part: {text}");
    None
}

/// A command as root.
pub fn root(program: &str) -> Command {
    if rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

/// Runs it to its end; what it said if it failed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.env("PATH", path()).stdin(Stdio::null()).output();
    match output {
        Ok(Output { status, .. }) if status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", Path::new(command.get_program()).display())),
    }
}

/// The tools lie where a user's search path may not lead.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
