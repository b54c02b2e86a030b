//! What the system allows this process: the sizes of files, and how many may be open.

use rustix::process::{Resource, getrlimit};

use crate::finding::{Code, Finding};

/// Descriptors that a producer needs at its start: the log's segments, the index over it, the threads' wake-ups.
const FOR_OUTBOX: u64 = 48;
/// The same for each broker: connections, name look-ups, certificates.
const FOR_BROKER: u64 = 32;
/// Below this there is little left for the application itself: the usual soft limit.
const USUAL: u64 = 1_024;

/// Checks `ulimit -f` against the length of a segment.
pub fn file_size(segment_bytes: u64) -> Option<Finding> {
    let limit = getrlimit(Resource::Fsize).current?;
    (limit < segment_bytes).then(|| {
        let what = format!(
            "this process may write files of {limit} bytes at most (ulimit -f), and a segment of the outbox has \
             {segment_bytes}"
        );
        let advice = "raise it (ulimit -f unlimited; LimitFSIZE= of a systemd unit), or set a smaller segment_bytes";
        Finding::problem(Code::FileSizeLimit, "process", what, advice)
    })
}

/// Checks `ulimit -n` against what an outbox and so many brokers need.
pub fn open_files(brokers: usize) -> Option<Finding> {
    let limit = getrlimit(Resource::Nofile).current?;
    let needed = FOR_OUTBOX + FOR_BROKER * brokers as u64;
    let what = |text: &str| format!("this process may have {limit} files open at a time (ulimit -n), {text}");
    let advice = "raise it (ulimit -n 4096; LimitNOFILE= of a systemd unit)";
    if limit < needed {
        let what = what(&format!("and an outbox and its connections need some {needed}"));
        return Some(Finding::problem(Code::OpenFilesLimit, "process", what, advice));
    }
    (limit < USUAL).then(|| {
        let what = what(&format!("of which an outbox and its connections need some {needed}"));
        Finding::note(Code::OpenFilesLimit, "process", what, advice)
    })
}
