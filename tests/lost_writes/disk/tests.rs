//! The disk itself: an instrument that loses too little proves nothing, one that loses too much proves falsehoods.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};

use super::{Disk, Faults, Image, Loss, Rule};

fn synced_directory(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// A file with a durable name.
fn file(disk: &Disk, name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(disk.root().join(name)).unwrap();
    synced_directory(disk.root());
    file
}

/// A power cut, and the disk as it is found afterwards.
fn cut(disk: Disk, loss: Loss) -> Disk {
    Disk::mount(disk.unmount().cut(loss, &mut Rng::with_seed(7)))
}

fn read(disk: &Disk, name: &str) -> Option<Vec<u8>> {
    match fs::read(disk.root().join(name)) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

#[test]
fn what_was_written_and_not_synced_is_gone() {
    let disk = Disk::mount(Image::new());
    let mut file = file(&disk, "a");
    file.write_all(b"never synced").unwrap();
    assert_eq!(read(&disk, "a").unwrap(), b"never synced", "before the power cut everybody sees it");
    drop(file);
    assert_eq!(read(&cut(disk, Loss::Everything), "a").unwrap(), b"");
}

#[test]
fn what_was_synced_stays() {
    for sync in [File::sync_all, File::sync_data] {
        let disk = Disk::mount(Image::new());
        let mut file = file(&disk, "a");
        file.write_all(b"synced").unwrap();
        sync(&file).unwrap();
        file.write_all(b" and more").unwrap();
        drop(file);
        assert_eq!(read(&cut(disk, Loss::Everything), "a").unwrap(), b"synced");
    }
    let disk = Disk::mount(Image::new());
    let path = disk.root().join("b");
    let options = OpenOptions::new().write(true).create(true).custom_flags(OFlags::DSYNC.bits() as i32).clone();
    options.open(path).unwrap().write_all(b"with O_DSYNC").unwrap();
    synced_directory(disk.root());
    assert_eq!(read(&cut(disk, Loss::Everything), "b").unwrap(), b"with O_DSYNC");
}

#[test]
fn a_sync_of_one_file_is_none_of_another() {
    let disk = Disk::mount(Image::new());
    let (mut one, mut other) = (file(&disk, "a"), file(&disk, "b"));
    one.write_all(b"one").unwrap();
    other.write_all(b"other").unwrap();
    one.sync_all().unwrap();
    drop((one, other));
    let disk = cut(disk, Loss::Everything);
    assert_eq!((read(&disk, "a").unwrap(), read(&disk, "b").unwrap()), (b"one".to_vec(), Vec::new()));
}

#[test]
fn a_name_without_a_directory_sync_is_gone() {
    let disk = Disk::mount(Image::new());
    let mut file = File::create(disk.root().join("a")).unwrap();
    file.write_all(b"synced, but nameless").unwrap();
    file.sync_all().unwrap();
    fs::create_dir(disk.root().join("directory")).unwrap();
    File::create(disk.root().join("directory/b")).unwrap().sync_all().unwrap();
    synced_directory(&disk.root().join("directory"));
    drop(file);
    let disk = cut(disk, Loss::Everything);
    assert_eq!(fs::read_dir(disk.root()).unwrap().count(), 0);
}

#[test]
fn a_rename_and_a_removal_are_undone_without_a_directory_sync() {
    let disk = Disk::mount(Image::new());
    for name in ["old", "replaced", "removed"] {
        let mut file = file(&disk, name);
        file.write_all(name.as_bytes()).unwrap();
        file.sync_all().unwrap();
    }
    let root = disk.root();
    fs::rename(root.join("old"), root.join("replaced")).unwrap();
    fs::remove_file(root.join("removed")).unwrap();
    assert_eq!(read(&disk, "replaced").unwrap(), b"old");
    assert_eq!((read(&disk, "old"), read(&disk, "removed")), (None, None));
    let again = disk.unmount();
    let disk = Disk::mount(again.cut(Loss::Everything, &mut Rng::with_seed(7)));
    for name in ["old", "replaced", "removed"] {
        assert_eq!(read(&disk, name).unwrap(), name.as_bytes());
    }
    let disk = Disk::mount(again);
    synced_directory(disk.root());
    let disk = cut(disk, Loss::Everything);
    assert_eq!(read(&disk, "replaced").unwrap(), b"old");
    assert_eq!((read(&disk, "old"), read(&disk, "removed")), (None, None));
}

#[test]
fn unsynced_writes_are_torn_at_sectors_and_come_in_any_order() {
    let disk = Disk::mount(Image::new());
    let file = file(&disk, "a");
    file.write_all_at(&[1; 100 * 512], 0).unwrap();
    file.sync_all().unwrap();
    for version in [2, 3] {
        file.write_all_at(&[version; 100 * 512], 0).unwrap();
    }
    drop(file);
    let bytes = read(&cut(disk, Loss::Random { kept: 0.3 }), "a").unwrap();
    let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(sectors.len(), 100, "no length was in doubt");
    assert!(bytes.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "sectors are whole");
    for version in [1, 2, 3] {
        assert!(sectors.contains(&version), "{sectors:?}");
    }
    assert!(sectors.windows(2).any(|pair| pair[0] < pair[1]), "{sectors:?}");
    assert!(sectors.windows(2).any(|pair| pair[0] > pair[1]), "{sectors:?}");
}

#[test]
fn a_cut_that_loses_nothing_loses_nothing() {
    let disk = Disk::mount(Image::new());
    let file = File::create(disk.root().join("a")).unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    file.set_len(4).unwrap();
    file.write_all_at(b"abc", 6).unwrap();
    drop(file);
    let seen = read(&disk, "a").unwrap();
    assert_eq!(seen, b"0123\0\0abc");
    assert_eq!(read(&cut(disk, Loss::Nothing), "a").unwrap(), seen);
}

#[test]
fn a_failed_sync_drops_what_it_was_for_and_the_next_one_says_yes() {
    let disk = Disk::mount(Image::new());
    let mut file = file(&disk, "a");
    file.write_all(b"dropped").unwrap();
    disk.set(Faults { failing: Some(Rule { site: Some("a".into()), skip: 0, for_good: false }), ..Faults::default() });
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    file.sync_data().unwrap();
    assert_eq!(read(&disk, "a").unwrap(), b"dropped", "the page cache lies");
    file.write_all(b" kept").unwrap();
    file.sync_data().unwrap();
    drop(file);
    assert_eq!(read(&cut(disk, Loss::Nothing), "a").unwrap(), b"\0\0\0\0\0\0\0 kept");
}

#[test]
fn a_disk_that_is_broken_for_good_fails_every_sync_until_it_is_mended() {
    let disk = Disk::mount(Image::new());
    let file = file(&disk, "a");
    disk.set(Faults { failing: Some(Rule { site: None, skip: 1, for_good: true }), ..Faults::default() });
    file.sync_all().unwrap();
    for _ in 0..3 {
        file.sync_all().unwrap_err();
        File::open(disk.root()).unwrap().sync_all().unwrap_err();
    }
    disk.set(Faults::default());
    file.sync_all().unwrap();
    assert_eq!(disk.syncs().1, 6);
}

#[test]
fn a_full_disk_says_so() {
    let disk = Disk::mount(Image::new());
    let mut file = file(&disk, "a");
    disk.set(Faults { capacity: Some(8192), ..Faults::default() });
    fallocate(&file, FallocateFlags::empty(), 0, 8000).unwrap();
    file.write_all(&[0; 8000]).unwrap();
    assert_eq!(file.write_all(&[0; 1000]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(rustix::fs::statvfs(disk.root()).unwrap().f_bfree, 0);
    fs::remove_file(disk.root().join("a")).unwrap();
    assert_eq!(rustix::fs::statvfs(disk.root()).unwrap().f_bfree, 2);
}

#[test]
fn a_slow_sync_holds_up_nothing_else() {
    let disk = Disk::mount(Image::new());
    let slow = file(&disk, "a");
    disk.set(Faults { delay: Duration::from_secs(1), ..Faults::default() });
    let begun = Instant::now();
    let syncing = std::thread::spawn(move || slow.sync_all().map(|()| begun.elapsed()));
    let mut file = File::create(disk.root().join("b")).unwrap();
    file.write_all(b"meanwhile").unwrap();
    assert_eq!(read(&disk, "b").unwrap(), b"meanwhile");
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    assert!(syncing.join().unwrap().unwrap() >= Duration::from_secs(1));
}

#[test]
fn it_is_a_file_system_as_programs_know_it() {
    let disk = Disk::mount(Image::new());
    let path = disk.root().join("a");
    let one = file(&disk, "a");
    let other = File::open(&path).unwrap();
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    drop(one);
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();

    other.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::write(&path, b"open").unwrap();
    fs::remove_file(&path).unwrap();
    let mut bytes = [0; 4];
    other.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"open", "a file without a name is still there for whoever has it open");

    fs::create_dir(disk.root().join("directory")).unwrap();
    for number in 0..200 {
        File::create_new(disk.root().join(format!("directory/{number}"))).unwrap();
    }
    File::create_new(disk.root().join("directory/7")).unwrap_err();
    assert_eq!(fs::read_dir(disk.root().join("directory")).unwrap().count(), 200);
    fs::remove_dir(disk.root().join("directory")).unwrap_err();
    fs::remove_dir_all(disk.root().join("directory")).unwrap();
}
