//! The program under test as a child process: started, waited for, killed in any case.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::shows::{LONG, myself};

/// A child; killed when this is dropped.
pub struct Running {
    pub process: Child,
    out: Option<BufReader<ChildStdout>>,
    errors: PathBuf,
}

impl Running {
    /// Starts it with this work. What it says on its standard error goes to the file `name` in `notes`.
    pub fn start(words: &[String], notes: &Path, name: &str) -> Self {
        let errors = notes.join(name);
        let file = File::create(&errors).expect("a file for its errors");
        let words: Vec<&dyn AsRef<OsStr>> = words.iter().map(|word| word as _).collect();
        let process =
            myself(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).spawn().expect("a child starts");
        Self { process, out: None, errors }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Waits until it prints this, or ends.
    pub fn wait_for_line(&mut self, wanted: &str) {
        let out = self.out.get_or_insert_with(|| BufReader::new(self.process.stdout.take().expect("a pipe")));
        out.lines().map_while(Result::ok).find(|line| line.ends_with(wanted));
    }

    /// Lets it go on: see [`wait_to_be_told`].
    pub fn tell(&mut self) {
        let input = self.process.stdin.as_mut().expect("a pipe");
        // It may have ended.
        let _ = input.write_all(b"\n");
    }

    /// What its threads wait for in the kernel.
    fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).into_iter().flatten().flatten();
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        tasks.map(|task| format!("{}: {}", read(task.path().join("comm")), read(task.path().join("wchan")))).collect()
    }

    /// Waits for its end; fails the test if it takes so long that it hangs.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.end().unwrap_or_else(|| panic!("it hangs: {:?} {}", self.threads(), self.said()))
    }

    /// Waits for its end; `None` if it takes so long that it hangs.
    pub fn end(&mut self) -> Option<ExitStatus> {
        let begun = Instant::now();
        loop {
            match self.process.try_wait().expect("it can be waited for") {
                None if begun.elapsed() < LONG => std::thread::sleep(Duration::from_millis(1)),
                ended => return ended,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the child: waits for its parent's word.
pub fn wait_to_be_told() {
    std::io::stdin().read_line(&mut String::new()).expect("the parent speaks");
}
