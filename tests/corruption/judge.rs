//! What must hold of a damaged log, by the truth about it and by FORMAT.md.
//!
//! It knows which frames and headers are not as they were written (the [`Wound`]), and from that alone what may be lost
//! and what has to be said: all that lies in whole frames comes out, byte for byte; every other pending message is
//! reported with its LSN, unless nothing that is left says that its frame was ever durable (`What a crash leaves, and
//! what is damage`, 3 and 4). It knows nothing of how recovery finds out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use outlast::internals::wal::{Damage, Entry, Lsn, Place, Reader, Recovered, Step, Storage, StoredRecord, Wal};

use super::disk::{Bit, DIRECTORY, Files, segment_path};
use super::image::{Frame, Image, SEGMENT_HEADER};

/// What is not as it was written.
#[derive(Clone, Debug, Default)]
pub struct Wound {
    /// Frames, as indices.
    pub frames: BTreeSet<usize>,
    /// Headers of segments.
    pub headers: BTreeSet<u64>,
    /// Files that are there, and not as long as they were made.
    pub cut: BTreeSet<u64>,
    /// A segment under a name that none had.
    pub stranger: bool,
}

impl Wound {
    /// What one bit hits.
    pub fn of_bit(image: &Image, Bit { segment, byte, .. }: Bit) -> Self {
        let hits =
            |frame: &Frame| frame.segment == segment && (frame.offset..frame.offset + frame.length).contains(&byte);
        let frames = image.frames.iter().position(hits).into_iter().collect();
        let headers = (byte < SEGMENT_HEADER).then_some(segment).into_iter().collect();
        Self { frames, headers, ..Self::default() }
    }

    /// What differs between the log as it was written and these files.
    pub fn between(image: &Image, files: &Files) -> Self {
        let same = |segment: u64, from: usize, to: usize| {
            let (Some(was), Some(is)) = (image.files.get(&segment_path(segment)), files.get(&segment_path(segment)))
            else {
                return false;
            };
            Arc::ptr_eq(was, is) || was.get(from..to) == is.get(from..to)
        };
        let bad = |frame: &Frame| !same(frame.segment, frame.offset, frame.offset + frame.length);
        let frames = image.frames.iter().enumerate().filter(|(_, frame)| bad(frame)).map(|(at, _)| at).collect();
        let numbers = || image.segments.keys().copied();
        let headers = numbers().filter(|&number| !same(number, 0, SEGMENT_HEADER)).collect();
        let shorter = |&number: &u64| {
            let (was, is) = (image.files.get(&segment_path(number)), files.get(&segment_path(number)));
            is.is_some_and(|is| was.is_some_and(|was| was.len() > is.len()))
        };
        let cut = numbers().filter(shorter).collect();
        let stranger = files.keys().any(|path| !image.files.contains_key(path));
        Self { frames, headers, cut, stranger }
    }

    pub fn is_none(&self) -> bool {
        self.frames.is_empty() && self.headers.is_empty() && self.cut.is_empty() && !self.stranger
    }

    fn has(&self, at: usize) -> bool {
        self.frames.contains(&at)
    }

    /// Whether something that is whole says that a frame was durable: without that it looks like a torn write.
    fn is_covered(&self, image: &Image, at: usize) -> bool {
        let frame = &image.frames[at];
        let last = frame.first_lsn + frame.count.max(1) - 1;
        let by_frame = |(other, by): (usize, &Frame)| {
            let behind = (by.segment, by.offset) > (frame.segment, frame.offset);
            // A frame of a later segment was written when all of this one was synced.
            let says = frame.count > 0 && by.durable >= last
                || by.segment == frame.segment && by.synced_end > frame.offset
                || by.segment > frame.segment && by.kind != 1;
            behind && says && !self.has(other)
        };
        let by_header = |(number, header): (&u64, &super::image::Segment)| {
            *number > frame.segment && frame.count > 0 && header.last_acked >= last && !self.headers.contains(number)
        };
        image.frames.iter().enumerate().any(by_frame) || image.segments.iter().any(by_header)
    }
}

/// What an open and a reader made of a log.
pub struct Seen {
    pub recovered: Recovered,
    /// What is not settled, in the order in which it was read.
    pub pending: Vec<StoredRecord>,
    /// By the open and by the reader.
    pub reported: Vec<Damage>,
    /// By the reader alone: only that is set aside.
    pub by_reader: Vec<Damage>,
}

/// Opens a log, and reads what is pending as the drainer does.
pub fn look(storage: Arc<dyn Storage>, image: &Image, hint: Option<Place>) -> Result<Seen, String> {
    let opened = Wal::open_stepped(storage, Path::new(DIRECTORY), image.options.clone());
    let (wal, recovered, _stepper) = opened.map_err(|error| format!("it does not open: {error}"))?;
    let mut reported = recovered.damage.clone();
    let from = recovered.state.settled.prefix() + 1;
    let (pending, damage) = read(&wal.reader(), from, hint, &recovered)?;
    reported.extend_from_slice(&damage);
    Ok(Seen { recovered, pending, reported, by_reader: damage })
}

