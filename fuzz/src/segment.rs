//! A log of one segment of any bytes: see [`examine`](super::examine). And its header, read and written again.

use outlast::internals::wal::{ModelStorage, probe};

use super::examine;
use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, seed) = (input.u8(), u64::from(input.u8()));
    let bytes = examine::file(&mut input, 1);
    if let Ok(again) = probe::recode_header(&bytes) {
        assert_eq!(again.get(..104), bytes.get(..104), "the header is not what was read");
    }
    let contradicts = examine::contradicts(&bytes);
    let storage = ModelStorage::new(seed);
    storage.set_bytes(&examine::path(1, false), bytes);
    examine::examine(&storage, (mode & 1 == 1).then_some(seed), contradicts);
}
