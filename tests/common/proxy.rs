//! A TCP proxy that treats silent connections as load balancers and firewalls do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Passes on what comes to an address of this machine; ends when it is dropped.
pub struct Proxy {
    front: String,
    shared: Arc<Shared>,
}

struct Shared {
    silence: Option<Duration>,
    stopped: AtomicBool,
    opened: AtomicUsize,
    connections: Mutex<Vec<Arc<Connection>>>,
}

struct Connection {
    ends: [TcpStream; 2],
    last: Mutex<Instant>,
    /// Everything is swallowed, and neither side hears of it.
    dead: AtomicBool,
}

impl Proxy {
    /// Listens at `front`. A connection on which nothing moved for `silence` is dropped without a word to either side.
    pub fn start(front: &str, back: &str, silence: Option<Duration>) -> Self {
        let listener = TcpListener::bind(front).unwrap_or_else(|error| panic!("{front}: {error}"));
        let (stopped, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { silence, stopped, opened, connections: Mutex::default() });
        let (own, back) = (Arc::clone(&shared), back.to_owned());
        thread::spawn(move || {
            for client in listener.incoming() {
                if own.stopped.load(Ordering::Relaxed) {
                    return;
                }
                // Without a server behind it the client is hung up on.
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(&back)) {
                    own.open(client, server);
                }
            }
        });
        Self { front: front.to_owned(), shared }
    }

    /// How many connections were opened so far.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Breaks all connections; both sides hear of it.
    pub fn cut(&self) {
        self.shared.connections.lock().unwrap().drain(..).for_each(|connection| connection.close());
    }

    /// From now on the connections that are open swallow everything.
    pub fn swallow(&self) {
        for connection in self.shared.connections.lock().unwrap().iter() {
            connection.dead.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(&self.front);
        self.cut();
    }
}

impl Shared {
    fn open(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let ends = [&client, &server].map(|end| end.try_clone().expect("a second handle"));
        let connection = Connection { ends, last: Mutex::new(Instant::now()), dead: AtomicBool::new(false) };
        let connection = Arc::new(connection);
        self.connections.lock().unwrap().push(Arc::clone(&connection));
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (there, back) = ((client, server), connection.ends.each_ref().map(|end| end.try_clone().expect("a third")));
        let [client, server] = back;
        for (from, to) in [there, (server, client)] {
            let _ = from.set_nodelay(true);
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || connection.pump(from, to, shared.silence));
        }
    }
}

impl Connection {
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, silence: Option<Duration>) {
        let mut buffer = [0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut last = self.last.lock().unwrap();
            if silence.is_some_and(|silence| last.elapsed() > silence) {
                self.dead.store(true, Ordering::Relaxed);
            }
            *last = Instant::now();
            drop(last);
            let dead = self.dead.load(Ordering::Relaxed);
            if count == 0 || (!dead && to.write_all(&buffer[..count]).is_err()) {
                if !dead {
                    self.close();
                }
                return;
            }
        }
    }

    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
