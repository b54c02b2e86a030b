//! How the server is reached and who logs in there, as the files with certificates, keys and passwords have it now.
//!
//! They are read again when they change, and used at the next connection; the one that is open stays. Files that cannot be
//! read, or that do not belong together, change nothing: those that were read before stay in use, with a warning for as long
//! as that is so. A renewal that replaces the certificate first and its key a moment later is such a case.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, io::tcp::TcpSettings};

use super::config::{RedisConfig, Secret};
use super::connect::Login;
use crate::transport::StartError;
use crate::transport::files::{self, FileError, WatchedFiles};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Authorities,
    Certificate,
    PrivateKey,
    Password,
}

pub(super) struct Access {
    config: Arc<RedisConfig>,
    roles: Vec<(Role, PathBuf)>,
    /// Locked while files are read, which takes for ever on a file system that hangs.
    files: Mutex<WatchedFiles>,
    current: Mutex<Current>,
}

struct Current {
    login: Arc<Login>,
    trouble: Option<String>,
}

impl Access {
    /// Reads all files.
    ///
    /// # Errors
    /// One cannot be used, or the configuration cannot work, whatever the server does.
    pub(super) fn new(config: Arc<RedisConfig>) -> Result<Self, StartError> {
        let named = [
            (Role::Authorities, &config.ca_file),
            (Role::Certificate, &config.certificate_file),
            (Role::PrivateKey, &config.private_key_file),
            (Role::Password, &config.password_file),
        ];
        let roles: Vec<(Role, PathBuf)> =
            named.into_iter().filter_map(|(role, path)| Some((role, path.clone()?))).collect();
        let mut files = WatchedFiles::new(roles.iter().map(|(_, path)| path.clone()));
        let fault = |error: FileError| StartError(format!("Redis: {error}"));
        let contents = files.read_if_changed().map_err(fault)?.unwrap_or_default();
        let login = Arc::new(login(&config, &roles, &contents).map_err(StartError)?);
        let current = Mutex::new(Current { login, trouble: None });
        Ok(Self { config, roles, files: Mutex::new(files), current })
    }

    /// What the next connection is made with.
    pub(super) fn login(&self) -> Arc<Login> {
        self.lock().login.clone()
    }

    /// Why renewed files are not in use.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Whether there are files that may change.
    pub(super) fn has_files(&self) -> bool {
        !self.roles.is_empty()
    }

    /// Reads the files again; whether there is something new to log in with. Blocks while they are read; does nothing while
    /// another thread reads them.
    pub(super) fn refresh(&self) -> bool {
        let Ok(mut files) = self.files.try_lock() else { return false };
        let read = files.read_if_changed().map_err(|error| error.to_string());
        let renewed = match read {
            Ok(None) => return false,
            Ok(Some(contents)) => login(&self.config, &self.roles, &contents),
            Err(error) => Err(error),
        };
        let address = self.config.address();
        let mut current = self.lock();
        match renewed {
            Ok(login) => {
                current.login = Arc::new(login);
                current.trouble = None;
                tracing::info!(%address, "certificates or password changed; the next connection to Redis uses them");
                true
            }
            Err(error) => {
                let trouble =
                    format!("what was read before stays in use, since a file was changed and cannot be: {error}");
                if current.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(%address, "{trouble}");
                    current.trouble = Some(trouble);
                }
                false
            }
        }
    }

    /// Every change under the lock is whole when it could panic, so a poisoned lock means nothing.
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the client, which does not connect yet, from what the files hold.
fn login(config: &RedisConfig, roles: &[(Role, PathBuf)], contents: &[Vec<u8>]) -> Result<Login, String> {
    let of = |wanted: Role| {
        let found = roles.iter().zip(contents).find(|((role, _), _)| *role == wanted);
        found.map(|((_, path), contents)| (path.as_path(), contents.as_slice()))
    };
    let password = match of(Role::Password) {
        Some((path, contents)) => {
            Some(Secret::new(files::password_in(path, contents).map_err(|error| format!("Redis: {error}"))?))
        }
        None => config.password.clone(),
    };
    let host = config.host.clone();
    let addr = if config.tls {
        ConnectionAddr::TcpTls { host, port: config.port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, config.port)
    };
    let greeting = RedisConnectionInfo::default().set_skip_set_lib_name();
    let info = addr
        .into_connection_info()
        .map_err(fault)?
        .set_redis_settings(greeting)
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let client = if config.tls {
        secure(info, of(Role::Authorities), of(Role::Certificate), of(Role::PrivateKey))?
    } else {
        Client::open(info).map_err(fault)?
    };
    Ok(Login { client, password })
}

