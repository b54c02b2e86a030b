//! Every row of the ledger, on one screen.
//!
//! | type | key behind the type byte | value | cardinality | lifetime |
//! |---|---|---|---|---|
//! | 0 meta | – | format `u32`, batches applied so far `u64` | one | replaced with each batch |
//! | 1 entry | first LSN `u64` | segment `u64`, offset `u32`, count `u32`, bytes `u64`, time `i64` | one a run of 64 KiB of log | written once, removed with its segment |
//! | 2 parked | route `u64`, lane `u128`, LSN `u64` | segment `u64`, offset `u32`, index `u32`, partition `i32` | one a message passed over | written once, removed when it is settled |
//! | 3 dead | *reserved for* LSN `u64` | | | |
//! | 4 lane | route `u64`, lane `u128` | attempts `u32`, class `u8`, first and last failure `i64` each, error: UTF-8 to the end, at most 1,024 bytes | one a failing lane | replaced at each failure, removed at success |
//!
//! Keys are big-endian, so that they sort by number; values little-endian. Type bytes are never given away twice.
//!
//! Assumes nothing of the bytes it decodes. Refuses every length but the exact one: what is not as this table says
//! was not written by this version, and the whole database is then given up and made anew.

/// The version of this table: another one's database is made anew.
pub const FORMAT: u32 = 1;

/// The longest error text of a lane, in bytes. A value over `segment_size / 72`, 7,281 bytes, would become a file of
/// its own, which sled does not sync.
pub const MAX_ERROR_BYTES: usize = 1024;

/// The type byte at the front of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// What the database is.
    Meta = 0,
    /// Where a run of the log begins.
    Entry = 1,
    /// A message that was passed over.
    Parked = 2,
    // 3 is reserved for dead letters, whose log is read without the ledger.
    /// A failing lane.
    Lane = 4,
}

impl Kind {
    /// The kind that a type byte stands for.
    #[cfg(test)]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Meta,
            1 => Self::Entry,
            2 => Self::Parked,
            4 => Self::Lane,
            3 | 5..=u8::MAX => return None,
        })
    }
}

/// Where a run of the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The segment's number.
    pub segment: u64,
    /// The first frame's offset in it.
    pub offset: u32,
    /// Messages in the run.
    pub count: u32,
    /// Its bytes.
    pub bytes: u64,
    /// When its first message was accepted, in milliseconds since 1970.
    pub time: i64,
}

/// Which message was passed over. Sorts by route, lane, LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParkedKey {
    /// The hash of its route.
    pub route: u64,
    /// The hash of its lane.
    pub lane: u128,
    /// Its LSN.
    pub lsn: u64,
}

/// Where a message that was passed over lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    /// The segment's number.
    pub segment: u64,
    /// The frame's offset in it.
    pub offset: u32,
    /// The record's index in the frame.
    pub index: u32,
    /// Its Kafka partition; negative if there is none.
    pub partition: i32,
}

/// Which lane fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// The hash of its route.
    pub route: u64,
    /// Its hash.
    pub lane: u128,
}

/// How a lane fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRow {
    /// Failed attempts of its first message.
    pub attempts: u32,
    /// The class of the last failure, as its owner numbers them.
    pub class: u8,
    /// When it first failed, in milliseconds since 1970.
    pub first_failure: i64,
    /// When it last failed.
    pub last_failure: i64,
    /// The last error; cut to `MAX_ERROR_BYTES` when written.
    pub error: String,
}

/// Bytes that are not a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another length than the table's.
    #[error("{what}: {expected} bytes expected, {actual} found")]
    Length {
        /// Which key or value.
        what: &'static str,
        /// The table's length (for a lane's value: the least).
        expected: usize,
        /// The length found.
        actual: usize,
    },
    /// Another type byte than the one looked for.
    #[error("type byte {expected} expected at offset 0, {actual} found")]
    Type {
        /// The one looked for.
        expected: u8,
        /// The one found.
        actual: u8,
    },
    /// Text that is not UTF-8.
    #[error("{what}: no UTF-8 from offset {offset} on")]
    Text {
        /// Which value.
        what: &'static str,
        /// Where it stops being text.
        offset: usize,
    },
}

/// The key of the meta row.
pub const META: [u8; 1] = [Kind::Meta as u8];

/// What the meta row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// A database of this format.
    Ours {
        /// Batches applied so far: a database that came back shorter says fewer.
        batches: u64,
    },
    /// One of another format, of which no more is known.
    Other {
        /// That format.
        format: u32,
    },
}

