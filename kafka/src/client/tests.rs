//! What is asked of whom, over brokers that are none: the model of one, reached under several names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_transactions_response::TransactionState as DescribedState;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    ApiKey, DescribeTransactionsResponse, EndTxnResponse, InitProducerIdResponse, MetadataResponse, RequestHeader,
    ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use millstream_common::env::BoxFuture;
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;

use super::topics::topic_name;
use super::{Brokers, BrokersOptions, Dial, Link};
use crate::model::{ModelBroker, ModelDial};
use crate::security::{Security, Tls};

/// The name under which the model says that it coordinates everything.
const COORDINATOR: &str = "model:9092";

#[derive(Default)]
struct State {
    /// Connections to these never come to be.
    silent: BTreeSet<String>,
    dialled: Vec<String>,
    asked: Vec<(String, ApiKey)>,
    /// Errors to answer with, a request each; `None`: the connection breaks.
    answers: BTreeMap<i16, VecDeque<Option<i16>>>,
}

/// A cluster whose brokers answer as they are told to, and as the model does else.
#[derive(Clone)]
struct Cluster {
    state: Arc<Mutex<State>>,
    model: ModelDial,
}

impl Cluster {
    fn new(env: &Env) -> Self {
        Self { state: Arc::default(), model: ModelDial::new(ModelBroker::new(env.clone(), |_| {})) }
    }

    fn brokers(&self, env: &Env, bootstrap: &[&str]) -> Brokers {
        let options = BrokersOptions {
            bootstrap: bootstrap.iter().map(|b| (*b).to_owned()).collect(),
            security: Security::default(),
            request_timeout: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(60),
        };
        Brokers::new(env.clone(), Arc::new(self.clone()), options)
    }

    fn will_answer(&self, key: ApiKey, codes: impl IntoIterator<Item = Option<i16>>) {
        self.state.lock().answers.entry(key as i16).or_default().extend(codes);
    }

    fn dialled(&self, broker: &str) -> usize {
        self.state.lock().dialled.iter().filter(|b| *b == broker).count()
    }

    /// Whom this was asked.
    fn asked(&self, key: ApiKey) -> Vec<String> {
        self.state.lock().asked.iter().filter(|(_, k)| *k == key).map(|(b, _)| b.clone()).collect()
    }
}

impl Dial for Cluster {
    fn dial<'a>(&'a self, broker: &'a str, tls: Option<&'a Tls>) -> BoxFuture<'a, Result<Box<dyn Link>>> {
        Box::pin(async move {
            let is_silent = {
                let mut state = self.state.lock();
                state.dialled.push(broker.to_owned());
                state.silent.contains(broker)
            };
            if is_silent {
                std::future::pending::<()>().await;
            }
            let model = self.model.dial(broker, tls).await?;
            Ok(Box::new(Told { cluster: self.clone(), broker: broker.to_owned(), model }) as Box<dyn Link>)
        })
    }
}

struct Told {
    cluster: Cluster,
    broker: String,
    model: Box<dyn Link>,
}

impl Link for Told {
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, Result<Bytes>> {
        let key = ApiKey::try_from(i16::from_be_bytes([request[0], request[1]])).unwrap();
        let told = {
            let mut state = self.cluster.state.lock();
            state.asked.push((self.broker.clone(), key));
            state.answers.get_mut(&(key as i16)).and_then(VecDeque::pop_front)
        };
        match told {
            None => self.model.exchange(request),
            Some(None) => {
                let broke = Error::unavailable("the connection to the broker broke").code(2402);
                Box::pin(async move { Err(broke) })
            }
            Some(Some(code)) => Box::pin(async move { Ok(answer(request, key, code)) }),
        }
    }
}

