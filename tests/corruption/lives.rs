//! The life after the damage: the log is written on, what was lost is set aside, and the next open finds all the rest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::internals::wal::{
    Entry, EntryRef, Lsn, Mark, ModelStorage, Operation, Options, RangeSet, Settled, Step, Stepper, Turn, Wal,
};
use outlast::{Message, MessageId, Outgoing, Route};

use super::disk::{DIRECTORY, Files, number_of, writable};
use super::image::Image;
use super::judge::{self, Seen, Wound};

/// Messages that are appended afterwards.
const MORE: u64 = 5;

/// Writes on in a wounded log, of which `seen` was seen, and opens it once more.
pub fn live_on(image: &Image, files: &Files, wound: &Wound, seen: &Seen, seed: u64) -> Result<(), String> {
    let storage = writable(files, seed);
    let options = Options { max_segments: 64, incarnation: 99, ..image.options.clone() };
    let mut expected: BTreeMap<Lsn, Entry> =
        seen.pending.iter().map(|record| (record.lsn, record.body.clone())).collect();
    {
        let (wal, mut stepper, mut settled) = open(&storage, &options)?;
        set_aside(&wal, &mut settled)?;
        let mut now = Instant::now();
        for number in 0..MORE {
            let entry = Entry::Message(another(number));
            let lsn = wal.append(EntryRef::Message(entry.outgoing()), |outcome| {
                outcome.expect("taken");
            });
            if lsn <= judge::known(image, wound) || expected.insert(lsn, entry).is_some() {
                return Err(format!("LSN {lsn} is given out a second time"));
            }
            now = run(&mut stepper, now);
        }
        run(&mut stepper, now + Duration::from_secs(9));
    }
    for call in storage.trace() {
        if let Operation::Write { path, offset, .. } = call
            && files.contains_key(&path)
            && number_of(&path).is_some()
        {
            return Err(format!("{} was found, and is written into at {offset}", path.display()));
        }
    }
    storage.kill();
    let again = judge::look(Arc::new(storage), image, None)?;
    if let Some(damage) = again.reported.first() {
        return Err(format!("damage was set aside, and is reported once more: {damage:?}"));
    }
    let read: Vec<Lsn> = again.pending.iter().map(|record| record.lsn).collect();
    if !read.iter().eq(expected.keys()) {
        return Err(format!("after another restart {read:?} are pending, not {:?}", expected.keys()));
    }
    let other = again.pending.iter().find(|record| !judge::is_same(&expected[&record.lsn], &record.body));
    other.map_or(Ok(()), |record| Err(format!("{} has other contents after another restart", record.lsn)))
}

fn open(storage: &ModelStorage, options: &Options) -> Result<(Wal, Stepper, RangeSet), String> {
    let opened = Wal::open_stepped(Arc::new(storage.clone()), Path::new(DIRECTORY), options.clone());
    let (wal, recovered, stepper) = opened.map_err(|error| format!("it does not open: {error}"))?;
    Ok((wal, stepper, recovered.state.settled))
}

/// Settles what the reader cannot read, as the outbox does.
fn set_aside(wal: &Wal, settled: &mut RangeSet) -> Result<(), String> {
    let reader = wal.reader();
    let mut cursor = reader.seek(settled.prefix() + 1, None).map_err(|error| error.to_string())?;
    loop {
        match reader.next(&mut cursor).map_err(|error| error.to_string())? {
            Step::Damaged(lost) => {
                let ranges: Vec<_> = settled.gaps_within(lost.first_lsn, lost.last_lsn).collect();
                settled.insert(lost.first_lsn, lost.last_lsn);
                if !ranges.is_empty() {
                    wal.settle(Settled { mark: Mark::Damaged, ranges, totals: Vec::new() });
                }
            }
            Step::Frame { .. } => {}
            Step::End => return Ok(()),
        }
    }
}

/// Time passes, and everything due is done.
fn run(stepper: &mut Stepper, now: Instant) -> Instant {
    let mut now = now;
    for _ in 0..3 {
        now += Duration::from_secs(2);
        while stepper.commit(now) == Turn::Again {}
        while stepper.prepare(now) == Turn::Again {}
    }
    now
}

fn another(number: u64) -> Outgoing {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let message = Message::to("orders").payload(vec![number as u8; 3_000]);
    Outgoing { id: MessageId::new(99, number), route, lane: None, timestamp: 1, message }
}
