//! What a broker answers about transactions: a real one, and the model, to the same questions.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use millstream_common::Env;
use millstream_formats::json::JsonEncoding;
use millstream_kafka::client::{Brokers, BrokersOptions, Told, TransactionState};
use millstream_kafka::model::{Faults, ModelBroker, ModelDial, ModelProducers};
use millstream_kafka::security::Security;
use millstream_kafka::sink::{Identity, KafkaSinkOptions, Librdkafka, Outgoing, Producer, Producers, ToTopic};

use super::support::{bootstrap, brokers, create_topic, read, run, unique};
use super::versions::{has_newest_end, tells_of_transactions};

/// A transaction of these tests may last so long.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A broker to ask.
struct Asked {
    env: Env,
    brokers: Brokers,
    producers: Box<dyn Producers>,
    topic: String,
    /// It describes transactions and lists them.
    tells: bool,
    /// It has the newest version of the request that ends one; else the one before it is used.
    is_newest: bool,
}

type Answer = Result<(), ResponseError>;
const DONE: Answer = Ok(());
const FENCED: Answer = Err(ResponseError::ProducerFenced);
const INVALID: Answer = Err(ResponseError::InvalidTxnState);
const UNKNOWN: Answer = Err(ResponseError::InvalidProducerIdMapping);

