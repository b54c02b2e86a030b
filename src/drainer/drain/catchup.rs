//! Reading back what was passed over.
//!
//! Two ways lead to it: the ledger's rows, which name the places, and the log itself, read from the first message
//! that was skipped to where the drainer is. The second needs nothing but the log, so it serves whenever the ledger
//! has lost something, and also where most of what lies between was skipped.

use std::collections::{HashSet, VecDeque};

use crate::message::{Lane, Outgoing};
use crate::outbox::ledger::{ParkedKey, ParkedScope};
use crate::outbox::{Outbox, Scan, ScanError, Scanned};
use crate::schedule::BlockKey;
use crate::wal::{Entry, Lsn, Place};

/// Rows read from the ledger at a time.
const ROWS: usize = 256;

/// A message that was passed over.
#[derive(Debug)]
pub struct Skipped {
    /// Its LSN.
    pub lsn: Lsn,
    /// The message.
    pub message: Outgoing,
    /// Its row in the ledger, if it was found there.
    pub row: Option<ParkedKey>,
}

enum Source {
    Rows { after: Option<ParkedKey>, rows: VecDeque<(ParkedKey, Option<Place>)> },
    Log { scan: Box<Scan>, records: VecDeque<(Lsn, Outgoing)>, passed: Lsn },
}

/// One pass over what was skipped because of a block.
pub struct CatchUp {
    key: BlockKey,
    /// The ledger's, when the pass began: what another one does not have is no end.
    generation: u64,
    source: Source,
    peeked: Option<Skipped>,
    /// Something was skipped since the pass began: there must be another.
    pub dirty: bool,
    /// It has looked at many messages and found none yet: it goes on where it is.
    pub searching: bool,
}

impl CatchUp {
    /// A pass by the ledger's rows, or by the log from `first` on.
    pub fn new(outbox: &Outbox, key: BlockKey, first: Lsn, by_rows: bool, generation: u64) -> Self {
        let source = if by_rows && key != BlockKey::Transport {
            Source::Rows { after: None, rows: VecDeque::new() }
        } else {
            Source::Log { scan: Box::new(outbox.scan(first)), records: VecDeque::new(), passed: 0 }
        };
        Self { key, generation, source, peeked: None, dirty: false, searching: false }
    }

    /// Whether the pass reads the log.
    pub fn reads_log(&self) -> bool {
        matches!(self.source, Source::Log { .. })
    }

    /// Whether the pass may be past a message that is skipped only now: it would hand over later ones of its lane first.
    pub fn is_past(&self, skipped: ParkedKey) -> bool {
        match &self.source {
            Source::Log { passed, .. } => skipped.lsn <= *passed,
            Source::Rows { after, rows } => {
                let later = |row: &ParkedKey| row.lane == skipped.lane && row.lsn >= skipped.lsn;
                after.as_ref().is_some_and(later) || rows.iter().any(|(row, _)| later(row))
            }
        }
    }

    /// Whether the pass has come across a message, and will not again.
    pub fn has_left(&self, skipped: ParkedKey) -> bool {
        self.is_past(skipped) && self.peeked.as_ref().is_none_or(|peeked| skipped.lsn < peeked.lsn)
    }

    /// Puts a message back: it is the next again.
    pub fn put_back(&mut self, skipped: Skipped) {
        self.peeked = Some(skipped);
    }

    /// The next message of this block's scope below `end`; settled ones among them. `None`: the pass is done.
    ///
    /// # Errors
    /// The ledger does not answer (then pass by the log), or the log cannot be read now.
    pub fn next(&mut self, outbox: &Outbox, end: Lsn) -> Result<Option<Skipped>, CatchUpError> {
        if let Some(peeked) = self.peeked.take() {
            return Ok(Some(peeked));
        }
        match &mut self.source {
            Source::Rows { after, rows } => loop {
                if rows.is_empty() {
                    let Some(scope) = scope(self.key) else { return Ok(None) };
                    let read = outbox.ledger().parked(scope, *after, ROWS).map_err(|_| CatchUpError::Ledger)?;
                    if outbox.ledger().generation() != self.generation {
                        return Err(CatchUpError::Ledger);
                    }
                    let place = |row: &crate::outbox::ledger::ParkedRow| {
                        let place = Place { segment: row.segment, offset: row.offset, index: row.index };
                        (row.segment > 0).then_some(place)
                    };
                    rows.extend(read.iter().map(|(key, row)| (*key, place(row))));
                }
                let Some((row, place)) = rows.pop_front() else { return Ok(None) };
                *after = Some(row);
                if row.lsn >= end {
                    continue;
                }
                if outbox.is_settled(row.lsn) {
                    outbox.ledger().unpark(row);
                    continue;
                }
                match outbox.read(row.lsn, place) {
                    Ok(Some(message)) => return Ok(Some(Skipped { lsn: row.lsn, message, row: Some(row) })),
                    Ok(None) => {
                        outbox.ledger().unpark(row);
                    }
                    // The log's own order comes across what is damaged, and sets it aside.
                    Err(ScanError::Damaged { .. }) => return Err(CatchUpError::Ledger),
                    Err(error) => return Err(CatchUpError::Log(error)),
                }
            },
            Source::Log { scan, records, passed } => loop {
                if let Some((lsn, message)) = records.pop_front() {
                    if lsn >= end {
                        return Ok(None);
                    }
                    *passed = lsn;
                    return Ok(Some(Skipped { lsn, message, row: None }));
                }
                match scan.advance(|lsn| outbox.hint(lsn)).map_err(CatchUpError::Log)? {
                    Scanned::Frame { records: read, .. } => {
                        records.extend(read.into_iter().filter_map(|record| match record.body {
                            Entry::Message(message) => Some((record.lsn, message)),
                            Entry::Dead(_) => None,
                        }));
                    }
                    Scanned::Damaged(damage) => {
                        outbox.set_aside(&damage);
                    }
                    Scanned::End => return Ok(None),
                }
            },
        }
    }
}

/// Why a pass cannot go on.
#[derive(Debug)]
pub enum CatchUpError {
    /// The ledger does not answer, or leads to what is damaged: pass by the log.
    Ledger,
    /// The log cannot be read now.
    Log(ScanError),
}

fn scope(key: BlockKey) -> Option<ParkedScope> {
    match key {
        BlockKey::Transport => None,
        BlockKey::Route(route) | BlockKey::Partition(route, _) => Some(ParkedScope::Route(route)),
        BlockKey::Lane(route, lane) => Some(ParkedScope::Lane(route, lane.hash())),
    }
}

/// The lane of a message, or where it has none, one of its own: what fails alone blocks nothing else.
pub fn lane_or_own(message: &Outgoing, lsn: Lsn) -> Lane {
    message.lane.unwrap_or(Lane(u128::from(lsn)))
}

/// Blocks about which the ledger may have forgotten something: they are read back from the log.
#[derive(Debug, Default)]
pub struct Unindexed(HashSet<BlockKey>);

impl Unindexed {
    /// The ledger did not take a row of this block.
    pub fn add(&mut self, key: BlockKey) {
        self.0.insert(key);
    }

    /// Whether the ledger lacks rows of this block.
    pub fn contains(&self, key: BlockKey) -> bool {
        self.0.contains(&key)
    }

    /// The block is gone.
    pub fn remove(&mut self, key: BlockKey) {
        self.0.remove(&key);
    }
}
