//! Any bytes as the file `status`: a report, whose lines can be told at any time and which survives being written, or
//! an error.

use outlast::internals::outbox::Status;

pub fn run(data: &[u8]) {
    let Ok(status) = serde_json::from_slice::<Status>(data) else { return };
    for now in [i64::MIN, 0, status.updated_at, i64::MAX] {
        status.lines(now);
    }
    let again = serde_json::to_vec(&status).expect("what was read can be written");
    let read: Status = serde_json::from_slice(&again).expect("what was written can be read");
    assert_eq!(read, status);
}
