//! Any bytes for the decoder of frames: as they are, and as the body of a frame whose checksums match, so that what
//! lies behind the checksums is reached. It must not panic, and must not allocate beyond its input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlast::internals::wal::{Identity, decode_frame, wrap};

fuzz_target!(|data: &[u8]| {
    let identity = Identity { segment: 7, salt: Some(11), offset: 4096, limit: 64 << 20 };
    let any = Identity { salt: None, ..identity };
    for identity in [&identity, &any] {
        if let Ok(frame) = decode_frame(data, identity) {
            let _ = frame.entries();
        }
    }
    if let [count, records, body @ ..] = data {
        let frame = wrap(body, u32::from(*count), u32::from(*records), &identity);
        if let Ok(frame) = decode_frame(&frame, &identity) {
            let _ = frame.entries();
        }
    }
});
