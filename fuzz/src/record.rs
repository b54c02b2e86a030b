//! Any bytes as the content of a record.
//!
//! What decodes is written again: to the same bytes, but for numbers in the metadata, which bincode also reads where
//! they take more bytes than they need; then to fewer, and from those to the same.

use outlast::internals::wal::probe;

/// The tags there are, at the front, so that the first byte of an input finds them easily; then all the others.
const TAGS: [u8; 8] = [1, 2, 16, 17, 18, 19, 20, 21];

/// The tag that the first byte of an input stands for.
pub fn tag(byte: u8) -> u8 {
    TAGS.get(usize::from(byte)).copied().unwrap_or(byte)
}

pub fn run(data: &[u8]) {
    let Some((&byte, content)) = data.split_first() else { return };
    let tag = tag(byte);
    let Ok(again) = probe::recode_record(tag, content) else { return };
    if again.len() == content.len() {
        assert_eq!(again, content, "what was read is not what was written");
    } else {
        assert!(matches!(tag, 1 | 2) && again.len() < content.len(), "{} bytes became {}", content.len(), again.len());
        assert_eq!(probe::recode_record(tag, &again).as_deref(), Ok(&again[..]));
    }
}
