use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::thread;

use super::*;

fn open(path: &Path) -> Result<Directory, DirectoryError> {
    Directory::open(path, &DirectoryOptions::default())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("is there").permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// Every path below, with its mode, length and time of change: what a refusal must leave as it was.
fn picture(path: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64)> {
    let mut picture = BTreeMap::new();
    let mut left = vec![path.to_path_buf()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("is there");
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
        picture.insert(path, (metadata.mode(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
    }
    picture
}

/// Opens what must be refused, and sees that nothing changed below `whole`.
fn refused(whole: &Path, path: &Path) -> DirectoryError {
    let before = picture(whole);
    let error = open(path).expect_err("must be refused");
    assert_eq!(picture(whole), before, "{error}");
    assert!(error.to_string().contains(&whole.display().to_string()), "names no path: {error}");
    error
}

#[test]
fn a_new_outbox_is_private_and_keeps_its_id() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("a/b/outbox");
    let directory = open(&path).expect("made");
    assert!(directory.created());
    let id = *directory.id();
    for name in ["", "wal", "dead", "ledger", "damaged"] {
        assert_eq!(mode(&path.join(name)), 0o700, "{name}");
    }
    for name in ["LOCK", "IDENTITY"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
    drop(directory);
    let directory = open(&path).expect("opened");
    assert!(!directory.created() && *directory.id() == id);
}

/// Makes an outbox where the environment says; run in a process of its own, which has a umask of its own.
#[test]
#[ignore = "a helper of the_umask_changes_nothing"]
fn make_an_outbox() {
    let path = std::env::var_os("OUTLAST_TEST_PATH").expect("run by its test");
    let directory = open(Path::new(&path)).expect("made");
    files::replace(&directory.paths().status(), b"{}", files::Durability::Cached).expect("written");
    drop(directory);
    open(Path::new(&path)).expect("opened again");
}

#[test]
fn the_umask_changes_nothing() {
    for umask in ["000", "022", "077", "377"] {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("outbox");
        let output = std::process::Command::new("sh")
            .args(["-c", "umask \"$1\" && exec \"$0\" --ignored --exact outbox::directory::tests::make_an_outbox"])
            .arg(std::env::current_exe().expect("this test"))
            .arg(umask)
            .env("OUTLAST_TEST_PATH", &path)
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{umask}: {}", String::from_utf8_lossy(&output.stdout));
        for name in ["", "wal", "dead", "ledger", "damaged"] {
            assert_eq!(mode(&path.join(name)), 0o700, "umask {umask}: {name}");
        }
        for name in ["LOCK", "IDENTITY", "status"] {
            assert_eq!(mode(&path.join(name)), 0o600, "umask {umask}: {name}");
        }
    }
}

#[test]
fn a_second_opener_is_told_who_holds_the_outbox_and_the_holder_is_left_alone() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    let first = open(&path).expect("opened");
    let error = refused(&path, &path);
    let DirectoryError::Held { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, Some(std::process::id()));
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    assert_eq!(Inspected::at(&path).expect("inspected").holder, Some(*holder));
    drop(first);
    assert_eq!(Inspected::at(&path).expect("inspected").holder, None);
    open(&path).expect("free again");
}

#[test]
fn who_waits_for_the_lock_gets_it_when_it_is_free() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    let first = open(&path).expect("opened");
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let options = DirectoryOptions { lock_wait: Duration::from_secs(30), ..Default::default() };
            Directory::open(&path, &options).map(|directory| *directory.id())
        });
        let id = *first.id();
        drop(first);
        assert_eq!(second.join().expect("joined").expect("opened"), id);
    });
}

#[test]
fn links_to_an_outbox_are_refused_with_or_without_a_slash() {
    let temp = tempfile::tempdir().expect("tempdir");
    let (real, link) = (temp.path().join("real"), temp.path().join("link"));
    drop(open(&real).expect("made"));
    symlink(&real, &link).expect("symlink");
    for path in [link.clone(), link.join(""), link.join(".")] {
        let error = refused(temp.path(), &path);
        assert!(matches!(error, DirectoryError::Symlink { .. }), "{error}");
    }
    symlink(temp.path().join("nowhere"), temp.path().join("dangling")).expect("symlink");
    let error = refused(temp.path(), &temp.path().join("dangling"));
    assert!(matches!(error, DirectoryError::Symlink { .. }), "{error}");
}

