//! Bytes that go bad (menu rows 13 and 14): detected and reported, the rest delivered, never silently shorter.
#![cfg(feature = "testing")]

mod disk;
mod flips;
mod image;
mod images;
mod judge;
mod rounds;

use std::sync::Arc;

use disk::Disk;
use judge::{Wound, judge, look};

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
