//! Transactions of producers that may be gone: what state they are in, which there are, and their end.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, DescribeTransactionsRequest, DescribeTransactionsResponse, EndTxnRequest,
    InitProducerIdRequest, ListTransactionsRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::StrBytes;
use millstream_common::Result;

use super::offsets::{TopicPartition, group_id};
use super::refusal::{passes_for_new_producer, refused_for, to_grant};
use super::topics::topic_name;
use super::{Brokers, Coordinates, NO_SUCH_REQUEST, passes, refused};

/// How far a transaction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionState {
    /// No transaction since the producer was made.
    Empty,
    /// Records may be written.
    Ongoing,
    /// It will be committed: nothing can change that.
    PrepareCommit,
    /// It will be aborted: nothing can change that.
    PrepareAbort,
    /// It was committed.
    CompleteCommit,
    /// It was aborted.
    CompleteAbort,
    /// What the broker said.
    Other(String),
}

impl TransactionState {
    /// It was committed, or will be.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::PrepareCommit | Self::CompleteCommit)
    }

    /// It was aborted, or will be.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        matches!(self, Self::PrepareAbort | Self::CompleteAbort)
    }

    fn of(text: &str) -> Self {
        match text {
            "Empty" => Self::Empty,
            "Ongoing" => Self::Ongoing,
            "PrepareCommit" => Self::PrepareCommit,
            "PrepareAbort" => Self::PrepareAbort,
            "CompleteCommit" => Self::CompleteCommit,
            "CompleteAbort" => Self::CompleteAbort,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// The newest transaction of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// How far it is.
    pub state: TransactionState,
    /// Of the producer that began it.
    pub producer_id: i64,
    /// Of that producer.
    pub producer_epoch: i16,
    /// When its first record came, milliseconds since 1970 by the broker's clock; -1: none has.
    pub started_ms: i64,
    /// After so long the broker aborts it, milliseconds.
    pub timeout_ms: i32,
}

/// What a broker tells of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its newest transaction.
    Newest(Described),
    /// There is no such id.
    NoSuchId,
    /// Nothing: it is older than Apache Kafka 3.0.
    Nothing,
}

impl Told {
    /// The transaction, if it was told.
    #[must_use]
    pub fn newest(self) -> Option<Described> {
        match self {
            Self::Newest(described) => Some(described),
            Self::NoSuchId | Self::Nothing => None,
        }
    }
}

/// Transactions that are ongoing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ongoing {
    /// Their ids with their producers, in order.
    pub transactions: Vec<(String, i64)>,
    /// A broker that tells nothing of those that it coordinates: it is older than Apache Kafka 3.0.
    pub silent: Option<String>,
}

impl Brokers {
    /// The newest transaction of an id.
    pub async fn describe_transaction(&self, id: &str) -> Result<Told> {
        let told = self.described(id).await;
        match told {
            Err(e) if e.number() == NO_SUCH_REQUEST => Ok(Told::Nothing),
            told => told,
        }
    }

    async fn described(&self, id: &str) -> Result<Told> {
        self.insist(|| async {
            let request = DescribeTransactionsRequest::default().with_transactional_ids(vec![transactional_id(id)]);
            let code = |r: &DescribeTransactionsResponse| r.transaction_states.first().map_or(0, |t| t.error_code);
            let of = (Coordinates::Transaction, id);
            let (broker, response) = self.call_coordinator(of, &request, 0..=0, code).await?;
            let Some(found) = response.transaction_states.into_iter().next() else { return Ok(Told::NoSuchId) };
            match ResponseError::try_from_code(found.error_code) {
                None => {}
                Some(ResponseError::TransactionalIdNotFound) => return Ok(Told::NoSuchId),
                Some(error) => return Err(refused(&broker, &format!("to describe transactional id '{id}'"), error)),
            }
            Ok(Told::Newest(Described {
                state: TransactionState::of(found.transaction_state.as_str()),
                producer_id: found.producer_id.0,
                producer_epoch: found.producer_epoch,
                started_ms: found.transaction_start_time_ms,
                timeout_ms: found.transaction_timeout_ms,
            }))
        })
        .await
    }