/// The value of the meta row.
pub fn meta_value(batches: u64) -> [u8; 12] {
    let mut value = Bytes::<12>::new();
    value.put(FORMAT.to_le_bytes());
    value.put(batches.to_le_bytes());
    value.bytes
}

/// Reads the value of a meta row.
pub fn decode_meta(value: &[u8]) -> Result<Meta, RowError> {
    let what = "meta value";
    let (format, _) = value.split_first_chunk().ok_or(RowError::Length { what, expected: 4, actual: value.len() })?;
    let format = u32::from_le_bytes(*format);
    if format != FORMAT {
        return Ok(Meta::Other { format });
    }
    let mut fields = Fields::of(what, value, 12)?;
    let _: [u8; 4] = fields.next()?;
    Ok(Meta::Ours { batches: u64::from_le_bytes(fields.next()?) })
}

/// The key of an entry.
pub fn entry_key(first_lsn: u64) -> [u8; 9] {
    let mut key = Bytes::<9>::kind(Kind::Entry);
    key.put(first_lsn.to_be_bytes());
    key.bytes
}

/// The first LSN that an entry's key names.
pub fn decode_entry_key(key: &[u8]) -> Result<u64, RowError> {
    let mut fields = key_fields("entry key", key, Kind::Entry, 9)?;
    Ok(u64::from_be_bytes(fields.next()?))
}

impl EntryRow {
    /// The value.
    pub fn encode(&self) -> [u8; 32] {
        let mut value = Bytes::<32>::new();
        value.put(self.segment.to_le_bytes());
        value.put(self.offset.to_le_bytes());
        value.put(self.count.to_le_bytes());
        value.put(self.bytes.to_le_bytes());
        value.put(self.time.to_le_bytes());
        value.bytes
    }

    /// Reads the value.
    pub fn decode(value: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::of("entry value", value, 32)?;
        Ok(Self {
            segment: u64::from_le_bytes(fields.next()?),
            offset: u32::from_le_bytes(fields.next()?),
            count: u32::from_le_bytes(fields.next()?),
            bytes: u64::from_le_bytes(fields.next()?),
            time: i64::from_le_bytes(fields.next()?),
        })
    }
}

impl ParkedKey {
    /// The key.
    pub fn encode(&self) -> [u8; 33] {
        let mut key = Bytes::<33>::kind(Kind::Parked);
        key.put(self.route.to_be_bytes());
        key.put(self.lane.to_be_bytes());
        key.put(self.lsn.to_be_bytes());
        key.bytes
    }

    /// Reads the key.
    pub fn decode(key: &[u8]) -> Result<Self, RowError> {
        let mut fields = key_fields("parked key", key, Kind::Parked, 33)?;
        Ok(Self {
            route: u64::from_be_bytes(fields.next()?),
            lane: u128::from_be_bytes(fields.next()?),
            lsn: u64::from_be_bytes(fields.next()?),
        })
    }
}

impl ParkedRow {
    /// The value.
    pub fn encode(&self) -> [u8; 20] {
        let mut value = Bytes::<20>::new();
        value.put(self.segment.to_le_bytes());
        value.put(self.offset.to_le_bytes());
        value.put(self.index.to_le_bytes());
        value.put(self.partition.to_le_bytes());
        value.bytes
    }

    /// Reads the value.
    pub fn decode(value: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::of("parked value", value, 20)?;
        Ok(Self {
            segment: u64::from_le_bytes(fields.next()?),
            offset: u32::from_le_bytes(fields.next()?),
            index: u32::from_le_bytes(fields.next()?),
            partition: i32::from_le_bytes(fields.next()?),
        })
    }
}

impl LaneKey {
    /// The key.
    pub fn encode(&self) -> [u8; 25] {
        let mut key = Bytes::<25>::kind(Kind::Lane);
        key.put(self.route.to_be_bytes());
        key.put(self.lane.to_be_bytes());
        key.bytes
    }

    /// Reads the key.
    pub fn decode(key: &[u8]) -> Result<Self, RowError> {
        let mut fields = key_fields("lane key", key, Kind::Lane, 25)?;
        Ok(Self { route: u64::from_be_bytes(fields.next()?), lane: u128::from_be_bytes(fields.next()?) })
    }
}

/// Bytes of a lane's value in front of its text.
const LANE_FIXED: usize = 21;

