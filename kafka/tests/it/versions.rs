//! What the broker of the tests knows: tests are run on older ones, too.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, DescribeTransactionsRequest, EndTxnRequest, RequestHeader,
    ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, Request};
use millstream_kafka::client::{Dial, TcpDial};

use super::support::bootstrap;

/// Asks the broker, without anything between; the body of its answer.
pub(crate) async fn ask<R: Request>(request: &R, version: i16) -> R::Response {
    let key = ApiKey::try_from(R::KEY).unwrap();
    let mut bytes = BytesMut::new();
    RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .encode(&mut bytes, key.request_header_version(version))
        .unwrap();
    request.encode(&mut bytes, version).unwrap();
    let mut link = TcpDial.dial(&bootstrap(), None).await.unwrap();
    let mut answer: Bytes = link.exchange(bytes.freeze()).await.unwrap();
    ResponseHeader::decode(&mut answer, key.response_header_version(version)).unwrap();
    R::Response::decode(&mut answer, version).unwrap()
}

/// The newest version of a request that the broker knows, if it knows it.
async fn newest<R: Request>() -> Option<i16> {
    let known: ApiVersionsResponse = ask(&ApiVersionsRequest::default(), 0).await;
    known.api_keys.iter().find(|k| k.api_key == R::KEY).map(|k| k.max_version)
}

/// Whether the broker describes and lists transactions, as it does since Apache Kafka 3.0.
pub(crate) async fn tells_of_transactions() -> bool {
    newest::<DescribeTransactionsRequest>().await.is_some()
}

/// Whether it has the request to end a transaction that raises the epoch, as it does since Apache Kafka 4.0.
pub(crate) async fn has_newest_end() -> bool {
    newest::<EndTxnRequest>().await >= Some(5)
}
