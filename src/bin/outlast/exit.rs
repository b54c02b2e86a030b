//! How a run ends: the exit codes that scripts rely on.

use std::fmt::Display;
use std::process::ExitCode;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything was accepted and delivered; for a command that only looks: it could.
    Done = 0,
    /// Something was not accepted, or the command could not do its work.
    Failed = 1,
    /// The command line cannot be carried out by anybody: clap ends with the same code.
    Usage = 2,
    /// Everything was accepted, some of it still lies in the outbox.
    Pending = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended early.
#[derive(Debug)]
pub struct Problem {
    /// The exit code.
    pub exit: Exit,
    /// For standard error.
    pub text: String,
}

impl Problem {
    /// The command could not do its work.
    pub fn failed(text: impl Display) -> Self {
        Self { exit: Exit::Failed, text: text.to_string() }
    }

    /// The command line is wrong.
    pub fn usage(text: impl Display) -> Self {
        Self { exit: Exit::Usage, text: text.to_string() }
    }
}
