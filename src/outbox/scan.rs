//! Reading pending messages back, in order.

use crate::message::Outgoing;
use crate::wal::{Cursor, Damage, Entry, Lsn, Place, ReadError, Reader, Step, StoredRecord};

/// Why the log could not be read. Nothing is lost: it is tried again, or, where a single message was asked for that is
/// damaged, set aside by whoever reads the log in order.
pub type ScanError = ReadError;

/// One step of a [`Scan`].
#[derive(Debug)]
pub enum Scanned {
    /// The next frame's messages, settled ones among them.
    Frame {
        /// The frame's place.
        place: Place,
        /// Its bytes.
        bytes: u64,
        /// The time of its first message.
        time: i64,
        /// Its messages.
        records: Vec<StoredRecord>,
    },
    /// These LSNs cannot be read. The scan is past them.
    Damaged(Damage),
    /// Everything durable was read.
    End,
}

/// A place in the log from which messages are read one frame after the other.
pub struct Scan {
    reader: Reader,
    from: Lsn,
    cursor: Option<Cursor>,
}

impl Scan {
    /// Begins at the first message at or behind `from`.
    pub(super) fn new(reader: Reader, from: Lsn) -> Self {
        Self { reader, from, cursor: None }
    }

    /// Reads on.
    ///
    /// # Errors
    /// The log cannot be read now. The scan stays where it is: call again.
    pub fn advance(&mut self, hint: impl FnOnce(Lsn) -> Option<Place>) -> Result<Scanned, ScanError> {
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            None => {
                let cursor = self.reader.seek(self.from, hint(self.from))?;
                self.cursor.insert(cursor)
            }
        };
        Ok(match self.reader.next(cursor)? {
            Step::Frame { place, bytes, time, mut records, .. } => {
                records.retain(|record| record.lsn >= self.from);
                Scanned::Frame { place, bytes, time, records }
            }
            Step::Damaged(mut damage) => {
                damage.first_lsn = damage.first_lsn.max(self.from);
                Scanned::Damaged(damage)
            }
            Step::End => Scanned::End,
        })
    }
}

/// Reads one message by its LSN; `None` if it is not there any more.
pub(super) fn read_one(reader: &Reader, lsn: Lsn, hint: Option<Place>) -> Result<Option<Outgoing>, ScanError> {
    let mut cursor = reader.seek(lsn, hint)?;
    loop {
        match reader.next(&mut cursor)? {
            Step::Frame { records, .. } => {
                let found = records.into_iter().find(|record| record.lsn >= lsn);
                match found {
                    Some(StoredRecord { lsn: at, body: Entry::Message(outgoing), .. }) if at == lsn => {
                        return Ok(Some(outgoing));
                    }
                    Some(_) => return Ok(None),
                    None => {}
                }
            }
            Step::Damaged(damage) if damage.last_lsn >= lsn => {
                return Err(ScanError::Damaged { lsn, reason: damage.reason });
            }
            Step::Damaged(_) => {}
            Step::End => return Ok(None),
        }
    }
}
