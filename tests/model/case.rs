//! What a seed decides: the limits of an outbox, and what is done to it.
//!
//! Limits are as small as they may be, so that segments are changed, used again and run out all the time, and every
//! number in an operation is taken modulo what there is, so that any list of operations means something and can be
//! made shorter.

use proptest::prelude::*;

/// The limits of both logs.
#[derive(Clone, Debug)]
pub struct Limits {
    pub segment_bytes: u32,
    pub frame_bytes: u32,
    pub max_segments: u32,
    pub max_ranges: usize,
    pub tail_bytes: usize,
    /// Space is reserved before a message is stored, as the producer does; then it must be there.
    pub reserved: bool,
    /// In the end all is settled, and the outbox has to be as good as new.
    pub to_the_end: bool,
}

/// Calls that fail: after so many others, so many of them.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    pub after: u8,
    pub many: u8,
    pub errno: i32,
    pub what: What,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Any,
    Sync,
    Write,
    Directory,
    Space,
    /// Writes are taken, and cannot be written back.
    WriteBack,
}

/// How the process ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Close,
    Kill,
    /// A power cut, and the seed of what it leaves.
    Crash(u64),
}

/// How the next one begins, if all does not go well.
#[derive(Clone, Debug, Default)]
pub struct Begin {
    /// It dies, too, while it opens: after so many calls; each time by a kill or a power cut.
    pub dies: Vec<(u8, Option<u64>)>,
    /// Reads that fail while it opens: after so many others, so many of them.
    pub reads: Option<(u8, u8)>,
    /// Calls that fail while it opens.
    pub fails: Option<Failing>,
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Op {
    /// So many messages are stored; together in a frame, or (`apart`) each in its own.
    Send { count: u8, route: u8, key: u8, size: u16, first: bool, apart: bool },
    /// Time passes, and the log's threads have so many turns.
    Step { turns: u8, millis: u16 },
    /// Pending messages are reported delivered, from the `which`th on; `early` ones while they are still written.
    Deliver { which: u16, count: u8, early: bool },
    /// The log is told what was settled.
    Flush,
    /// A pending message is given up.
    Bury { which: u16 },
    /// The operator, between two runs, requeues or purges each `every`th dead letter.
    Mend { requeue: bool, every: u8 },
    /// Space is reserved for a message that is not stored yet; `0` gives it all back.
    Hold { size: u16 },
    /// A message is read back.
    Read { which: u16 },
    /// Nothing happens for as long as it takes.
    Quiet,
    /// Calls will fail.
    Fail(Failing),
    /// Reads will fail.
    FailReads { after: u8, many: u8 },
    /// The process will die in the middle of a call.
    Die { after: u8 },
    /// The disk has room for so many halves of a segment more; or as much as one likes.
    Disk { room: Option<u8> },
    /// The process ends, and the next one begins.
    Restart(End, Begin),
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub struct Case {
    pub limits: Limits,
    /// Of salts, and of what is torn.
    pub dice: u64,
    pub ops: Vec<Op>,
}

pub fn case() -> impl Strategy<Value = Case> {
    (limits(), any::<u64>(), prop::collection::vec(op(), 8..100)).prop_map(|(limits, dice, ops)| Case {
        limits,
        dice,
        ops,
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let ranges = prop_oneof![2 => Just(512_usize), 1 => 1..6_usize];
    let tail = prop_oneof![Just(0_usize), Just(20_000)];
    let shape = (0..4_u8, 0..3_u8, 3..9_u32);
    (shape, ranges, tail, any::<bool>(), 0..4_u8).prop_map(
        |((wide, frame, max_segments), max_ranges, tail_bytes, reserved, end)| {
            let segment_bytes = if wide == 0 { 64 << 10 } else { 32 << 10 };
            let frame_bytes = [4096, 8192, segment_bytes / 4][usize::from(frame)];
            Limits { segment_bytes, frame_bytes, max_segments, max_ranges, tail_bytes, reserved, to_the_end: end == 0 }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        24 => (1..6_u8, any::<u8>(), any::<u8>(), size(), any::<bool>(), any::<bool>())
            .prop_map(|(count, route, key, size, first, apart)| Op::Send { count, route, key, size, first, apart }),
        24 => (1..5_u8, 0..160_u16).prop_map(|(turns, millis)| Op::Step { turns, millis }),
        20 => (place(), 1..9_u8, prop::bool::weighted(0.15))
            .prop_map(|(which, count, early)| Op::Deliver { which, count, early }),
        8 => Just(Op::Flush),
        2 => place().prop_map(|which| Op::Bury { which }),
        1 => (any::<bool>(), 1..3_u8).prop_map(|(requeue, every)| Op::Mend { requeue, every }),
        1 => size().prop_map(|size| Op::Hold { size }),
        1 => place().prop_map(|which| Op::Read { which }),
        2 => Just(Op::Quiet),
        2 => failing().prop_map(Op::Fail),
        1 => (0..8_u8, 1..3_u8).prop_map(|(after, many)| Op::FailReads { after, many }),
        2 => (0..24_u8).prop_map(|after| Op::Die { after }),
        1 => prop::option::of(0..6_u8).prop_map(|room| Op::Disk { room }),
        4 => (end(), begin()).prop_map(|(end, begin)| Op::Restart(end, begin)),
    ]
}

/// Of a message: mostly small, some of several blocks, a few too large.
fn size() -> impl Strategy<Value = u16> {
    prop_oneof![10 => 0..900_u16, 3 => 900..7000_u16, 1 => 7000..17_000_u16]
}

/// Mostly the first, so that segments come free.
fn place() -> impl Strategy<Value = u16> {
    prop_oneof![2 => Just(0_u16), 1 => 0..40_u16]
}

fn failing() -> impl Strategy<Value = Failing> {
    let what = prop_oneof![
        1 => Just(What::Any),
        2 => Just(What::Sync),
        1 => Just(What::Write),
        1 => Just(What::Directory),
        1 => Just(What::Space),
        1 => Just(What::WriteBack),
    ];
    let many = prop_oneof![3 => Just(1_u8), 1 => 2..12_u8];
    let errno = prop_oneof![Just(5), Just(28)];
    (0..12_u8, many, errno, what).prop_map(|(after, many, errno, what)| Failing { after, many, errno, what })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![1 => Just(End::Close), 1 => Just(End::Kill), 2 => any::<u64>().prop_map(End::Crash)]
}

fn begin() -> impl Strategy<Value = Begin> {
    let dies = prop_oneof![
        5 => Just(Vec::new()),
        1 => prop::collection::vec((0..12_u8, prop::option::of(any::<u64>())), 1..3),
    ];
    let reads = prop::option::weighted(0.1, (0..16_u8, 1..3_u8));
    let fails = prop::option::weighted(0.1, failing());
    (dies, reads, fails).prop_map(|(dies, reads, fails)| Begin { dies, reads, fails })
}
