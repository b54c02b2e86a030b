//! The calls of librdkafka's admin interface that rdkafka does not wrap, or of which it keeps the errors to itself:
//! what topics are, what this user may do there, how they are set.
//!
//! Everything returned is copied out before the event that owns it is freed.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use rdkafka::bindings::{self as sys, rd_kafka_AclOperation_t as Operation, rd_kafka_admin_op_t as AdminOp};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode as Code;

use super::super::describe::{Event, text};

/// A topic as the cluster describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Topic {
    pub name: String,
    /// Why there is no description.
    pub error: Option<Code>,
    pub partitions: Vec<Partition>,
    /// Whether this user may write to it; `None` where the broker is too old to say.
    pub may_write: Option<bool>,
}

/// A partition as the cluster describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    pub has_leader: bool,
    pub replicas: usize,
    pub in_sync: usize,
}

/// A topic's settings by name, or why they may not be read.
pub(super) type Settings = Result<BTreeMap<String, String>, Code>;

/// Asks for a broker, to see whether any answers; -1 if none is named. Blocks for `timeout` at most.
pub(super) fn any_broker<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Result<i32, Code> {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = ptr::null();
    // SAFETY: the client outlives the call; no topic handle is passed; the out-pointer is ours.
    let error = unsafe { sys::rd_kafka_metadata(client.native_ptr(), 0, ptr::null_mut(), &mut metadata, timeout) };
    match Code::from(error) {
        // SAFETY: on success the metadata is ours to read, and to free once; it has as many brokers as it says.
        Code::NoError => unsafe {
            let mut broker = (*metadata).orig_broker_id;
            // The first answer comes before it is known which broker the first address is.
            if broker < 0 && (*metadata).broker_cnt > 0 {
                broker = (*(*metadata).brokers).id;
            }
            sys::rd_kafka_metadata_destroy(metadata);
            Ok(broker)
        },
        code => Err(code),
    }
}

/// Describes topics. It creates none, whatever the broker's settings: the request says so.
pub(super) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    names: &[&str],
    deadline: Instant,
) -> Result<Vec<Topic>, Code> {
    let owned = c_strings(names)?;
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the array and its strings outlive the call, which copies them.
    let collection = unsafe { sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let collection = NonNull::new(collection).ok_or(Code::Fail)?;
    let asked = Asked::new(client, broker, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, deadline).inspect(|asked| {
        // SAFETY: client, collection, options and queue are live; the call copies what it keeps, and answers the queue.
        unsafe {
            let options = asked.options.as_ptr();
            // Refused by no version; an error object would come back, to be freed.
            let error = sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                sys::rd_kafka_error_destroy(error);
            }
            sys::rd_kafka_DescribeTopics(client.native_ptr(), collection.as_ptr(), options, asked.queue.as_ptr());
        }
    });
    // SAFETY: made above, and freed once.
    unsafe { sys::rd_kafka_TopicCollection_destroy(collection.as_ptr()) };
    let event = asked?.answer(deadline)?;
    // SAFETY: the event is live until it is dropped below; the pointers lead into it, with the lengths that come along.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
        if result.is_null() {
            return Err(Code::BadMessage);
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        Ok((0..count).map(|at| topic(*topics.add(at))).collect())
    }
}

/// # Safety
/// The pointer is that of a live description.
unsafe fn topic(description: *const sys::rd_kafka_TopicDescription_t) -> Topic {
    // SAFETY: as the caller says; partitions and operations live as long, and are as many as their counts say.
    unsafe {
        let name = text(sys::rd_kafka_TopicDescription_name(description)).unwrap_or_default();
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() {
            return Topic { name, error: Some(sys::rd_kafka_error_code(error).into()), ..Topic::default() };
        }
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(description, &mut count);
        let partitions = (0..count).map(|at| partition(*partitions.add(at))).collect();
        let mut allowed = 0;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(description, &mut allowed);
        let may_write = (!operations.is_null() && allowed > 0).then(|| {
            let write = [Operation::RD_KAFKA_ACL_OPERATION_WRITE, Operation::RD_KAFKA_ACL_OPERATION_ALL];
            // Read as a number: a later broker's operation is none of the enum's.
            (0..allowed).any(|at| {
                let operation = *operations.cast::<i32>().add(at);
                write.iter().any(|write| *write as i32 == operation)
            })
        });
        Topic { name, error: None, partitions, may_write }
    }
}

