//! Bytes that go bad (menu rows 13 and 14): detected and reported, the rest delivered, never silently shorter.
#![cfg(feature = "testing")]

mod disk;
mod end_to_end;
mod flips;
mod image;
mod images;
mod judge;
mod lives;
#[cfg(feature = "planted")]
mod planted;
mod rounds;
mod wounds;

use std::sync::Arc;

use disk::Disk;
use judge::{Wound, judge, look};
use rounds::Rounds;

const SEED: u64 = 13;

#[test]
fn an_undamaged_log_comes_out_as_it_was_written() {
    let large = [images::sealed(SEED), images::followed(SEED)];
    for image in large.into_iter().chain(images::small(SEED)) {
        let seen = look(Arc::new(Disk::new(image.files.clone())), &image, None).expect("opens");
        let verdict = judge(&image, &Wound::default(), &seen).unwrap_or_else(|wrong| panic!("{}: {wrong}", image.name));
        let pending = image.pending().count() as u64;
        println!(
            "{}: {} segments, {} frames, {} messages, {pending} pending",
            image.name,
            image.segments.len(),
            image.frames.len(),
            image.written.len()
        );
        assert_eq!(verdict.delivered, pending, "{}", image.name);
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_reported_and_the_rest_delivered() {
    flips::flip(
        "a_flipped_bit_in_a_sealed_segment_is_reported_and_the_rest_delivered",
        &images::sealed(SEED),
        1,
        1_000,
    );
}

#[test]
fn a_flipped_bit_in_an_older_segment_is_reported_and_the_rest_delivered() {
    flips::flip(
        "a_flipped_bit_in_an_older_segment_is_reported_and_the_rest_delivered",
        &images::followed(SEED),
        1,
        1_000,
    );
}

#[test]
fn a_flipped_bit_in_the_structure_of_any_log_is_reported_and_the_rest_delivered() {
    let test = "a_flipped_bit_in_the_structure_of_any_log_is_reported_and_the_rest_delivered";
    flips::flip_structure(test, &images::small(SEED), 8, 1_500);
}

/// Segments that were used many times, as they are and with parts of what they held earlier in their place.
#[test]
fn frames_of_an_earlier_life_are_never_taken_for_live_ones() {
    let rounds = Rounds::new("frames_of_an_earlier_life_are_never_taken_for_live_ones", 1_000, u64::MAX);
    let images: Vec<_> = (0..4).map(|more| images::worn(SEED + more)).collect();
    let sum = rounds.run("stale", |round| {
        let seed = rounds.seed.wrapping_add(round);
        let image = &images[(seed % 4) as usize];
        let untouched = wounds::examine(image, &image.files, None);
        let restored = untouched.and_then(|_| wounds::examine(image, &wounds::restored(image, seed), None));
        let again = || format!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1");
        restored.map(|(.., verdict)| verdict).map_err(|wrong| (again(), wrong))
    });
    rounds::tell("stale", rounds.count, u64::MAX, &sum);
}

/// Row 14: each segment of each small log cut at each length, or a sample of all.
#[test]
fn a_log_cut_at_any_length_is_reported_and_the_rest_delivered() {
    cut("a_log_cut_at_any_length_is_reported_and_the_rest_delivered", "cuts", &images::small(SEED), 1, 1_000);
}

/// The same with segments of 1 MiB, cut at each 16th length.
#[test]
fn a_large_log_cut_short_is_reported_and_the_rest_delivered() {
    cut("a_large_log_cut_short_is_reported_and_the_rest_delivered", "cuts of 1 MiB", &[images::sealed(SEED)], 16, 500);
}

fn cut(test: &str, what: &str, images: &[image::Image], step: usize, default: u64) {
    let cuts: Vec<(usize, u64, usize)> = images
        .iter()
        .enumerate()
        .flat_map(|(at, image)| image.segments.keys().rev().map(move |&number| (at, number)))
        .flat_map(|(at, number)| {
            let length = images[at].files[&disk::segment_path(number)].len();
            (0..length).step_by(step).map(move |to| (at, number, to))
        })
        .collect();
    let rounds = Rounds::new(test, default, cuts.len() as u64);
    let sum = rounds.run(what, |round| {
        let pick = rounds::one("OUTLAST_TEST_BIT").unwrap_or_else(|| rounds.pick(round, cuts.len() as u64));
        let (at, number, length) = cuts[pick as usize];
        let mut files = images[at].files.clone();
        if let Some(bytes) = files.get_mut(&disk::segment_path(number)) {
            *bytes = Arc::new(bytes[..length].to_vec());
        }
        let examined = wounds::examine(&images[at], &files, None);
        examined.map(|(.., verdict)| verdict).map_err(|wrong| {
            let what = format!("segment {number} of {} cut to {length}: {wrong}", images[at].name);
            (format!("OUTLAST_TEST_BIT={pick} OUTLAST_TEST_ROUNDS=1"), what)
        })
    });
    rounds::tell(what, rounds.count, cuts.len() as u64, &sum);
}

/// Row 14: every kind of damage to every kind of log, each by its seed.
#[test]
fn larger_damage_is_reported_and_the_rest_delivered() {
    let test = "larger_damage_is_reported_and_the_rest_delivered";
    let patients = images::patients(SEED);
    let rounds = Rounds::new(test, 2_000, u64::MAX);
    let sum = rounds.run("wounds", |round| {
        let seed = rounds.seed.wrapping_add(round);
        let patient = &patients[(seed % patients.len() as u64) as usize];
        let (kind, files) = wounds::wound(patient, seed);
        let examined = wounds::examine(&patient.image, &files, None);
        let again = || format!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1");
        examined
            .map(|(.., verdict)| verdict)
            .map_err(|wrong| (again(), format!("{kind:?} of {}: {wrong}", patient.image.name)))
    });
    rounds::tell("wounds", rounds.count, u64::MAX, &sum);
}

/// A log is damaged, opened, written on, sealed, and opened again.
#[test]
fn after_damage_the_log_goes_on_and_loses_nothing_more() {
    let test = "after_damage_the_log_goes_on_and_loses_nothing_more";
    let patients = images::patients(SEED);
    let rounds = Rounds::new(test, 500, u64::MAX);
    let sum = rounds.run("lives", |round| {
        let seed = rounds.seed.wrapping_add(round);
        let patient = &patients[(seed % patients.len() as u64) as usize];
        let (kind, files) = wounds::wound(patient, seed);
        let lived = wounds::examine(&patient.image, &files, None).and_then(|(wound, seen, verdict)| {
            lives::live_on(&patient.image, &files, &wound, &seen, seed)?;
            Ok(verdict)
        });
        let again = || format!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1");
        lived.map_err(|wrong| (again(), format!("{kind:?} of {}: {wrong}", patient.image.name)))
    });
    rounds::tell("lives", rounds.count, u64::MAX, &sum);
}
