//! Reading all of a log and saying what is wrong with it, without changing a byte or syncing one.
//!
//! What the log itself would find at its next open is asked of recovery, on a view that does not write; so both say the
//! same of what is settled and of where the log ends. Then every segment is read to that end, and each LSN that was given
//! out has to be settled, or read, or told of in a [`Flaw`]. Nothing else is assumed of what recovery said.
//!
//! It assumes that nobody writes meanwhile: beside a live owner what it says of the moving end may be wrong, and whoever
//! asks has to ask twice. Memory goes with the number of segments, of routes and of flaws, and the last are
//! limited ([`MOST_FLAWS`]).

mod flaw;
mod still;
mod survey;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;

pub use flaw::{Flaw, FlawKind, Lsns};

use super::error::WalError;
use super::recovery;
use super::state::{SegmentInfo, State};
use super::storage::Storage;
use super::{Lsn, Options, Pending, RangeSet};
use crate::message::Route;
use still::Still;
pub use still::read_only_disk;
use survey::Survey;

/// Flaws told singly; those beyond are counted, as are those beyond half of it that cost no message. A disk that lost every second block of 16 GiB would have two million.
pub const MOST_FLAWS: usize = 10_000;

/// What was read, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// The outbox the segments are of; `None` in an empty log.
    pub outbox: Option<[u8; 16]>,
    /// The segment that an open goes on from; `None` in an empty log.
    pub newest: Option<u64>,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Good frames.
    pub frames: u64,
    /// Records that can be read, settled ones too.
    pub records: u64,
    /// The next LSN that would be given out.
    pub next_lsn: Lsn,
    /// What is settled, by the log's word.
    pub settled: RangeSet,
    /// Records read that are not settled, a route.
    pub pending: BTreeMap<Route, Pending>,
    /// The same as the log counts it.
    pub said: BTreeMap<Route, Pending>,
    /// The length most segments have; `None` in an empty log.
    pub segment_bytes: Option<u32>,
    /// What is wrong, in the order of the files.
    pub flaws: Vec<Flaw>,
    /// Flaws that are not told singly, and the messages lost in them.
    pub omitted: (u64, u64),
}

impl Audit {
    /// Messages that are not settled and cannot be read, as far as LSNs tell.
    pub fn lost(&self) -> u64 {
        self.flaws.iter().map(|flaw| flaw.lost).sum::<u64>() + self.omitted.1
    }
}

/// Reads the log in a directory. `outbox` is whose it should be; `None` takes what most segments say. `read` is told how
/// many bytes more were looked at, now and then.
///
/// # Errors
/// The directory cannot be listed. Whatever else fails is a [`Flaw`].
pub fn audit(
    storage: &dyn Storage,
    directory: &Path,
    outbox: Option<[u8; 16]>,
    read: &mut dyn FnMut(u64),
) -> Result<Audit, WalError> {
    let mut still = Still::new(storage);
    let mut survey = Survey::take(&still, directory, outbox)?;
    let (state, segments, last_known) = loop {
        let options = Options::new(survey.outbox.unwrap_or_default(), 0);
        let options = options.with_segment_bytes(survey.segment_bytes.unwrap_or(64 << 20));
        match recovery::recover(&still, directory, &options) {
            Ok(found) => break (found.recovered.state, found.segments, found.last_acked),
            // What stops an open is told of, and then left out, so that the rest is looked at, too.
            Err(error) => still.hidden.insert(survey.stopped_by(error)?),
        };
    };
    let Survey { outbox, segment_bytes, heads, flaws } = survey;
    let audit = Audit {
        outbox,
        segment_bytes,
        newest: segments.keys().next_back().copied(),
        segments: heads.len() as u64,
        next_lsn: state.next_lsn,
        settled: state.settled.clone(),
        said: state.routes.clone(),
        ..Audit::default()
    };
    let mut auditor = Auditor { still, directory, heads, segments, state, last_known, seen: RangeSet::new(), audit };
    flaws.into_iter().for_each(|flaw| auditor.tell(flaw));
    auditor.walk(read);
    auditor.unaccounted();
    let mut audit = auditor.audit;
    audit.flaws.sort_by(|a, b| (a.segment, &a.name, a.offset).cmp(&(b.segment, &b.name, b.offset)));
    Ok(audit)
}

/// What goes from segment to segment.
struct Auditor<'a> {
    still: Still<'a>,
    directory: &'a Path,
    heads: BTreeMap<u64, survey::Head>,
    /// Those in use, by the log's word.
    segments: BTreeMap<u64, SegmentInfo>,
    state: State,
    /// The last LSN the log knows.
    last_known: Lsn,
    /// LSNs that were read, or are told of in a flaw.
    seen: RangeSet,
    audit: Audit,
}

impl Auditor<'_> {
    /// What of `first..=last` is neither settled nor seen. What an open would burn, behind the last LSN it knows, is not
    /// settled: a segment that it does not find may have those.
    fn unknown(&self, first: Lsn, last: Lsn) -> impl Iterator<Item = (Lsn, Lsn)> + '_ {
        let beyond = first.max(self.last_known.saturating_add(1));
        let open = self.state.settled.gaps_within(first, last.min(self.last_known));
        open.chain((beyond <= last).then_some((beyond, last)))
            .flat_map(|(first, last)| self.seen.gaps_within(first, last))
    }

    /// Adds a flaw; what is lost with it is what is neither settled nor seen.
    fn tell(&mut self, mut flaw: Flaw) {
        if let Lsns::Range(first, last) = flaw.lsns {
            flaw.lost = self.unknown(first, last).map(|(first, last)| last - first + 1).sum();
            self.seen.insert(first, last);
        }
        // What costs nothing must not crowd out what does: once set aside, the same ranges are there still.
        let harmless = flaw.lost == 0 && !flaw.stops_start;
        if self.audit.flaws.len() < if harmless { MOST_FLAWS / 2 } else { MOST_FLAWS } {
            self.audit.flaws.push(flaw);
        } else {
            self.audit.omitted.0 += 1;
            self.audit.omitted.1 += flaw.lost;
        }
    }

    /// Everything that was given out has to be settled or seen.
    fn unaccounted(&mut self) {
        let missing: Vec<(Lsn, Lsn)> = self.unknown(1, self.last_known).collect();
        for (first, last) in missing {
            self.tell(Flaw {
                kind: FlawKind::Missing,
                name: String::new(),
                segment: None,
                offset: 0,
                length: 0,
                lsns: Lsns::Range(first, last),
                lost: 0,
                stops_start: false,
                reason: "no segment has these LSNs, and none says that they are settled".into(),
            });
        }
    }
}
