//! A log of several files of any names and any bytes: see [`examine`](super::examine).

use std::path::Path;

use outlast::internals::wal::ModelStorage;

use super::examine::{self, DIRECTORY};
use super::input::Input;

/// Numbers at which sums go wrong.
const EDGES: [u64; 5] = [0, 1 << 32, i64::MAX as u64, u64::MAX - 1, u64::MAX];

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, seed) = (input.u8(), u64::from(input.u8()));
    let storage = ModelStorage::new(seed);
    let mut contradicts = false;
    for _ in 0..=input.below(6) {
        let (kind, name) = (input.below(8), input.u8());
        let number = match name {
            0..200 => u64::from(name),
            // The last that is a segment's.
            255 => 1 << 62,
            _ => EDGES[usize::from(name) % EDGES.len()],
        };
        let bytes = examine::file(&mut input, number);
        contradicts |= examine::contradicts(&bytes);
        let path = match kind {
            0 => examine::path(number, true),
            1 => Path::new(DIRECTORY).join(input.text()),
            _ => examine::path(number, false),
        };
        storage.set_bytes(&path, bytes);
        if input.is_empty() {
            break;
        }
    }
    examine::examine(&storage, (mode & 1 == 1).then_some(seed), contradicts);
}
