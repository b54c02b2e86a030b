//! Ports for servers that a test starts itself.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;

/// Claims a port as `scripts/services` does, which says why: below the ephemeral range, and noted where that script and
/// other test programs look. The claim is this process's, and worth nothing once it has ended.
pub fn claim_port() -> u16 {
    let user = rustix::process::getuid().as_raw();
    let claims = std::env::temp_dir().join(format!("outlast-ports-{user}"));
    fs::create_dir_all(&claims).expect("a directory for claims");
    loop {
        let port = fastrand::u16(12_000..32_000);
        let claim = claims.join(port.to_string());
        let Ok(mut file) = File::create_new(&claim) else {
            // Left behind by somebody who is gone: free for the next who draws it.
            if fs::read_to_string(&claim).is_ok_and(|owner| !Path::new(owner.trim_end()).is_dir()) {
                let _ = fs::remove_file(&claim);
            }
            continue;
        };
        writeln!(file, "/proc/{}", std::process::id()).expect("the claim is written");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
        let _ = fs::remove_file(&claim);
    }
}
