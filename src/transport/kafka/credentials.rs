//! The files a client is made with: certificates, keys, authorities, a password.
//!
//! librdkafka opens them whenever a client is made, which may be at any time: also while a file is being replaced, or after
//! something took its place that is no certificate. So a client is made with what the files held when that was last found
//! to be usable, and not with what they hold now. Directories of authorities are left to OpenSSL, which looks into them at
//! each handshake.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rdkafka::config::ClientConfig;

use super::book::lock;
use super::config::{KafkaConfig, LEAST_SECRET};
use crate::transport::StartError;
use crate::transport::files::{WatchedFiles, password_in};

/// The options that name a file with a secret or a certificate.
const FILES: [&str; 5] =
    ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.keystore.location", "ssl.crl.location"];
/// What a password file is for.
const PASSWORD: &str = "sasl.password";
/// The most passwords of the past that are kept out of log lines.
const FORMER_PASSWORDS: usize = 16;

/// What the files held at one time, ready to make clients with.
pub(super) struct Credentials {
    /// Counts them, from 0.
    pub(super) number: u64,
    contents: Vec<Vec<u8>>,
    values: Vec<(&'static str, Value)>,
}

enum Value {
    /// The password itself.
    Password(String),
    /// A file.
    File(Snapshot),
}

impl Credentials {
    /// Puts them into the configuration of a client. They have to live until the client is made.
    pub(super) fn apply(&self, client: &mut ClientConfig) {
        for (option, value) in &self.values {
            match value {
                Value::Password(password) => client.set(*option, password.as_str()),
                Value::File(snapshot) => client.set(*option, snapshot.path()),
            };
        }
    }

    /// Whether the files held the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.contents == other.contents
    }

    fn password(&self) -> Option<&str> {
        self.values.iter().find_map(|(_, value)| match value {
            Value::Password(password) => Some(password.as_str()),
            Value::File(_) => None,
        })
    }
}

/// The files, and what they held when they were last found to be usable.
pub(super) struct CredentialFiles {
    sources: Vec<(&'static str, PathBuf)>,
    watched: Mutex<WatchedFiles>,
    current: RwLock<Arc<Credentials>>,
    /// Passwords that files hold or held; the last one at the end.
    passwords: RwLock<Vec<String>>,
}

impl CredentialFiles {
    /// Reads the files that a configuration names.
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, StartError> {
        let named = |option: &&'static str| {
            let path = config.options.get(*option)?;
            // `probe` is librdkafka's word for "look in the usual places".
            (path != "probe" && !Path::new(path).is_dir()).then(|| (*option, PathBuf::from(path)))
        };
        let password = config.password_file.iter().map(|path| (PASSWORD, path.clone()));
        let sources: Vec<_> = FILES.iter().filter_map(named).chain(password).collect();
        let mut watched = WatchedFiles::new(sources.iter().map(|(_, path)| path.clone()));
        let contents = watched.read_if_changed().map_err(|error| StartError(format!("file {error}")))?;
        let contents = contents.unwrap_or_default();
        let first = read(&sources, contents, 0).map_err(|error| StartError(format!("file {error}")))?;
        Ok(Self {
            sources,
            watched: Mutex::new(watched),
            passwords: RwLock::new(first.password().map(str::to_owned).into_iter().collect()),
            current: RwLock::new(Arc::new(first)),
        })
    }

    /// What clients are made with.
    pub(super) fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the files hold, if that changed since it was last asked. Whether it can be used is for the caller to find out.
    ///
    /// # Errors
    /// One of the files cannot be read, or holds no password: says which and why.
    pub(super) fn changed(&self) -> Result<Option<Credentials>, String> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        let contents = lock(&self.watched).read_if_changed().map_err(|error| error.to_string())?;
        let Some(contents) = contents else { return Ok(None) };
        read(&self.sources, contents, self.current().number + 1).map(Some)
    }

    /// A password that is about to be tried must not show, either.
    pub(super) fn conceal(&self, credentials: &Credentials) {
        let Some(password) = credentials.password() else { return };
        let mut passwords = self.passwords.write().unwrap_or_else(PoisonError::into_inner);
        passwords.retain(|known| known != password);
        passwords.push(password.to_owned());
        let excess = passwords.len().saturating_sub(FORMER_PASSWORDS);
        passwords.drain(..excess);
    }

    /// From now on clients are made with these.
    pub(super) fn accept(&self, credentials: Arc<Credentials>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// A text without passwords from files.
    pub(super) fn scrub(&self, text: &str) -> String {
        let passwords = self.passwords.read().unwrap_or_else(PoisonError::into_inner);
        let passwords = passwords.iter().filter(|password| password.len() >= LEAST_SECRET);
        passwords.fold(text.to_owned(), |text, password| text.replace(password.as_str(), "…"))
    }

    /// An objection of librdkafka's, with the file that it is about where it names the option.
    pub(super) fn name_file(&self, text: &str) -> String {
        match self.sources.iter().find(|(option, _)| text.contains(option)) {
            Some((_, path)) => format!("{}: {text}", path.display()),
            None => text.to_owned(),
        }
    }
}

