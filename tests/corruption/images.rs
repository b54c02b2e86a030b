//! The logs that are damaged, each with the features of the format that damage can meet.

use std::time::Duration;

use outlast::internals::wal::Options;

use super::image::{Image, Writer};
use super::wounds::Patient;

const MIB: u32 = 1 << 20;

const OURS: [u8; 16] = [7; 16];
const FOREIGN: [u8; 16] = [8; 16];

/// No seal but where one is asked for.
fn options(segment_bytes: u32) -> Options {
    let endless = Duration::from_secs(1 << 30);
    Options { seal_after: endless, ..Options::new(OURS, 1).with_segment_bytes(segment_bytes) }
}

fn sealing(segment_bytes: u32) -> Options {
    Options { seal_after: Duration::from_millis(100), ..options(segment_bytes) }
}

/// Fills most of a segment with messages of all sizes, in groups of all sizes, some of them settled.
fn fill(writer: &mut Writer, to: usize, most: usize) {
    while writer.filled() < to {
        let count = writer.rng.usize(1..6);
        let most = if writer.rng.usize(..4) == 0 { most } else { most / 16 };
        writer.messages(count, most);
        if writer.rng.usize(..4) == 0 {
            let last = writer.rng.u64(2..200);
            writer.settle((last..last + 3).filter(|lsn| *lsn > 1));
        }
        if writer.rng.usize(..6) == 0 {
            // Settlements get a frame of their own.
            writer.run(150);
        }
    }
}

/// One full segment with a seal at its end: an open reads all of it.
pub fn sealed(seed: u64) -> Image {
    let mut writer = Writer::new("sealed", seed, sealing(MIB));
    // Few messages and large ones: each of the 8,388,608 bits is flipped, and each time all of them are read.
    fill(&mut writer, MIB as usize - (200 << 10), 96_000);
    writer.seal();
    writer.image()
}

/// A full segment, and another whose header names what was acknowledged in it: an open reads the second alone.
pub fn followed(seed: u64) -> Image {
    let mut writer = Writer::new("followed", seed, sealing(MIB));
    fill(&mut writer, MIB as usize - (110 << 10), 24_000);
    while writer.segments().len() < 2 {
        writer.messages(2, 40_000);
    }
    writer.messages(3, 500);
    writer.seal();
    writer.image()
}

/// Several small segments; the last one ends without a seal, as a kill leaves it.
pub fn unsealed(seed: u64) -> Image {
    let mut writer = Writer::new("unsealed", seed, options(64 << 10));
    while writer.segments().len() < 3 {
        let count = writer.rng.usize(1..4);
        writer.messages(count, 3_000);
        let lsn = writer.rng.u64(2..60);
        writer.settle(lsn..lsn + 2);
    }
    writer.messages(2, 3_000);
    writer.run(3_000);
    writer.messages(1, 300);
    writer.messages(2, 6_000);
    writer.image()
}

/// A segment that was just opened: header, checkpoint and one group, and nothing behind them.
pub fn opened(seed: u64) -> Image {
    let mut writer = Writer::new("opened", seed, options(64 << 10));
    while writer.segments().len() < 2 {
        writer.messages(2, 3_000);
    }
    writer.image()
}

/// Segments recycled many times, so that stale frames of earlier lives lie behind the live ones; restarts, and a segment
/// whose sync failed; a backlog that pins the oldest.
pub fn recycled(seed: u64) -> Image {
    recycled_by(OURS, seed, true)
}

/// The same in one life: nothing but recycling happened to it.
pub fn worn(seed: u64) -> Image {
    recycled_by(OURS, seed, false)
}

fn recycled_by(outbox: [u8; 16], seed: u64, restarts: bool) -> Image {
    let options = Options { max_segments: 8, outbox, ..sealing(64 << 10) };
    let mut writer = Writer::new("recycled", seed, options);
    let mut next = 1;
    for round in 1..=120u64 {
        let count = writer.rng.usize(1..5);
        writer.messages(count, 3_000);
        next += count as u64;
        // A few stay: one in eleven of the old, and the newest.
        let keep = if round < 100 { 4 } else { 60 };
        writer.settle((1..next.saturating_sub(keep)).filter(|lsn| !lsn.is_multiple_of(61) || *lsn + 130 < next));
        let wait = writer.rng.u64(..1_500);
        writer.run(wait);
        if restarts && round % 37 == 0 {
            writer.restart();
        }
        if restarts && (round == 90 || round == 112) {
            writer.fail_next_sync();
        }
    }
    writer.seal();
    writer.image()
}

/// A checkpoint of many frames: every other message is settled, and frames are small.
pub fn scattered(seed: u64) -> Image {
    let options = Options { frame_bytes: 4096, ..sealing(64 << 10) };
    let mut writer = Writer::new("scattered", seed, options);
    let mut last = 0;
    while writer.segments().len() < 5 {
        writer.messages(20, 40);
        last += 20;
        writer.settle((last - 20..last).filter(|lsn| lsn % 2 == 1));
        writer.run(1_200);
    }
    writer.messages(5, 100);
    writer.seal();
    writer.image()
}

/// The log of dead letters, some of them requeued or purged.
pub fn dead(seed: u64) -> Image {
    let mut writer = Writer::new("dead", seed, sealing(64 << 10));
    while writer.segments().len() < 3 {
        let count = writer.rng.usize(1..3);
        writer.dead_letters(count, 5_000);
        let lsn = writer.rng.u64(1..40);
        writer.settle(lsn..lsn + 1);
    }
    writer.dead_letters(2, 200);
    writer.seal();
    writer.image()
}

/// Those with segments of 64 KiB.
pub fn small(seed: u64) -> Vec<Image> {
    vec![unsealed(seed), opened(seed), recycled(seed), scattered(seed), dead(seed)]
}

/// The same, each with segments of another outbox.
pub fn patients(seed: u64) -> Vec<Patient> {
    let foreign = recycled_by(FOREIGN, seed + 1, true).files;
    small(seed).into_iter().map(|image| Patient { image, foreign: foreign.clone() }).collect()
}
