//! Damage larger than a bit: cut, zeroed, overwritten, swapped, repeated, restored in part, gone; and several at once.
//!
//! A segment of another outbox that is taken for the newest is refused at the start ([`Kind::Foreign`] names an older
//! one); a directory in a segment's place is refused by the outbox before the log sees it (`end_to_end`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outlast::internals::wal::{self, Lsn, Lsns, Place};

use super::disk::{DIRECTORY, Disk, Files, segment_path};
use super::image::{BLOCK, Image};
use super::judge::{Seen, Verdict, Wound, judge, look};

/// What is done to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Zeros over whole blocks.
    ZeroBlocks,
    /// Zeros over any bytes.
    ZeroBytes,
    /// Noise over any bytes.
    Garbage,
    /// Noise over whole blocks.
    GarbageBlocks,
    /// Cut short.
    Cut,
    /// Of no length.
    Empty,
    /// Two segments under each other's names.
    Swapped,
    /// One segment's bytes under another's name as well.
    Repeated,
    /// Blocks of one place at another of the same segment.
    Moved,
    /// A segment gone.
    Missing,
    /// An older segment of another outbox under the same name.
    Foreign,
    /// Sectors or blocks of an earlier image of the same file: any of them, or all before or behind a place.
    Stale,
    /// Two bits.
    TwoBits,
    /// The header and the checkpoint of the newest segment, and one bit anywhere.
    Beginning,
    /// Two of the others.
    Both,
}

const KINDS: [Kind; 15] = [
    Kind::ZeroBlocks,
    Kind::ZeroBytes,
    Kind::Garbage,
    Kind::GarbageBlocks,
    Kind::Cut,
    Kind::Empty,
    Kind::Swapped,
    Kind::Repeated,
    Kind::Moved,
    Kind::Missing,
    Kind::Foreign,
    Kind::Stale,
    Kind::TwoBits,
    Kind::Beginning,
    Kind::Both,
];

/// A log, and segments of another outbox.
pub struct Patient {
    pub image: Image,
    pub foreign: Files,
}

/// Wounds a log as the seed says; the wounded files.
pub fn wound(patient: &Patient, seed: u64) -> (Kind, Files) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut files = patient.image.files.clone();
    let kind = KINDS[rng.usize(..KINDS.len())];
    apply(patient, kind, &mut files, &mut rng);
    (kind, files)
}

/// Parts of what a segment held earlier are in its place again.
pub fn restored(image: &Image, seed: u64) -> Files {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut files = image.files.clone();
    let numbers: Vec<u64> = image.segments.keys().copied().collect();
    restore(image, &mut files, &segment_path(numbers[rng.usize(..numbers.len())]), &mut rng);
    files
}

fn apply(patient: &Patient, kind: Kind, files: &mut Files, rng: &mut fastrand::Rng) {
    let numbers: Vec<u64> = patient.image.segments.keys().copied().collect();
    let mut any = || segment_path(numbers[rng.usize(..numbers.len())]);
    let (one, other) = (any(), any());
    match kind {
        Kind::ZeroBlocks | Kind::ZeroBytes => {
            over(files, &one, rng, kind == Kind::ZeroBlocks, |_, bytes| bytes.fill(0))
        }
        Kind::Garbage | Kind::GarbageBlocks => {
            over(files, &one, rng, kind == Kind::GarbageBlocks, |rng, bytes| rng.fill(bytes));
        }
        Kind::Cut => edit(files, &one, |bytes| bytes.truncate(rng.usize(..bytes.len().max(1)))),
        Kind::Empty => edit(files, &one, Vec::clear),
        Kind::Swapped => {
            if let (Some(a), Some(b)) = (files.get(&one).cloned(), files.get(&other).cloned()) {
                files.insert(one, b);
                files.insert(other, a);
            }
        }
        Kind::Repeated => {
            if let Some(bytes) = files.get(&one).cloned() {
                // Over one that is there, or under a name that nothing has.
                let new = segment_path(patient.image.newest() + rng.u64(1..3));
                files.insert(if rng.bool() { new } else { other }, bytes);
            }
        }
        Kind::Moved => edit(files, &one, |bytes| {
            let blocks = bytes.len() / BLOCK;
            if blocks > 1 {
                let (from, to) = (rng.usize(..blocks) * BLOCK, rng.usize(..blocks) * BLOCK);
                let length = rng.usize(1..=(blocks - from.max(to) / BLOCK).min(4)) * BLOCK;
                bytes.copy_within(from..from + length, to);
            }
        }),
        Kind::Missing => drop(files.remove(&one)),
        Kind::Foreign => {
            // The newest would be refused: a wrong directory, not a bad disk.
            if let Some(bytes) = patient.foreign.get(&one).filter(|_| one != segment_path(patient.image.newest())) {
                files.insert(one, Arc::clone(bytes));
            }
        }
        Kind::Stale => restore(&patient.image, files, &one, rng),
        Kind::TwoBits => {
            for path in [one, other] {
                flip(files, &path, rng);
            }
        }
        Kind::Beginning => {
            let newest = segment_path(patient.image.newest());
            edit(files, &newest, |bytes| bytes.iter_mut().take(2 * BLOCK).for_each(|byte| *byte ^= 0x55));
            flip(files, &one, rng);
        }
        Kind::Both => {
            // With the newest gone, another outbox's segment could come to be the newest, and that is refused.
            let single: Vec<Kind> =
                KINDS.into_iter().filter(|kind| !matches!(kind, Kind::Both | Kind::Foreign)).collect();
            for _ in 0..2 {
                apply(patient, single[rng.usize(..single.len())], files, rng);
            }
        }
    }
}

