//! The question after topics' settings (DescribeConfigs), asked by an instance that is there already: rdkafka wraps it
//! for clients of its own only, each with threads and connections. With `ffi` and `doctor/ffi`, the only `unsafe` of the
//! transport.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new, rd_kafka_AdminOptions_set_request_timeout,
    rd_kafka_ConfigEntry_name, rd_kafka_ConfigEntry_value, rd_kafka_ConfigResource_configs,
    rd_kafka_ConfigResource_destroy_array, rd_kafka_ConfigResource_error, rd_kafka_ConfigResource_name,
    rd_kafka_ConfigResource_new, rd_kafka_ConfigResource_t, rd_kafka_DescribeConfigs,
    rd_kafka_DescribeConfigs_result_resources, rd_kafka_ResourceType_t, rd_kafka_admin_op_t,
    rd_kafka_event_DescribeConfigs_result, rd_kafka_event_destroy, rd_kafka_event_error, rd_kafka_event_t,
    rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll, rd_kafka_queue_t,
};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::types::RDKafkaRespErr;

use super::instance::Instance;

/// How long librdkafka waits for the answer. A request that times out breaks its connection, which messages use, too:
/// so this is long, and nothing waits for it.
const ANSWER: Duration = Duration::from_secs(60);

/// A topic, and its settings by name, or why they cannot be read.
pub(super) type Described = (String, Result<Vec<(String, String)>, Code>);

/// A question under way. Dropping it is allowed at any time.
pub(super) struct Question {
    queue: *mut rd_kafka_queue_t,
    /// The queue must be gone before the client: it is destroyed in `drop`, before the fields.
    instance: Arc<Instance>,
}

// SAFETY: librdkafka's queues may be used from any thread; this one is used by its owner alone.
unsafe impl Send for Question {}

impl Drop for Question {
    fn drop(&mut self) {
        // SAFETY: the queue is ours, and destroyed once; librdkafka keeps it for as long as an answer may still come.
        unsafe { rd_kafka_queue_destroy(self.queue) };
    }
}

impl Question {
    /// Asks for the settings of some topics. Does not block. `None`: a name is empty or has a NUL, or librdkafka is out of
    /// memory.
    pub(super) fn ask(instance: &Arc<Instance>, topics: &[&str]) -> Option<Self> {
        if topics.iter().any(|name| name.is_empty()) {
            return None;
        }
        let names = topics.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>().ok()?;
        let client = instance.client().native_ptr();
        // SAFETY: the client lives as long as the instance, which the question keeps. librdkafka copies the names, the
        // resources and the options; all of them are destroyed here, once, and the queue in `drop`. It makes a resource of
        // every name that is not empty.
        unsafe {
            let queue = rd_kafka_queue_new(client);
            if queue.is_null() {
                return None;
            }
            let question = Self { queue, instance: Arc::clone(instance) };
            let options = rd_kafka_AdminOptions_new(client, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
            if options.is_null() {
                return None;
            }
            let mut text: [c_char; 128] = [0; 128];
            let millis = i32::try_from(ANSWER.as_millis()).unwrap_or(i32::MAX);
            // It refuses only what is out of bounds, which a minute is not; its default is a minute, too.
            rd_kafka_AdminOptions_set_request_timeout(options, millis, text.as_mut_ptr(), text.len());
            let topic = rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
            let resource = |name: &CString| rd_kafka_ConfigResource_new(topic, name.as_ptr());
            let mut resources: Vec<*mut rd_kafka_ConfigResource_t> = names.iter().map(resource).collect();
            rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), resources.len(), options, queue);
            rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len());
            rd_kafka_AdminOptions_destroy(options);
            Some(question)
        }
    }

    /// Whether this is the instance that asks.
    pub(super) fn is_of(&self, instance: &Arc<Instance>) -> bool {
        Arc::ptr_eq(&self.instance, instance)
    }

    /// The answer, if it comes within `patience`: what is known of each topic, or why nothing is known of any.
    pub(super) fn answer(&self, patience: Duration) -> Option<Result<Vec<Described>, Code>> {
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is live; the event, if there is one, is ours, and destroyed when `event` goes.
        let event = Event(ptr::NonNull::new(unsafe { rd_kafka_queue_poll(self.queue, millis) })?);
        Some(event.described())
    }
}

/// An event of librdkafka's, which is ours.
pub(super) struct Event(pub(super) ptr::NonNull<rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours, and destroyed once.
        unsafe { rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

impl Event {
    /// The answer to a question after topics' settings.
    pub(super) fn described(&self) -> Result<Vec<Described>, Code> {
        // SAFETY: the event is live. What is read from it belongs to it and is copied before it goes: arrays of as many
        // live pointers as librdkafka says, and C strings, which may be null where there is no value.
        unsafe {
            let error = rd_kafka_event_error(self.0.as_ptr());
            if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(error.into());
            }
            let result = rd_kafka_event_DescribeConfigs_result(self.0.as_ptr());
            if result.is_null() {
                return Err(Code::Fail);
            }
            let mut count = 0;
            let resources = rd_kafka_DescribeConfigs_result_resources(result, &mut count);
            Ok(array(resources, count).iter().map(|resource| described(*resource)).collect())
        }
    }
}

/// One topic of an answer.
///
/// # Safety
/// The resource is live.
unsafe fn described(resource: *const rd_kafka_ConfigResource_t) -> Described {
    // SAFETY: as the caller promises; its entries live as long.
    unsafe {
        let name = text(rd_kafka_ConfigResource_name(resource)).unwrap_or_default();
        let error = rd_kafka_ConfigResource_error(resource);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return (name, Err(error.into()));
        }
        let mut count = 0;
        let entries = rd_kafka_ConfigResource_configs(resource, &mut count);
        let setting = |entry: &*const _| {
            Some((text(rd_kafka_ConfigEntry_name(*entry))?, text(rd_kafka_ConfigEntry_value(*entry))?))
        };
        (name, Ok(array(entries, count).iter().filter_map(setting).collect()))
    }
}

/// An array of librdkafka's.
///
/// # Safety
/// Where it is not null, `first` points to `count` values that live for `'a`.
pub(super) unsafe fn array<'a, T>(first: *mut T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(first, count) }
}

/// A copy of a C string, unless it is null.
///
/// # Safety
/// Where it is not null, it is a live C string.
pub(super) unsafe fn text(text: *const c_char) -> Option<String> {
    // SAFETY: as the caller promises.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
