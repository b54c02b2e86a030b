//! The place of the outbox and the limits of the process.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast::Message;

use super::common::disk::{root, run as run_command, skip};
use super::common::{self, Child, Disk};
use super::{NOWHERE, doctor, limited, on_disk, outbox_with, text};

/// Something mounted on a directory of the test's own, until this is dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// `None` where nothing can be mounted.
    fn new(words: &[&str]) -> Option<Self> {
        let dir = on_disk();
        match run_command(root("mount").args(words).arg(dir.path())) {
            Ok(()) => Some(Self(dir)),
            Err(why) => skip(&why),
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run_command(root("umount").arg(self.0.path()));
    }
}

/// Every file below a directory, with its bytes and the time of its last change.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let metadata = std::fs::symlink_metadata(&path).expect("it is there");
        let bytes = if metadata.is_file() { std::fs::read(&path).expect("readable") } else { Vec::new() };
        if metadata.is_dir() {
            found.extend(files(&path));
        }
        found.insert(path, (bytes, metadata.modified().expect("a time")));
    }
    found
}

#[test]
fn a_place_that_is_fine_has_no_problem_and_is_left_as_it_was() {
    let dir = on_disk();
    let outbox = dir.path().join("a/b/outbox");
    let said = doctor(&["--outbox", text(&outbox)]);
    said.is_healthy();
    assert_eq!((&said.report["exists"], &said.report["outbox"]), (&false.into(), &text(&outbox).into()));
    assert!(said.report["free_bytes"].as_u64() > said.report["least_bytes"].as_u64(), "{:#}", said.report);
    assert_eq!(files(dir.path()), BTreeMap::new(), "the probe is removed, and no directory made");

    // As a mounted volume: there, and empty.
    std::fs::create_dir(dir.path().join("volume")).unwrap();
    let said = doctor(&["--outbox", text(&dir.path().join("volume"))]);
    said.is_healthy();
    assert_eq!((&said.report["exists"], files(dir.path()).len()), (&false.into(), 1));

    let outbox = outbox_with(dir.path(), vec![Message::to("orders").payload("1")]);
    let before = files(dir.path());
    let said = doctor(&["--outbox", text(&outbox)]);
    said.is_healthy();
    assert_eq!((&said.report["exists"], &said.report["pending"]), (&true.into(), &1.into()));
    assert!(files(dir.path()) == before, "an outbox that is there is not touched");

    let words = common::run(&["doctor", "--outbox", text(&outbox)], b"");
    assert!(words.stdout.contains("1 message pending") && words.stdout.contains("0 problems"), "{words:?}");
}

#[test]
fn an_outbox_in_memory_is_found() {
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=1g,mode=0777", "tmpfs"]) else { return };
    let said = doctor(&["--outbox", text(&mount.path().join("outbox"))]);
    said.problems_are(&["outbox-in-memory"]);
}

#[test]
fn an_outbox_of_another_user_is_found() {
    let dir = on_disk();
    let outbox = outbox_with(dir.path(), Vec::new());
    std::fs::set_permissions(&outbox, PermissionsExt::from_mode(0o755)).unwrap();
    if let Err(why) = run_command(root("chown").arg("12345").arg(&outbox)) {
        return skip(&why).unwrap_or_default();
    }
    let said = doctor(&["--outbox", text(&outbox)]);
    assert!(said.problem("foreign-owner")["what"].as_str().unwrap().contains("12345"), "{:#}", said.report);
    let _ = run_command(root("chown").arg(rustix::process::getuid().as_raw().to_string()).arg(&outbox));
}

#[test]
fn a_symlink_is_found() {
    let dir = on_disk();
    let outbox = outbox_with(dir.path(), Vec::new());
    let link = dir.path().join("link");
    symlink(&outbox, &link).unwrap();
    doctor(&["--outbox", text(&link)]).problems_are(&["symlink"]);
}

