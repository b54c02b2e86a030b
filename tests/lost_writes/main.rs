//! Disks that lose what was not synced, that fail to sync, and that take their time, under a whole process.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod disk;
#[path = "../shows/mod.rs"]
mod shows;
