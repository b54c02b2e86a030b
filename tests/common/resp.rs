//! A server that speaks Redis' protocol and answers what a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Answers a command, given as its words. What it returns is sent as it is.
type Answer = dyn Fn(&[Vec<u8>]) -> Vec<u8> + Send + Sync;

/// The server. It listens until the test program ends.
pub struct RespServer {
    address: String,
}

impl RespServer {
    /// A server that answers `XADD` by `xadd`, and all else as a Redis of this version that permits no `CONFIG`.
    pub fn start(version: &'static str, xadd: impl Fn(&[Vec<u8>]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let answer: Arc<Answer> = Arc::new(move |words| match words[0].to_ascii_uppercase().as_slice() {
            b"XADD" => xadd(words),
            b"PING" => b"+PONG\r\n".to_vec(),
            b"ROLE" => b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_vec(),
            b"INFO" => bulk(&format!("# Server\r\nredis_version:{version}\r\n")),
            b"AUTH" | b"SELECT" | b"CLIENT" => b"+OK\r\n".to_vec(),
            _ => b"-NOPERM this user has no permissions to run the command\r\n".to_vec(),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.clone();
                std::thread::spawn(move || serve(stream, &*answer));
            }
        });
        Self { address }
    }

    /// A server that refuses each message for good: "too large".
    pub fn refusing() -> Self {
        Self::start("7.0.0", |_| b"-ERR Elements are too large to be stored\r\n".to_vec())
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// A text as a reply.
pub fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

/// Reads commands until the client goes.
fn serve(stream: TcpStream, answer: &Answer) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    let mut queued: Option<Vec<Vec<Vec<u8>>>> = None;
    while let Some(words) = command(&mut input) {
        let reply = match (words[0].to_ascii_uppercase().as_slice(), queued.as_mut()) {
            (b"EXEC", Some(commands)) => {
                let replies: Vec<u8> = commands.iter().flat_map(|words| answer(words)).collect();
                let reply = [format!("*{}\r\n", commands.len()).into_bytes(), replies].concat();
                queued = None;
                reply
            }
            (_, Some(commands)) => {
                commands.push(words);
                b"+QUEUED\r\n".to_vec()
            }
            (b"MULTI", None) => {
                queued = Some(Vec::new());
                b"+OK\r\n".to_vec()
            }
            (_, None) => answer(&words),
        };
        if out.write_all(&reply).is_err() {
            return;
        }
    }
}

fn command(input: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let count = number(input, '*')?;
    (0..count)
        .map(|_| {
            let mut word = vec![0; number(input, '$')? + 2];
            input.read_exact(&mut word).ok()?;
            word.truncate(word.len() - 2);
            Some(word)
        })
        .collect()
}

fn number(input: &mut impl BufRead, kind: char) -> Option<usize> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.trim_end().strip_prefix(kind)?.parse().ok()
}
