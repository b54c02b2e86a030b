//! Claims about the disk in memory: it loses what a disk may lose, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn file(storage: &ModelStorage, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = storage.create_new(Path::new(path)).expect("it is new");
    file.write_at(bytes, 0).expect("nothing fails");
    file
}

/// What is left of a file after power cuts with many seeds; `None` where its name is gone.
fn left(storage: &ModelStorage, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..200).map(|seed| storage.crash(seed).bytes(Path::new(path))).collect()
}

#[test]
fn a_synced_file_with_a_synced_name_is_there_after_every_power_cut() {
    let storage = ModelStorage::new(1);
    file(&storage, "/a/one", &[7; 3000]).sync_data().expect("nothing fails");
    storage.sync_directory(Path::new("/a")).expect("nothing fails");
    assert_eq!(left(&storage, "/a/one"), [Some(vec![7; 3000])].into());
}

#[test]
fn a_write_that_was_not_synced_may_be_lost_whole_by_the_sector_and_now_and_then_within_one() {
    let storage = ModelStorage::new(1);
    let file = file(&storage, "/a/one", &[1; 2048]);
    file.sync_data().expect("nothing fails");
    storage.sync_directory(Path::new("/a")).expect("nothing fails");
    file.write_at(&[2; 1024], 512).expect("nothing fails");
    let images = left(&storage, "/a/one");
    let is_torn = |sector: &[u8]| sector.iter().any(|&byte| byte != sector[0]);
    let (mut whole, mut torn) = (BTreeSet::new(), 0);
    for image in images.iter().flatten() {
        assert!(image[..512].iter().chain(&image[1536..]).all(|&byte| byte == 1), "what was synced stays");
        if image.chunks(512).any(is_torn) {
            torn += 1;
            for sector in image.chunks(512) {
                let changes = sector.windows(2).filter(|pair| pair[0] != pair[1]).count();
                assert!(changes <= 1, "a beginning or an end of it is there");
            }
        } else {
            whole.insert(image.chunks(512).map(|sector| sector[0]).collect::<Vec<_>>());
        }
    }
    assert_eq!(whole, [vec![1, 1, 1, 1], vec![1, 2, 1, 1], vec![1, 1, 2, 1], vec![1, 2, 2, 1]].into());
    assert!(torn > 0, "of 200 power cuts some tear a sector");
}

#[test]
fn of_two_unsynced_writes_the_earlier_may_win() {
    let storage = ModelStorage::new(1);
    let file = file(&storage, "/a/one", &[1; 512]);
    storage.sync_directory(Path::new("/a")).expect("nothing fails");
    file.write_at(&[2; 512], 0).expect("nothing fails");
    let left = left(&storage, "/a/one");
    for wanted in [vec![], vec![1; 512], vec![2; 512]] {
        assert!(left.contains(&Some(wanted)));
    }
}

#[test]
fn a_name_is_durable_once_its_own_directory_was_synced_and_another_sync_does_not_help() {
    let storage = ModelStorage::new(1);
    file(&storage, "/a/one", b"x").sync_data().expect("nothing fails");
    storage.sync_directory(Path::new("/b")).expect("nothing fails");
    assert_eq!(left(&storage, "/a/one"), [None, Some(b"x".to_vec())].into());
    storage.sync_directory(Path::new("/a")).expect("nothing fails");
    assert_eq!(left(&storage, "/a/one"), [Some(b"x".to_vec())].into());
    storage.rename(Path::new("/a/one"), Path::new("/a/two")).expect("nothing fails");
    for seed in 0..50 {
        let names = storage.crash(seed).paths();
        assert!(names == [Path::new("/a/one")] || names == [Path::new("/a/two")], "one name, old or new: {names:?}");
    }
    storage.unlink(Path::new("/a/two")).expect("nothing fails");
    assert_eq!(left(&storage, "/a/one").len() + left(&storage, "/a/two").len(), 4, "each may be there, or not");
}

#[test]
fn a_file_made_and_renamed_before_the_sync_has_the_old_name_the_new_one_or_none() {
    // It was lost in every power cut: the model looked for a new file under the name it had by then.
    let storage = ModelStorage::new(1);
    file(&storage, "/a/one", b"x").sync_data().expect("nothing fails");
    storage.rename(Path::new("/a/one"), Path::new("/a/two")).expect("nothing fails");
    assert_eq!(left(&storage, "/a/one"), [None, Some(b"x".to_vec())].into());
    assert_eq!(left(&storage, "/a/two"), [None, Some(b"x".to_vec())].into());
}