impl LaneRow {
    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut fixed = Bytes::<LANE_FIXED>::new();
        fixed.put(self.attempts.to_le_bytes());
        fixed.put([self.class]);
        fixed.put(self.first_failure.to_le_bytes());
        fixed.put(self.last_failure.to_le_bytes());
        [&fixed.bytes, cut(&self.error).as_bytes()].concat()
    }

    /// Reads the value.
    pub fn decode(value: &[u8]) -> Result<Self, RowError> {
        let what = "lane value";
        let wrong = RowError::Length { what, expected: LANE_FIXED, actual: value.len() };
        let (fixed, text) = value.split_at_checked(LANE_FIXED).ok_or(wrong)?;
        if text.len() > MAX_ERROR_BYTES {
            return Err(wrong);
        }
        let text = std::str::from_utf8(text)
            .map_err(|error| RowError::Text { what, offset: LANE_FIXED + error.valid_up_to() })?;
        let mut fields = Fields::of(what, fixed, LANE_FIXED)?;
        Ok(Self {
            attempts: u32::from_le_bytes(fields.next()?),
            class: u8::from_le_bytes(fields.next()?),
            first_failure: i64::from_le_bytes(fields.next()?),
            last_failure: i64::from_le_bytes(fields.next()?),
            error: text.to_owned(),
        })
    }
}

/// The text, or as much of it as a row takes.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_ERROR_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A row's key or value, put together from parts of fixed width.
struct Bytes<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Bytes<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn kind(kind: Kind) -> Self {
        let mut key = Self::new();
        key.put([kind as u8]);
        key
    }

    fn put<const M: usize>(&mut self, part: [u8; M]) {
        self.bytes[self.at..self.at + M].copy_from_slice(&part);
        self.at += M;
    }
}

/// The same taken apart.
struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(what: &'static str, bytes: &'a [u8], expected: usize) -> Result<Self, RowError> {
        let actual = bytes.len();
        if actual == expected {
            Ok(Self { what, rest: bytes })
        } else {
            Err(RowError::Length { what, expected, actual })
        }
    }

    fn next<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(RowError::Length {
            what: self.what,
            expected: N,
            actual: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(*field)
    }
}