fn answer(mut request: Bytes, key: ApiKey, code: i16) -> Bytes {
    let version = i16::from_be_bytes([request[2], request[3]]);
    let header = RequestHeader::decode(&mut request, key.request_header_version(version)).unwrap();
    let mut out = BytesMut::new();
    let id = ResponseHeader::default().with_correlation_id(header.correlation_id);
    id.encode(&mut out, key.response_header_version(version)).unwrap();
    match key {
        ApiKey::DescribeTransactions => {
            let state = DescribedState::default().with_error_code(code);
            DescribeTransactionsResponse::default().with_transaction_states(vec![state]).encode(&mut out, version)
        }
        ApiKey::Metadata => {
            let topic = MetadataResponseTopic::default().with_name(Some(topic_name("orders"))).with_error_code(code);
            MetadataResponse::default().with_topics(vec![topic]).encode(&mut out, version)
        }
        ApiKey::InitProducerId => InitProducerIdResponse::default().with_error_code(code).encode(&mut out, version),
        ApiKey::EndTxn => EndTxnResponse::default().with_error_code(code).encode(&mut out, version),
        other => panic!("no answer to {other:?}"),
    }
    .unwrap();
    out.freeze()
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_takes_no_connection_costs_one_request() {
    let env = Env::test(1);
    let cluster = Cluster::new(&env);
    cluster.state.lock().silent.insert("dead:1".into());
    let brokers = cluster.brokers(&env, &["dead:1", "live:1"]);
    for _ in 0..5 {
        brokers.cluster(Some(&[])).await.unwrap();
        brokers.fence("x-0-0", Duration::from_secs(60)).await.unwrap();
    }
    assert_eq!(cluster.dialled("dead:1"), 1);
    assert_eq!(cluster.asked(ApiKey::Metadata)[..2], ["live:1", COORDINATOR], "then the one that answered last");
}

#[tokio::test(start_paused = true)]
async fn when_those_that_were_named_are_gone_others_of_the_cluster_are_asked() {
    let env = Env::test(2);
    let cluster = Cluster::new(&env);
    let brokers = cluster.brokers(&env, &["a:1", "b:1"]);
    brokers.cluster(Some(&[])).await.unwrap();
    cluster.state.lock().silent.extend(["a:1".to_owned(), "b:1".to_owned()]);
    // The connection that is there breaks.
    cluster.will_answer(ApiKey::Metadata, [None]);
    brokers.cluster(Some(&[])).await.unwrap();
    assert_eq!(cluster.asked(ApiKey::Metadata).last().unwrap(), COORDINATOR);
    assert_eq!(cluster.dialled(COORDINATOR), 1);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_is_asked_for_once_until_it_moves_or_is_gone() {
    let env = Env::test(3);
    let cluster = Cluster::new(&env);
    let brokers = cluster.brokers(&env, &["a:1"]);
    let looked_up = || cluster.asked(ApiKey::FindCoordinator).len();
    brokers.fence("x-0-0", Duration::from_secs(60)).await.unwrap();
    for _ in 0..10 {
        assert!(brokers.describe_transaction("x-0-0").await.unwrap().newest().is_some());
    }
    assert_eq!(looked_up(), 1);
    assert_eq!(brokers.describe_transaction("x-0-1").await.unwrap(), super::Told::NoSuchId, "nobody knows that one");
    assert_eq!(looked_up(), 2, "another id may have another coordinator");

    let mut expected = 2;
    for moved in [ResponseError::NotCoordinator, ResponseError::CoordinatorNotAvailable] {
        cluster.will_answer(ApiKey::DescribeTransactions, [Some(moved.code())]);
        assert!(brokers.describe_transaction("x-0-0").await.unwrap().newest().is_some());
        expected += 1;
        assert_eq!(looked_up(), expected, "{moved}");
    }
    // It is the one, and not ready yet.
    cluster.will_answer(ApiKey::DescribeTransactions, [Some(ResponseError::CoordinatorLoadInProgress.code())]);
    assert!(brokers.describe_transaction("x-0-0").await.unwrap().newest().is_some());
    assert_eq!(looked_up(), expected);

    // Both ids had this coordinator.
    cluster.will_answer(ApiKey::DescribeTransactions, [None]);
    for id in ["x-0-0", "x-0-1", "x-0-0", "x-0-1"] {
        brokers.describe_transaction(id).await.unwrap();
    }
    assert_eq!(looked_up(), expected + 2);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_asked_again_when_a_producer_is_made() {
    let env = Env::test(4);
    let cluster = Cluster::new(&env);
    let brokers = cluster.brokers(&env, &["a:1"]);
    let may_pass = [-1, 1_234, 47, 48, 51, 90];
    cluster.will_answer(ApiKey::InitProducerId, may_pass.map(Some));
    brokers.fence("x-0-0", Duration::from_secs(60)).await.unwrap();
    assert_eq!(cluster.asked(ApiKey::InitProducerId).len(), may_pass.len() + 1);
    // For as long as is tried, and not for ever.
    cluster.will_answer(ApiKey::InitProducerId, std::iter::repeat_n(Some(90), 10_000));
    let fenced = brokers.fence("x-0-0", Duration::from_secs(60)).await.unwrap_err();
    assert!(!fenced.is_final() && fenced.number() == 2404, "{fenced}");
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_not_allowed_is_final_and_one_that_is_refused_is_an_answer() {
    let env = Env::test(5);
    let cluster = Cluster::new(&env);
    let brokers = cluster.brokers(&env, &["a:1"]);
    let commit = async |code: i16| {
        cluster.will_answer(ApiKey::EndTxn, [Some(code)]);
        brokers.end_transaction("x-0-0", (1, 0), true, 4).await
    };
    let denied = commit(53).await.unwrap_err();
    assert!(denied.is_final() && denied.number() == 1347, "{denied}");
    assert!(denied.to_string().contains("grant the user Write on the transactional ids"), "{denied}");
    for code in [-1, 1_234, 51] {
        assert!(!commit(code).await.unwrap_err().is_final(), "{code}");
    }
    for refused in [ResponseError::InvalidTxnState, ResponseError::ProducerFenced] {
        assert_eq!(commit(refused.code()).await.unwrap(), Err(refused));
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_not_there_is_waited_for_and_then_final() {
    let env = Env::test(6);
    let cluster = Cluster::new(&env);
    let brokers = cluster.brokers(&env, &["a:1", "b:1"]);
    let names = ["orders".to_owned()];
    let absent = ResponseError::UnknownTopicOrPartition.code();
    cluster.will_answer(ApiKey::Metadata, std::iter::repeat_n(Some(absent), 3));
    brokers.cluster(Some(&names)).await.unwrap();
    let asked: BTreeSet<String> = cluster.asked(ApiKey::Metadata).into_iter().collect();
    assert!(asked.len() > 1, "one broker may not have heard of it: {asked:?}");
    cluster.will_answer(ApiKey::Metadata, std::iter::repeat_n(Some(absent), 10_000));
    let start = env.now();
    let error = brokers.cluster(Some(&names)).await.unwrap_err();
    assert!(error.is_final() && error.number() == 1348, "{error}");
    assert!(error.what().contains("'orders'") && error.advice().contains("create it"), "{error}");
    assert!(env.now().since(start) >= Duration::from_secs(60), "virtual time");
}