fn read(
    reader: &Reader,
    from: Lsn,
    hint: Option<Place>,
    recovered: &Recovered,
) -> Result<(Vec<StoredRecord>, Vec<Damage>), String> {
    let mut cursor = reader.seek(from, hint).map_err(|error| error.to_string())?;
    let (mut pending, mut damage) = (Vec::new(), Vec::new());
    // Each step passes at least one block.
    for _ in 0..100_000 {
        match reader.next(&mut cursor).map_err(|error| error.to_string())? {
            Step::Frame { mut records, .. } => {
                records.retain(|record| record.lsn >= from && !recovered.state.settled.contains(record.lsn));
                pending.append(&mut records);
            }
            Step::Damaged(lost) => damage.push(lost),
            Step::End => return Ok((pending, damage)),
        }
    }
    Err("the reader comes to no end".to_owned())
}

/// What became of the pending messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    pub delivered: u64,
    /// Lost, and reported with their LSNs.
    pub reported: u64,
    /// Lost, and indistinguishable from a torn write.
    pub torn: u64,
    /// Settled before, and pending again.
    pub again: u64,
}

/// Judges what was seen of a wounded log; `Err` says what is wrong with it.
pub fn judge(image: &Image, wound: &Wound, seen: &Seen) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    let mut last = 0;
    let mut delivered = BTreeSet::new();
    for record in &seen.pending {
        if record.lsn <= last {
            return Err(format!("{} comes after {last}", record.lsn));
        }
        last = record.lsn;
        let Some(written) = image.written.get(&last) else { return Err(format!("{last} was never written")) };
        if !is_same(written, &record.body) {
            return Err(format!("{last} has other contents"));
        }
        delivered.insert(last);
        verdict.again += u64::from(image.settled.contains(last));
    }
    verdict.delivered = delivered.len() as u64 - verdict.again;
    let reported = ranges(&seen.reported);
    let is_reported = |lsn: Lsn| reported.range(..=lsn).next_back().is_some_and(|(_, &last)| last >= lsn);
    let mut lost = BTreeMap::new();
    for (at, frame) in image.frames.iter().enumerate().filter(|(at, _)| wound.has(*at)) {
        lost.extend(frame.lsns().map(|lsn| (lsn, at)));
    }
    for lsn in image.pending() {
        match (delivered.contains(&lsn), lost.get(&lsn)) {
            (true, _) if is_reported(lsn) => return Err(format!("{lsn} is delivered and reported as lost")),
            (true, _) => {}
            (false, None) => return Err(format!("{lsn} lies in a whole frame and is not delivered{}", told(seen))),
            (false, Some(_)) if is_reported(lsn) => verdict.reported += 1,
            (false, Some(&at)) if wound.is_covered(image, at) => {
                return Err(format!("{lsn} is lost and not reported{}", told(seen)));
            }
            (false, Some(_)) => verdict.torn += 1,
        }
    }
    set_aside(seen)?;
    let next = seen.recovered.next_lsn;
    let known = known(image, wound);
    if next <= known {
        return Err(format!("{known} was acknowledged, and the next LSN is {next}{}", told(seen)));
    }
    said(image, wound, seen)?;
    settlements(image, wound, seen, &verdict)?;
    Ok(verdict)
}

/// The last LSN of which the log can still know that it was used.
pub fn known(image: &Image, wound: &Wound) -> Lsn {
    // One frame alone is never taken for nothing, and a file that was cut is seen to be.
    if wound.frames.len() <= 1 || wound.cut.contains(&image.newest()) {
        return image.last_lsn();
    }
    let whole = image.frames.iter().enumerate().filter(|(at, _)| !wound.has(*at));
    let frames = whole.map(|(_, frame)| frame.durable.max(frame.lsns().end - 1)).max();
    let headers = image.segments.iter().filter(|(number, _)| !wound.headers.contains(number));
    frames.max(headers.map(|(_, header)| header.last_acked).max()).unwrap_or_default()
}

fn told(seen: &Seen) -> String {
    format!("; reported: {:?}; torn: {} bytes", seen.reported, seen.recovered.torn_bytes)
}

/// What the open reports as lost, the reader comes across as well: it is settled then, and does not stay for ever.
fn set_aside(seen: &Seen) -> Result<(), String> {
    let met = ranges(&seen.by_reader);
    let is_met = |lsn: Lsn| met.range(..=lsn).next_back().is_some_and(|(_, &last)| last >= lsn);
    let settled = &seen.recovered.state.settled;
    for (first, last) in ranges(&seen.recovered.damage) {
        if let Some(lsn) = (first..=last).find(|&lsn| !settled.contains(lsn) && !is_met(lsn)) {
            return Err(format!(
                "{lsn} is reported by the open, and the reader does not come across it, but {:?}{}",
                seen.by_reader,
                told(seen)
            ));
        }
    }
    Ok(())
}

