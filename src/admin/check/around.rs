//! Everything in an outbox's directory but the segments: names, kinds of files, `IDENTITY`, `status`, the ledger's
//! directories. The ledger itself is not opened: that would change it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::finding::{Concerned, Finding, FindingKind, Severity};
use crate::outbox::{Identity, Inspected, OWN_NAMES, OutboxId, Owner, StatusFile, check_file, hex};

/// What is found outside of the logs.
pub(super) fn findings(inspected: &Inspected, id: Option<OutboxId>) -> Vec<Finding> {
    let mut findings = names(inspected);
    findings.extend(identity(inspected, id));
    findings.extend(status(inspected, id));
    let paths = &inspected.paths;
    for (directory, needed) in [(paths.wal(), true), (paths.dead(), true), (paths.damaged(), false)] {
        findings.extend(contents(inspected, &directory, needed));
    }
    findings.extend(ledger(inspected));
    findings
}

fn finding(severity: Severity, kind: FindingKind, path: impl Into<PathBuf>, what: impl Into<String>) -> Finding {
    let (path, what, advice) = (path.into(), what.into(), String::new());
    let (lsns, stops_start) = (Concerned::Nothing, false);
    Finding { severity, kind, path, offset: 0, length: 0, lsns, lost: 0, stops_start, what, advice }
}

fn leftover(path: impl Into<PathBuf>, what: &str) -> Finding {
    let advice = "nothing: it is written anew or removed".to_owned();
    Finding { advice, ..finding(Severity::Harmless, FindingKind::Leftover, path, what) }
}

fn in_the_way(path: impl Into<PathBuf>, what: String) -> Finding {
    let advice = "the outbox does not open with it; move it away, or let `outlast repair` do so".to_owned();
    Finding { stops_start: true, advice, ..finding(Severity::Damage, FindingKind::InTheWay, path, what) }
}

/// The names in the outbox's directory.
fn names(inspected: &Inspected) -> Vec<Finding> {
    let listed = list(inspected.paths.root());
    let mut findings = Vec::new();
    for name in listed.unwrap_or_default() {
        if name.ends_with(".tmp") && OWN_NAMES.contains(&name.as_str()) && inspected.holder.is_none() {
            findings.push(leftover(&name, "a file that was not finished"));
        } else if !OWN_NAMES.contains(&name.as_str()) && !name.starts_with('.') {
            let advice = "nothing: it is never looked at".to_owned();
            let what = "none of an outbox's files";
            findings.push(Finding { advice, ..finding(Severity::Harmless, FindingKind::ForeignFile, name, what) });
        }
    }
    findings
}

fn identity(inspected: &Inspected, id: Option<OutboxId>) -> Option<Finding> {
    let (severity, kind, what, advice) = match (&inspected.identity, id) {
        (Identity::Known { id: own, .. }, Some(id)) if *own != id => (
            Severity::Damage,
            FindingKind::ForeignOutbox,
            format!("it names outbox {}, the segments are of {}", hex(own), hex(&id)),
            "put the right file back, or let `outlast repair` write it anew from the segments",
        ),
        (Identity::Known { whole: true, .. }, _) => return None,
        (Identity::Known { whole: false, .. }, _) => (
            Severity::Suspicious,
            FindingKind::BadIdentity,
            "one of its two lines is damaged".to_owned(),
            "nothing: the next producer writes both anew",
        ),
        (missing, Some(_)) => (
            Severity::Suspicious,
            FindingKind::BadIdentity,
            said(missing).to_owned(),
            "nothing: the next producer, or `outlast repair`, writes it anew from the segments",
        ),
        (missing, None) => (
            Severity::Damage,
            FindingKind::BadIdentity,
            format!("{}, and no segment can tell which outbox it is", said(missing)),
            "restore the file from a copy",
        ),
    };
    let stops_start = severity == Severity::Damage;
    Some(Finding { stops_start, advice: advice.into(), ..finding(severity, kind, "IDENTITY", what) })
}

fn said(identity: &Identity) -> &'static str {
    match identity {
        Identity::Missing => "it is missing",
        Identity::Damaged | Identity::Known { .. } | Identity::Newer { .. } => "neither of its lines can be read",
    }
}

