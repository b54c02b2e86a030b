//! What an error code of librdkafka's or the broker's means for a message: class, reach, and the reason for both.
//!
//! Codes that librdkafka tries again by itself hardly ever come out of it; they have their arm all the same,
//! because a retry limit, a purge or a metadata answer may bring them up. A code that is not known holds: it
//! waits for somebody to look, and nothing is lost.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::transport::{Class, Failure, Scope};

/// What a code concerns, before it is known where the message was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Transport,
    Route,
    Partition,
    Lane,
}

/// What a code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) class: Class,
    pub(super) reach: Reach,
    /// For people: what it means, and what helps.
    pub(super) hint: &'static str,
}

/// The hint of a code no arm knows.
pub(super) const UNKNOWN: &str = "an error this version does not know; waiting until it passes";

impl Verdict {
    /// The failure of a message that was bound for `topic` and `partition`.
    pub(super) fn failure(self, code: Code, topic: &str, partition: i32) -> Failure {
        let scope = match self.reach {
            Reach::Transport => Scope::Transport,
            Reach::Route => Scope::Route,
            Reach::Partition if partition >= 0 => Scope::Partition(partition),
            Reach::Partition => Scope::Route,
            Reach::Lane => Scope::Lane,
        };
        let place = if partition >= 0 { format!("{topic}[{partition}]") } else { topic.to_owned() };
        Failure::new(self.class, scope, format!("{place}: {} ({code:?})", self.hint))
    }
}

const fn transient(reach: Reach, hint: &'static str) -> Verdict {
    Verdict { class: Class::Transient, reach, hint }
}

const fn hold(reach: Reach, hint: &'static str) -> Verdict {
    Verdict { class: Class::Hold, reach, hint }
}

const fn permanent(hint: &'static str) -> Verdict {
    Verdict { class: Class::Permanent, reach: Reach::Lane, hint }
}

const fn fatal(hint: &'static str) -> Verdict {
    Verdict { class: Class::Fatal, reach: Reach::Transport, hint }
}

/// Judges a code.
pub(super) fn judge(code: Code) -> Verdict {
    if let Some(verdict) = judge_client(code) {
        return verdict;
    }
    if let Some(verdict) = judge_cluster(code).or_else(|| judge_refusal(code)) {
        return verdict;
    }
    judge_foreign(code)
}

/// Codes of librdkafka's own: nothing the broker said.
fn judge_client(code: Code) -> Option<Verdict> {
    use Reach::{Lane, Partition, Route, Transport};
    Some(match code {
        // The connection: comes back by itself.
        Code::BrokerTransportFailure | Code::BrokerDestroy | Code::DestroyBroker | Code::NodeUpdate => {
            transient(Transport, "the connection to the broker broke")
        }
        Code::AllBrokersDown => transient(Transport, "no broker can be reached"),
        Code::Resolve => transient(Transport, "the broker's host name does not resolve"),
        Code::OperationTimedOut | Code::MessageTimedOut | Code::TimedOutQueue => {
            transient(Transport, "no answer in time")
        }
        Code::WaitingForCoordinator | Code::WaitCache | Code::InProgress | Code::PreviousInProgress => {
            transient(Transport, "librdkafka is still getting ready")
        }
        Code::Retry | Code::Interrupted | Code::Partial | Code::Outdated | Code::UnknownBroker => {
            transient(Transport, "interrupted; it is tried again")
        }
        // A local limit, which passes when acknowledgements come: no room, and no fault of anything wider.
        Code::QueueFull => transient(Partition, "librdkafka's queue is full"),
        Code::ISRInsufficient => transient(Route, "too few replicas are in sync"),
        // Handed back by our own purge: no verdict on the message.
        Code::PurgeQueue | Code::PurgeInflight => fatal("handed back: the producer instance is being rebuilt"),
        // Another record of the same batch is to blame.
        Code::InvalidDifferentRecord => fatal("handed back: another message of its batch was refused"),
        // The instance is beyond repair; a new one knows no sequence numbers that could be wrong.
        Code::Fatal | Code::GaplessGuarantee | Code::Fenced | Code::Inconsistent | Code::State => {
            fatal("the producer instance failed and is rebuilt")
        }
        Code::Fail | Code::CriticalSystemResource | Code::FileSystem | Code::Application | Code::Conflict => {
            fatal("librdkafka failed locally; the producer instance is rebuilt")
        }
        // Garbled answers: a fresh connection and instance may read them.
        Code::BadMessage | Code::BadCompression | Code::Underflow | Code::UnknownProtocol => {
            fatal("an answer of the broker could not be read; the producer instance is rebuilt")
        }
        // Somebody has to mend the configuration, here or at the broker.
        Code::Authentication => hold(Transport, "authentication failed: check user name, password and mechanism"),
        Code::SSL => hold(Transport, "the TLS handshake failed: check ssl.ca.location and the broker's certificate"),
        Code::UnsupportedFeature => hold(Transport, "the broker is too old for idempotent producers (0.11 or newer)"),
        Code::InvalidArgument | Code::NotConfigured | Code::NotImplemented | Code::ReadOnly => {
            hold(Transport, "librdkafka refuses its configuration")
        }
        Code::UnknownTopic => hold(Route, "the topic does not exist"),
        Code::UnknownPartition => hold(Reach::Partition, "the partition does not exist"),
        // Would be refused each time: nothing but the message decides it.
        Code::KeySerialization | Code::ValueSerialization | Code::InvalidType => {
            permanent("the message cannot be encoded")
        }
        Code::Noop | Code::NoEnt => transient(Lane, "librdkafka did nothing; it is tried again"),
        _ => return None,
    })
}

