//! Many runs at a time: mostly they wait for a disk that is to be tried again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

/// Whoever runs longer hangs. Several waits of 20 s fit into it.
const HANG: Duration = Duration::from_secs(200);

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes every panic on a thread that is none of the tests': those are the library's.
pub fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            // The ledger's thread is there for sled to panic on: it is caught, and told in health.
            if thread.name().is_some_and(|name| name.starts_with("outlast") && name != "outlast-ledger") {
                let text = format!("{}: {panic}", thread.name().unwrap_or_default());
                PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            }
            before(panic);
        }));
    });
}

/// Runs each case, `together` at a time. Panics if one does or hangs, saying how to repeat it, or if the library
/// panicked meanwhile.
pub fn run_all<C: Sync + std::fmt::Display, T: Send>(
    cases: &[C],
    together: usize,
    again: impl Fn(&C) -> String + Sync,
    run: impl Fn(&C) -> T + Sync,
) -> Vec<T> {
    watch_for_panics();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let failures = Mutex::new(Vec::new());
    let running: Vec<Mutex<Option<(usize, Instant)>>> = (0..together).map(|_| Mutex::new(None)).collect();
    let lock = |place: usize| running[place].lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..together)
            .map(|place| {
                let (next, results, failures, run, again) = (&next, &results, &failures, &run, &again);
                let lock = &lock;
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(index) else { return };
                        *lock(place) = Some((index, Instant::now()));
                        let result = catch_unwind(AssertUnwindSafe(|| run(case)));
                        *lock(place) = None;
                        match result {
                            Ok(result) => results.lock().unwrap_or_else(PoisonError::into_inner).push(result),
                            Err(panic) => {
                                let text = panic.downcast_ref::<String>().cloned();
                                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
                                let text = format!(
                                    "FAILED {case}: {}\nagain: {}",
                                    text.unwrap_or_default(),
                                    again(&cases[index])
                                );
                                println!("{text}");
                                failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                            }
                        }
                    }
                })
            })
            .collect();
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(20));
            for place in 0..together {
                let hangs = lock(place).filter(|(_, begun)| begun.elapsed() > HANG);
                if let Some((index, _)) = hangs {
                    // A thread cannot be ended from outside: this is the end of the test program.
                    eprintln!("HANGS {}\nagain: {}", cases[index], again(&cases[index]));
                    std::process::abort();
                }
            }
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
    let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(panics.is_empty(), "the library panicked: {panics:#?}");
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}
