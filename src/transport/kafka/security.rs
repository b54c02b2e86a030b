//! Refuses security options that would not do what they say: secrets in the clear, files that cannot be read.

use std::collections::BTreeMap;

use super::config::KafkaConfig;
use crate::transport::StartError;

/// Refuses what would silently go over the wire in the clear.
pub(super) fn check_security(config: &KafkaConfig) -> Result<(), StartError> {
    let options = &config.options;
    let protocol = options.get("security.protocol").map_or("plaintext", String::as_str).to_ascii_lowercase();
    let (tls, sasl) = (protocol.ends_with("ssl"), protocol.starts_with("sasl_"));
    if tls && !cfg!(feature = "tls") {
        return Err(StartError(format!(
            "option security.protocol={protocol}: this build has no TLS; build with the feature `tls`"
        )));
    }
    for name in options.keys() {
        if name.starts_with("ssl.") && !tls {
            return Err(StartError(format!(
                "option {name} has no effect with security.protocol={protocol}, which does not encrypt: set \
                 security.protocol=ssl or sasl_ssl"
            )));
        }
        if name.starts_with("sasl.") && !sasl {
            return Err(StartError(format!(
                "option {name} has no effect with security.protocol={protocol}, which does not authenticate: set \
                 security.protocol=sasl_ssl (or sasl_plaintext)"
            )));
        }
    }
    if options.get("sasl.password").is_some_and(String::is_empty) {
        return Err(StartError("option sasl.password is empty: Kafka has no user without a password".to_owned()));
    }
    if let Some(file) = &config.password_file {
        let file = file.display();
        if options.contains_key("sasl.password") {
            return Err(StartError(format!("two passwords: option sasl.password, and the file {file}: leave one out")));
        }
        if !sasl {
            return Err(StartError(format!(
                "password file {file} has no effect with security.protocol={protocol}, which does not authenticate: set \
                 security.protocol=sasl_ssl (or sasl_plaintext)"
            )));
        }
    }
    check_files(options)
}

/// Certificates and keys can be read: OpenSSL would not say which one it could not.
fn check_files(options: &BTreeMap<String, String>) -> Result<(), StartError> {
    for (name, path) in options.iter().filter(|(name, _)| name.starts_with("ssl.") && name.ends_with(".location")) {
        // librdkafka's word for "look in the usual places".
        if path == "probe" {
            continue;
        }
        if let Err(error) = std::fs::File::open(path) {
            return Err(StartError(format!("option {name}: {path} cannot be read: {error}")));
        }
    }
    Ok(())
}
