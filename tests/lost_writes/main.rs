//! Disks that lose what was not synced, that fail to sync, and that take their time, under a whole process.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod children;
mod disk;
mod failed_sync;
mod life;
mod oracle;
mod peer;
#[cfg(feature = "planted")]
mod planted;
mod power_cut;
mod rounds;
#[path = "../shows/mod.rs"]
mod shows;
mod sled_log;
mod slow_disk;

#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(work) = shows::work() else { return };
    match work[0].as_str() {
        "life" => life::live(&work[1..]),
        "script" => failed_sync::script(&work[1..]),
        "slow" => slow_disk::slow(work[1].as_ref()),
        other => panic!("{other:?} is no work"),
    }
}
