//! A transport of somebody else's, with faults of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast::transport::{Handover, Monitor, Refused, StartError, Transport};
use outlast::{Config, Outgoing, Producer};

/// What it does with a message, before or instead of the transport beneath it.
pub type Meddle = dyn Fn(&dyn Transport, Handover) -> Result<(), Refused> + Send + Sync;

pub struct Faulty {
    pub inner: Arc<dyn Transport>,
    pub submit: Box<Meddle>,
    pub partition: fn(&Outgoing) -> Option<i32>,
}

impl Transport for Faulty {
    fn start(&self, monitor: Monitor) -> Result<(), StartError> {
        self.inner.start(monitor)
    }
    fn partition(&self, message: &Outgoing) -> Option<i32> {
        (self.partition)(message)
    }
    fn submit(&self, handover: Handover) -> Result<(), Refused> {
        (self.submit)(&*self.inner, handover)
    }
    fn close(&self, grace: Duration) {
        self.inner.close(grace);
    }
}

pub fn open_on(faulty: Faulty, config: Config, dir: &Path) -> Producer {
    let settings = Producer::builder().config(config).outbox(dir.join("outbox"));
    settings.custom_transport("memory", Arc::new(faulty)).open_blocking().expect("the producer opens")
}