/// # Safety
/// The pointer is that of a live description.
unsafe fn partition(description: *const sys::rd_kafka_TopicPartitionInfo_t) -> Partition {
    let (mut replicas, mut in_sync) = (0, 0);
    // SAFETY: as the caller says; only the counts are used.
    unsafe {
        sys::rd_kafka_TopicPartitionInfo_replicas(description, &mut replicas);
        sys::rd_kafka_TopicPartitionInfo_isr(description, &mut in_sync);
        let leader = sys::rd_kafka_TopicPartitionInfo_leader(description);
        let has_leader = !leader.is_null() && sys::rd_kafka_Node_id(leader) >= 0;
        Partition { has_leader, replicas, in_sync }
    }
}

/// Reads the settings of topics, in their order.
pub(super) fn describe_settings<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    names: &[&str],
    deadline: Instant,
) -> Result<Vec<Settings>, Code> {
    let owned = c_strings(names)?;
    let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
    // SAFETY: the names outlive the calls, which copy them. Null comes back for an unknown kind alone.
    let resources = owned.iter().map(|name| unsafe { sys::rd_kafka_ConfigResource_new(kind, name.as_ptr()) });
    let mut resources: Vec<_> = resources.collect();
    if resources.iter().any(|resource| resource.is_null()) {
        return Err(Code::Fail);
    }
    let asked = Asked::new(client, broker, AdminOp::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, deadline).inspect(|asked| {
        let (array, count) = (resources.as_mut_ptr(), resources.len());
        // SAFETY: everything passed is live; the call copies what it keeps, and answers the queue.
        unsafe {
            let (options, queue) = (asked.options.as_ptr(), asked.queue.as_ptr());
            sys::rd_kafka_DescribeConfigs(client.native_ptr(), array, count, options, queue);
        }
    });
    // SAFETY: made above, and freed once.
    unsafe { sys::rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len()) };
    let event = asked?.answer(deadline)?;
    let described: BTreeMap<String, Settings> = event
        .described()?
        .into_iter()
        .map(|(name, settings)| (name, settings.map(|settings| settings.into_iter().collect())))
        .collect();
    let of = |name: &&str| described.get(*name).cloned().unwrap_or(Err(Code::UnknownTopicOrPartition));
    Ok(names.iter().map(of).collect())
}

/// A question on its way, and what belongs to it.
struct Asked {
    options: NonNull<sys::rd_kafka_AdminOptions_t>,
    queue: NonNull<sys::rd_kafka_queue_t>,
}

impl Asked {
    /// `broker` is asked, not the controller; -1: the controller.
    fn new<C: ClientContext>(
        client: &Client<C>,
        broker: i32,
        operation: AdminOp,
        deadline: Instant,
    ) -> Result<Self, Code> {
        // SAFETY: the client is live. Both are freed once, by `drop`.
        let (options, queue) = unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.native_ptr(), operation);
            let options = NonNull::new(options).ok_or(Code::Fail)?;
            let Some(queue) = NonNull::new(sys::rd_kafka_queue_new(client.native_ptr())) else {
                sys::rd_kafka_AdminOptions_destroy(options.as_ptr());
                return Err(Code::Fail);
            };
            (options, queue)
        };
        let asked = Self { options, queue };
        let mut reason = [0; 256];
        // SAFETY: the options are live; the buffer is as long as is said.
        let set = unsafe {
            let (text, length) = (reason.as_mut_ptr(), reason.len());
            let set =
                sys::rd_kafka_AdminOptions_set_request_timeout(options.as_ptr(), millis(deadline).max(1), text, length);
            match Code::from(set) {
                Code::NoError if broker >= 0 => {
                    sys::rd_kafka_AdminOptions_set_broker(options.as_ptr(), broker, text, length).into()
                }
                code => code,
            }
        };
        match set {
            Code::NoError => Ok(asked),
            code => Err(code),
        }
    }

    /// Waits for the answer.
    fn answer(&self, deadline: Instant) -> Result<Event, Code> {
        /// librdkafka answers at the request's timeout itself.
        const MORE: i32 = 500;
        let left = millis(deadline).saturating_add(MORE);
        // SAFETY: the queue is live; an event is ours to free, once.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), left) };
        let event = Event(NonNull::new(event).ok_or(Code::OperationTimedOut)?);
        // SAFETY: the event is live.
        match Code::from(unsafe { sys::rd_kafka_event_error(event.0.as_ptr()) }) {
            Code::NoError => Ok(event),
            code => Err(code),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and freed here alone. An answer that comes later is dropped by librdkafka.
        unsafe {
            sys::rd_kafka_queue_destroy(self.queue.as_ptr());
            sys::rd_kafka_AdminOptions_destroy(self.options.as_ptr());
        }
    }
}

fn c_strings(names: &[&str]) -> Result<Vec<CString>, Code> {
    names.iter().map(|name| CString::new(*name).map_err(|_| Code::InvalidTopic)).collect()
}

fn millis(deadline: Instant) -> i32 {
    let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(3_600));
    i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
}
