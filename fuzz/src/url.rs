//! Any text as the URL of a broker: taken apart, or refused with the part that is wrong; never with the password.

use outlast::{BrokerUrl, UrlError};

/// What may be shown nowhere.
const SECRET: &str = "hunter2";

pub fn run(data: &[u8]) {
    let Some((mode, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    if mode & 1 == 0 {
        let _ = parse(&text);
        return;
    }
    // The first half stands before the password, the second behind it: `redis://user:` + secret + `@host:port/…`.
    let Some((before, behind)) = text.split_once('\n') else { return };
    let user = before.rfind("://").map_or(before, |at| &before[at + 3..]);
    if !user.contains(':')
        || user.contains(['/', '?', '[', ',', '@'])
        || before.contains(SECRET)
        || behind.contains(SECRET)
        || !behind.contains('@')
    {
        return;
    }
    let url = format!("{before}{SECRET}{behind}");
    let shown = match parse(&url) {
        // Written without an escape, an `@` may make a host or a topic of what was meant as a password.
        Ok(url) if url.destination().is_some_and(|topic| topic.contains(SECRET)) => return,
        Ok(url) => format!("{url} {url:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(SECRET), "{url:?} shows its password: {shown}");
}

fn parse(text: &str) -> Result<BrokerUrl, UrlError> {
    let parsed = text.parse::<BrokerUrl>();
    match &parsed {
        Ok(url) => {
            assert!(!url.to_string().is_empty() && !url.transport_name().is_empty());
            assert_eq!(BrokerUrl::parse(text).as_ref(), Ok(url));
        }
        Err(error) => assert!(!error.part().is_empty()),
    }
    parsed
}
