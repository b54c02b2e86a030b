//! Asks a Kafka cluster whether it bears the promise: whether it answers and lets us in, what the topics are, how they
//! are set, what this user may do there.
//!
//! It uses a client of its own with the transport's settings, which is not idempotent: the cluster would draw a producer
//! id for one. It asks for descriptions alone, creates no topic and sends no message.

mod client;
mod ffi;
mod judge;

use std::time::Instant;

use rdkafka::error::RDKafkaErrorCode as Code;

use self::client::Client;
use super::config::{KafkaConfig, Settings};
use super::times::ExpiredTimes;
use crate::clock;
use crate::finding::{self, Finding};
use crate::transport::StartError;
use crate::transport::examine::Questions;

/// Asks the cluster.
///
/// # Errors
/// The configuration cannot work whatever the cluster does.
pub(in crate::transport) fn examine(config: &KafkaConfig, questions: &Questions) -> Result<Vec<Finding>, StartError> {
    let deadline = clock::after(Instant::now(), questions.timeout);
    let settings = Settings::resolve(config)?;
    let policy = settings.expired_times;
    let client = Client::new(settings, questions)?;
    let findings = match client.reach(&questions.transport, deadline) {
        Ok(broker) => ask(&client, broker, policy, questions, deadline),
        Err(finding) => vec![finding],
    };
    client.end();
    Ok(findings)
}

fn ask(client: &Client, broker: i32, policy: ExpiredTimes, questions: &Questions, deadline: Instant) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names: Vec<&str> = questions.destinations.iter().map(|asked| &*asked.route.destination).collect();
    if !names.is_empty() {
        match ffi::describe_topics(client.native(), broker, &names, deadline) {
            Ok(topics) => {
                let settings = ffi::describe_settings(client.native(), broker, &names, deadline);
                for (at, asked) in questions.destinations.iter().enumerate() {
                    let Some(topic) = topics.iter().find(|topic| topic.name == *asked.route.destination) else {
                        findings.push(not_described(&asked.route, Code::UnknownTopicOrPartition));
                        continue;
                    };
                    let settings = match &settings {
                        Ok(settings) => settings.get(at).cloned().unwrap_or(Err(Code::UnknownTopicOrPartition)),
                        Err(code) => Err(*code),
                    };
                    findings.extend(judge::topic(asked, topic, &settings, policy, questions, clock::unix_millis()));
                }
            }
            Err(code) => findings.push(not_described(&questions.transport, code)),
        }
    }
    findings.extend(client.too_old(&questions.transport));
    findings
}

fn not_described(subject: &dyn std::fmt::Display, code: Code) -> Finding {
    let what = format!("the cluster did not describe the topics: {code}");
    let advice = "see the broker's log; a broker older than 2.3 cannot say what a user may do";
    Finding::note(finding::Code::NotChecked, subject, what, advice)
}