#[test]
fn a_file_or_a_fifo_in_the_directorys_place_is_refused() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("file");
    fs::write(&path, "x").expect("write");
    let error = refused(temp.path(), &path);
    assert!(matches!(error, DirectoryError::NotADirectory { found: "plain file", .. }), "{error}");
    let error = refused(temp.path(), &path.join("outbox"));
    assert!(matches!(error, DirectoryError::NotADirectory { .. }), "{error}");
    let fifo = temp.path().join("fifo");
    make_fifo(&fifo);
    let error = refused(temp.path(), &fifo);
    assert!(matches!(error, DirectoryError::NotADirectory { found: "FIFO", .. }), "{error}");
}

fn make_fifo(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
    assert!(status.success());
}

#[test]
fn planted_links_fifos_and_directories_in_place_of_our_files_are_refused() {
    for name in ["LOCK", "IDENTITY", "wal/0000000000000001.seg", "dead/0000000000000001.seg"] {
        for planted in ["symlink", "hard link", "FIFO", "directory"] {
            let temp = tempfile::tempdir().expect("tempdir");
            let path = temp.path().join("outbox");
            drop(open(&path).expect("made"));
            let (file, victim) = (path.join(name), temp.path().join("victim"));
            fs::write(&victim, "precious").expect("write");
            let _ = fs::remove_file(&file);
            match planted {
                "symlink" => symlink(&victim, &file).expect("symlink"),
                "hard link" => fs::hard_link(&victim, &file).expect("hard link"),
                "FIFO" => make_fifo(&file),
                _ => fs::create_dir(&file).expect("mkdir"),
            }
            let error = refused(temp.path(), &path);
            let right = match planted {
                "symlink" => matches!(error, DirectoryError::Symlink { .. }),
                "hard link" => matches!(error, DirectoryError::HardLink { links: 2, .. }),
                _ => matches!(error, DirectoryError::NotAPlainFile { .. }),
            };
            assert!(right, "{name} as {planted}: {error}");
        }
    }
}

#[test]
fn a_linked_subdirectory_is_refused() {
    for name in ["wal", "dead", "ledger", "damaged"] {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("outbox");
        drop(open(&path).expect("made"));
        fs::remove_dir(path.join(name)).expect("rmdir");
        symlink(temp.path(), path.join(name)).expect("symlink");
        let error = refused(temp.path(), &path);
        assert!(matches!(error, DirectoryError::Symlink { .. }), "{name}: {error}");
    }
}

#[test]
fn a_foreign_owner_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: only root can give a directory away");
        return;
    }
    for name in ["", "wal", "IDENTITY"] {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("outbox");
        drop(open(&path).expect("made"));
        std::os::unix::fs::chown(path.join(name), Some(12_345), None).expect("chown");
        let error = refused(&path, &path);
        assert!(matches!(error, DirectoryError::ForeignOwner { owner: 12_345, .. }), "{name}: {error}");
        // Who only looks may be root.
        Inspected::at(&path).expect("inspected");
    }
}

#[test]
fn a_read_only_directory_is_refused() {
    if rustix::process::geteuid().is_root() {
        println!("not run: root may write everywhere");
        return;
    }
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    drop(open(&path).expect("made"));
    chmod(&path, 0o500);
    let error = refused(&path, &path);
    assert!(matches!(error, DirectoryError::ReadOnly { .. }), "{error}");
    chmod(&path, 0o700);
}

#[test]
fn a_read_only_file_system_is_refused() {
    // The kernel's own, which every container mounts so.
    let path = Path::new("/proc/sys/outbox");
    let error = open(path).expect_err("must be refused");
    assert!(matches!(error, DirectoryError::ReadOnly { .. } | DirectoryError::Io { .. }), "{error}");
    assert!(error.to_string().contains("/proc/sys/outbox"), "{error}");
}

