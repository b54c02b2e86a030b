//! Any bytes for the decoder of frames: as they are, as a frame whose checksums match, and as the body of a good frame.
//! What decodes is written again, to the same bytes.

use outlast::internals::wal::{Identity, decode_frame, probe, wrap};

const IDENTITY: Identity = Identity { segment: 7, salt: Some(11), offset: 4096, limit: 64 << 20 };

pub fn run(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let any = Identity { salt: None, ..IDENTITY };
    match mode % 3 {
        0 => decode(bytes, if mode & 4 == 0 { &IDENTITY } else { &any }),
        1 => {
            let mut frame = bytes.to_vec();
            probe::mend_frame(&mut frame);
            let (segment, offset) = place(&frame);
            decode(&frame, &Identity { segment, offset, ..any });
        }
        _ => {
            let [count, records, body @ ..] = bytes else { return };
            decode(&wrap(body, u32::from(*count), u32::from(*records), &IDENTITY), &IDENTITY);
        }
    }
}

/// Where a frame says that it belongs: a fuzzer need not guess it.
fn place(frame: &[u8]) -> (u64, u32) {
    let segment = frame.get(8..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let offset = frame.get(48..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_le_bytes(*bytes));
    (segment, offset)
}

fn decode(bytes: &[u8], identity: &Identity) {
    let Ok(frame) = decode_frame(bytes, identity) else { return };
    let entries = frame.entries();
    let again = probe::recode_frame(bytes, identity);
    assert_eq!(entries.is_ok(), again.is_ok());
    let Ok(again) = again else { return };
    match bytes.get(..again.len()) {
        Some(same) if same == again => {}
        _ => assert_eq!(probe::recode_frame(&again, identity).as_deref(), Ok(&again[..])),
    }
}