fn flip(files: &mut Files, path: &PathBuf, rng: &mut fastrand::Rng) {
    edit(files, path, |bytes| {
        if !bytes.is_empty() {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
    });
}

/// Does something to a range of a file, of up to half of it.
fn over(
    files: &mut Files,
    path: &PathBuf,
    rng: &mut fastrand::Rng,
    blocks: bool,
    write: impl FnOnce(&mut fastrand::Rng, &mut [u8]),
) {
    edit(files, path, |bytes| {
        let unit = if blocks { BLOCK } else { 1 };
        let units = bytes.len() / unit;
        if units > 0 {
            let from = rng.usize(..units);
            let most = [4 * BLOCK / unit, units / 2][rng.usize(..2)].max(1);
            let to = units.min(from + rng.usize(1..=most));
            write(rng, &mut bytes[from * unit..to * unit]);
        }
    });
}

/// Puts parts of what a file held in an earlier life back in its place.
fn restore(image: &Image, files: &mut Files, path: &PathBuf, rng: &mut fastrand::Rng) {
    let earlier = &image.earlier;
    if earlier.is_empty() {
        return;
    }
    let old = &earlier[rng.usize(..earlier.len())];
    let unit = [512, BLOCK][rng.usize(..2)];
    let shape = rng.usize(..3);
    edit(files, path, |bytes| {
        let units = bytes.len().min(old.len()) / unit;
        let border = rng.usize(..=units);
        for at in 0..units {
            let taken = match shape {
                0 => at < border,
                1 => at >= border,
                _ => rng.usize(..8) == 0,
            };
            if taken {
                bytes[at * unit..(at + 1) * unit].copy_from_slice(&old[at * unit..(at + 1) * unit]);
            }
        }
    });
}

fn edit(files: &mut Files, path: &PathBuf, edit: impl FnOnce(&mut Vec<u8>)) {
    if let Some(bytes) = files.get_mut(path) {
        edit(Arc::make_mut(bytes));
    }
}

/// Opens a wounded log and judges what comes of it.
pub fn examine(image: &Image, files: &Files, hint: Option<Place>) -> Result<(Wound, Seen, Verdict), String> {
    let wound = Wound::between(image, files);
    let seen = look(Arc::new(Disk::new(files.clone())), image, hint)?;
    let verdict = judge(image, &wound, &seen)?;
    compare(image, files, &seen)?;
    Ok((wound, seen, verdict))
}

/// What `outlast check` says of the same files: the same LSNs, and something wherever an open or a reader says something.
fn compare(image: &Image, files: &Files, seen: &Seen) -> Result<(), String> {
    let disk = Disk::new(files.clone());
    let audit = wal::audit(&disk, Path::new(DIRECTORY), Some(image.options.outbox), &mut |_| {});
    let audit = audit.map_err(|error| format!("it cannot be audited: {error}"))?;
    let settled = &seen.recovered.state.settled;
    let unsettled = |ranges: Vec<(Lsn, Lsn)>| -> BTreeSet<Lsn> {
        ranges
            .into_iter()
            .flat_map(|(first, last)| settled.gaps_within(first, last).collect::<Vec<_>>())
            .flat_map(|(first, last)| first..=last)
            .collect()
    };
    let met = unsettled(seen.by_reader.iter().map(|lost| (lost.first_lsn, lost.last_lsn)).collect());
    let ranges = audit.flaws.iter().filter_map(|flaw| match flaw.lsns {
        Lsns::Range(first, last) => Some((first, last)),
        Lsns::None | Lsns::Unknown => None,
    });
    // A flaw may name LSNs that are found elsewhere as well.
    let mut told = unsettled(ranges.collect());
    for record in &seen.pending {
        told.remove(&record.lsn);
    }
    if met != told {
        return Err(format!("the reader misses {met:?}, and `check` says {told:?}: {:?}", audit.flaws));
    }
    if !seen.reported.is_empty() && audit.flaws.is_empty() {
        return Err(format!("`check` says nothing, and the open {:?}", seen.reported));
    }
    Ok(())
}