#[test]
fn a_newer_format_is_refused_and_named() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    drop(open(&path).expect("made"));
    let text = "outlast 2 something=else";
    let line = format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()));
    fs::write(path.join("IDENTITY"), line).expect("write");
    let error = refused(&path, &path);
    assert!(matches!(error, DirectoryError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    let error = Inspected::at(&path).expect_err("must be refused");
    assert!(matches!(error, DirectoryError::NewerFormat { found: 2, .. }), "{error}");
}

#[test]
fn others_rights_are_taken_away_if_the_directory_is_empty_and_refused_if_not() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    fs::create_dir(&path).expect("mkdir");
    chmod(&path, 0o777);
    drop(open(&path).expect("empty: tightened"));
    assert_eq!(mode(&path), 0o700);
    chmod(&path, 0o755);
    drop(open(&path).expect("only readable: tightened"));
    assert_eq!(mode(&path), 0o700);
    chmod(&path, 0o702);
    let error = refused(&path, &path);
    assert!(matches!(error, DirectoryError::OpenToOthers { mode: 0o702, .. }), "{error}");
}

/// Everything below, with what a volume's `fsGroup` adds to its mode.
fn give_to_the_group(path: &Path) {
    for path in picture(path).into_keys().filter(|path| !fs::symlink_metadata(path).expect("there").is_symlink()) {
        let more = if path.is_dir() { 0o2070 } else { 0o060 };
        chmod(&path, mode(&path) | more);
    }
}

/// An outbox with a file of each kind in it.
fn full_outbox(temp: &Path) -> PathBuf {
    let path = temp.join("outbox");
    drop(open(&path).expect("made"));
    fs::create_dir(path.join("ledger/1")).expect("mkdir");
    for name in ["wal/free-0000000000000001.seg", "ledger/1/db", "damaged/MANIFEST", "status"] {
        fs::write(path.join(name), "x").expect("write");
    }
    path
}

/// Kubernetes sets group and mode of a volume at each mount: the outbox refused to open after each restart of its pod.
#[test]
fn a_groups_rights_are_taken_away_from_all_of_an_outbox() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = full_outbox(temp.path());
    for _ in 0..2 {
        give_to_the_group(&path);
        assert_eq!((mode(&path), mode(&path.join("ledger/1/db")) & 0o060), (0o2770, 0o060));
        drop(open(&path).expect("put right"));
        for path in picture(&path).into_keys() {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
        }
    }
}

#[test]
fn looking_at_an_outbox_changes_no_mode_and_a_refusal_neither() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = full_outbox(temp.path());
    give_to_the_group(&path);
    let before = picture(&path);
    Inspected::at(&path).expect("inspected");
    assert_eq!(picture(&path), before);
    let holder = Lock::acquire(&path.join("LOCK"), Duration::ZERO).expect("free");
    give_to_the_group(&path);
    let before: Vec<_> = picture(&path).into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect();
    assert!(matches!(open(&path), Err(DirectoryError::Held { .. })));
    let after: Vec<_> = picture(&path).into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect();
    assert_eq!(after, before);
    drop(holder);
}

/// What a member of the group may have put there is not the owner's to put right.
#[test]
fn what_others_could_have_put_into_an_open_outbox_is_refused() {
    for name in ["ledger/1/db", "ledger/1/conf", "status.tmp", "IDENTITY.tmp", "damaged/MANIFEST", "wal/x.seg"] {
        for planted in ["symlink", "hard link", "foreign", "everybody's"] {
            if planted == "foreign" && !rustix::process::geteuid().is_root() {
                println!("not run: only root can give a file away");
                continue;
            }
            let temp = tempfile::tempdir().expect("tempdir");
            let path = full_outbox(temp.path());
            let (file, victim) = (path.join(name), temp.path().join("victim"));
            fs::write(&victim, "precious").expect("write");
            let _ = fs::remove_file(&file);
            match planted {
                "symlink" => symlink(&victim, &file).expect("symlink"),
                "hard link" => fs::hard_link(&victim, &file).expect("hard link"),
                _ => fs::write(&file, "theirs").expect("write"),
            }
            if planted == "foreign" {
                std::os::unix::fs::chown(&file, Some(12_345), None).expect("chown");
            }
            give_to_the_group(&path);
            if planted == "everybody's" {
                chmod(&file, 0o666);
                let above = file.ancestors().skip(1).take_while(|above| above.starts_with(&path));
                above.for_each(|above| chmod(above, 0o775));
            }
            let error = refused(temp.path(), &path);
            let right = match planted {
                "symlink" => matches!(error, DirectoryError::Symlink { .. }),
                "hard link" => matches!(error, DirectoryError::HardLink { links: 2, .. }),
                "foreign" => matches!(error, DirectoryError::ForeignOwner { owner: 12_345, .. }),
                _ => matches!(error, DirectoryError::OpenToOthers { mode: 0o666, .. }),
            };
            assert!(right, "{name} as {planted}: {error}");
        }
    }
}