#[test]
fn after_a_failed_sync_the_process_sees_its_bytes_the_next_sync_says_yes_and_they_may_be_gone() {
    let storage = ModelStorage::new(1);
    let file = file(&storage, "/a/one", &[1; 512]);
    file.sync_data().expect("nothing fails");
    storage.sync_directory(Path::new("/a")).expect("nothing fails");
    let mut lost = 0;
    for round in 0..50 {
        file.write_at(&[round; 512], 0).expect("nothing fails");
        storage.on_call(|_, call| matches!(call, Operation::Sync(_)).then_some(Fault::Error(EIO)));
        assert!(file.sync_data().is_err());
        storage.kill();
        file.sync_data().expect("nothing is dirty any more");
        assert_eq!(storage.bytes(Path::new("/a/one")), Some(vec![round; 512]), "the page cache shows it");
        lost += u32::from(storage.crash(1).bytes(Path::new("/a/one")) != Some(vec![round; 512]));
    }
    assert!((10..45).contains(&lost), "some reached the disk, some did not: {lost} of 50 are lost");
}

#[test]
fn a_killed_process_leaves_everything_it_wrote_and_a_stopped_one_writes_nothing_more() {
    let storage = ModelStorage::new(1);
    let file = file(&storage, "/a/one", &[1; 512]);
    storage.stop();
    assert!(file.write_at(&[2; 512], 0).is_err());
    assert!(storage.create_new(Path::new("/a/two")).is_err());
    storage.kill();
    assert_eq!(storage.bytes(Path::new("/a/one")), Some(vec![1; 512]), "the dead do not write");
    assert_eq!(storage.paths(), [Path::new("/a/one")]);
}

#[test]
fn a_full_disk_takes_what_fits_and_has_room_again_once_something_is_removed() {
    let storage = ModelStorage::new(1);
    storage.set_capacity(Some(1000));
    let one = storage.create_new(Path::new("/a/one")).expect("it is new");
    one.allocate(800).expect("it fits");
    one.write_at(&[1; 800], 0).expect("its blocks are there");
    let two = storage.create_new(Path::new("/a/two")).expect("a name takes no room");
    assert_eq!(two.allocate(300).expect_err("full").raw_os_error(), Some(ENOSPC));
    storage.unlink(Path::new("/a/one")).expect("it is there");
    two.allocate(300).expect("there is room again");
}

#[test]
fn each_open_handle_hears_of_a_failed_write_back_once_and_one_opened_later_only_if_none_has() {
    let storage = ModelStorage::new(1);
    let (path, one) = (Path::new("/a/one"), file(&storage, "/a/one", &[1; 512]));
    let two = storage.open(path).expect("it is there");
    let break_write = || {
        storage.on_call(|_, call| matches!(call, Operation::Write { .. }).then_some(Fault::WriteBack(EIO)));
        one.write_at(&[2; 512], 0).expect("the kernel takes it");
        storage.kill();
    };
    break_write();
    let three = storage.open(path).expect("it is there");
    for handle in [&one, &two, &three] {
        assert_eq!(handle.sync_data().expect_err("it is reported").raw_os_error(), Some(EIO));
        handle.sync_data().expect("once");
    }
    storage.open(path).expect("it is there").sync_data().expect("a later handle hears of nothing");
    break_write();
    drop((one, two, three));
    storage.open(path).expect("it is there").sync_data().expect_err("no other handle has reported it");
}

#[test]
fn what_could_not_be_written_back_may_be_forgotten_and_what_is_dirty_is_not() {
    let mut forgotten = 0;
    for seed in 0..100 {
        let storage = ModelStorage::new(seed);
        let file = file(&storage, "/a/one", &[1; 8192]);
        file.sync_data().expect("nothing fails");
        file.write_at(&[2; 4096], 0).expect("nothing fails");
        storage.on_call(|_, call| matches!(call, Operation::Sync(_)).then_some(Fault::Error(EIO)));
        file.sync_data().expect_err("it fails");
        storage.kill();
        file.write_at(&[3; 10], 4096).expect("nothing fails");
        let mut read = vec![0; 8192];
        for _ in 0..20 {
            file.read_at(&mut read, 0).expect("nothing fails");
            assert_eq!(read[4096..4106], [3; 10], "a dirty page stays");
        }
        forgotten += usize::from(read[..4096].contains(&1));
    }
    assert!((10..90).contains(&forgotten), "{forgotten} of 100");
}
