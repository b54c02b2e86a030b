//! What the brokers say of themselves. The questions are each transport's own: see its folder.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use crate::finding::{Code, Finding};
use crate::transport::BrokerUrl;
use crate::transport::examine::{Questions, examine};

/// How long an examination may take beyond its own deadline: closing a connection.
const GRACE: Duration = Duration::from_secs(5);

/// Asks one broker, on a thread of its own: a name look-up cannot be cut short, and is left behind if it hangs.
pub fn check(url: &BrokerUrl, questions: Questions) -> Vec<Finding> {
    let (transport, limit) = (questions.transport.clone(), questions.timeout.saturating_add(GRACE));
    let (sender, answers) = channel();
    let url = url.clone();
    let asking = std::thread::Builder::new().name("outlast-doctor".into()).spawn(move || {
        // The reader may have given up.
        let _ = sender.send(examine(&url, &questions));
    });
    if let Err(error) = asking {
        return vec![unchecked(&transport, format!("the broker was not asked: no thread: {error}"))];
    }
    match answers.recv_timeout(limit) {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![unchecked(&transport, format!("the broker was not asked: {error}"))],
        Err(RecvTimeoutError::Timeout) => {
            let advice = "see whether its host name resolves, and what lies between";
            vec![Finding::problem(Code::NoAnswer, transport, format!("no answer within {limit:?}"), advice)]
        }
        Err(RecvTimeoutError::Disconnected) => {
            vec![unchecked(&transport, "asking the broker ended early: a bug, please report it".into())]
        }
    }
}

fn unchecked(transport: &str, what: String) -> Finding {
    Finding::problem(Code::NotChecked, transport, what, "put that right, and ask again")
}
