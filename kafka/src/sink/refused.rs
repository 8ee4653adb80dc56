//! What errors of librdkafka mean to a sink.

use std::time::Duration;

use kafka_protocol::ResponseError;
use millstream_common::Error;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::to_grant;

/// What is to be granted when the error says that a right is missing. Errors of brokers have the same numbers everywhere.
fn right(error: &KafkaError) -> Option<&'static str> {
    let code = i16::try_from(error.rdkafka_error_code()? as i32).ok()?;
    to_grant(ResponseError::try_from_code(code)?)
}

/// Whether another producer, made anew, may come through: another one of the same id was being made, or ended, at the same time.
/// What may pass otherwise, librdkafka tries again by itself.
pub(super) fn passes_for_new_producer(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch
                | RDKafkaErrorCode::InvalidTransactionalState
        )
    )
}

/// No producer of an id could be made.
pub(super) fn not_begun(error: KafkaError, id: &str, timeout: Duration) -> Error {
    if let Some(right) = right(&error) {
        return Error::config("the brokers do not allow transactions under this id")
            .code(1363)
            .at(id)
            .next(right)
            .source(error);
    }
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::InvalidTransactionTimeout) => Error::config(format!(
            "the brokers refuse transactions of {timeout:?}, the sink's transaction time-out: it is above their \
             transaction.max.timeout.ms"
        ))
        .code(1362)
        .at(id)
        .next("set a shorter time-out that still exceeds checkpoint interval and duration, or raise the brokers' limit")
        .source(error),
        _ => Error::unavailable("a transactional producer cannot be made").code(2442).at(id).source(error),
    }
}

/// Whether the error says only that another one came before it.
pub(super) fn follows(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
                | RDKafkaErrorCode::State
                | RDKafkaErrorCode::Fatal
        )
    )
}

/// A record, or none yet, was not written to this topic.
pub(super) fn not_written(error: KafkaError, topic: Option<&str>) -> Error {
    let place = topic.map_or_else(String::new, |topic| format!("topic '{topic}'"));
    if let Some(right) = right(&error) {
        let what = "the brokers do not allow to write there";
        return Error::config(what).code(1363).at(place).next(right).source(error);
    }
    let made = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::data("a record is larger than brokers or producer take")
            .code(3330)
            .next("raise max.message.bytes of the topic and message.max.bytes of the producer, or write less"),
        // Only after topic.metadata.propagation.max.ms, in which it is asked for again and again.
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopicId,
        ) => Error::config("there is no such topic")
            .code(1348)
            .at(place)
            .next("create it, or have the brokers create topics by themselves (auto.create.topics.enable)"),
        Some(
            RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidTimestamp,
        ) => Error::data("the brokers do not take a record").code(3331).at(place),
        Some(RDKafkaErrorCode::InvalidTopic) => {
            Error::config("the brokers do not allow to write there").code(1363).at(place)
        }
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::InvalidTransactionalState
            | RDKafkaErrorCode::InvalidProducerIdMapping,
        ) => Error::unavailable(
            "the broker has given the transaction up: it took longer than its time-out, or another writer uses the same \
             transactional id",
        )
        .code(2444)
        .next("if this comes again: raise the transaction time-out, and see that no two sinks have one prefix"),
        _ => Error::unavailable("a record was not written").code(2443).at(place),
    };
    made.source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: RDKafkaErrorCode) -> KafkaError {
        KafkaError::MessageProduction(code)
    }

    #[test]
    fn a_missing_right_is_final_and_says_what_to_grant() {
        for (code, grant) in [
            (RDKafkaErrorCode::TransactionalIdAuthorizationFailed, "Write on the transactional ids"),
            (RDKafkaErrorCode::TopicAuthorizationFailed, "Write on those that it writes to"),
            (RDKafkaErrorCode::ClusterAuthorizationFailed, "IdempotentWrite"),
            (RDKafkaErrorCode::GroupAuthorizationFailed, "Read on the group"),
            (RDKafkaErrorCode::DelegationTokenAuthorizationFailed, "delegation token"),
        ] {
            let begun = not_begun(of(code), "job-0-0", Duration::from_secs(60));
            let written = not_written(of(code), Some("orders"));
            for (error, place) in [(begun, "job-0-0"), (written, "topic 'orders'")] {
                assert!(error.is_final() && error.number() == 1363, "{error}");
                assert!(error.to_string().contains(grant) && error.to_string().contains(place), "{error}");
            }
        }
    }

    #[test]
    fn an_unknown_topic_is_final_and_named() {
        for code in [
            RDKafkaErrorCode::UnknownTopic,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::UnknownTopicId,
        ] {
            let error = not_written(of(code), Some("orders"));
            assert!(error.is_final() && error.number() == 1348, "{error}");
            assert!(error.to_string().contains("'orders'") && error.advice().contains("create it"), "{error}");
        }
    }

    #[test]
    fn what_another_producer_did_passes() {
        let fenced = [
            RDKafkaErrorCode::Fenced,
            RDKafkaErrorCode::ProducerFenced,
            RDKafkaErrorCode::InvalidProducerEpoch,
            RDKafkaErrorCode::InvalidTransactionalState,
        ];
        for code in fenced {
            assert!(passes_for_new_producer(&of(code)), "{code}");
            let begun = not_begun(of(code), "job-0-0", Duration::from_secs(60));
            assert!(!begun.is_final() && begun.number() == 2442, "{begun}");
            let written = not_written(of(code), Some("orders"));
            assert!(!written.is_final() && written.number() == 2444, "{written}");
        }
        let others =
            [RDKafkaErrorCode::InvalidTransactionTimeout, RDKafkaErrorCode::TransactionalIdAuthorizationFailed];
        assert!(!others.into_iter().any(|code| passes_for_new_producer(&of(code))));
    }

    #[test]
    fn what_nobody_knows_is_not_final() {
        for code in [RDKafkaErrorCode::Unknown, RDKafkaErrorCode::MessageTimedOut, RDKafkaErrorCode::PurgeQueue] {
            assert_eq!(not_written(of(code), Some("orders")).number(), 2443);
            assert_eq!(not_begun(of(code), "job-0-0", Duration::from_secs(60)).number(), 2442);
        }
    }
}
