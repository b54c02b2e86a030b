//! Any bytes as keys and values of the ledger: a typed error, or a row that is written to the same bytes again.

use outlast::internals::outbox::ledger::keys::{self, Meta};
use outlast::internals::outbox::ledger::{EntryRow, LaneKey, LaneRow, ParkedKey, ParkedRow};

pub fn run(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 7 {
        0 => same(bytes, keys::decode_entry_key(bytes).map(|lsn| keys::entry_key(lsn).to_vec())),
        1 => same(bytes, EntryRow::decode(bytes).map(|row| row.encode().to_vec())),
        2 => same(bytes, ParkedKey::decode(bytes).map(|key| key.encode().to_vec())),
        3 => same(bytes, ParkedRow::decode(bytes).map(|row| row.encode().to_vec())),
        4 => same(bytes, LaneKey::decode(bytes).map(|key| key.encode().to_vec())),
        5 => {
            let Ok(row) = LaneRow::decode(bytes) else { return };
            let again = row.encode();
            // A text that is too long is cut when it is written, between two characters.
            assert!(bytes.starts_with(&again) && (again == bytes || again.len() + 3 > 21 + keys::MAX_ERROR_BYTES));
            assert_eq!(LaneRow::decode(&again).map(|row| row.encode()), Ok(again));
        }
        _ => {
            if let Ok(Meta::Ours { batches }) = keys::decode_meta(bytes) {
                assert_eq!(keys::meta_value(batches), bytes);
            }
        }
    }
}

fn same<E>(bytes: &[u8], again: Result<Vec<u8>, E>) {
    if let Ok(again) = again {
        assert_eq!(again, bytes);
    }
}