/// Codes with which a broker says that it cannot at the moment, or that we may not.
fn judge_cluster(code: Code) -> Option<Verdict> {
    use Reach::{Partition, Transport};
    Some(match code {
        // The cluster is moving or short of replicas: it settles.
        Code::LeaderNotAvailable | Code::NotLeaderForPartition | Code::ReplicaNotAvailable => {
            transient(Partition, "the partition has no leader at the moment")
        }
        Code::FencedLeaderEpoch | Code::UnknownLeaderEpoch | Code::OffsetNotAvailable => {
            transient(Partition, "the partition's leader is changing")
        }
        Code::EligibleLeadersNotAvailable | Code::PreferredLeaderNotAvailable | Code::ReassignmentInProgress => {
            transient(Partition, "the partition's leader is changing")
        }
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            transient(Partition, "fewer replicas are in sync than min.insync.replicas asks for")
        }
        Code::KafkaStorageError | Code::LogDirNotFound => transient(Partition, "the broker's disk failed"),
        Code::RequestTimedOut => transient(Partition, "the replicas did not confirm in time"),
        Code::BrokerNotAvailable | Code::NetworkException | Code::StaleBrokerEpoch | Code::StaleControllerEpoch => {
            transient(Transport, "the broker is not available")
        }
        Code::NotController | Code::RebootstrapRequired | Code::ThrottlingQuotaExceeded => {
            transient(Transport, "the broker asks to come again later")
        }
        Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator => {
            transient(Transport, "the coordinator that hands out producer ids is not available")
        }
        _ => return judge_access(code),
    })
}

