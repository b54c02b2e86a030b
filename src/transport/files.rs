//! Files that a transport reads again when they change: certificates, keys, authorities, passwords.
//!
//! Compares contents, not times: a renewal may keep the size, the time and the name (a symlink that is switched). Keeps no
//! opinion on what a file holds; the transport judges the contents, and keeps those that worked. Reading blocks: call it
//! where a file system that hangs holds up nothing else.

// Without a broker there is nothing to watch.
#![cfg_attr(not(all(feature = "kafka", feature = "redis")), allow(dead_code))]

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The largest file that is read: a bundle of all public authorities has about 250 KiB.
const MAX_BYTES: u64 = 8 << 20;

/// Why a file cannot be used; names it, and shows nothing of what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileError(String);

impl FileError {
    /// What is wrong with the file, or with what it holds.
    pub(crate) fn new(path: &Path, what: impl fmt::Display) -> Self {
        Self(format!("{}: {what}", path.display()))
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of files that belong together, and what was last read from them.
pub(crate) struct WatchedFiles {
    paths: Vec<PathBuf>,
    last: Option<Vec<Vec<u8>>>,
}

impl WatchedFiles {
    /// Watches these files. Relative paths mean the directory in which the process is now, whatever it changes to later.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self { paths: paths.into_iter().map(absolute).collect(), last: None }
    }

    /// The contents of all files, in the order of their paths, if any of them changed since the last call that returned
    /// some; the first call returns them in any case, and so does the first one after an error.
    ///
    /// # Errors
    /// One of the files cannot be read, or is too large. What was returned before may still be used.
    pub(crate) fn read_if_changed(&mut self) -> Result<Option<Vec<Vec<u8>>>, FileError> {
        let read: Result<Vec<_>, _> = self.paths.iter().map(|path| read(path)).collect();
        let contents = match read {
            Ok(contents) => contents,
            Err(error) => {
                self.last = None;
                return Err(error);
            }
        };
        if self.last.as_ref() == Some(&contents) {
            return Ok(None);
        }
        self.last = Some(contents.clone());
        Ok(Some(contents))
    }
}

impl fmt::Debug for WatchedFiles {
    /// Only the paths: the contents are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedFiles").field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let bytes = File::open(path).and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    });
    match bytes {
        Ok(bytes) if bytes.len() as u64 > MAX_BYTES => {
            Err(FileError::new(path, format_args!("larger than {} MiB", MAX_BYTES >> 20)))
        }
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(FileError::new(path, error)),
    }
}

/// The password in a file: its first line, without what editors put around it: a byte order mark, the line's end.
///
/// # Errors
/// The file cannot be read, or holds no password.
pub(crate) fn read_password(path: &Path) -> Result<String, FileError> {
    password_in(path, &read(path)?)
}

/// The password in what a file holds: the first line.
///
/// # Errors
/// The first line is empty, or no UTF-8.
pub(crate) fn password_in(path: &Path, contents: &[u8]) -> Result<String, FileError> {
    let first = contents.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first = first.strip_suffix(b"\r").unwrap_or(first);
    // Some editors put it before a text.
    let first = first.strip_prefix("\u{feff}".as_bytes()).unwrap_or(first);
    if first.contains(&0) {
        return Err(FileError::new(path, "it holds zero bytes; is it UTF-16? Save it as UTF-8"));
    }
    match std::str::from_utf8(first) {
        Ok("") => Err(FileError::new(path, "its first line is empty; the password stands there")),
        Ok(password) => Ok(password.to_owned()),
        Err(_) => Err(FileError::new(path, "its first line is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn contents_come_when_they_change_and_after_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        fs::write(&one, "a").unwrap();
        fs::write(&two, "b").unwrap();
        let mut files = WatchedFiles::new([one.clone(), two.clone()]);
        let both = |one: &str, two: &str| Ok(Some(vec![one.as_bytes().to_vec(), two.as_bytes().to_vec()]));
        assert_eq!(files.read_if_changed(), both("a", "b"));
        assert_eq!(files.read_if_changed(), Ok(None));
        // The same length, perhaps the same time.
        fs::write(&two, "c").unwrap();
        assert_eq!(files.read_if_changed(), both("a", "c"));
        fs::remove_file(&one).unwrap();
        assert!(files.read_if_changed().unwrap_err().to_string().contains("one: No such file"));
        fs::write(&one, "a").unwrap();
        assert_eq!(files.read_if_changed(), both("a", "c"), "the trouble is over, and the caller has to learn of it");
        assert_eq!(files.read_if_changed(), Ok(None));
    }

    #[test]
    fn a_symlink_that_is_switched_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("old"), "1").unwrap();
        fs::write(at("new"), "2").unwrap();
        std::os::unix::fs::symlink("old", at("link")).unwrap();
        let mut files = WatchedFiles::new([at("link")]);
        assert_eq!(files.read_if_changed(), Ok(Some(vec![b"1".to_vec()])));
        std::os::unix::fs::symlink("new", at("next")).unwrap();
        fs::rename(at("next"), at("link")).unwrap();
        assert_eq!(files.read_if_changed(), Ok(Some(vec![b"2".to_vec()])));
    }

    #[test]
    fn a_password_is_the_first_line_and_what_is_none_is_refused_without_showing_it() {
        let path = Path::new("pw");
        for contents in [&b"hunter2\r\nnoise\n"[..], b"\xef\xbb\xbfhunter2\n", b"\xef\xbb\xbfhunter2\r"] {
            assert_eq!(password_in(path, contents), Ok("hunter2".to_owned()));
        }
        for (contents, what) in [
            (&b"\nhunter2"[..], "empty"),
            (b"", "empty"),
            (b"\xef\xbb\xbf\n", "empty"),
            (b"h\0u\0n\0t\0e\0r\0", "UTF-16"),
            (b"hunter2\xff", "UTF-8"),
        ] {
            let error = password_in(path, contents).unwrap_err().to_string();
            assert!(error.contains(what) && !error.contains("hunter2"), "{error}");
        }
    }
}
