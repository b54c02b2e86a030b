//! Redis: a primary as it should be, and each thing that is not.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::common::wait_until;
use super::guarded::certificates;
use super::redis_support::{PATIENCE, Server};
use super::{NOWHERE, ask, doctor, on_disk, text};

fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}?stream=orders", server.port)
}

/// A primary and its replica, which has caught up.
fn pair() -> (Server, Server) {
    let primary = Server::start(&["--repl-diskless-sync-delay", "0"]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    wait_until("the replica is connected", PATIENCE, || {
        format!("{:?}", replica.run(&["INFO", "replication"])).contains("master_link_status:up")
    });
    (primary, replica)
}

#[test]
fn a_primary_as_it_should_be_has_no_problem_and_its_replica_is_no_target() {
    let (primary, replica) = pair();
    let said = ask(&url(&primary));
    said.is_healthy();
    assert_eq!(said.findings("note"), Vec::<&serde_json::Value>::new());
    let keys = format!("{:?}", primary.run(&["KEYS", "*"]));
    assert_eq!(keys, "array([])", "nothing is written");

    let said = ask(&url(&replica));
    said.problems_are(&["is-replica"]);
    assert_eq!(said.findings("problem").len(), 1, "said once: {:#}", said.report);
}

#[test]
fn settings_that_lose_messages_are_found() {
    let server = Server::start(&[]);
    let said = ask(&url(&server));
    said.is_healthy();
    said.has_note("no-replica");
    server.run(&["CONFIG", "SET", "appendonly", "no"]);
    ask(&url(&server)).problems_are(&["persistence-off"]);
    server.run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    ask(&url(&server)).problems_are(&["eviction-policy", "persistence-off"]);
    server.run(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    server.run(&["CONFIG", "SET", "proto-max-bulk-len", "1mb"]);
    server.run(&["CONFIG", "SET", "appendonly", "yes"]);
    ask(&url(&server)).is_healthy();
}

#[test]
fn a_server_that_takes_no_writes_is_found() {
    let server = Server::start(&[]);
    server.run(&["CONFIG", "SET", "maxmemory", "1000"]);
    ask(&url(&server)).problems_are(&["memory-full"]);
    server.run(&["CONFIG", "SET", "maxmemory", "0"]);
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    ask(&url(&server)).problems_are(&["writes-refused"]);
    server.run(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    server.run(&["SET", "orders", "no stream"]);
    ask(&url(&server)).problems_are(&["not-a-stream"]);
}

#[test]
fn who_may_not_write_is_found_and_what_may_not_be_seen_is_noted() {
    let server = Server::start(&[]);
    server.run(&["ACL", "SETUSER", "bob", "on", ">bobs-own", "~other", "+@all"]);
    server.run(&["ACL", "SETUSER", "carol", "on", ">carols-own", "~orders", "+xadd", "+multi", "+exec", "+ping"]);
    let as_user = |user: &str| format!("redis://{user}@127.0.0.1:{}?stream=orders", server.port);
    let said = ask(&as_user("bob:bobs-own"));
    said.problems_are(&["no-right-to-write"]);
    assert_eq!(said.problem("no-right-to-write")["subject"], "redis/orders");
    // Enough to send messages, and for nothing else.
    let said = ask(&as_user("carol:carols-own"));
    said.is_healthy();
    said.has_note("not-checked");
    let said = ask(&as_user("carol:canary-guess"));
    said.problems_are(&["login-refused"]);
    assert!(!said.report.to_string().contains("canary"), "{:#}", said.report);
    server.run(&["CONFIG", "SET", "requirepass", "needed"]);
    ask(&url(&server)).problems_are(&["login-refused"]);
}

#[test]
fn a_certificate_of_another_authority_is_found() {
    let dir = on_disk();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", "no"];
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let server = Server::start(&[&tls[..], &files].concat());
    let url = |ca: &str| format!("rediss://localhost:{}?stream=orders&ca-file={}", server.port, file(ca));
    ask(&url("ca.pem")).is_healthy();
    ask(&url("other.pem")).problems_are(&["untrusted-certificate"]);
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_found() {
    ask(&format!("redis://{NOWHERE}?stream=orders")).problems_are(&["unreachable"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}?stream=orders", silent.local_addr().unwrap());
    let dir = on_disk();
    let said = doctor(&["--outbox", text(&dir.path().join("outbox")), "--to", &url, "--timeout", "2s"]);
    said.problems_are(&["no-answer"]);
}

/// No release before 6.2 is to be had: its words, by a script.
#[test]
fn a_server_that_is_too_old_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the connection.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = "redis_version:6.0.16\r\nrole:master\r\nconnected_slaves:1\r\naof_enabled:1\r\n";
        let setting =
            |name: &str, value: &str| format!("*2\r\n${}\r\n{name}\r\n${}\r\n{value}\r\n", name.len(), value.len());
        let answers: String = [
            "+OK\r\n*0\r\n".to_owned(),
            "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n".to_owned(),
            format!("${}\r\n{info}\r\n", info.len()),
            "*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n".to_owned(),
            setting("proto-max-bulk-len", "536870912"),
            setting("maxmemory-policy", "noeviction"),
            setting("appendonly", "yes"),
            setting("appendfsync", "always"),
            "+none\r\n-ERR Invalid stream ID specified as stream command argument\r\n".to_owned(),
        ]
        .concat();
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        // The last word of the questions is the empty payload of the `XADD`.
        while !asked.ends_with(b"$0\r\n\r\n") {
            match stream.read(&mut buffer).unwrap() {
                0 => return 0,
                read => asked.extend(&buffer[..read]),
            }
        }
        stream.write_all(answers.as_bytes()).unwrap();
        stream.read(&mut buffer).unwrap_or(0)
    });
    let said = ask(&format!("redis://{address}?stream=orders&minid=1-0"));
    said.problems_are(&["server-too-old"]);
    assert!(said.problem("server-too-old")["what"].as_str().unwrap().contains("minid"), "{:#}", said.report);
    said.has_note("clock-differs");
}
