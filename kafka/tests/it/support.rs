//! Topics, records and clients for tests.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millstream_common::Env;
use millstream_common::env::Runtimes;
use millstream_kafka::client::{Brokers, BrokersOptions, TcpDial};
use millstream_kafka::security::Security;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

#[allow(clippy::disallowed_methods)] // the tests' runner names the broker; no production code reads this
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/kafka.sh run cargo test -p millstream-kafka --features broker`")
    })
}

pub(crate) fn bootstrap() -> String {
    variable("KAFKA_BOOTSTRAP")
}

/// A name that no other test, and no run before on the same broker, has.
#[allow(clippy::disallowed_methods)] // only its being unique counts
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{what}-{:x}-{}", now.as_micros(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a test on runtimes like those of a worker.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Env) -> F) {
    let runtimes = Runtimes::start(2).unwrap();
    runtimes.block_on(test(runtimes.env()));
}

pub(crate) fn brokers(env: &Env, at: &str) -> Brokers {
    secured(env, at, &Security::default())
}

pub(crate) fn secured(env: &Env, at: &str, security: &Security) -> Brokers {
    let options = BrokersOptions {
        bootstrap: vec![at.to_owned()],
        security: security.clone(),
        request_timeout: Duration::from_secs(5),
        retry_timeout: Duration::from_secs(10),
    };
    Brokers::new(env.clone(), Arc::new(TcpDial), options)
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap());
    config
}

fn admin() -> AdminClient<DefaultClientContext> {
    config().create().unwrap()
}

pub(crate) async fn create_topic(name: &str, partitions: i32) {
    create_topic_with(name, partitions, &[]).await;
}

/// A topic whose records the broker compresses.
pub(crate) async fn create_compressed_topic(name: &str, partitions: i32, codec: &str) {
    create_topic_with(name, partitions, &[("compression.type", codec)]).await;
}

pub(crate) async fn create_topic_with(name: &str, partitions: i32, settings: &[(&str, &str)]) {
    // Brokers delete what is older than a week by its time stamps, and tests have old ones.
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    for made in admin().create_topics(&[topic], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
}

pub(crate) async fn add_partitions(name: &str, partitions: usize) {
    let more = NewPartitions::new(name, partitions);
    for made in admin().create_partitions(&[more], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
}

pub(crate) async fn delete_topic(name: &str) {
    admin()
        .delete_topics(&[name], &AdminOptions::new())
        .await
        .unwrap()
        .into_iter()
        .for_each(|gone| drop(gone.unwrap()));
}

/// Lets go of all records of a partition in front of an offset, as a topic does with those that are too old.
pub(crate) async fn delete_records(topic: &str, partition: i32, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
    let done = admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    done.elements().iter().for_each(|e| e.error().unwrap());
}

/// A record to be written.
#[derive(Clone, Default)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<&'static str>,
    pub(crate) value: Option<String>,
    pub(crate) timestamp: i64,
    pub(crate) headers: Vec<(&'static str, Option<&'static [u8]>)>,
}

/// Writes records in order; within a transaction when `transaction` says how it ends.
pub(crate) fn write(topic: &str, records: &[Record], transaction: Option<bool>) {
    let mut config = config();
    if transaction.is_some() {
        config.set("transactional.id", unique("test"));
    }
    let producer: BaseProducer = config.create().unwrap();
    let limit = Duration::from_secs(20);
    if transaction.is_some() {
        producer.init_transactions(limit).unwrap();
        producer.begin_transaction().unwrap();
    }
    send(&producer, topic, records);
    match transaction {
        Some(true) => producer.commit_transaction(limit).unwrap(),
        Some(false) => producer.abort_transaction(limit).unwrap(),
        None => {}
    }
}

/// Writes records in a transaction that stays open.
pub(crate) fn begin(topic: &str, records: &[Record], id: &str) -> BaseProducer {
    let limit = Duration::from_secs(20);
    let producer: BaseProducer = config().set("transactional.id", id).create().unwrap();
    producer.init_transactions(limit).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, topic, records);
    producer
}

fn send(producer: &BaseProducer, topic: &str, records: &[Record]) {
    for r in records {
        let mut record =
            BaseRecord::<str, str>::to(topic).partition(r.partition).timestamp(r.timestamp).headers(headers(r));
        record.key = r.key;
        record.payload = r.value.as_deref();
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

fn headers(record: &Record) -> OwnedHeaders {
    record.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: *value }))
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) timestamp: i64,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Seen {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers =
            message.headers().map(|h| h.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect());
        Self {
            partition: message.partition(),
            key: message.key().map(text),
            value: message.payload().map(text),
            timestamp: message.timestamp().to_millis().unwrap(),
            headers: headers.unwrap_or_default(),
        }
    }
}

/// All committed records of a topic, partition by partition.
pub(crate) fn read(topic: &str, partitions: i32) -> Vec<Seen> {
    let consumer: BaseConsumer = config()
        .set("group.id", "reader")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut seen, mut ended) = (Vec::new(), 0);
    while ended < partitions {
        match consumer.poll(Duration::from_secs(20)).expect("an answer of the broker") {
            Ok(message) => seen.push(Seen::of(&message)),
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(e) => panic!("{topic}: {e}"),
        }
    }
    // In the order of a partition as they stand there.
    seen.sort_by_key(|s: &Seen| s.partition);
    seen
}