/// Codes with which a broker says that somebody has to create, to allow or to change something.
fn judge_access(code: Code) -> Option<Verdict> {
    use Reach::{Route, Transport};
    Some(match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopicId | Code::ResourceNotFound => {
            hold(Route, "the topic or partition does not exist: create it, or let the broker do so")
        }
        Code::TopicAuthorizationFailed => hold(Route, "not authorized: WRITE and DESCRIBE on the topic are needed"),
        Code::ClusterAuthorizationFailed => {
            hold(Transport, "not authorized: IDEMPOTENT_WRITE on the cluster is needed (brokers before 2.8)")
        }
        Code::TransactionalIdAuthorizationFailed | Code::SecurityDisabled => {
            hold(Transport, "not authorized by the broker")
        }
        Code::SaslAuthenticationFailed => hold(Transport, "authentication failed: check user name and password"),
        Code::UnsupportedSASLMechanism | Code::IllegalSASLState => {
            hold(Transport, "the broker does not take this sasl.mechanism")
        }
        Code::UnsupportedVersion => hold(Transport, "the broker is too old"),
        // The format is a setting of each topic (message.format.version).
        Code::UnsupportedForMessageFormat => hold(Route, "the topic's message format is too old"),
        Code::UnsupportedCompressionType => hold(Route, "the broker does not take this compression.type"),
        // `acks=all` is not to be refused; if it is, nothing of ours can help.
        Code::InvalidRequiredAcks | Code::InvalidRequest | Code::InvalidConfig => {
            hold(Transport, "the broker refuses the request itself")
        }
        // Names that can never be legal are refused when a message is sent; no message is at fault for the topic.
        Code::InvalidTopic => hold(Route, "the topic's name is not legal, or it is internal: send to another topic"),
        // The broker's own policy: an operator can change it, and a fixed message cannot.
        Code::PolicyViolation => hold(Route, "a policy of the broker refuses it"),
        Code::Unknown => hold(Route, "the broker failed in an unknown way; see its log"),
        _ => return None,
    })
}

/// Codes with which a broker refuses the message itself, or the producer instance.
fn judge_refusal(code: Code) -> Option<Verdict> {
    Some(match code {
        // The message itself: it will be refused whenever it comes.
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => permanent(
            "the broker refuses it: larger than the topic's max.message.bytes (where the topic has none, the broker's \
             message.max.bytes)",
        ),
        Code::MessageBatchTooLarge => permanent("the broker refuses it: larger than the topic's segment.bytes"),
        Code::InvalidMessage => permanent("the broker finds the message corrupt or not allowed in this topic"),
        Code::InvalidRecord => permanent("the broker finds the record invalid (a compacted topic needs keys, say)"),
        Code::InvalidTimestamp => permanent("the timestamp is out of the range the topic allows"),
        // Sequence and epoch: the broker forgot or fenced this producer id; a new instance gets a new one.
        Code::OutOfOrderSequenceNumber | Code::DuplicateSequenceNumber | Code::UnknownProducerId => {
            fatal("the broker lost track of this producer id; the instance is rebuilt with a new one")
        }
        Code::InvalidProducerEpoch | Code::ProducerFenced | Code::InvalidProducerIdMapping => {
            fatal("the broker fenced this producer id; the instance is rebuilt with a new one")
        }
        // No error, and yet reported as one.
        Code::NoError => fatal("reported without an error and without an offset"),
        _ => return None,
    })
}

/// Whether a code says that a batch, or the message that was alone in it, has too many bytes.
pub(super) fn is_too_large(code: Code) -> bool {
    matches!(code, Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize)
}