fn read(sources: &[(&'static str, PathBuf)], contents: Vec<Vec<u8>>, number: u64) -> Result<Credentials, String> {
    let value = |((option, path), contents): (&(&'static str, PathBuf), &Vec<u8>)| {
        let value = if *option == PASSWORD {
            Value::Password(password_in(path, contents).map_err(|error| error.to_string())?)
        } else {
            Value::File(Snapshot::new(path, contents))
        };
        Ok::<_, String>((*option, value))
    };
    let values = sources.iter().zip(&contents).map(value).collect::<Result<_, _>>()?;
    Ok(Credentials { number, contents, values })
}

/// What a file held, as a file of its own: in memory, without a name.
struct Snapshot {
    original: PathBuf,
    #[cfg(target_os = "linux")]
    copy: Option<std::fs::File>,
}

impl Snapshot {
    fn new(original: &Path, contents: &[u8]) -> Self {
        let original = std::path::absolute(original).unwrap_or_else(|_| original.to_owned());
        #[cfg(not(target_os = "linux"))]
        let _ = contents;
        Self {
            original,
            #[cfg(target_os = "linux")]
            copy: copy(contents).inspect_err(|error| tracing::debug!(%error, "no copy of a file in memory")).ok(),
        }
    }

    /// The path to open: the original's where there is no copy.
    fn path(&self) -> String {
        #[cfg(target_os = "linux")]
        if let Some(copy) = &self.copy {
            return path_of(copy);
        }
        self.original.display().to_string()
    }
}

#[cfg(target_os = "linux")]
fn copy(contents: &[u8]) -> std::io::Result<std::fs::File> {
    use std::io::Write;

    let memory = rustix::fs::memfd_create("outlast", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut copy = std::fs::File::from(memory);
    copy.write_all(contents)?;
    // Where /proc is missing, or is not ours to look into, librdkafka could not open it, either.
    std::fs::File::open(path_of(&copy))?;
    Ok(copy)
}

#[cfg(target_os = "linux")]
fn path_of(copy: &std::fs::File) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(copy))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_client_is_made_with_what_was_accepted_whatever_the_files_hold_now() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, password) = (directory.path().join("ca.pem"), directory.path().join("password"));
        fs::write(&ca, "one").unwrap();
        fs::write(&password, "first-secret\n").unwrap();
        let mut config = KafkaConfig::new(["h"]).option("ssl.ca.location", ca.display().to_string());
        config.password_file = Some(password.clone());
        let files = CredentialFiles::new(&config).unwrap();
        let used = || {
            let (mut client, current) = (ClientConfig::new(), files.current());
            current.apply(&mut client);
            let ca = fs::read_to_string(client.get("ssl.ca.location").unwrap()).unwrap();
            (ca, client.get("sasl.password").unwrap().to_owned())
        };
        let was = |ca: &str, password: &str| (ca.to_owned(), password.to_owned());
        assert_eq!(used(), was("one", "first-secret"));
        assert!(files.changed().unwrap().is_none());

        fs::write(&ca, "two").unwrap();
        fs::remove_file(&password).unwrap();
        assert!(files.changed().is_err_and(|error| error.contains("password")));
        assert_eq!(used(), was("one", "first-secret"));
        fs::write(&password, "second-secret\n").unwrap();
        let changed = files.changed().unwrap().expect("it changed");
        assert!(!changed.is_same(&files.current()) && changed.number == 1);
        files.conceal(&changed);
        assert_eq!(used(), was("one", "first-secret"));
        files.accept(Arc::new(changed));
        assert_eq!(used(), was("two", "second-secret"));
        assert_eq!(files.scrub("first-secret, second-secret"), "…, …");
    }

    #[test]
    fn a_directory_of_authorities_and_the_usual_places_are_no_files() {
        let directory = tempfile::tempdir().unwrap();
        for place in [directory.path().display().to_string(), "probe".to_owned()] {
            let files = CredentialFiles::new(&KafkaConfig::new(["h"]).option("ssl.ca.location", place)).unwrap();
            assert!(files.sources.is_empty() && files.changed().unwrap().is_none());
        }
    }
}
