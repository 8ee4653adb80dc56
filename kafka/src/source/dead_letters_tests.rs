use std::collections::VecDeque;

use millstream_common::env::BoxFuture;
use parking_lot::Mutex as Lock;

use super::*;
use crate::model::{ModelBroker, ModelDial};
use crate::sink::Identity;

/// Producers that do what a test says.
#[derive(Clone, Default)]
struct Fake(Arc<Lock<State>>);

#[derive(Default)]
struct State {
    made: usize,
    ended: usize,
    /// Whether the next calls of `send` find room; all do when there is none.
    room: VecDeque<bool>,
    /// Nothing is acknowledged.
    holds: bool,
    /// Of what is written next.
    refusal: Option<Error>,
    written: Vec<Written>,
}

#[derive(Clone, Debug, PartialEq)]
struct Written {
    topic: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: Option<i64>,
    headers: Vec<(String, Option<String>)>,
}

struct FakeProducer {
    of: Fake,
    in_flight: usize,
}

impl Fake {
    /// How many were made, and how many of those have ended.
    fn producers(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.made, state.ended)
    }
}

impl Producers for Fake {
    fn plain(&self) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        self.0.lock().made += 1;
        let made = FakeProducer { of: self.clone(), in_flight: 0 };
        Box::pin(async move { Ok(Box::new(made) as Box<dyn Producer>) })
    }

    fn transactional(&self, _: String) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        Box::pin(async { Err(Error::internal("no transactions here")) })
    }
}

impl Producer for FakeProducer {
    fn identity(&self) -> Option<Identity> {
        None
    }

    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<bool> {
        let mut state = self.of.0.lock();
        if !state.room.pop_front().unwrap_or(true) {
            return Ok(false);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        state.written.push(Written {
            topic: record.topic.to_owned(),
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            timestamp: record.timestamp,
            headers: record.headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(text))).collect(),
        });
        self.in_flight += 1;
        Ok(true)
    }

    fn poll(&mut self) -> Result<()> {
        let mut state = self.of.0.lock();
        if self.in_flight > 0
            && let Some(refusal) = state.refusal.take()
        {
            return Err(refusal);
        }
        if !state.holds {
            self.in_flight = 0;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn hurry(&mut self) {}
}

impl Drop for FakeProducer {
    fn drop(&mut self) {
        self.of.0.lock().ended += 1;
    }
}

fn topic(env: &Env, fake: &Fake) -> Arc<DeadLetters> {
    let model = ModelDial::new(ModelBroker::new(env.clone(), |_| {}));
    let asking = BrokersOptions::new(&["model:9092".to_owned()], &Default::default(), Duration::from_secs(1));
    Arc::new(DeadLetters {
        env: env.clone(),
        topic: "dead".into(),
        format: "json",
        counts: Arc::default(),
        brokers: Brokers::new(env.clone(), Arc::new(model), asking),
        producers: Box::new(fake.clone()),
        producer: Mutex::default(),
    })
}

fn split() -> PartitionSplit {
    PartitionSplit { topic: "t".into(), partition: 3, start: 0, stop: None }
}

fn letter(offset: i64, key: Option<&str>, timestamp: Option<i64>, headers: &[(&str, Option<&str>)]) -> Letter {
    let bytes = |text: &str| text.as_bytes().to_vec();
    Letter {
        offset,
        key: key.map(bytes),
        value: Some(bytes("{")),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(bytes))).collect(),
        timestamp,
        number: 3301,
        text: text(&Error::data("no JSON")),
    }
}

fn bare(offset: i64) -> Letter {
    letter(offset, None, None, &[])
}

