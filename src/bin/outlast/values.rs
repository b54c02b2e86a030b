//! Values of options, and their bounds: what clap itself has no parser for.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{PathBufValueParser, TypedValueParser};

/// A file or a directory. A URL in its place is a slip, and would make a directory that is called `redis:`.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.to_string_lossy().contains("://") {
        true => Err("a path is expected here; the URL of a broker goes behind --to"),
        false => Ok(path),
    })
}

/// Bytes, as a number or with a unit: `8388608`, `8MiB`, `8 MB`.
pub fn size(text: &str) -> Result<usize, &'static str> {
    const FORM: &str = "expected a number of bytes, such as 8388608, 8MiB or 8MB";
    let size: ByteSize = text.parse().map_err(|_| FORM)?;
    usize::try_from(size.as_u64()).map_err(|_| FORM)
}

/// A duration within its bound.
pub fn at_least(least: Duration, given: Duration) -> Result<Duration, String> {
    match given < least {
        true => Err(format!("at least {}", humantime::format_duration(least))),
        false => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, bytes) in [
            ("8388608", 8 << 20),
            ("8MiB", 8 << 20),
            ("8 MiB", 8 << 20),
            ("8 MB", 8_000_000),
            ("512KiB", 512 << 10),
            ("512k", 512_000),
            ("1.5MiB", 3 << 19),
            ("100B", 100),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "8 miles", "-1", "1e6", "8MiB8", "nan", "inf", "99999999999999999999", "0x10", "8,5MB"]
        {
            assert!(size(text).is_err(), "{text}: {:?}", size(text));
        }
    }
}
