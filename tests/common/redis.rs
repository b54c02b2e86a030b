//! Streams of a real server.

use std::time::Duration;

use outlast::{ID_HEADER, MessageId};

const LIMIT: Duration = Duration::from_secs(30);

/// A stream entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    /// In order, as they lie there.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The message id that came with it.
    pub fn message_id(&self) -> Option<MessageId> {
        let text = std::str::from_utf8(self.field(ID_HEADER)?).expect("a message id is text");
        Some(text.parse().expect("a message id has 32 hexadecimal digits"))
    }
}

/// A connection to `host:port`.
pub fn connect(server: &str) -> redis::Connection {
    let client = redis::Client::open(format!("redis://{server}/")).expect("an address");
    let connection = client.get_connection_with_timeout(LIMIT).unwrap_or_else(|e| panic!("Redis at {server}: {e}"));
    connection.set_read_timeout(Some(LIMIT)).expect("a legal timeout");
    connection
}

/// One command, its words as they are; fails the test if the server refuses it.
pub fn command(server: &str, words: &[&str]) -> redis::Value {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.query(&mut connect(server)).unwrap_or_else(|e| panic!("{words:?}: {e}"))
}

/// Everything in a stream at the moment, in order; nothing if there is no such stream.
pub fn read_all(server: &str, stream: &str) -> Vec<Entry> {
    const PAGE: usize = 10_000;
    let mut connection = connect(server);
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let from = entries.last().map_or("-".to_owned(), |last| format!("({}", last.id));
        let page: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
            .arg(&[stream, &from, "+", "COUNT"])
            .arg(PAGE)
            .query(&mut connection)
            .unwrap_or_else(|e| panic!("XRANGE {stream}: {e}"));
        let read = page.len();
        entries.extend(page.into_iter().map(|(id, words)| {
            let mut words = words.into_iter();
            let fields = std::iter::from_fn(|| Some((words.next()?, words.next()?))).collect();
            Entry { id, fields }
        }));
        if read < PAGE {
            return entries;
        }
    }
}
