//! Out of memory: an allocation fails and the process aborts, or the kernel kills it (RELIABILITY.md 16).
//!
//! The child forbids itself more data at a random moment (`RLIMIT_DATA`) and eats what is left, so that the library's
//! own allocations fail, wherever it is. With `OUTLAST_TEST_CGROUP`, a directory in which a memory cgroup can be made,
//! every other child is killed by the kernel at a cgroup's limit instead.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::LIVES;
use crate::life::{self, Life, REDELIVERY};
use crate::oracle::{self, Bounds};
use crate::rounds;
use outlast::SendErrorKind;

/// What a process may still take when the limit comes, at most.
const SLACK: u64 = 4 << 20;
/// A cgroup's limit: what the child takes, and a little.
const CGROUP_BYTES: u64 = 48 << 20;

/// Sends until memory is short.
pub fn send(dir: &Path, seed: u64, life: u64, how: &str) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 1);
    let (delay, slack) = (Duration::from_micros(rng.u64(..60_000)), rng.u64(..SLACK));
    let is_limited = how == "limit";
    let starve = move || {
        std::thread::sleep(delay);
        if is_limited {
            let current = Some(data_bytes() + slack);
            setrlimit(Resource::Data, Rlimit { current, ..getrlimit(Resource::Data) }).expect("less is always allowed");
        }
        eat();
    };
    let starve = move || drop(std::thread::spawn(starve));
    // One in four while it opens.
    if rng.u8(..4) == 0 {
        starve();
        life::send(dir, seed, life, usize::MAX, || {});
    } else {
        life::send(dir, seed, life, usize::MAX, starve);
    }
}

/// Bytes of data the process has, as `RLIMIT_DATA` counts them.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).expect("VmData");
    1024 * line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
}

/// Takes memory until there is none, and lets nobody else have it.
fn eat() -> ! {
    let mut eaten = Vec::new();
    let mut size: usize = 1 << 20;
    loop {
        let mut bite: Vec<u8> = Vec::new();
        if bite.try_reserve_exact(size).is_ok() && eaten.try_reserve(1).is_ok() {
            // Untouched pages count for no cgroup.
            bite.resize(size, 1);
            eaten.push(bite);
        } else if size > 64 {
            size /= 2;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A memory cgroup of version 1 or 2, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(parent: &str) -> Self {
        let group = Self(Path::new(parent).join(format!("outlast-{:x}", fastrand::u64(..))));
        std::fs::create_dir(&group.0).unwrap_or_else(|error| panic!("no cgroup can be made in {parent}: {error}"));
        let limits = ["memory.limit_in_bytes", "memory.max"];
        let limit = limits.iter().map(|name| group.0.join(name)).find(|path| path.exists());
        let limit = limit.unwrap_or_else(|| panic!("{parent} has no memory controller"));
        std::fs::write(limit, CGROUP_BYTES.to_string()).expect("the limit can be set");
        group
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Left behind it is empty, and whoever set the variable can remove it.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// One life, ended by the want of memory. Says whether that killed it.
fn starve(dir: &Path, life: u64, rng: &mut fastrand::Rng, cgroups: Option<&str>) -> bool {
    let group = cgroups.filter(|_| life.is_multiple_of(2)).map(Cgroup::make);
    let how = if group.is_some() { "cgroup" } else { "limit" };
    let mut command = life::command(dir, life, &[&"starve", &dir, &rng.u64(..).to_string(), &life.to_string(), &how]);
    if let Some(group) = &group {
        let tasks = group.0.join("cgroup.procs");
        // SAFETY: between fork and exec only `open`, `write` and `close` are called; the path was made before.
        unsafe { command.pre_exec(move || std::fs::write(&tasks, "0")) };
    }
    // To print where it happened takes memory, too: it would hang in there.
    let mut child = Life::of(command.env("RUST_BACKTRACE", "0"));
    let ended = life::wait_for_end(&mut child);
    // One that had what it needed goes on with that, and dies like the others.
    child.kill().unwrap();
    child.wait().unwrap();
    let aborted = [Signal::ABORT, Signal::KILL].map(Signal::as_raw);
    let by_want = ended.is_none_or(|status| status.signal().is_some_and(|signal| aborted.contains(&signal)));
    // A thread that cannot be started, or a pipe that cannot be read into nothing, is an error as well.
    let by_error = ended.is_some_and(|status| !status.success());
    assert!(by_want || by_error, "life {life} ended ({ended:?}): {}", life::said(dir, life));
    ended.is_some() && by_want
}

#[test]
fn out_of_memory_nothing_acknowledged_is_lost() {
    let name = "memory::out_of_memory_nothing_acknowledged_is_lost";
    let cgroups = std::env::var("OUTLAST_TEST_CGROUP").ok();
    let rounds = rounds::count(20).div_ceil(LIVES);
    let starved = AtomicUsize::new(0);
    let totals = rounds::run(name, rounds, LIVES, |dir, seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let ended = (1..=LIVES).filter(|life| starve(dir, *life, &mut rng, cgroups.as_deref())).count();
        starved.fetch_add(ended, Ordering::Relaxed);
        life::drain(dir, false);
        let refusals = &[SendErrorKind::Full, SendErrorKind::Storage, SendErrorKind::Closed];
        oracle::judge(dir, &Bounds { refusals, ..Bounds::new(LIVES as usize, REDELIVERY) })
    });
    let starved = starved.into_inner();
    assert!(totals.acked > totals.kills, "the children did not get far enough to prove anything");
    println!("{starved} of {} ended by the want of memory itself", totals.kills);
    assert!(starved * 2 > totals.kills, "only {starved} of {} were starved", totals.kills);
}
