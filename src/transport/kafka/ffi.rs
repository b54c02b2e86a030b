//! The four calls of librdkafka that rdkafka does not wrap. With `doctor/ffi.rs` the
//! only `unsafe` of the transport.

use std::ffi::CStr;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_brokers_add, rd_kafka_message_status, rd_kafka_metadata, rd_kafka_metadata_destroy, rd_kafka_msg_status_t,
    rd_kafka_test_fatal_error,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// Whether the broker may have a message that was reported failed.
pub(super) fn possibly_persisted(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the pointer is that of a live message (it borrows from the event that owns it), and the function
    // only reads the status librdkafka keeps beside it.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status != rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
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
