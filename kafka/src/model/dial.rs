//! Our own requests to the model, through the codec.

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::describe_transactions_response::TransactionState as DescribedState;
use kafka_protocol::messages::list_transactions_response::TransactionState as ListedState;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::offset_fetch_response::{OffsetFetchResponsePartition, OffsetFetchResponseTopic};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, ApiKey, ApiVersionsResponse, BrokerId,
    DescribeTransactionsRequest, DescribeTransactionsResponse, EndTxnRequest, EndTxnResponse, FindCoordinatorResponse,
    InitProducerIdRequest, InitProducerIdResponse, ListTransactionsResponse, MetadataResponse, OffsetFetchRequest,
    OffsetFetchResponse, ProducerId, RequestHeader, ResponseHeader, TransactionalId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use std::time::Duration;

use super::broker::ModelBroker;
use crate::client::{Dial, Link, TransactionState};
use crate::security::Tls;

/// The name of the broker, which is reached under each.
const HOST: &str = "model";
const PORT: i32 = 9092;

/// What it understands, and in which versions.
const VERSIONS: [(ApiKey, i16, i16); 9] = [
    (ApiKey::Metadata, 4, 9),
    (ApiKey::FindCoordinator, 1, 3),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::EndTxn, 0, 5),
    (ApiKey::DescribeTransactions, 0, 0),
    (ApiKey::ListTransactions, 0, 0),
    (ApiKey::AddOffsetsToTxn, 0, 3),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::OffsetFetch, 1, 7),
];

/// What brokers before Apache Kafka 3.0 do not know, and their newest version of EndTxn.
const UNKNOWN_TO_OLD: [ApiKey; 2] = [ApiKey::DescribeTransactions, ApiKey::ListTransactions];
const OLD_END: i16 = 3;

/// Connections to the model.
#[derive(Clone)]
pub struct ModelDial(ModelBroker);

impl ModelDial {
    /// To this broker, under whatever name.
    #[must_use]
    pub fn new(broker: ModelBroker) -> Self {
        Self(broker)
    }
}

impl Dial for ModelDial {
    fn dial<'a>(&'a self, _: &'a str, _: Option<&'a Tls>) -> BoxFuture<'a, Result<Box<dyn Link>>> {
        Box::pin(async move { Ok(Box::new(ModelLink(self.0.clone())) as Box<dyn Link>) })
    }
}

struct ModelLink(ModelBroker);

impl Link for ModelLink {
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move { self.0.perform(move |broker| answer(broker, request)).await? })
    }
}

fn text(s: &str) -> StrBytes {
    StrBytes::from_string(s.to_owned())
}

fn code(answer: std::result::Result<(), ResponseError>) -> i16 {
    answer.err().map_or(0, |e| e.code())
}