    /// The transactional ids of ongoing transactions that begin with `prefix`, with their producers, over all brokers: each
    /// knows those that it coordinates.
    pub async fn ongoing_transactions(&self, prefix: &str) -> Result<Ongoing> {
        self.insist(|| async {
            let mut found = Ongoing::default();
            for broker in self.cluster(Some(&[])).await?.brokers.values() {
                let request = ListTransactionsRequest::default()
                    .with_state_filters(vec![StrBytes::from_static_str("Ongoing")])
                    .with_duration_filter(-1);
                let response = match self.call(broker, &request, 0..=0).await {
                    Err(e) if e.number() == NO_SUCH_REQUEST => {
                        found.silent = Some(broker.clone());
                        continue;
                    }
                    response => response?,
                };
                if let Some(error) = ResponseError::try_from_code(response.error_code) {
                    return Err(refused(broker, "to list transactions", error));
                }
                let ours = response.transaction_states.into_iter().filter_map(|t| {
                    let id = t.transactional_id.0.as_str();
                    id.starts_with(prefix).then(|| (id.to_owned(), t.producer_id.0))
                });
                found.transactions.extend(ours);
            }
            found.transactions.sort_unstable();
            Ok(found)
        })
        .await
    }

    /// Ends the transaction of a producer, from outside of it, in at most this version of the request: the broker's answer. An
    /// `Err` says that nobody answered, that it may be answered otherwise soon, or that we may not do that. Asked once.
    pub async fn end_transaction(&self, id: &str, producer: (i64, i16), commit: bool, version: i16) -> Result<Answer> {
        let request = EndTxnRequest::default()
            .with_transactional_id(transactional_id(id))
            .with_producer_id(ProducerId(producer.0))
            .with_producer_epoch(producer.1)
            .with_committed(commit);
        let of = (Coordinates::Transaction, id);
        let (broker, response) = self.call_coordinator(of, &request, 3..=version, |r| r.error_code).await?;
        answer(&broker, &format!("to end a transaction of '{id}'"), response.error_code)
    }

    /// Has the open transaction of a producer commit an offset of a group, together with its records: the broker's answer. An
    /// `Err` says that nobody answered in time, or that we may not do that.
    pub async fn add_offset(
        &self,
        (id, producer): (&str, (i64, i16)),
        group: &str,
        (topic, partition): &TopicPartition,
        offset: i64,
    ) -> Result<Answer> {
        let (producer_id, epoch) = (ProducerId(producer.0), producer.1);
        let what = format!("an offset of group '{group}' in a transaction of '{id}'");
        self.insist(|| async {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(transactional_id(id))
                .with_producer_id(producer_id)
                .with_producer_epoch(epoch)
                .with_group_id(group_id(group));
            let of = (Coordinates::Transaction, id);
            let (broker, response) = self.call_coordinator(of, &request, 2..=3, |r| r.error_code).await?;
            if let Err(refused) = answer(&broker, &what, response.error_code)? {
                return Ok(Err(refused));
            }
            let partition = TxnOffsetCommitRequestPartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(-1);
            let topic =
                TxnOffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![partition]);
            let request = TxnOffsetCommitRequest::default()
                .with_transactional_id(transactional_id(id))
                .with_group_id(group_id(group))
                .with_producer_id(producer_id)
                .with_producer_epoch(epoch)
                .with_generation_id(-1)
                .with_topics(vec![topic]);
            let code = |r: &TxnOffsetCommitResponse| {
                let codes = r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
                codes.into_iter().find(|code| *code != 0).unwrap_or(0)
            };
            let (broker, response) = self.call_coordinator((Coordinates::Group, group), &request, 2..=3, code).await?;
            answer(&broker, &what, code(&response))
        })
        .await
    }

    /// Makes a producer for the id, so that every other one is fenced and what it left open is aborted.
    pub async fn fence(&self, id: &str, transaction_timeout: Duration) -> Result<()> {
        self.insist(|| async {
            let request = InitProducerIdRequest::default()
                .with_transactional_id(Some(transactional_id(id)))
                .with_transaction_timeout_ms(i32::try_from(transaction_timeout.as_millis()).unwrap_or(i32::MAX))
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1);
            let of = (Coordinates::Transaction, id);
            let (broker, response) = self.call_coordinator(of, &request, 2..=4, |r| r.error_code).await?;
            let Some(error) = ResponseError::try_from_code(response.error_code) else { return Ok(()) };
            let what = format!("to make a producer for '{id}'");
            Err(refused_for(&broker, &what, error, passes_for_new_producer(error)))
        })
        .await
    }
}

/// What a broker says to a request about a transaction.
pub type Answer = std::result::Result<(), ResponseError>;

/// The broker's answer; an `Err`: it may be another one soon, or we may not ask.
fn answer(broker: &str, what: &str, code: i16) -> Result<Answer> {
    match ResponseError::try_from_code(code) {
        None => Ok(Ok(())),
        Some(error) if passes(error) || to_grant(error).is_some() => Err(refused(broker, what, error)),
        Some(error) => Ok(Err(error)),
    }
}

fn transactional_id(id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(id.to_owned()))
}