fn key_fields<'a>(what: &'static str, key: &'a [u8], kind: Kind, length: usize) -> Result<Fields<'a>, RowError> {
    let mut fields = Fields::of(what, key, length)?;
    let [actual] = fields.next()?;
    let expected = kind as u8;
    if actual == expected { Ok(fields) } else { Err(RowError::Type { expected, actual }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_of_the_256_type_bytes_is_one_kind_or_none() {
        let kinds = [Kind::Meta, Kind::Entry, Kind::Parked, Kind::Lane];
        for byte in 0..=u8::MAX {
            let kind = kinds.into_iter().find(|&kind| kind as u8 == byte);
            assert_eq!(Kind::from_byte(byte), kind);
            assert_eq!(kind.is_some(), byte < 5 && byte != 3, "{byte}");
            // A key of one kind is no key of any other.
            let with = |mut key: Vec<u8>| {
                key[0] = byte;
                key
            };
            let wrong = |expected: Kind| RowError::Type { expected: expected as u8, actual: byte };
            let (parked, lane) = (ParkedKey { route: 1, lane: 2, lsn: 3 }, LaneKey { route: 1, lane: 2 });
            let entry = decode_entry_key(&with(entry_key(7).to_vec()));
            assert_eq!(entry, if byte == 1 { Ok(7) } else { Err(wrong(Kind::Entry)) });
            let found = ParkedKey::decode(&with(parked.encode().to_vec()));
            assert_eq!(found, if byte == 2 { Ok(parked) } else { Err(wrong(Kind::Parked)) });
            let found = LaneKey::decode(&with(lane.encode().to_vec()));
            assert_eq!(found, if byte == 4 { Ok(lane) } else { Err(wrong(Kind::Lane)) });
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        assert_eq!(entry_key(0x0102), [1, 0, 0, 0, 0, 0, 0, 1, 2]);
        let row = EntryRow { segment: 0x01, offset: 0x02, count: 0x03, bytes: 0x04, time: -1 };
        let expected = "0100000000000000 02000000 03000000 0400000000000000 ffffffffffffffff";
        assert_eq!(hex(&row.encode()), expected.replace(' ', ""));
        let key = ParkedKey { route: 0x0a, lane: 0x0b, lsn: 0x0c };
        let expected = "02 000000000000000a 0000000000000000000000000000000b 000000000000000c";
        assert_eq!(hex(&key.encode()), expected.replace(' ', ""));
        let row = ParkedRow { segment: 1, offset: 2, index: 3, partition: -1 };
        assert_eq!(hex(&row.encode()), "0100000000000000 02000000 03000000 ffffffff".replace(' ', ""));
        let key = LaneKey { route: 0x0a, lane: 0x0b };
        assert_eq!(hex(&key.encode()), "04 000000000000000a 0000000000000000000000000000000b".replace(' ', ""));
        let row = LaneRow { attempts: 1, class: 2, first_failure: 3, last_failure: 4, error: "no".into() };
        let expected = "01000000 02 0300000000000000 0400000000000000 6e6f";
        assert_eq!(hex(&row.encode()), expected.replace(' ', ""));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_meta_row_tells_its_format_whatever_else_it_says() {
        assert_eq!(hex(&meta_value(7)), "010000000700000000000000");
        assert_eq!(decode_meta(&meta_value(7)), Ok(Meta::Ours { batches: 7 }));
        assert_eq!(decode_meta(&[2, 0, 0, 0, 9]), Ok(Meta::Other { format: 2 }));
        let short = |expected, actual| Err(RowError::Length { what: "meta value", expected, actual });
        assert_eq!(decode_meta(&[1, 0, 0, 0, 9]), short(12, 5));
        assert_eq!(decode_meta(&[1, 0]), short(4, 2));
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let row = |error: String| LaneRow { attempts: 0, class: 0, first_failure: 0, last_failure: 0, error };
        let long = row(format!("x{}", "é".repeat(2_000)));
        let read = LaneRow::decode(&long.encode()).expect("a row");
        assert_eq!(read.error.len(), MAX_ERROR_BYTES - 1);
        assert!(long.error.starts_with(&read.error));
        let mut broken = row("aé".into()).encode();
        broken.pop();
        assert_eq!(LaneRow::decode(&broken), Err(RowError::Text { what: "lane value", offset: LANE_FIXED + 1 }));
    }

    proptest! {
        #[test]
        fn keys_sort_as_what_they_name(a: (u64, u128, u64), b: (u64, u128, u64)) {
            let [a, b] = [a, b].map(|(route, lane, lsn)| ParkedKey { route, lane, lsn });
            prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
            prop_assert_eq!(ParkedKey::decode(&a.encode()), Ok(a));
            prop_assert_eq!(a.lsn.cmp(&b.lsn), entry_key(a.lsn).cmp(&entry_key(b.lsn)));
            prop_assert_eq!(decode_entry_key(&entry_key(a.lsn)), Ok(a.lsn));
        }

        #[test]
        fn what_is_written_is_read(segment: u64, offset: u32, index: u32, partition: i32, time: i64, error in ".{0,300}") {
            let parked = ParkedRow { segment, offset, index, partition };
            prop_assert_eq!(ParkedRow::decode(&parked.encode()), Ok(parked));
            let entry = EntryRow { segment, offset, count: index, bytes: segment, time };
            prop_assert_eq!(EntryRow::decode(&entry.encode()), Ok(entry));
            let lane = LaneRow { attempts: index, class: 7, first_failure: time, last_failure: time, error };
            prop_assert_eq!(LaneRow::decode(&lane.encode()).map(|row| cut(&lane.error) == row.error), Ok(true));
        }

        #[test]
        fn no_bytes_make_it_panic_and_no_other_length_is_taken(bytes in prop::collection::vec(any::<u8>(), 0..1_100)) {
            prop_assert_eq!(decode_entry_key(&bytes).is_ok(), bytes.len() == 9 && bytes[0] == 1);
            prop_assert_eq!(ParkedKey::decode(&bytes).is_ok(), bytes.len() == 33 && bytes[0] == 2);
            prop_assert_eq!(LaneKey::decode(&bytes).is_ok(), bytes.len() == 25 && bytes[0] == 4);
            prop_assert_eq!(EntryRow::decode(&bytes).is_ok(), bytes.len() == 32);
            prop_assert_eq!(ParkedRow::decode(&bytes).is_ok(), bytes.len() == 20);
            let meta = decode_meta(&bytes);
            let wrong = matches!(meta, Ok(Meta::Ours { batches }) if meta_value(batches) != bytes[..]);
            prop_assert!(!wrong);
            let _ = LaneRow::decode(&bytes);
        }
    }
}
