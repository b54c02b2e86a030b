//! The first look: names, lengths and first blocks. It tells of files that are not what their names say.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use super::super::BLOCK;
use super::super::error::{DecodeError, WalError};
use super::super::scan::SegmentFile;
use super::super::segment::{Name, SegmentHeader};
use super::super::storage::Storage;
use super::still::Still;
use super::{Flaw, FlawKind, Lsns};

/// The first look at a segment.
pub(super) struct Head {
    pub length: u64,
    /// The header; of this segment or another one.
    pub header: Result<SegmentHeader, String>,
    /// What is in the file is not this outbox's segment of this number: its frames are not looked for here.
    pub other: bool,
    /// What was told of it already; the LSNs it should have go with that.
    pub told: Option<(FlawKind, String)>,
}

/// See the module.
pub(super) struct Survey {
    pub outbox: Option<[u8; 16]>,
    pub segment_bytes: Option<u32>,
    pub heads: BTreeMap<u64, Head>,
    pub flaws: Vec<Flaw>,
}

impl Survey {
    /// Looks at every name in the directory.
    pub fn take(still: &Still<'_>, directory: &Path, outbox: Option<[u8; 16]>) -> Result<Self, WalError> {
        let names = still.list(directory).map_err(WalError::io("list", directory))?;
        let mut survey = Self { outbox, segment_bytes: None, heads: BTreeMap::new(), flaws: Vec::new() };
        for name in names {
            match Name::parse(&name) {
                Some(Name::Segment(number)) => {
                    let head = head(still, directory, number);
                    survey.heads.insert(number, head);
                }
                // Their contents mean nothing.
                Some(Name::Free(_)) => {}
                None => {
                    let reason = "no name of a segment: the log never looks at it".to_owned();
                    survey.flaws.push(Flaw { kind: FlawKind::Stranger, name, reason, ..BLANK });
                }
            }
        }
        let headers = || survey.heads.values().filter_map(|head| head.header.as_ref().ok());
        survey.segment_bytes = most(headers().map(|header| header.segment_bytes));
        survey.outbox = outbox.or_else(|| most(headers().map(|header| header.outbox)));
        survey.judge();
        Ok(survey)
    }

    /// Says whose segments lie under a name that is not theirs.
    fn judge(&mut self) {
        for (&number, head) in &mut self.heads {
            let Ok(header) = &head.header else { continue };
            if self.outbox.is_some_and(|outbox| outbox != header.outbox) {
                let reason = format!("it belongs to another outbox, {:032x}", u128::from_be_bytes(header.outbox));
                head.other = true;
                head.told = Some((FlawKind::Foreign, reason));
            } else if header.number != number {
                let reason = format!("it is segment {:016x}, under another one's name", header.number);
                head.other = true;
                head.told = Some((FlawKind::Misplaced, reason));
            }
        }
    }

    /// Which segment an open stops at.
    ///
    /// # Errors
    /// None does: then nothing can be read.
    pub fn stopped_by(&mut self, error: WalError) -> Result<u64, WalError> {
        let (kind, path) = match &error {
            WalError::NewerFormat { path, .. } => (FlawKind::Newer, path),
            WalError::Foreign { path, .. } => (FlawKind::Foreign, path),
            WalError::Io { path, .. } => (FlawKind::Unreadable, path),
            WalError::Full { .. }
            | WalError::TooLarge { .. }
            | WalError::Closed
            | WalError::Panicked
            | WalError::Scattered { .. }
            | WalError::Crowded { .. }
            | WalError::Exhausted { .. }
            | WalError::Option { .. } => {
                return Err(error);
            }
        };
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let Some((name, Name::Segment(number))) = name.and_then(|name| Name::parse(&name).map(|parsed| (name, parsed)))
        else {
            return Err(error);
        };
        if let Some(head) = self.heads.get_mut(&number) {
            head.other = true;
            head.told = None;
        }
        let (segment, reason) = (Some(number), error.to_string());
        let lsns = Lsns::Unknown;
        self.flaws.push(Flaw { kind, name, segment, lsns, stops_start: true, reason, ..BLANK });
        Ok(number)
    }
}

/// To be filled in.
pub(super) const BLANK: Flaw = Flaw {
    kind: FlawKind::Stranger,
    name: String::new(),
    segment: None,
    offset: 0,
    length: 0,
    lsns: Lsns::None,
    lost: 0,
    stops_start: false,
    reason: String::new(),
};

fn head(still: &Still<'_>, directory: &Path, number: u64) -> Head {
    let looked = || -> io::Result<(u64, Result<SegmentHeader, DecodeError>)> {
        let file = still.open_segment(directory, number)?;
        let length = file.length()?;
        let file = SegmentFile { file, number, salt: None, limit: BLOCK };
        Ok((length, file.header()?))
    };
    match looked() {
        Ok((length, Ok(header))) => Head { length, header: Ok(header), other: false, told: None },
        Ok((length, Err(error))) => {
            let newer = matches!(error, DecodeError::Newer { .. }).then(|| (FlawKind::Newer, error.to_string()));
            Head { length, header: Err(error.to_string()), other: newer.is_some(), told: newer }
        }
        Err(error) => {
            let told = Some((FlawKind::Unreadable, error.to_string()));
            Head { length: 0, header: Err(error.to_string()), other: true, told }
        }
    }
}

/// The value there is most often; of several, the greatest.
fn most<T: Ord + std::hash::Hash + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = HashMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0u64) += 1);
    counts.into_iter().max_by_key(|&(value, count)| (count, value)).map(|(value, _)| value)
}