#[tokio::test(start_paused = true)]
async fn a_record_goes_as_it_came_and_says_where_it_stood() {
    let (env, fake) = (Env::test(1), Fake::default());
    let topic = topic(&env, &fake);
    let full = letter(7, Some("k"), Some(1_234), &[("h", Some("1")), ("none", None)]);
    topic.deliver(&split(), vec![full, bare(9)]).await.unwrap().unwrap();
    let header = |name: &str, value: &str| (name.to_owned(), Some(value.to_owned()));
    let cause = |offset: &str, timestamp: Option<&str>| {
        let mut cause = vec![
            header("millstream.error.topic", "t"),
            header("millstream.error.partition", "3"),
            header("millstream.error.offset", offset),
            header("millstream.error.format", "json"),
            header("millstream.error.number", "MS3301"),
            header("millstream.error.message", "no JSON"),
        ];
        if let Some(ms) = timestamp {
            cause.insert(3, header("millstream.error.timestamp", ms));
        }
        cause
    };
    let written = std::mem::take(&mut fake.0.lock().written);
    let first = Written {
        topic: "dead".into(),
        key: Some(b"k".to_vec()),
        value: Some(b"{".to_vec()),
        timestamp: Some(1_234),
        headers: [vec![header("h", "1"), ("none".to_owned(), None)], cause("7", Some("1234"))].concat(),
    };
    let second = Written { key: None, timestamp: None, headers: cause("9", None), ..first.clone() };
    assert_eq!(written, [first, second]);
    assert_eq!(topic.counts.dead_lettered(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_before_it_is_acknowledged() {
    let (env, fake) = (Env::test(1), Fake::default());
    let topic = topic(&env, &fake);
    fake.0.lock().holds = true;
    fake.0.lock().room = [true, false, false].into();
    let mut done = topic.deliver(&split(), vec![bare(1), bare(2)]);
    assert!(env.timeout(Duration::from_secs(3_600), "the topic", &mut done).await.is_err());
    // One was written, and the other waited for room.
    assert_eq!((fake.0.lock().written.len(), topic.counts.dead_lettered()), (2, 0));
    fake.0.lock().holds = false;
    done.await.unwrap().unwrap();
    assert_eq!((fake.0.lock().written.len(), topic.counts.dead_lettered()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_record_and_the_topic_and_ends_the_producer() {
    let (env, fake) = (Env::test(1), Fake::default());
    let topic = topic(&env, &fake);
    let refusals = [
        (Error::data("too large"), 3312, ErrorKind::Data),
        (Error::config("not allowed"), 1349, ErrorKind::Config),
        (Error::unavailable("silence"), 2415, ErrorKind::Unavailable),
    ];
    for (refusal, number, kind) in refusals {
        let why = refusal.to_string();
        fake.0.lock().refusal = Some(refusal);
        let error = topic.deliver(&split(), vec![bare(5)]).await.unwrap().unwrap_err();
        assert_eq!((error.number(), error.kind(), error.place()), (number, kind, "topic t, partition 3, offset 5"));
        assert!(error.what().contains("'dead'") && error.to_string().contains(&why), "{error}");
    }
    assert_eq!((fake.producers(), topic.counts.dead_lettered()), ((3, 3), 0));
    fake.0.lock().room = [false].into();
    let error = topic.deliver(&split(), vec![bare(5), bare(8)]).await.unwrap().unwrap_err();
    assert_eq!((error.number(), error.place()), (3312, "topic t, partition 3, offset 5, or another bad one up to 8"));
    // The next one does not hear of it.
    topic.deliver(&split(), vec![bare(5)]).await.unwrap().unwrap();
}

/// What is in flight when a reader goes concerns nobody after it.
#[tokio::test(start_paused = true)]
async fn whoever_gives_up_takes_the_producer_with_it() {
    let (env, fake) = (Env::test(1), Fake::default());
    let topic = topic(&env, &fake);
    fake.0.lock().holds = true;
    let done = topic.deliver(&split(), vec![bare(1)]);
    env.sleep(Duration::from_secs(1)).await;
    drop(done);
    fake.0.lock().holds = false;
    topic.deliver(&split(), vec![bare(2)]).await.unwrap().unwrap();
    assert_eq!(fake.producers(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn one_producer_serves_all_readers_and_ends_when_it_is_idle() {
    let (env, fake) = (Env::test(1), Fake::default());
    let topic = topic(&env, &fake);
    for round in 1..3 {
        for _ in 0..5 {
            let (a, b) = futures::join!(topic.deliver(&split(), vec![bare(1)]), topic.deliver(&split(), vec![bare(2)]));
            a.unwrap().unwrap();
            b.unwrap().unwrap();
            env.sleep(IDLE / 2).await;
        }
        assert_eq!(fake.producers(), (round, round - 1));
        env.sleep(IDLE).await;
        assert_eq!(fake.producers(), (round, round));
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let text = |what: String| text(&Error::data(what));
    assert_eq!(text("ä".repeat(400)), "ä".repeat(400));
    assert_eq!(text(format!("x{}", "ä".repeat(600))), format!("x{}", "ä".repeat(511)));
}