impl Asked {
    async fn end(&self, id: &str, who: Identity, version: i16) -> Answer {
        loop {
            let producer = (who.producer_id, who.producer_epoch);
            match self.brokers.end_transaction(id, producer, true, version).await {
                Ok(answer) => return answer,
                Err(e) if e.is_final() => panic!("{e}"),
                Err(_) => self.env.sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn producer(&self, id: &str) -> (Box<dyn Producer>, Identity) {
        let producer = self.producers.transactional(id.to_owned()).await.unwrap();
        let who = producer.identity().unwrap();
        (producer, who)
    }

    async fn write(&self, producer: &mut dyn Producer, value: &str) {
        producer.begin().unwrap();
        let record = Outgoing { topic: &self.topic, value: Some(value.as_bytes()), ..Outgoing::default() };
        assert!(producer.send(&record).unwrap());
        producer.hurry();
        while producer.in_flight() > 0 {
            producer.poll().unwrap();
            self.env.sleep(Duration::from_millis(5)).await;
        }
        producer.poll().unwrap();
    }

    /// A producer whose transaction is open.
    async fn open(&self, id: &str, value: &str) -> (Box<dyn Producer>, Identity) {
        let (mut producer, who) = self.producer(id).await;
        self.write(&mut *producer, value).await;
        (producer, who)
    }

    /// The epoch of the id now is this one, as far as that is told.
    async fn has_epoch(&self, id: &str, epoch: i16) {
        match self.brokers.describe_transaction(id).await.unwrap() {
            Told::Newest(described) => assert_eq!(described.producer_epoch, epoch, "{described:?}"),
            told => assert_eq!((told, self.tells), (Told::Nothing, false)),
        }
    }

    async fn is_open(&self, id: &str) -> bool {
        let ongoing = self.brokers.ongoing_transactions(id).await.unwrap();
        assert_eq!(ongoing.silent.is_none(), self.tells);
        !ongoing.transactions.is_empty()
    }

    /// The questions. What is committed by them is written as `yes-..`, what is not as `no-..`.
    async fn ask(&self) {
        let id = || unique("asked");

        // Open: either version; the newest raises the epoch.
        let (by_v4, by_v5) = (id(), id());
        let (_writer, who) = self.open(&by_v4, "yes-1").await;
        assert_eq!(self.end(&by_v4, who, 4).await, DONE);
        self.has_epoch(&by_v4, who.producer_epoch).await;
        assert_eq!(self.end(&by_v4, who, 4).await, DONE, "again");
        let by_older = if self.is_newest { INVALID } else { DONE };
        assert_eq!(self.end(&by_v4, who, 5).await, by_older, "committed by an older version");
        let (_other, who_5) = self.open(&by_v5, "yes-2").await;
        assert_eq!(self.end(&by_v5, who_5, 5).await, DONE);
        self.has_epoch(&by_v5, who_5.producer_epoch + i16::from(self.is_newest)).await;
        assert_eq!(self.end(&by_v5, who_5, 5).await, DONE, "again");

        // Another producer took the id.
        let taken = id();
        let (_fenced, before) = self.open(&taken, "no-4").await;
        let (_after, after) = self.producer(&taken).await;
        assert_eq!((after.producer_id, after.producer_epoch > before.producer_epoch), (before.producer_id, true));
        assert_eq!(self.end(&taken, before, 4).await, FENCED);
        assert_eq!(self.end(&taken, before, 5).await, FENCED);

        // Nothing was written; nobody knows it.
        assert_eq!(self.end(&taken, after, 4).await, INVALID);
        assert_eq!(self.end(&taken, after, 5).await, INVALID);
        let wrong = Identity { producer_id: after.producer_id + 100_000, ..after };
        assert_eq!(self.end(&taken, wrong, 4).await, UNKNOWN);
        assert_eq!(self.end(&id(), after, 4).await, UNKNOWN);

        // It took too long.
        let late = id();
        let (mut slow, who) = self.open(&late, "no-5").await;
        self.env.sleep(TIMEOUT + Duration::from_secs(3)).await;
        assert_eq!(self.end(&late, who, 4).await, FENCED);
        assert_eq!(self.end(&late, who, 5).await, if self.is_newest { INVALID } else { FENCED });
        if let Told::Newest(described) = self.brokers.describe_transaction(&late).await.unwrap() {
            assert!(described.producer_epoch > who.producer_epoch, "{described:?}");
            assert_eq!(described.state, TransactionState::CompleteAbort);
        }
        let record = Outgoing { topic: &self.topic, value: Some(b"no-6"), ..Outgoing::default() };
        let mut refused = slow.send(&record).is_err();
        slow.hurry();
        while !refused {
            refused = slow.poll().is_err();
            self.env.sleep(Duration::from_millis(20)).await;
        }

        // What is fenced is aborted.
        let left = id();
        let (_gone, who) = self.open(&left, "no-7").await;
        assert_eq!(self.is_open(&left).await, self.tells);
        self.brokers.fence(&left, TIMEOUT).await.unwrap();
        assert!(!self.is_open(&left).await);
        assert_eq!(self.end(&left, who, 4).await, FENCED);
        if let Told::Newest(described) = self.brokers.describe_transaction(&left).await.unwrap() {
            assert_eq!(described.state, TransactionState::Empty);
        }
    }
}

const COMMITTED: [&str; 2] = ["yes-1", "yes-2"];

#[test]
fn a_real_broker_answers() {
    run(|env| async move {
        let topic = unique("answers");
        create_topic(&topic, 1).await;
        let brokers = brokers(&env, &bootstrap());
        let to = ToTopic::Named(topic.clone());
        let mut options = KafkaSinkOptions::new(vec![bootstrap()], to, Arc::new(JsonEncoding), "x");
        options.transaction_timeout = TIMEOUT;
        let producers = Box::new(Librdkafka::new(env.clone(), brokers.clone(), &options));
        let (tells, is_newest) = (tells_of_transactions().await, has_newest_end().await);
        Asked { env, brokers, producers, topic: topic.clone(), tells, is_newest }.ask().await;
        let seen: Vec<_> = read(&topic, 1).into_iter().map(|s| s.value.unwrap()).collect();
        assert_eq!(seen, COMMITTED);
    });
}

#[test]
fn the_model_answers_the_same() {
    run(async |env| the_model(env, true).await);
}

#[test]
fn an_old_model_answers_as_an_old_broker() {
    run(async |env| the_model(env, false).await);
}

async fn the_model(env: Env, tells: bool) {
    let model = ModelBroker::new(env.clone(), |_| {});
    model.set_old(!tells);
    let options = BrokersOptions {
        bootstrap: vec!["model:9092".into()],
        security: Security::default(),
        request_timeout: Duration::from_secs(5),
        retry_timeout: Duration::from_secs(10),
    };
    let brokers = Brokers::new(env.clone(), Arc::new(ModelDial::new(model.clone())), options);
    let producers = Box::new(ModelProducers::new(env.clone(), model.clone(), TIMEOUT));
    // As long as nothing is lost, each question has one answer.
    model.set_faults(Faults::default());
    Asked { env, brokers, producers, topic: "answers".into(), tells, is_newest: tells }.ask().await;
    let seen: Vec<_> =
        model.committed("answers").into_iter().map(|w| String::from_utf8(w.value.unwrap()).unwrap()).collect();
    assert_eq!(seen, COMMITTED);
}