#[test]
fn a_read_only_mount_is_found_with_an_outbox_and_without() {
    let dir = on_disk();
    outbox_with(dir.path(), vec![Message::to("orders").payload("1")]);
    let Some(mount) = Mount::new(&["--bind", text(dir.path())]) else { return };
    run_command(root("mount").args(["-o", "remount,ro,bind"]).arg(mount.path()))
        .expect("a bind mount can be read-only");
    let said = doctor(&["--outbox", text(&mount.path().join("outbox"))]);
    said.problems_are(&["read-only"]);
    assert_eq!(said.report["pending"], 1, "it can be looked at all the same");
    doctor(&["--outbox", text(&mount.path().join("other"))]).problems_are(&["read-only"]);
}

#[test]
fn too_little_space_is_found() {
    let Some(disk) = Disk::new(24) else { return };
    let said = doctor(&["--outbox", text(&disk.root().join("outbox"))]);
    said.problems_are(&["no-space"]);
    assert!(said.report["free_bytes"].as_u64() < said.report["least_bytes"].as_u64(), "{:#}", said.report);
}

#[test]
fn a_disk_without_inodes_is_found() {
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "size=1g,nr_inodes=2,mode=0777", "tmpfs"]) else { return };
    std::fs::write(mount.path().join("last"), "").unwrap();
    doctor(&["--outbox", text(&mount.path().join("outbox"))]).problems_are(&["no-inodes", "outbox-in-memory"]);
}

#[test]
fn an_outbox_that_is_held_is_found_and_the_holder_goes_on() {
    let dir = on_disk();
    let outbox = dir.path().join("outbox");
    let url = format!("redis://{NOWHERE}?stream=s");
    let mut child = Child::spawn(&["produce", "--to", &url, "--outbox", text(&outbox)], dir.path());
    common::wait_until("the outbox is open", Duration::from_secs(60), || outbox.join("status").exists());
    let said = doctor(&["--outbox", text(&outbox)]);
    said.problems_are(&["lock-held"]);
    assert_eq!(said.report["holder"], child.pid());
    assert!(child.is_running(), "{}", child.printed());
    child.kill();
    let said = doctor(&["--outbox", text(&outbox)]);
    said.is_healthy();
    assert!(said.report["holder"].is_null(), "{:#}", said.report);
}

#[test]
fn limits_of_the_process_are_found() {
    let dir = on_disk();
    let outbox = dir.path().join("outbox");
    // In units of 512 bytes or 1 KiB, as the shell pleases: less than a segment of 64 MiB either way.
    limited("-f 1000", &["--outbox", text(&outbox)]).problems_are(&["file-size-limit"]);
    // Not even a probe: the signal would end the program.
    let said = limited("-f 0", &["--outbox", text(&outbox)]);
    said.problem("file-size-limit");
    said.has_note("not-checked");
    limited("-n 40", &["--outbox", text(&outbox)]).problems_are(&["open-files-limit"]);
    limited("-n 200", &["--outbox", text(&outbox)]).is_healthy();
    assert_eq!(files(dir.path()), BTreeMap::new());
}

#[test]
fn a_line_that_is_wrong_is_refused_before_anything_is_looked_at() {
    let dir = on_disk();
    let outbox = dir.path().join("outbox");
    for (words, part) in [
        (vec!["--to", "http://broker"], "scheme"),
        (vec!["--to", "kafka://broker/orders?acks=1"], "acks"),
        (vec!["--to", "redis://broker?streem=x"], "streem"),
        (vec!["--to", "kafka://broker/or,ders"], "topic"),
        (vec!["--to", "kafka://broker/orders", "--timeout", "0s"], "timeout"),
        (vec!["--password-file", "secret"], "--to"),
    ] {
        let line: Vec<&str> = ["doctor", "--outbox", text(&outbox)].into_iter().chain(words).collect();
        let output = common::run(&line, b"");
        assert!(output.code == Some(2) && output.stderr.contains(part), "{line:?}: {output:?}");
    }
    assert_eq!(files(dir.path()), BTreeMap::new());
}
