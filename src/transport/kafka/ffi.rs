//! Calls of librdkafka that rdkafka does not wrap. With `describe` and `doctor/ffi`, the only `unsafe` of the transport.

use std::ffi::CStr;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_brokers_add, rd_kafka_conf_destroy, rd_kafka_conf_dump, rd_kafka_conf_dump_free, rd_kafka_conf_new,
    rd_kafka_message_broker_id, rd_kafka_message_status, rd_kafka_metadata, rd_kafka_metadata_destroy,
    rd_kafka_msg_status_t, rd_kafka_offsets_for_times, rd_kafka_test_fatal_error, rd_kafka_topic_conf_destroy,
    rd_kafka_topic_conf_dump, rd_kafka_topic_conf_new,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

/// Whether the broker may have a message that was reported failed.
pub(super) fn possibly_persisted(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is that of a live message (it borrows from the event that owns it), and the function
    // only reads the status librdkafka keeps beside it.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status != rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// The number of the broker that a message was sent to; negative: none.
pub(super) fn broker_of(message: &BorrowedMessage<'_>) -> i32 {
    // SAFETY: as above; the function only reads the number librdkafka keeps beside the message.
    unsafe { rd_kafka_message_broker_id(message.ptr()) }
}

/// Asks any broker for the metadata of the topics the client knows already, to see whether it answers. Blocks for
/// `timeout` at most.
pub(super) fn ping<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Result<(), RDKafkaErrorCode> {
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut metadata = ptr::null();
    // SAFETY: the client outlives the call; no topic handle is passed; the out-pointer is ours.
    let error = unsafe { rd_kafka_metadata(client.native_ptr(), 0, ptr::null_mut(), &mut metadata, millis) };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(error.into());
    }
    // SAFETY: on success the metadata is ours to free, once.
    unsafe { rd_kafka_metadata_destroy(metadata) };
    Ok(())
}

/// Asks the leaders of some partitions, all at once, where these end. Blocks for `timeout` at most. A connection on which
/// the answer does not come within that time is closed by librdkafka, and made anew when something is to be sent: unlike
/// other requests this one has a timeout of its own, and a request that timed out ends its connection
/// (`socket.max.fails`).
pub(super) fn probe<'a, C: ClientContext>(
    client: &Client<C>,
    partitions: impl IntoIterator<Item = (&'a str, i32)>,
    timeout: Duration,
) -> Result<(), RDKafkaErrorCode> {
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        // The end cannot be refused: it is a legal offset.
        let _ = list.add_partition_offset(topic, partition, Offset::End);
    }
    // SAFETY: client and list outlive the call, which changes the list's elements in place.
    let error = unsafe { rd_kafka_offsets_for_times(client.native_ptr(), list.ptr(), millis) };
    if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(error.into()) }
}

/// Names brokers to ask, beside those the client knows. Those it has already are not added again.
pub(super) fn add_brokers<C: ClientContext>(client: &Client<C>, brokers: &CStr) {
    // SAFETY: the client outlives the call, which copies the text. How many were added, we need not know.
    unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
}

/// What marks the fatal errors that the transport raises itself.
pub(super) const GIVEN_UP: &str = match REASON.to_str() {
    Ok(text) => text,
    Err(_) => "",
};
const REASON: &CStr = c"given up by outlast";

/// Raises a fatal error in an instance, as librdkafka does when it cannot go on: nothing it holds is sent any
/// more. Used where the transport knows before librdkafka does.
pub(super) fn raise_fatal<C: ClientContext>(client: &Client<C>) {
    // SAFETY: the client outlives the call; the reason is a static C string. A second fatal error is ignored.
    unsafe {
        rd_kafka_test_fatal_error(
            client.native_ptr(),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__GAPLESS_GUARANTEE,
            REASON.as_ptr(),
        );
    }
}

/// The names of librdkafka's configuration properties, without their aliases.
pub(super) fn property_names() -> Vec<String> {
    let (mut names, mut count) = (Vec::new(), 0);
    // SAFETY: both configurations are made here and freed here, once. A dump is an array of `count` C strings, names and
    // values in turn, which is ours until it is freed with that count; a value may be null, a name is not.
    unsafe {
        let global = rd_kafka_conf_new();
        let dump = rd_kafka_conf_dump(global, &mut count);
        names.extend((0..count).step_by(2).map(|at| CStr::from_ptr(*dump.add(at)).to_string_lossy().into_owned()));
        rd_kafka_conf_dump_free(dump, count);
        rd_kafka_conf_destroy(global);
        let topic = rd_kafka_topic_conf_new();
        let dump = rd_kafka_topic_conf_dump(topic, &mut count);
        names.extend((0..count).step_by(2).map(|at| CStr::from_ptr(*dump.add(at)).to_string_lossy().into_owned()));
        rd_kafka_conf_dump_free(dump, count);
        rd_kafka_topic_conf_destroy(topic);
    }
    names
}
