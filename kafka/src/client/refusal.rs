//! What the error in a broker's answer means to whoever asked: that another try may help, or that a person must.

use kafka_protocol::ResponseError;
use millstream_common::Error;

/// The error of a right that is missing.
pub(crate) const NO_RIGHT: u16 = 1347;

/// Whether the same request may be answered otherwise soon: a leader or coordinator moved, starts, or is busy. The protocol
/// does not count as such that the end of another transaction of the same id is still being written. An error that says
/// nothing, or that only newer brokers know, says nothing against another try.
pub(super) fn passes(error: ResponseError) -> bool {
    use ResponseError::{BrokerNotAvailable, ConcurrentTransactions, Unknown, UnknownServerError};
    error.is_retriable()
        || matches!(error, ConcurrentTransactions | Unknown(_) | UnknownServerError | BrokerNotAvailable)
}

/// The same for a request that makes a producer of an id. It names no producer of its own, and so these speak of another one
/// that is being made, or ended, at the same time.
pub(super) fn passes_for_new_producer(error: ResponseError) -> bool {
    use ResponseError::{InvalidProducerEpoch, InvalidTxnState, ProducerFenced};
    passes(error) || matches!(error, InvalidProducerEpoch | InvalidTxnState | ProducerFenced)
}

/// What is to be granted to the user when the error says that a right is missing. Read and Write include Describe.
pub(crate) fn to_grant(error: ResponseError) -> Option<&'static str> {
    Some(match error {
        ResponseError::TransactionalIdAuthorizationFailed => {
            "grant the user Write on the transactional ids that begin with the sink's prefix"
        }
        ResponseError::TopicAuthorizationFailed => {
            "grant the user Read on topics that the job reads, and Write on those that it writes to"
        }
        ResponseError::GroupAuthorizationFailed => "grant the user Read on the group",
        ResponseError::ClusterAuthorizationFailed => {
            "grant the user IdempotentWrite on the cluster, or Write on a topic; Create on the cluster where topics are to be \
             created by writing"
        }
        ResponseError::DelegationTokenAuthorizationFailed => "grant the user Describe on the delegation token",
        _ => return None,
    })
}

/// A broker's answer as an error: one that may pass, or one that does not.
pub(super) fn refused(broker: &str, what: &str, error: ResponseError) -> Error {
    refused_for(broker, what, error, passes(error))
}

pub(super) fn refused_for(broker: &str, what: &str, error: ResponseError, passes: bool) -> Error {
    let text = format!("the broker does not want {what}: {error} (code {})", error.code());
    let made = match to_grant(error) {
        Some(right) => Error::config(text).code(NO_RIGHT).next(right),
        None if passes => Error::unavailable(text).code(2404),
        None => Error::config(text).code(1341),
    };
    made.at(broker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i16) -> u16 {
        refused("b:1", "it", ResponseError::try_from_code(code).unwrap()).number()
    }

    #[test]
    fn what_may_pass_passes_and_what_is_unknown_may() {
        for code in [-1, 3, 5, 6, 7, 8, 14, 15, 16, 51, 1_234] {
            assert_eq!(kind(code), 2404, "{code}");
        }
        for code in [17, 35, 42, 47, 48, 49, 50, 90, 105] {
            assert_eq!(kind(code), 1341, "{code}");
        }
    }

    #[test]
    fn a_missing_right_is_final_and_says_what_to_grant() {
        for (code, right) in [
            (29, "Write on those that it writes to"),
            (30, "Read on the group"),
            (31, "IdempotentWrite on the cluster"),
            (53, "Write on the transactional ids"),
            (65, "Describe on the delegation token"),
        ] {
            let error = refused("b:1", "to do it", ResponseError::try_from_code(code).unwrap());
            assert!(error.is_final() && error.number() == 1347, "{error}");
            for part in [right, "to do it", "b:1", &format!("(code {code})")] {
                assert!(error.to_string().contains(part), "{part} in {error}");
            }
        }
    }

    #[test]
    fn a_producer_that_is_being_made_may_meet_another() {
        for (code, may) in
            [(47, true), (48, true), (90, true), (-1, true), (51, true), (49, false), (50, false), (53, false)]
        {
            assert_eq!(passes_for_new_producer(ResponseError::try_from_code(code).unwrap()), may, "{code}");
        }
    }
}
