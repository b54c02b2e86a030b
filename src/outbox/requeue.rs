//! Dead letters go back among what is pending in the order in which their messages were stored: what a route's fault
//! buried together was buried in no order, for each message fails by itself.
//!
//! The letters are sorted by the LSN their message had. Memory stays bounded: of so many letters as may be sorted at a
//! time only number and place are kept, the oldest first, and of a batch the letters themselves.

use std::collections::{BinaryHeap, HashMap};

use super::Outbox;
use super::dead::DeadError;
use crate::wal::{DeadLetter, Entry, Lsn, Mark, Place, Step};

/// Dead letters that are sorted at a time; for more, their log is read as often as there are so many. 32 MiB.
const SORTED: usize = 1 << 20;
/// Dead letters that are requeued between two syncs, and their bytes.
const BATCH: usize = 256;
const BATCH_BYTES: u64 = 8 << 20;

/// A dead letter that is to be requeued, in the order in which that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chosen {
    /// The LSN its message had: the order of what was sent.
    lsn: Lsn,
    /// Its number among the dead letters.
    number: Lsn,
    place: Place,
    bytes: u32,
}

impl Outbox {
    /// Appends the messages of the dead letters that `takes` takes anew, in the order of the LSNs they had, and takes them
    /// out of the dead letters; returns how many. `restamp`: a time that the application gave counts as the library's
    /// from now on.
    pub fn requeue_dead(&self, restamp: bool, takes: impl Fn(Lsn, &DeadLetter) -> bool) -> Result<u64, DeadError> {
        self.requeue_sorted(restamp, SORTED, &takes)
    }

    pub(super) fn requeue_sorted(
        &self,
        restamp: bool,
        sorted: usize,
        takes: &dyn Fn(Lsn, &DeadLetter) -> bool,
    ) -> Result<u64, DeadError> {
        let (mut count, mut after) = (0, None);
        loop {
            let chosen = self.oldest_dead(after, sorted, takes)?;
            let Some(last) = chosen.last() else { return Ok(count) };
            after = Some((last.lsn, last.number));
            let mut rest = &chosen[..];
            while !rest.is_empty() {
                let (batch, later) = rest.split_at(batch_length(rest));
                let mut letters = self.read_dead(batch)?;
                if restamp {
                    letters.iter_mut().for_each(|(_, letter)| letter.outgoing.message.timestamp = None);
                }
                count += letters.len() as u64;
                self.change_batch(Mark::Requeued, letters)?;
                rest = later;
            }
        }
    }

    /// The oldest dead letters behind `after`, so many at most, sorted.
    fn oldest_dead(
        &self,
        after: Option<(Lsn, Lsn)>,
        most: usize,
        takes: &dyn Fn(Lsn, &DeadLetter) -> bool,
    ) -> Result<Vec<Chosen>, DeadError> {
        let mut oldest = BinaryHeap::new();
        self.each_dead_at(|number, place, letter| {
            let is_done = after.is_some_and(|after| (letter.lsn, number) <= after);
            if !is_done && takes(number, &letter) {
                let bytes = u32::try_from(letter.outgoing.message.size()).unwrap_or(u32::MAX);
                oldest.push(Chosen { lsn: letter.lsn, number, place, bytes });
                if oldest.len() > most {
                    oldest.pop();
                }
            }
            Ok(())
        })?;
        Ok(oldest.into_sorted_vec())
    }

    /// Reads dead letters back, in the order given. One that cannot be read any more is left out: it stays where it is.
    fn read_dead(&self, chosen: &[Chosen]) -> Result<Vec<(Lsn, DeadLetter)>, DeadError> {
        let mut by_place = chosen.to_vec();
        by_place.sort_unstable_by_key(|one| one.number);
        let wanted: HashMap<Lsn, usize> = (0..).zip(chosen).map(|(at, one)| (one.number, at)).collect();
        let mut letters: Vec<Option<DeadLetter>> = Vec::new();
        letters.resize_with(chosen.len(), || None);
        let reader = self.dead.reader();
        for one in by_place {
            // Its frame may have been read for another.
            if wanted.get(&one.number).is_none_or(|&at| letters[at].is_some()) {
                continue;
            }
            let mut cursor = reader.seek(one.number, Some(one.place))?;
            if let Step::Frame { records, .. } = reader.next(&mut cursor)? {
                for record in records {
                    if let (Some(&at), Entry::Dead(letter)) = (wanted.get(&record.lsn), record.body) {
                        letters[at] = Some(letter);
                    }
                }
            }
        }
        Ok(chosen.iter().zip(letters).filter_map(|(one, letter)| Some((one.number, letter?))).collect())
    }
}

/// How many of the letters, in order, make a batch: at least one.
fn batch_length(chosen: &[Chosen]) -> usize {
    let mut bytes = 0_u64;
    let fits = |one: &&Chosen| {
        bytes += u64::from(one.bytes);
        bytes <= BATCH_BYTES
    };
    chosen.iter().take(BATCH).take_while(fits).count().max(1)
}