/// Codes that belong to consumers, groups, transactions or administration: none should ever reach a producer.
/// They hold, by name, so that a new code is told from one that was thought about.
fn judge_foreign(code: Code) -> Verdict {
    const FOREIGN: &str = "an answer that no producer should get; waiting until somebody looks";
    match code {
        Code::PartitionEOF | Code::UnknownGroup | Code::ExistingSubscription | Code::AssignPartitions => {}
        Code::RevokePartitions | Code::NoOffset | Code::KeyDeserialization | Code::ValueDeserialization => {}
        Code::PollExceeded | Code::AssignmentLost | Code::AutoOffsetReset | Code::LogTruncation => {}
        Code::OffsetOutOfRange | Code::OffsetMetadataTooLarge | Code::IllegalGeneration => {}
        Code::InconsistentGroupProtocol | Code::InvalidGroupId | Code::UnknownMemberId => {}
        Code::InvalidSessionTimeout | Code::RebalanceInProgress | Code::InvalidCommitOffsetSize => {}
        Code::GroupAuthorizationFailed | Code::TopicAlreadyExists | Code::InvalidPartitions => {}
        Code::InvalidReplicationFactor | Code::InvalidReplicaAssignment | Code::InvalidTransactionalState => {}
        Code::InvalidTransactionTimeout | Code::ConcurrentTransactions | Code::TransactionCoordinatorFenced => {}
        Code::OperationNotAttempted | Code::DelegationTokenAuthDisabled | Code::DelegationTokenNotFound => {}
        Code::DelegationTokenOwnerMismatch | Code::DelegationTokenRequestNotAllowed => {}
        Code::DelegationTokenAuthorizationFailed | Code::DelegationTokenExpired | Code::InvalidPrincipalType => {}
        Code::NonEmptyGroup | Code::GroupIdNotFound | Code::FetchSessionIdNotFound => {}
        Code::InvalidFetchSessionEpoch | Code::ListenerNotFound | Code::TopicDeletionDisabled => {}
        Code::MemberIdRequired | Code::GroupMaxSizeReached | Code::FencedInstanceId | Code::ElectionNotNeeded => {}
        Code::NoReassignmentInProgress | Code::GroupSubscribedToTopic | Code::UnstableOffsetCommit => {}
        Code::DuplicateResource | Code::UnacceptableCredential | Code::InconsistentVoterSet => {}
        Code::InvalidUpdateVersion | Code::FeatureUpdateFailed | Code::PrincipalDeserializationFailure => {}
        Code::FencedMemberEpoch | Code::UnreleasedInstanceId | Code::UnsupportedAssignor => {}
        Code::StaleMemberEpoch | Code::UnknownSubscriptionId | Code::TelemetryTooLarge => {}
        _ => return hold(Reach::Route, UNKNOWN),
    }
    hold(Reach::Route, FOREIGN)
}

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// Every code librdkafka 2.12.1 has, but the markers of its ranges.
    fn all() -> Vec<Code> {
        let markers = [-200, -100, RDKafkaRespErr::RD_KAFKA_RESP_ERR_END_ALL as i32];
        (-200..=1000)
            .filter(|number| !markers.contains(number))
            .filter_map(|number| RDKafkaRespErr::try_from(number).ok())
            .map(Code::from)
            .collect()
    }

    #[test]
    fn every_code_has_been_thought_about() {
        let codes = all();
        assert!(codes.len() > 150, "only {} codes found", codes.len());
        let forgotten: Vec<_> = codes.iter().filter(|&&code| judge(code).hint == UNKNOWN).collect();
        assert!(forgotten.is_empty(), "no arm knows {forgotten:?}");
    }

    #[test]
    fn only_what_the_message_itself_decides_is_permanent() {
        let permanent: Vec<_> =
            all().into_iter().filter(|&code| judge(code).class == Class::Permanent).map(|c| format!("{c:?}")).collect();
        let expected = [
            "ValueSerialization",
            "KeySerialization",
            "InvalidType",
            "InvalidMessage",
            "InvalidMessageSize",
            "MessageSizeTooLarge",
            "MessageBatchTooLarge",
            "InvalidTimestamp",
            "InvalidRecord",
        ];
        let mut sorted = (permanent, expected.map(str::to_owned).to_vec());
        sorted.0.sort();
        sorted.1.sort();
        assert_eq!(sorted.0, sorted.1);
    }

    #[test]
    fn an_unknown_code_holds() {
        let verdict = judge(Code::EndAll);
        assert_eq!((verdict.class, verdict.hint), (Class::Hold, UNKNOWN));
    }

    /// Both were told of the whole transport, and stopped every topic: one topic's old format, and a queue that the next
    /// acknowledgement makes room in.
    #[test]
    fn one_topics_format_and_a_full_queue_stop_nothing_wider() {
        assert_eq!(judge(Code::UnsupportedForMessageFormat).failure(Code::NoError, "t", 3).scope, Scope::Route);
        let full = judge(Code::QueueFull).failure(Code::QueueFull, "t", 3);
        assert_eq!((full.class, full.scope), (Class::Transient, Scope::Partition(3)));
    }

    #[test]
    fn a_purge_is_no_verdict_on_the_message() {
        for code in [Code::PurgeQueue, Code::PurgeInflight, Code::InvalidDifferentRecord] {
            assert_eq!(judge(code).class, Class::Fatal, "{code:?}");
        }
    }
}
