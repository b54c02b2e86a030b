//! The Redis transport under the conformance suite: on the shared server, and on one that is broken in every way
//! a single machine can break it.
#![cfg(all(feature = "redis", feature = "testing"))]

mod common;
mod redis_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use outlast::testing::conformance::{self, Entry, Fault, Subject};
use outlast::transport::Transport;
use outlast::transport::redis::{RedisConfig, RedisTransport};
use redis_support::{Server, contents, shared_server, unused};

struct Streams {
    /// How the transport gets there.
    config: RedisConfig,
    /// How the probe does.
    probe: RedisConfig,
    faults: fn(&Arc<Server>, &Arc<Proxy>) -> Vec<Fault>,
    broken: Option<(Arc<Server>, Arc<Proxy>)>,
}

impl Subject for Streams {
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(RedisTransport::new(self.config.clone()).unwrap())
    }

    fn destination(&self, purpose: &str) -> String {
        unused(purpose)
    }

    fn contents(&self, destination: &str) -> Result<Vec<Entry>, String> {
        contents(&self.probe, destination)
    }

    fn faults(&self) -> Vec<Fault> {
        self.broken.as_ref().map(|(server, proxy)| (self.faults)(server, proxy)).unwrap_or_default()
    }

    fn keeps_null_headers(&self) -> bool {
        false
    }

    fn takes_fields(&self) -> bool {
        true
    }
}

fn seed() -> u64 {
    std::env::var("OUTLAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
}

fn under(faults: fn(&Arc<Server>, &Arc<Proxy>) -> Vec<Fault>) {
    let server = Arc::new(Server::start(&[]));
    let proxy = Arc::new(Proxy::to(server.port));
    let mut config = RedisConfig { port: proxy.port, ..server.config() };
    config.response_timeout = Duration::from_millis(400);
    config.connect_timeout = Duration::from_millis(400);
    config.reconnect_cap = Duration::from_millis(50);
    let subject = Streams { config, probe: server.config(), faults, broken: Some((server, proxy)) };
    conformance::run(&subject, seed()).unwrap();
}

fn fault(name: &'static str, millis: u64, inflict: impl Fn() + 'static, mend: impl Fn() + 'static) -> Fault {
    Fault { name, lasts: Duration::from_millis(millis), inflict: Box::new(inflict), mend: Box::new(mend) }
}

#[test]
fn streams_of_a_healthy_server_conform() {
    let config = shared_server();
    let subject = Streams { probe: config.clone(), config, faults: |_, _| Vec::new(), broken: None };
    conformance::run(&subject, seed()).unwrap();
}

#[test]
fn streams_conform_when_the_server_dies_or_hangs() {
    under(|server, _| {
        let [one, two, three, four] = [(); 4].map(|()| server.clone());
        vec![
            fault("killed", 100, move || one.kill(), move || two.restart()),
            fault("stopped", 1200, move || three.stop(), move || four.cont()),
        ]
    });
}

#[test]
fn streams_conform_when_the_server_refuses() {
    under(|server, _| {
        let set = |words: &'static [&'static str]| {
            let server = server.clone();
            move || drop(server.run(words))
        };
        vec![
            fault("OOM", 200, set(&["CONFIG", "SET", "maxmemory", "1"]), set(&["CONFIG", "SET", "maxmemory", "0"])),
            fault("demoted", 200, set(&["REPLICAOF", "127.0.0.1", "1"]), set(&["REPLICAOF", "NO", "ONE"])),
            fault(
                "without replicas",
                200,
                set(&["CONFIG", "SET", "min-replicas-to-write", "1"]),
                set(&["CONFIG", "SET", "min-replicas-to-write", "0"]),
            ),
            fault(
                "XADD forbidden",
                200,
                set(&["ACL", "SETUSER", "default", "-xadd"]),
                set(&["ACL", "SETUSER", "default", "+xadd"]),
            ),
            fault(
                "MULTI forbidden",
                200,
                set(&["ACL", "SETUSER", "default", "-multi"]),
                set(&["ACL", "SETUSER", "default", "+multi"]),
            ),
            fault(
                "EXEC forbidden",
                200,
                set(&["ACL", "SETUSER", "default", "-exec"]),
                set(&["ACL", "SETUSER", "default", "+exec"]),
            ),
            fault("clients killed", 50, set(&["CLIENT", "KILL", "TYPE", "normal"]), || {}),
            fault("writes paused", 700, set(&["CLIENT", "PAUSE", "600", "WRITE"]), || {}),
        ]
    });
}

#[test]
fn streams_conform_when_the_network_loses_replies() {
    under(|_, proxy| {
        let [one, two, three, four, five] = [(); 5].map(|()| proxy.clone());
        vec![
            fault("replies lost in mid-stream", 300, move || one.cut_after(3000), move || two.heal()),
            fault("every reply lost", 900, move || three.cut_after(0), move || four.heal()),
            fault("replies swallowed", 900, move || five.swallow.store(true, Ordering::SeqCst), {
                let proxy = proxy.clone();
                move || proxy.swallow.store(false, Ordering::SeqCst)
            }),
        ]
    });
}

/// Passes bytes both ways; loses the server's on command, after it has acted on the client's.
struct Proxy {
    port: u16,
    /// Bytes from the server that still get through before each connection is cut; negative: no limit.
    left: Arc<AtomicI64>,
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (left, swallow) = (Arc::new(AtomicI64::new(-1)), Arc::new(AtomicBool::new(false)));
        let (limit, silent) = (left.clone(), swallow.clone());
        // Lives as long as the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (from, to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                thread::spawn(move || pass(from, to, |_| true));
                let (limit, silent) = (limit.clone(), silent.clone());
                thread::spawn(move || {
                    pass(upstream, client, move |bytes| {
                        while silent.load(Ordering::SeqCst) {
                            thread::sleep(Duration::from_millis(1));
                        }
                        limit.load(Ordering::SeqCst) < 0
                            || limit.fetch_sub(bytes as i64, Ordering::SeqCst) >= bytes as i64
                    });
                });
            }
        });
        Self { port, left, swallow }
    }

    fn cut_after(&self, bytes: i64) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.left.store(-1, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut lets: impl FnMut(usize) -> bool) {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) if !lets(read) || to.write_all(&buffer[..read]).is_err() => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
