//! Errors of the command line without what may be a password in them: clap repeats a value in the wrong place, and it may be
//! a URL.

use std::io::Write;
use std::process::ExitCode;

use crate::exit::Exit;

/// Says what is wrong with the command line, as clap does; prints what was asked for, where that is help or the version.
pub fn exit(error: &clap::Error) -> ExitCode {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let shown = error.render().to_string();
    let concealed = conceal(&shown, &words);
    if error.use_stderr() && concealed != shown {
        let why = "A URL may hold a password: the one given here is not shown. It goes behind --to.";
        // As `output::say`, with clap's own words in front.
        let _ = writeln!(std::io::stderr().lock(), "{}\n\n{why}", concealed.trim_end());
        return Exit::Usage.into();
    }
    error.exit()
}

/// The text without those words that may hold a password, and without the parts of them that clap shows.
fn conceal(text: &str, words: &[String]) -> String {
    let mut parts: Vec<(&str, String)> = Vec::new();
    for word in words.iter().filter(|word| may_hold_a_password(word)) {
        parts.push((word, shown(word)));
        // `--option=VALUE`, and what only looks like it.
        let option = word.split_once('=').filter(|_| word.starts_with('-'));
        for part in option.map(|(option, value)| [option, value]).into_iter().flatten() {
            // An option's name is no part of the value behind it.
            if !part.starts_with("--") || part.contains([':', '@']) {
                parts.push((part, shown(part)));
            }
        }
        parts.extend(password(word).map(|password| (password, "…".to_owned())));
    }
    // The whole before what it consists of.
    parts.sort_by_key(|(part, _)| std::cmp::Reverse(part.len()));
    parts.iter().fold(text.to_owned(), |text, (part, shown)| match part.is_empty() {
        true => text,
        false => text.replace(part, shown),
    })
}

/// A URL, or what may be one without its scheme: `user:password@host`.
fn may_hold_a_password(word: &str) -> bool {
    word.contains("://") || word.split_once(':').is_some_and(|(_, rest)| rest.contains('@'))
}

fn shown(word: &str) -> String {
    match word.split_once("://") {
        Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => format!("{scheme}://…"),
        _ => "…".to_owned(),
    }
}

/// What stands where a password does. A shorter one would take innocent letters along.
fn password(word: &str) -> Option<&str> {
    const LEAST_LENGTH: usize = 4;
    let user_info = word.split_once("://").map_or(word, |(_, rest)| rest).rsplit_once('@')?.0;
    let (_, password) = user_info.split_once(':')?;
    (password.len() >= LEAST_LENGTH).then_some(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_may_hold_a_password_are_taken_out_and_others_stay() {
        let words: Vec<String> = [
            "produce",
            "--tp=redis://u:hunter2@h?stream=s",
            "redis://u:hunter2@h:1",
            "u:hunter2@h",
            "--u:hunter2=x@h",
            "kafka://h/t?sasl.password=hunter2",
            "--window",
            "a@b.txt",
        ]
        .map(str::to_owned)
        .into();
        for (text, expected) in [
            ("invalid value 'redis://u:hunter2@h?stream=s' for '--mode'", "invalid value 'redis://…' for '--mode'"),
            ("unexpected argument 'redis://u:hunter2@h:1' found", "unexpected argument 'redis://…' found"),
            ("unexpected argument 'u:hunter2@h' found", "unexpected argument '…' found"),
            ("unexpected argument '--u:hunter2' found", "unexpected argument '…' found"),
            ("invalid value 'kafka://h/t?sasl.password=hunter2'", "invalid value 'kafka://…'"),
            ("unexpected argument '--tp' found", "unexpected argument '--tp' found"),
            ("unexpected argument 'a@b.txt' found", "unexpected argument 'a@b.txt' found"),
        ] {
            assert_eq!(conceal(text, &words), expected);
        }
    }
}
