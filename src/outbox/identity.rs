//! The file `IDENTITY`: which outbox this is, and in which format. Written once, when the outbox is made.
//!
//! ```text
//! outlast 1 5f0c0e2c8d0b4f6fa1d4c3b2a1908070 3812ec04
//!
//! outlast 1 5f0c0e2c8d0b4f6fa1d4c3b2a1908070 3812ec04
//! ```
//!
//! Text: the word `outlast`, the version of the outbox's format in decimal, the outbox id as 32 hexadecimal digits,
//! and the CRC-32 (IEEE) of everything before the last space, as 8 hexadecimal digits; two line feeds. All this
//! is there twice, so that one bad byte, a line feed too, costs one line and does not keep an outbox from opening.
//! Lines of later versions may say more between version and CRC, but begin and end like this: they are recognised,
//! and refused.
//!
//! Refuses to guess: where neither line is whole, the caller asks the log, which has the id in each segment.

use std::io::Read;
use std::path::Path;

use super::directory::DirectoryError;
use super::files::{self, Durability, Owner};

/// The version of the outbox's format that this library writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Which outbox it is: drawn at random when it was made.
pub type OutboxId = [u8; 16];

/// Two lines of this version have 106 bytes; those of a later one may be longer.
const MAX_BYTES: u64 = 4096;

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// There is no file.
    Missing,
    /// The id; `whole` is false if one of the two lines is damaged.
    Known {
        /// The outbox id.
        id: OutboxId,
        /// Whether both lines are good.
        whole: bool,
    },
    /// A version that this library does not know.
    Newer {
        /// That version.
        version: u32,
    },
    /// No line is good.
    Damaged,
}

/// Reads the file.
pub fn read(path: &Path, owner: Owner) -> Result<Identity, DirectoryError> {
    let Some(file) = files::open_existing(path, owner)? else { return Ok(Identity::Missing) };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|error| DirectoryError::io(path, "read", error))?;
    Ok(decode(&bytes))
}

/// Writes the file: it is durable when this returns.
pub fn write(path: &Path, id: &OutboxId) -> Result<(), DirectoryError> {
    files::replace(path, encode(id).as_bytes(), Durability::Synced)
}

/// Draws an id for a new outbox.
pub fn draw(path: &Path) -> Result<OutboxId, DirectoryError> {
    let mut id = OutboxId::default();
    getrandom::fill(&mut id)
        .map_err(|error| DirectoryError::io(path, "draw a random id for", std::io::Error::other(error.to_string())))?;
    Ok(id)
}

/// The id as 32 hexadecimal digits.
pub fn hex(id: &OutboxId) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

/// The file's bytes.
pub(super) fn encode(id: &OutboxId) -> String {
    let text = format!("outlast {FORMAT_VERSION} {}", hex(id));
    let line = format!("{text} {:08x}\n\n", crc32fast::hash(text.as_bytes()));
    line.repeat(2)
}

/// What the file's bytes say.
pub(super) fn decode(bytes: &[u8]) -> Identity {
    let lines: Vec<Identity> = bytes.split(|&byte| byte == b'\n').map(decode_line).collect();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let whole = first == second;
    // A good line of a newer version wins: an upgrade that was cut short must not be read as the older one.
    let newer = lines.iter().find(|line| matches!(line, Identity::Newer { .. }));
    match newer.or_else(|| lines.iter().find(|line| matches!(line, Identity::Known { .. }))) {
        Some(Identity::Known { id, .. }) => Identity::Known { id: *id, whole },
        Some(other) => other.clone(),
        None => Identity::Damaged,
    }
}

fn decode_line(line: &[u8]) -> Identity {
    parse_line(line).unwrap_or(Identity::Damaged)
}

fn parse_line(line: &[u8]) -> Option<Identity> {
    let (text, crc) = std::str::from_utf8(line).ok()?.rsplit_once(' ')?;
    if crc.len() != 8 || u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(text.as_bytes()) {
        return None;
    }
    let mut words = text.split(' ');
    if words.next()? != "outlast" {
        return None;
    }
    let version: u32 = words.next()?.parse().ok()?;
    if version > FORMAT_VERSION {
        return Some(Identity::Newer { version });
    }
    let digits = words.next()?;
    if version == 0 || digits.len() != 32 || words.next().is_some() {
        return None;
    }
    let id = u128::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some(Identity::Known { id, whole: true })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: OutboxId = *b"\x5f\x0c\x0e\x2c\x8d\x0b\x4f\x6f\xa1\xd4\xc3\xb2\xa1\x90\x80\x70";

    #[test]
    fn the_file_is_what_the_documentation_shows() {
        let line = "outlast 1 5f0c0e2c8d0b4f6fa1d4c3b2a1908070 3812ec04\n\n";
        assert_eq!(encode(&ID), line.repeat(2));
        assert_eq!(decode(encode(&ID).as_bytes()), Identity::Known { id: ID, whole: true });
    }

    #[test]
    fn any_one_flipped_bit_costs_a_line_and_never_the_id() {
        let good = encode(&ID).into_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match decode(&bad) {
                // A changed case of a hexadecimal digit of the CRC is the same number.
                Identity::Known { id, whole } => assert!(id == ID && !whole, "bit {bit}"),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }

    #[test]
    fn any_truncation_short_of_a_line_is_damage_and_beyond_it_is_not() {
        let good = encode(&ID).into_bytes();
        let line = good.len() / 2;
        for length in 0..good.len() {
            let expected = if length < line - 2 { Identity::Damaged } else { Identity::Known { id: ID, whole: false } };
            assert_eq!(decode(&good[..length]), expected, "{length} bytes");
        }
    }

    #[test]
    fn a_newer_version_is_recognised_whatever_else_it_says() {
        let text = "outlast 2 side-logs=2 0123";
        let line = format!("{text} {:08x}\n", crc32fast::hash(text.as_bytes()));
        assert_eq!(decode(line.as_bytes()), Identity::Newer { version: 2 });
        let mixed = format!("{line}{}", encode(&ID));
        assert_eq!(decode(mixed.as_bytes()), Identity::Newer { version: 2 });
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
