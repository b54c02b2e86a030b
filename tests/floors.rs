//! The floors of the house (DESIGN.md 10): a file imports only from a lower floor or its own folder, and sled is named
//! in one folder only.
//!
//! Read as text, with comments and strings blanked out: every `crate::name`, also inside `crate::{…}`, and every
//! `super::…` that climbs to the root. Tests inside a file stand on its floor, too.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules at the crate's root and their floors.
const FLOORS: [(&str, u32); 21] = [
    ("message", 0),
    ("error", 0),
    ("config", 0),
    ("stats", 0),
    ("clock", 0),
    ("failure", 0),
    ("file_size", 0),
    ("finding", 0),
    ("forked", 0),
    ("receipt", 0),
    ("planted", 0),
    ("wal", 1),
    ("outbox", 2),
    ("schedule", 2),
    ("transport", 3),
    ("doctor", 4),
    ("drainer", 4),
    // Imports anything below the producer; nothing in the library may lean on it but the producer and what is above.
    ("testing", 5),
    ("producer", 5),
    ("admin", 6),
    ("bin", 7),
];

/// The only folder that names sled.
const SLED: &str = "outbox/ledger";

/// What a file does that it must not.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.rule)
    }
}

fn floor_of(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The module at the root that a file (`wal/frame.rs`, `error.rs`) belongs to.
fn root_module(file: &str) -> &str {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs")
}

/// Checks one file, given its path below `src`.
fn check(file: &str, text: &str) -> Vec<Breach> {
    let code = blank(text);
    let mut breaches = Vec::new();
    let mut breach = |at: usize, rule: String| {
        let line = 1 + code[..at].matches('\n').count();
        breaches.push(Breach { file: file.into(), line, rule });
    };
    if !file.starts_with(SLED) {
        for at in words(&code, "sled") {
            breach(at, format!("only src/{SLED}/ names sled"));
        }
    }
    let own = root_module(file);
    if own == "lib" {
        return breaches;
    }
    let Some(floor) = floor_of(own) else {
        breach(0, format!("`{own}` has no floor: give it one in tests/floors.rs"));
        return breaches;
    };
    if own == "bin" {
        // There `crate` is the program; of the library it sees what everybody sees.
        for at in words(&code, "internals") {
            breach(at, "the program uses the public API only".into());
        }
        return breaches;
    }
    for (at, name) in imports(file, &code) {
        match floor_of(&name) {
            _ if name == own => {}
            None => breach(at, format!("`crate::{name}` names no module with a floor: name the module it lies in")),
            // Ground is one folder.
            Some(0) if floor == 0 => {}
            Some(other) if other < floor => {}
            Some(5) if own == "testing" => breach(at, "`testing` (5) stands beside `producer`".into()),
            Some(other) => breach(at, format!("`{own}` (floor {floor}) must not import `{name}` (floor {other})")),
        }
    }
    breaches
}

/// Every name of the root that the code imports, with its place.
fn imports(file: &str, code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(code, "crate") {
        if let Some(path) = code[at + "crate".len()..].trim_start().strip_prefix("::") {
            found.extend(first_names(path).into_iter().map(|name| (at, name)));
        }
    }
    // `wal/mod.rs` and `error.rs` lie one step below the root, `wal/frame.rs` two.
    let depth = file.split('/').filter(|part| *part != "mod.rs").count();
    let mut from = 0;
    while let Some(start) = words(&code[from..], "super").first().map(|at| from + at) {
        let (mut rest, mut steps) = (&code[start..], 0);
        while let Some(after) = rest.strip_prefix("super").and_then(|rest| rest.trim_start().strip_prefix("::")) {
            (rest, steps) = (after.trim_start(), steps + 1);
        }
        if steps >= depth {
            // Inside `mod tests` the same steps lead to the file itself: then the name is no module of the root.
            let names = first_names(rest).into_iter().filter(|name| floor_of(name).is_some());
            found.extend(names.map(|name| (start, name)));
        }
        from = start + "super".len();
        from = from.max(code.len() - rest.len());
    }
    found
}

/// The first name of a path, or of each path in `{…}`.
fn first_names(path: &str) -> Vec<String> {
    let path = path.trim_start();
    let Some(group) = path.strip_prefix('{') else { return identifier(path).into_iter().collect() };
    let (mut names, mut depth, mut expected) = (Vec::new(), 0u32, true);
    for (at, letter) in group.char_indices() {
        match letter {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => expected = true,
            _ if expected && depth == 0 && !letter.is_whitespace() => {
                names.extend(identifier(&group[at..]));
                expected = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|letter| is_part(*letter)).collect();
    if name.is_empty() { None } else { Some(name) }
}

fn is_part(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Where a word stands by itself.
fn words(code: &str, word: &str) -> Vec<usize> {
    let alone = |at: &usize| {
        let before = code[..*at].chars().next_back().is_some_and(is_part);
        let behind = code[*at + word.len()..].chars().next().is_some_and(is_part);
        !before && !behind
    };
    code.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// The text with comments, strings and character literals as blanks; lines stay where they are.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let skipped = skipped(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// How many bytes at the front are no code.
fn skipped(rest: &str, before: Option<char>) -> usize {
    let end = |found: Option<usize>, closing: usize| found.map_or(rest.len(), |at| at + closing);
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if let Some(behind) = rest.strip_prefix('\'') {
        // A lifetime has no second quote behind its first letter.
        let mut letters = behind.chars();
        let (first, second) = (letters.next(), letters.next());
        return if first == Some('\\') || second == Some('\'') { quoted(rest, '\'') } else { 0 };
    }
    let raw = rest.strip_prefix('r').filter(|_| !before.is_some_and(|letter| is_part(letter) && letter != 'b'));
    let Some(raw) = raw else { return 0 };
    let hashes = raw.bytes().take_while(|byte| *byte == b'#').count();
    if raw[hashes..].starts_with('"') {
        let closing = format!("\"{}", "#".repeat(hashes));
        let open = 1 + hashes + 1;
        return end(rest[open..].find(&closing).map(|at| open + at), closing.len());
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("src can be listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn every_file_imports_only_from_below() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    let files = sources(&root);
    assert!(files.len() > 10, "only {} files under {}", files.len(), root.display());
    for path in files {
        let file = path.strip_prefix(&root).expect("below src").to_str().expect("UTF-8").replace('\\', "/");
        let text = fs::read_to_string(&path).expect("can be read");
        breaches.extend(check(&file, &text).iter().map(ToString::to_string));
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// The rules that a text breaks, each with its line.
fn broken(file: &str, text: &str) -> Vec<(usize, String)> {
    check(file, text).into_iter().map(|breach| (breach.line, breach.rule)).collect()
}

#[test]
fn an_import_turned_round_is_caught() {
    let rule = "`wal` (floor 1) must not import `outbox` (floor 2)".to_string();
    for (line, text) in [
        (1, "use crate::outbox::Ledger;"),
        (3, "//! Log.\n\nuse crate::outbox::{Ledger, Status};"),
        (2, "use std::fs;\nuse crate::{message::Message, outbox};"),
        (1, "use crate::{\n    message::{Message, Route},\n    outbox::Ledger,\n};"),
        (2, "fn f() {\n    let ledger = crate::outbox::Ledger::open();\n}"),
        (1, "use crate :: outbox :: Ledger;"),
        (2, "mod tests {\n    use crate::outbox::Ledger;\n}"),
        (1, "use super::super::outbox::Ledger;"),
        (1, "pub(crate) use crate::outbox as o;"),
    ] {
        assert_eq!(broken("wal/frame.rs", text), [(line, rule.clone())], "{text}");
    }
    assert_eq!(broken("wal/mod.rs", "use super::outbox::Ledger;"), [(1, rule)]);
}

#[test]
fn floors_of_one_height_do_not_import_each_other_but_ground_is_one_folder() {
    assert_eq!(broken("error.rs", "use crate::message::Message;"), []);
    assert_eq!(broken("outbox/mod.rs", "use crate::schedule::Backoff;").len(), 1);
    assert_eq!(broken("schedule/lanes.rs", "use crate::outbox::Status;").len(), 1);
    assert_eq!(broken("error.rs", "use crate::wal::Lsn;").len(), 1);
    assert_eq!(broken("testing.rs", "use crate::drainer::Drainer; use crate::transport::Transport;"), []);
    assert_eq!(broken("testing.rs", "use crate::producer::Producer;").len(), 1);
    assert_eq!(broken("drainer/mod.rs", "use crate::testing::Broker;").len(), 1);
}

#[test]
fn what_is_below_or_beside_is_allowed() {
    for text in [
        "use crate::wal::Wal; use crate::message::Message; use super::directory::Directory;",
        "use super::*; mod tests { use super::super::status::Status; }",
        "use crate::outbox::ledger::Ledger;",
        "pub(crate) fn f() {} pub(in crate::outbox) fn g() {}",
    ] {
        assert_eq!(broken("outbox/ledger/mod.rs", text), [], "{text}");
    }
    assert_eq!(broken("lib.rs", "pub use producer::Producer; use crate::admin::x;"), []);
    assert_eq!(broken("bin/outlast/main.rs", "use crate::flags::Flags; use outlast::Producer;"), []);
    assert_eq!(broken("bin/outlast/main.rs", "use outlast::internals::wal;").len(), 1);
}

#[test]
fn what_is_no_code_is_no_import() {
    for text in [
        "// use crate::producer::Producer;",
        "/// See [`Producer`](crate::producer::Producer).",
        "/* /* nested */ use crate::producer::Producer; */",
        "const A: &str = \"crate::producer::P \\\" crate::producer::P\";",
        "const A: &str = r#\"crate::producer::\"P\" sled\"#;",
        "const A: &[u8] = br\"crate::producer::P\"; const B: char = '\"'; // \" crate::producer",
        "let is_sled = xsled; fn f<'a>(x: &'a str) -> char { '\\'' }",
    ] {
        assert_eq!(broken("wal/frame.rs", text), [], "{text}");
    }
    let behind = "const A: char = '\"'; const B: &str = r\"\\\"; fn f<'a>() {}\nuse crate::producer::P;";
    assert_eq!(broken("wal/frame.rs", behind).first().map(|(line, _)| *line), Some(2));
}

#[test]
fn sled_has_one_home() {
    for text in ["use sled::Db;", "fn f(db: &sled::Db) {}", "extern crate sled;"] {
        assert_eq!(broken("outbox/mod.rs", text), [(1, "only src/outbox/ledger/ names sled".to_string())], "{text}");
        assert_eq!(broken("outbox/ledger/store.rs", text), [], "{text}");
    }
}

#[test]
fn what_has_no_floor_is_told_so() {
    assert_eq!(broken("consumer/mod.rs", "")[0].1, "`consumer` has no floor: give it one in tests/floors.rs");
    let root = broken("drainer/mod.rs", "use crate::Message;");
    assert_eq!(root, [(1, "`crate::Message` names no module with a floor: name the module it lies in".to_string())]);
}
