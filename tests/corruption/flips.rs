//! Every bit, one at a time.

use std::sync::Arc;

use super::disk::{Bit, Disk, segment_path};
use super::image::Image;
use super::judge::{Verdict, Wound, judge, look};
use super::rounds::{self, Rounds};

/// Flips bits of one segment of a log: each once if there are rounds for all, else a sample.
pub fn flip(test: &str, image: &Image, segment: u64, default: u64) {
    let length = image.files[&segment_path(segment)].len();
    let bits = length as u64 * 8;
    let chosen = rounds::one("OUTLAST_TEST_BIT");
    let rounds = Rounds::new(test, if chosen.is_some() { 1 } else { default }, bits);
    let what = format!("{} segment {segment}", image.name);
    let sum = rounds.run(&what, |round| {
        let number = chosen.unwrap_or_else(|| rounds.pick(round, bits));
        let bit = Bit { segment, byte: (number / 8) as usize, bit: (number % 8) as u8 };
        flip_one(image, bit).map_err(|wrong| (format!("OUTLAST_TEST_BIT={number}"), format!("{bit:?}: {wrong}")))
    });
    rounds::tell(&what, rounds.count, bits, &sum);
}

/// Flips bits of headers, of the segments and of all frames, and of as many bytes of each body.
pub fn flip_structure(test: &str, images: &[Image], body: usize, default: u64) {
    let mut bits = Vec::new();
    for (at, image) in images.iter().enumerate() {
        let frames = image
            .frames
            .iter()
            .map(|frame| (frame.segment, frame.offset, frame.length.min(super::image::FRAME_HEADER + body)));
        let headers = image.segments.keys().map(|&segment| (segment, 0, super::image::SEGMENT_HEADER));
        for (segment, offset, length) in frames.chain(headers) {
            let bytes = offset..offset + length;
            bits.extend(bytes.flat_map(|byte| (0..8).map(move |bit| (at, Bit { segment, byte, bit }))));
        }
    }
    let chosen = rounds::one("OUTLAST_TEST_BIT");
    let rounds = Rounds::new(test, if chosen.is_some() { 1 } else { default }, bits.len() as u64);
    let what = "headers of small logs";
    let sum = rounds.run(what, |round| {
        let number = chosen.unwrap_or_else(|| rounds.pick(round, bits.len() as u64));
        let (image, bit) = bits[number as usize];
        flip_one(&images[image], bit)
            .map_err(|wrong| (format!("OUTLAST_TEST_BIT={number}"), format!("{} {bit:?}: {wrong}", images[image].name)))
    });
    rounds::tell(what, rounds.count, bits.len() as u64, &sum);
}

/// Flips one bit and judges what comes of it.
pub fn flip_one(image: &Image, bit: Bit) -> Result<Verdict, String> {
    let disk = Disk { files: image.files.clone(), flipped: Some(bit) };
    let seen = look(Arc::new(disk), image, None)?;
    judge(image, &Wound::of_bit(image, bit), &seen)
}
