//! The name that was probably meant, for errors about options that are unknown. Shows only names of its own lists, never
//! what was given.

/// The known name that is nearest to `given`, if one is near: a letter that is wrong, missing, too many or exchanged with
/// its neighbour, two of them in a longer name. Case and the choice of `.`, `-` and `_` do not count.
pub(super) fn near<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_'], ".");
    let given = plain(given);
    // A short name is near to everything.
    let most = match given.chars().count() {
        0..3 => return None,
        3..6 => 1,
        _ => 2,
    };
    let distance = |name: &str| strsim::damerau_levenshtein(&given, &plain(name));
    let nearest = known.into_iter().map(|name| (distance(name), name)).min()?;
    (nearest.0 <= most).then_some(nearest.1)
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn a_slip_is_near_and_another_word_is_not() {
        let known = ["stream", "maxlen", "minid", "ca-file", "connect-timeout"];
        for (given, meant) in [
            ("streem", Some("stream")),
            ("Stream", Some("stream")),
            ("strem", Some("stream")),
            ("maxlne", Some("maxlen")),
            ("max_len", Some("maxlen")),
            ("ca_file", Some("ca-file")),
            ("connect.timeout", Some("connect-timeout")),
            ("topic", None),
            ("colour", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(near(given, known), meant, "{given}");
        }
    }
}
