//! Bytes that go bad (menu rows 13 and 14): detected and reported, the rest delivered, never silently shorter.
#![cfg(feature = "testing")]

mod disk;
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