fn answer(broker: &ModelBroker, mut request: Bytes) -> Result<Bytes> {
    let wrong = |what: String| Error::internal(format!("the model cannot read a request: {what}"));
    // Which header it is stands in its first four bytes.
    let (key, version) = (i16::from_be_bytes([request[0], request[1]]), i16::from_be_bytes([request[2], request[3]]));
    let key = ApiKey::try_from(key).map_err(|()| wrong(format!("request {key}")))?;
    let header =
        RequestHeader::decode(&mut request, key.request_header_version(version)).map_err(|e| wrong(e.to_string()))?;
    let mut out = BytesMut::new();
    ResponseHeader::default()
        .with_correlation_id(header.correlation_id)
        .encode(&mut out, key.response_header_version(version))
        .map_err(|e| wrong(e.to_string()))?;
    let done = match key {
        ApiKey::ApiVersions => {
            let is_old = broker.is_old();
            let known = VERSIONS.iter().filter(|v| !is_old || !UNKNOWN_TO_OLD.contains(&v.0)).map(|(key, min, max)| {
                // Which versions of other requests it has makes no difference.
                let max = if is_old && *key == ApiKey::EndTxn { &OLD_END } else { max };
                ApiVersion::default().with_api_key(*key as i16).with_min_version(*min).with_max_version(*max)
            });
            ApiVersionsResponse::default().with_api_keys(known.collect()).encode(&mut out, version)
        }
        ApiKey::Metadata => {
            let broker =
                MetadataResponseBroker::default().with_node_id(BrokerId(1)).with_host(text(HOST)).with_port(PORT);
            MetadataResponse::default().with_brokers(vec![broker]).encode(&mut out, version)
        }
        ApiKey::FindCoordinator => FindCoordinatorResponse::default()
            .with_node_id(BrokerId(1))
            .with_host(text(HOST))
            .with_port(PORT)
            .encode(&mut out, version),
        ApiKey::InitProducerId => {
            let r = InitProducerIdRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            let id = r.transactional_id.map(|id| id.0.as_str().to_owned()).unwrap_or_default();
            let (producer, epoch) =
                broker.init(&id, Duration::from_millis(r.transaction_timeout_ms.unsigned_abs().into()));
            InitProducerIdResponse::default()
                .with_producer_id(ProducerId(producer))
                .with_producer_epoch(epoch)
                .encode(&mut out, version)
        }
        ApiKey::EndTxn => {
            let r = EndTxnRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            let id = r.transactional_id.0.as_str().to_owned();
            let ended = broker.end(&id, (r.producer_id.0, r.producer_epoch), r.committed, version);
            EndTxnResponse::default().with_error_code(code(ended)).encode(&mut out, version)
        }
        ApiKey::DescribeTransactions => {
            let r = DescribeTransactionsRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            let states = r.transactional_ids.iter().map(|id| described(broker, id)).collect();
            DescribeTransactionsResponse::default().with_transaction_states(states).encode(&mut out, version)
        }
        ApiKey::ListTransactions => {
            let open = broker.ongoing().into_iter().map(|(id, producer)| {
                ListedState::default()
                    .with_transactional_id(TransactionalId(text(&id)))
                    .with_producer_id(ProducerId(producer))
                    .with_transaction_state(text("Ongoing"))
            });
            ListTransactionsResponse::default().with_transaction_states(open.collect()).encode(&mut out, version)
        }
        ApiKey::AddOffsetsToTxn => {
            let r = AddOffsetsToTxnRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            let added = broker.add_group(r.transactional_id.0.as_str(), (r.producer_id.0, r.producer_epoch));
            AddOffsetsToTxnResponse::default().with_error_code(code(added)).encode(&mut out, version)
        }
        ApiKey::TxnOffsetCommit => {
            let r = TxnOffsetCommitRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            TxnOffsetCommitResponse::default().with_topics(offsets_added(broker, &r)).encode(&mut out, version)
        }
        ApiKey::OffsetFetch => {
            let r = OffsetFetchRequest::decode(&mut request, version).map_err(|e| wrong(e.to_string()))?;
            OffsetFetchResponse::default().with_topics(offsets(broker, &r)).encode(&mut out, version)
        }
        other => return Err(wrong(format!("{other:?}"))),
    };
    done.map_err(|e| wrong(e.to_string()))?;
    Ok(out.freeze())
}

fn offsets_added(broker: &ModelBroker, r: &TxnOffsetCommitRequest) -> Vec<TxnOffsetCommitResponseTopic> {
    let producer = (r.producer_id.0, r.producer_epoch);
    let topics = r.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|p| {
            let place = (r.group_id.0.to_string(), topic.name.0.to_string(), p.partition_index);
            let added = broker.add_offset(r.transactional_id.0.as_str(), producer, place, p.committed_offset);
            let done = TxnOffsetCommitResponsePartition::default().with_partition_index(p.partition_index);
            done.with_error_code(code(added))
        });
        TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    topics.collect()
}

fn offsets(broker: &ModelBroker, r: &OffsetFetchRequest) -> Vec<OffsetFetchResponseTopic> {
    let topics = r.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|&partition| {
            let found = broker.offset(&(r.group_id.0.to_string(), topic.name.0.to_string(), partition));
            let answer = OffsetFetchResponsePartition::default().with_partition_index(partition);
            match found {
                Ok(offset) => answer.with_committed_offset(offset.unwrap_or(-1)),
                Err(e) => answer.with_committed_offset(-1).with_error_code(e.code()),
            }
        });
        OffsetFetchResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    topics.collect()
}

fn described(broker: &ModelBroker, id: &TransactionalId) -> DescribedState {
    let state = DescribedState::default().with_transactional_id(id.clone());
    let Some(d) = broker.describe(id.0.as_str()) else {
        return state.with_error_code(ResponseError::TransactionalIdNotFound.code());
    };
    let name = match d.state {
        TransactionState::Other(name) => name,
        known => format!("{known:?}"),
    };
    state
        .with_transaction_state(text(&name))
        .with_producer_id(ProducerId(d.producer_id))
        .with_producer_epoch(d.producer_epoch)
        .with_transaction_start_time_ms(d.started_ms)
        .with_transaction_timeout_ms(d.timeout_ms)
}
