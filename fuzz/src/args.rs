//! What the program's files that are compiled in here expect of its arguments.

/// What a line must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Anything.
    Lines,
    /// JSON.
    Json,
}
