//! What a server's own settings mean for the promise: read at the start of a transport, and by the doctor.

use std::fmt::Display;

use redis::{Pipeline, Value};

use crate::finding::{Code, Finding};

/// Settings, where the server lets us see them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServerSettings {
    pub policy: Option<String>,
    pub append_only: Option<String>,
    pub append_fsync: Option<String>,
}

/// The settings that are asked for, in this order.
const NAMES: [&str; 3] = ["maxmemory-policy", "appendonly", "appendfsync"];

/// One question each, as servers before 7 take one name a command.
pub(super) fn ask(questions: &mut Pipeline, names: &[&str]) {
    for name in names {
        questions.cmd("CONFIG").arg("GET").arg(*name);
    }
}

impl ServerSettings {
    /// Adds the questions to a pipeline: as many as [`read`](Self::read) takes answers.
    pub fn ask(questions: &mut Pipeline) {
        ask(questions, &NAMES);
    }

    /// How many questions there are.
    pub const COUNT: usize = NAMES.len();

    /// Reads the answers.
    pub fn read(answers: &[Value]) -> Self {
        let [policy, append_only, append_fsync] = [0, 1, 2].map(|at| answers.get(at).and_then(setting));
        Self { policy, append_only, append_fsync }
    }

    /// Under which settings the server itself loses what it acknowledged.
    pub fn findings(&self, server: &dyn Display) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(policy) = self.policy.as_deref().filter(|&policy| policy != "noeviction") {
            let what = format!("Redis may evict whole streams when its memory is full: maxmemory-policy is {policy}");
            findings.push(Finding::problem(Code::EvictionPolicy, server, what, "set maxmemory-policy noeviction"));
        }
        match (self.append_only.as_deref(), self.append_fsync.as_deref()) {
            (Some("no"), _) => {
                let what =
                    "Redis keeps no append-only file: a crash loses what it acknowledged since its last snapshot";
                findings.push(Finding::problem(Code::PersistenceOff, server, what, "set appendonly yes"));
            }
            (_, Some(fsync)) if fsync != "always" => {
                let time = if fsync == "no" { "half a minute" } else { "a second" };
                let what = format!(
                    "Redis may lose about {time} of acknowledged messages in a power cut: appendfsync is {fsync}"
                );
                findings.push(Finding::note(Code::PersistenceDelayed, server, what, "set appendfsync always"));
            }
            _ => {}
        }
        findings
    }
}

/// The value in a reply to `CONFIG GET`.
pub(super) fn setting(value: &Value) -> Option<String> {
    match value {
        Value::Array(pair) => match pair.get(1)? {
            Value::BulkString(text) => String::from_utf8(text.clone()).ok(),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_loses_messages_is_named_and_the_rest_is_silent() {
        let found = |policy: &str, append_only: &str, fsync: &str| {
            let [policy, append_only, append_fsync] = [policy, append_only, fsync].map(|text| Some(text.to_owned()));
            let settings = ServerSettings { policy, append_only, append_fsync };
            settings.findings(&"redis").iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(found("noeviction", "yes", "always"), []);
        assert_eq!(found("allkeys-lru", "yes", "always"), [Code::EvictionPolicy]);
        assert_eq!(found("noeviction", "no", "always"), [Code::PersistenceOff]);
        assert_eq!(found("noeviction", "yes", "everysec"), [Code::PersistenceDelayed]);
        assert_eq!(ServerSettings::default().findings(&"redis"), []);
    }
}