fn fault(error: redis::RedisError) -> String {
    format!("Redis: {error}")
}

/// A file and what it holds.
type Pem<'a> = Option<(&'a Path, &'a [u8])>;

#[cfg(feature = "tls")]
fn secure(
    info: redis::ConnectionInfo,
    authorities: Pem<'_>,
    certificate: Pem<'_>,
    private_key: Pem<'_>,
) -> Result<Client, String> {
    // Something else in the process may have chosen a provider already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client_tls = match (certificate, private_key) {
        (Some(certificate), Some(key)) => {
            has_block(certificate, "CERTIFICATE")?;
            has_block(key, "PRIVATE KEY")?;
            belong_together(certificate, key)?;
            Some(redis::ClientTlsConfig { client_cert: certificate.1.to_vec(), client_key: key.1.to_vec() })
        }
        _ => None,
    };
    if let Some(authorities) = authorities {
        has_block(authorities, "CERTIFICATE")?;
    }
    let root_cert = authorities.map(|(_, contents)| contents.to_vec());
    let certificates = redis::TlsCertificates { client_tls, root_cert };
    Client::build_with_tls(info, certificates).map_err(fault)
}

#[cfg(not(feature = "tls"))]
fn secure(_: redis::ConnectionInfo, _: Pem<'_>, _: Pem<'_>, _: Pem<'_>) -> Result<Client, String> {
    Err("Redis: TLS is asked for, but outlast was built without its feature \"tls\"".to_owned())
}

/// A file without the expected block would only show as a refused handshake later.
#[cfg(feature = "tls")]
fn has_block((path, contents): (&Path, &[u8]), block: &str) -> Result<(), String> {
    let end = format!("{block}-----");
    if contents.windows(end.len()).any(|window| window == end.as_bytes()) {
        return Ok(());
    }
    Err(format!("Redis: {}", FileError::new(path, format_args!("a PEM file with a {block} is needed"))))
}

/// The client of the crate finds out only when it connects.
#[cfg(feature = "tls")]
fn belong_together(certificate: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<(), String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let wrong = |path: &Path, what: String| format!("Redis: {}", FileError::new(path, what));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate.1)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(certificate.0, error.to_string()))?;
    let private_key =
        PrivateKeyDer::from_pem_slice(key.1).map_err(|error| wrong(key.0, format!("no private key: {error}")))?;
    let client = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    client.with_client_auth_cert(chain, private_key).map(drop).map_err(|error| {
        wrong(
            key.0,
            format!("this key and the certificate in {} do not belong together: {error}", certificate.0.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_password_file_is_read_again_and_one_that_cannot_be_used_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        fs::write(&path, "first\n").unwrap();
        let config = RedisConfig { password_file: Some(path.clone()), ..RedisConfig::default() };
        let access = Access::new(Arc::new(config)).unwrap();
        let password = || access.login().password.as_ref().map(|password| password.reveal().to_owned());
        assert_eq!((password().as_deref(), access.refresh()), (Some("first"), false));
        fs::write(&path, "second").unwrap();
        assert!(access.refresh());
        assert_eq!(password().as_deref(), Some("second"));
        for contents in [Some(""), None] {
            match contents {
                Some(contents) => fs::write(&path, contents).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            assert!(!access.refresh());
            assert!(!access.refresh());
            let trouble = access.trouble().expect("the warning stays");
            assert!(trouble.contains("password") && !trouble.contains("second"), "{trouble}");
            assert_eq!(password().as_deref(), Some("second"));
        }
        fs::write(&path, "second\n").unwrap();
        assert!(access.refresh());
        assert_eq!((access.trouble(), password().as_deref()), (None, Some("second")));
    }
}
