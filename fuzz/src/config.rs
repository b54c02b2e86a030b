//! Any bytes as the JSON of a `Config`, and its bounds. No password is shown.

use outlast::{BrokerUrl, Config};

pub fn run(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<Config>(data) else { return };
    let shown = format!("{config:?}");
    for transport in &config.transports {
        let _ = transport.url.parse::<BrokerUrl>();
        let secret = transport.password.as_deref().filter(|password| password.contains("hunter2"));
        let elsewhere = |text: &str| text.contains("hunter2");
        let innocent = elsewhere(&config.outbox.to_string_lossy())
            || config.transports.iter().any(|t| t.name.as_deref().is_some_and(elsewhere))
            || config.routes.iter().any(|r| r.transport.as_deref().is_some_and(elsewhere) || elsewhere(&r.destination));
        assert!(secret.is_none() || innocent || !shown.contains("hunter2"), "a password is shown: {shown}");
    }
    if let Err(error) = config.validate() {
        assert!(!error.0.is_empty() && !error.to_string().is_empty());
    }
}