fn status(inspected: &Inspected, id: Option<OutboxId>) -> Option<Finding> {
    let of_other = |status: &crate::outbox::Status| id.is_some_and(|id| status.outbox != hex(&id));
    let what = match StatusFile::new(inspected.paths.status()).read() {
        Ok(Some(status)) if of_other(&status) => format!("it is about outbox {}", status.outbox),
        Ok(_) => return None,
        Err(error) => error.to_string(),
    };
    let advice = "nothing: the next producer writes it anew; it decides nothing".to_owned();
    Some(Finding { advice, ..finding(Severity::Harmless, FindingKind::Status, "status", what) })
}

/// A directory of the outbox: that it is one, and that what lies in it are plain files.
fn contents(inspected: &Inspected, directory: &Path, needed: bool) -> Vec<Finding> {
    let own = relative(inspected, directory);
    let metadata = match fs::symlink_metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => return Vec::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = "the directory is missing, and all that was in it";
            let advice = "put it back if there is a copy, before the next producer makes an empty one".to_owned();
            let lsns = Concerned::Unknown;
            return vec![Finding { lsns, advice, ..finding(Severity::Damage, FindingKind::Missing, own, what) }];
        }
        Err(error) => return vec![unreadable(own, &error)],
    };
    if !metadata.is_dir() {
        return vec![in_the_way(own, "where the outbox keeps a directory there is something else".into())];
    }
    let names = match list(directory) {
        Ok(names) => names,
        Err(error) => return vec![unreadable(own, &error)],
    };
    let mut findings = Vec::new();
    for name in names {
        let path = directory.join(&name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                if let (true, Err(error)) = (needed, check_file(&path, &metadata, Owner::Any)) {
                    findings.push(in_the_way(own.join(name), error.to_string()));
                } else if !needed && name.ends_with(".tmp") && inspected.holder.is_none() {
                    findings.push(leftover(own.join(name), "a copy that was not finished"));
                }
            }
            // A live owner recycles.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => findings.push(unreadable(own.join(name), &error)),
        }
    }
    findings
}

fn ledger(inspected: &Inspected) -> Vec<Finding> {
    let directory = inspected.paths.ledger();
    let advice = || "nothing: the ledger is rebuilt from the log, which costs time and no message".to_owned();
    let remark = |severity, path: PathBuf, what: &str| Finding {
        advice: advice(),
        ..finding(severity, FindingKind::Ledger, path, what)
    };
    let own = relative(inspected, &directory);
    match fs::symlink_metadata(&directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return vec![in_the_way(own, "where the outbox keeps a directory there is something else".into())],
        Err(_) => return vec![remark(Severity::Harmless, own, "there is none")],
    }
    let (mut findings, mut numbers) = (Vec::new(), 0);
    for name in list(&directory).unwrap_or_default() {
        let path = directory.join(&name);
        let own = own.join(&name);
        if name.parse::<u64>().is_err() {
            findings.push(remark(Severity::Harmless, own, "no name of a ledger"));
        } else if !path.is_dir() {
            findings.push(remark(
                Severity::Suspicious,
                own,
                "where a ledger keeps a directory there is something else",
            ));
        } else {
            numbers += 1;
            let unfinished = list(&path).unwrap_or_default().into_iter().filter(|name| name.ends_with(".generating"));
            if inspected.holder.is_none() {
                findings.extend(unfinished.map(|name| leftover(own.join(name), "a snapshot that was not finished")));
            }
        }
    }
    if numbers > 1 && inspected.holder.is_none() {
        findings.push(remark(Severity::Harmless, own, "there are several; the last is used, the others are removed"));
    }
    findings
}

fn unreadable(path: PathBuf, error: &io::Error) -> Finding {
    let advice = "look at the disk, and at the rights of whoever runs this".to_owned();
    let (lsns, what) = (Concerned::Unknown, error.to_string());
    Finding { lsns, advice, ..finding(Severity::Damage, FindingKind::Unreadable, path, what) }
}

fn relative(inspected: &Inspected, path: &Path) -> PathBuf {
    path.strip_prefix(inspected.paths.root()).unwrap_or(path).to_path_buf()
}

fn list(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<String>>>()?;
    names.sort_unstable();
    Ok(names)
}