#[test]
fn modes_below_a_private_directory_do_not_matter() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = full_outbox(temp.path());
    chmod(&path.join("ledger/1/db"), 0o666);
    drop(open(&path).expect("no other user gets there"));
    assert_eq!(mode(&path.join("ledger/1/db")), 0o666);
}

#[test]
fn the_root_of_a_volume_is_refused_with_a_directory_in_it_for_advice() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: only root can give a directory away");
        return;
    }
    let temp = tempfile::tempdir().expect("tempdir");
    let volume = temp.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::create_dir(volume.join("lost+found")).expect("mkdir");
    for owner_mode in [0o777, 0o2775] {
        chmod(&volume, owner_mode);
        std::os::unix::fs::chown(&volume, Some(12_345), None).expect("chown");
        chmod(&volume, owner_mode);
        let error = refused(temp.path(), &volume);
        let DirectoryError::VolumeRoot { within, owner: 12_345, .. } = &error else { panic!("{error}") };
        assert!(error.to_string().contains(&within.display().to_string()), "{error}");
        drop(open(within).expect("made"));
        assert_eq!(mode(within) & 0o777, 0o700);
        fs::remove_dir_all(within).expect("removed");
    }
}

#[test]
fn a_directory_full_of_something_else_is_not_taken_for_an_outbox() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::write(temp.path().join("thesis.tex"), "x").expect("write");
    let error = refused(temp.path(), temp.path());
    assert!(matches!(&error, DirectoryError::NotAnOutbox { found, .. } if found == "thesis.tex"), "{error}");
}

#[test]
fn a_mounted_volume_with_lost_and_found_is_taken() {
    let temp = tempfile::tempdir().expect("tempdir");
    fs::create_dir(temp.path().join("lost+found")).expect("mkdir");
    chmod(temp.path(), 0o775);
    open(temp.path()).expect("opened");
}

#[test]
fn a_damaged_identity_is_mended_from_its_other_line_or_from_the_log() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    let id = *open(&path).expect("made").id();
    let file = path.join("IDENTITY");
    let good = fs::read(&file).expect("read");
    let mut bad = good.clone();
    bad[12] ^= 1;
    fs::write(&file, &bad).expect("write");
    assert_eq!(open(&path).expect("mended").id(), &id);
    assert_eq!(fs::read(&file).expect("read"), good);
    assert_eq!(fs::read_dir(path.join("damaged")).expect("list").count(), 1, "the bad one is kept");

    fs::write(path.join("wal/0000000000000001.seg"), "segment").expect("write");
    for lost in [true, false] {
        if lost {
            fs::remove_file(&file).expect("remove");
        } else {
            fs::write(&file, "garbage").expect("write");
        }
        let error = open(&path).expect_err("must be refused");
        assert!(matches!(error, DirectoryError::DamagedIdentity { .. }), "{error}");
        let ask = |wal: &Path| wal.join("0000000000000001.seg").exists().then_some(id);
        let options = DirectoryOptions { id_from_log: Some(&ask), ..Default::default() };
        let directory = Directory::open(&path, &options).expect("asked the log");
        assert!(directory.id() == &id && !directory.created());
        assert_eq!(fs::read(&file).expect("read"), good);
    }
}

#[test]
fn an_outbox_whose_making_was_cut_short_is_completed() {
    for made in 0..5 {
        let temp = tempfile::tempdir().expect("tempdir");
        let path = temp.path().join("outbox");
        fs::create_dir(&path).expect("mkdir");
        for name in ["LOCK", "IDENTITY.tmp"].into_iter().take(made) {
            fs::write(path.join(name), "outl").expect("write");
        }
        for name in ["wal", "dead", "ledger"].into_iter().take(made.saturating_sub(2)) {
            fs::create_dir(path.join(name)).expect("mkdir");
        }
        assert!(open(&path).expect("completed").created());
        assert!(!path.join("IDENTITY.tmp").exists());
    }
}

#[test]
fn what_is_not_there_cannot_be_inspected_and_is_not_made() {
    let temp = tempfile::tempdir().expect("tempdir");
    let path = temp.path().join("outbox");
    let error = Inspected::at(&path).expect_err("missing");
    assert!(matches!(error, DirectoryError::Missing { .. }) && !path.exists(), "{error}");
}