/// What holds a message that is covered, or the newest state, is not passed over in silence.
fn said(image: &Image, wound: &Wound, seen: &Seen) -> Result<(), String> {
    if wound.is_none() {
        let quiet = seen.reported.is_empty() && seen.recovered.torn_bytes == 0;
        let next = image.last_lsn() + 1;
        let exact = seen.recovered.next_lsn >= next && (seen.recovered.next_lsn == next || !is_closed(image));
        return if quiet && exact { Ok(()) } else { Err(format!("nothing is damaged{}", told(seen))) };
    }
    let newest = image.newest();
    let start = image.segments[&newest].start;
    if wound.cut.contains(&newest) && seen.reported.is_empty() {
        return Err("the newest segment is shorter than it was made, and that is not reported".to_owned());
    }
    for &at in &wound.frames {
        let frame = &image.frames[at];
        let matters = frame.segment == newest && frame.kind == 0 && wound.is_covered(image, at);
        if matters && seen.reported.is_empty() {
            return Err(format!("damage to {frame:?} is not reported"));
        }
    }
    let beginning = |&at: &usize| image.frames[at].segment == newest && image.frames[at].offset < start;
    let bad_beginning = wound.headers.contains(&newest) || wound.frames.iter().any(beginning);
    if bad_beginning && is_evident(image, wound) && seen.reported.is_empty() {
        return Err("damage to the beginning of the newest segment is not reported".to_owned());
    }
    Ok(())
}

/// Whether anything tells that the newest segment was ever completely opened: a whole frame that was written after a sync.
fn is_evident(image: &Image, wound: &Wound) -> bool {
    let whole =
        |(at, frame): (usize, &Frame)| frame.segment == image.newest() && frame.synced_end > 0 && !wound.has(at);
    image.frames.iter().enumerate().any(whole)
}

fn is_closed(image: &Image) -> bool {
    image.frames.last().is_some_and(|frame| frame.kind == 2)
}

/// Nothing that is settled is pending again, unless what said so was hit; nothing is settled that was pending, unless it
/// is lost.
fn settlements(image: &Image, wound: &Wound, seen: &Seen, verdict: &Verdict) -> Result<(), String> {
    let settled = &seen.recovered.state.settled;
    let forgotten = image.written.keys().find(|lsn| image.settled.contains(**lsn) && !settled.contains(**lsn));
    if verdict.again == 0 && forgotten.is_none() {
        return Ok(());
    }
    let says = |&&at: &&usize| image.frames[at].has_settlements() || image.frames[at].is_checkpoint();
    let hit = || wound.frames.iter().filter(says);
    if hit().next().is_none() && wound.headers.is_empty() {
        return Err(format!("{forgotten:?} was settled and is pending again{}", told(seen)));
    }
    // A settlement that was never synced may be torn.
    let beginning = !wound.headers.is_empty() && is_evident(image, wound);
    let silent = seen.reported.is_empty() && (beginning || hit().any(|&at| wound.is_covered(image, at)));
    if silent { Err(format!("{forgotten:?} is pending again, in silence: {wound:?}")) } else { Ok(()) }
}

/// Damage as disjoint ranges, first to last.
fn ranges(damage: &[Damage]) -> BTreeMap<Lsn, Lsn> {
    let mut ranges: Vec<_> = damage.iter().map(|d| (d.first_lsn, d.last_lsn)).filter(|(f, l)| f <= l).collect();
    ranges.sort_unstable();
    let mut merged: BTreeMap<Lsn, Lsn> = BTreeMap::new();
    for (first, last) in ranges {
        match merged.last_entry() {
            Some(mut before) if *before.get() >= first => {
                let end = last.max(*before.get());
                before.insert(end);
            }
            _ => {
                merged.insert(first, last);
            }
        }
    }
    merged
}

/// Whether a record is the one that was written.
pub fn is_same(written: &Entry, read: &Entry) -> bool {
    let (a, b) = (written.outgoing(), read.outgoing());
    let around = match (written, read) {
        (Entry::Message(_), Entry::Message(_)) => true,
        (Entry::Dead(a), Entry::Dead(b)) => {
            (a.lsn, &a.reason, a.attempts, a.first_failure, a.last_failure)
                == (b.lsn, &b.reason, b.attempts, b.first_failure, b.last_failure)
        }
        _ => false,
    };
    around && (a.id, &a.route, a.lane, a.timestamp, &a.message) == (b.id, &b.route, b.lane, b.timestamp, &b.message)
}
