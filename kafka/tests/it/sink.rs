//! Rows as records, on a real broker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::builder::{BinaryBuilder, MapBuilder, MapFieldNames, StringBuilder};
use arrow_array::{
    Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt8Array,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::env::Lane;
use millstream_common::{Env, Epoch, Execution, Generation, SubtaskIndex};
use millstream_connectors::conformance::{SinkPlace, check_sink, check_uncommitted_sink};
use millstream_engine::element::ROW_KIND_COLUMN;
use millstream_engine::sink::{Committable, DurableVersion, Sink, SinkContext, SinkWriter};
use millstream_formats::debezium::DebeziumEncoding;
use millstream_formats::json::JsonEncoding;
use millstream_formats::raw::RawFormat;
use millstream_kafka::client::{At, Isolation};
use millstream_kafka::security::Security;
use millstream_kafka::sink::{
    DeliveryGuarantee, FromColumns, KafkaSink, KafkaSinkOptions, Key, LostTransactions, ToTopic,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::support::{Record, Seen, begin, bootstrap, brokers, create_topic, read, run, unique};
use super::versions::tells_of_transactions;

pub(crate) fn options(topic: &str, prefix: &str) -> KafkaSinkOptions {
    let to = ToTopic::Named(topic.to_owned());
    let mut options = KafkaSinkOptions::new(vec![bootstrap()], to, Arc::new(JsonEncoding), prefix);
    options.retry_timeout = Duration::from_secs(20);
    options
}

pub(crate) fn sink(env: &Env, options: KafkaSinkOptions) -> KafkaSink {
    KafkaSink::new(env.clone(), options).unwrap()
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

pub(crate) fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(numbers))]).unwrap()
}

pub(crate) fn context(subtask: u32) -> SinkContext {
    static UNIQUE: AtomicU64 = AtomicU64::new(1);
    let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
    SinkContext::new(SubtaskIndex(subtask), Generation(1), Execution(1), unique)
}

pub(crate) async fn writer(sink: &KafkaSink, subtask: u32) -> Box<dyn SinkWriter> {
    let mut writer = sink.writer(schema(), context(subtask)).unwrap();
    tell(&mut *writer, 0, &[]).await;
    writer
}

pub(crate) async fn tell(writer: &mut dyn SinkWriter, epoch: u64, committables: &[Committable]) {
    writer.on_version(DurableVersion { epoch: Epoch(epoch), committables }).await.unwrap();
}

pub(crate) async fn pre_commit(writer: &mut dyn SinkWriter, epoch: u64) -> Committable {
    let done = writer.pre_commit(Epoch(epoch)).await.unwrap();
    Committable {
        sink_uid: "sink".into(),
        epoch: Epoch(epoch),
        subtask: SubtaskIndex(0),
        sequence: 0,
        payload: done.committable.unwrap(),
        rows: done.rows,
        kept: done.kept,
    }
}

pub(crate) fn values(seen: &[Seen]) -> Vec<i64> {
    let number = |s: &Seen| -> i64 {
        let value = s.value.as_deref().unwrap();
        value.strip_prefix("{\"n\":").and_then(|v| v.strip_suffix('}')).unwrap().parse().unwrap()
    };
    seen.iter().map(number).collect()
}

/// Writes three rows exactly once, and reads them.
pub(crate) async fn write_once(env: &Env, at: &str, security: &Security) {
    let (topic, prefix) = (unique("secured"), unique("secured"));
    create_topic(&topic, 1).await;
    let mut options = options(&topic, &prefix);
    (options.bootstrap, options.security) = (vec![at.to_owned()], security.clone());
    let sink = sink(env, options);
    let mut writer = writer(&sink, 0).await;
    writer.write(&rows(0..3)).await.unwrap();
    let written = pre_commit(&mut *writer, 1).await;
    sink.committer().unwrap().commit(&written).await.unwrap();
    assert_eq!(values(&read(&topic, 1)), [0, 1, 2]);
}

struct Place {
    env: Env,
    topic: String,
    prefix: String,
}

impl SinkPlace for Place {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(sink(&self.env, options(&self.topic, &self.prefix)))
    }

    fn visible(&self) -> Vec<i64> {
        values(&read(&self.topic, 1))
    }

    fn hidden(&self) -> usize {
        let brokers = brokers(&self.env, &bootstrap());
        futures::executor::block_on(brokers.ongoing_transactions(&self.prefix)).unwrap().transactions.len()
    }

    fn is_a_log(&self) -> bool {
        true
    }
}

#[test]
fn it_passes_the_exam_of_sinks() {
    run(|env| async move {
        let (topic, prefix) = (unique("exam"), unique("exam"));
        create_topic(&topic, 1).await;
        check_sink(&Place { env, topic, prefix }).await;
    });
}

#[test]
fn at_least_once_passes_the_exam_of_those_that_commit_nothing() {
    run(|env| async move {
        let topic = unique("least");
        create_topic(&topic, 2).await;
        let options = KafkaSinkOptions { guarantee: DeliveryGuarantee::AtLeastOnce, ..options(&topic, "") };
        check_uncommitted_sink(&sink(&env, options)).await;
        assert!(!read(&topic, 2).is_empty(), "and its rows are there");
    });
}

/// A slot is used again, under the same producer and another epoch, and only when it may be.
#[test]
fn slots_go_round() {
    run(|env| async move {
        let (topic, prefix) = (unique("slots"), unique("slots"));
        create_topic(&topic, 1).await;
        let sink = sink(&env, options(&topic, &prefix));
        let mut committer = sink.committer().unwrap();
        let mut writer = writer(&sink, 0).await;
        let of = |c: &Committable| String::from_utf8_lossy(&c.payload[19..]).into_owned();
        let (mut before, mut listed) = (Vec::new(), VecDeque::new());
        for epoch in 1..=9u64 {
            let n = epoch as i64 * 10;
            writer.write(&rows(n..n + 10)).await.unwrap();
            let written = pre_commit(&mut *writer, epoch).await;
            assert!(listed.iter().all(|c| of(c) != of(&written)), "{} waits for its commit", of(&written));
            before.push(written.clone());
            listed.push_back(written);
            // Commits take longer than an epoch: a version lists three.
            tell(&mut *writer, epoch, listed.make_contiguous()).await;
            if listed.len() == 3 {
                committer.commit(&listed.pop_front().unwrap()).await.unwrap();
            }
        }
        for left in listed {
            committer.commit(&left).await.unwrap();
        }
        assert_eq!(values(&read(&topic, 1)), (10..100).collect::<Vec<_>>());
        let mut ids: Vec<_> = before.iter().map(of).collect();
        assert!(ids[0].starts_with(&format!("{prefix}-1-1-0-")), "{ids:?}");
        ids.sort_unstable();
        ids.dedup();
        assert!(ids.len() <= 5, "{ids:?}");
        // What was committed under an id that has been used again since cannot be told from a loss.
        let gone = committer.commit(&before[0]).await.unwrap_err();
        assert_eq!(gone.number(), 3333, "{gone}");
        assert!(gone.to_string().contains("10 rows of epoch 1 of subtask 0 are lost"), "{gone}");
    });
}

/// The broker aborts what takes too long; the rows are gone, and that is said.
#[test]
fn a_transaction_that_timed_out_is_a_loud_loss() {
    run(|env| async move {
        let (topic, prefix) = (unique("late"), unique("late"));
        create_topic(&topic, 1).await;
        let mut options = options(&topic, &prefix);
        options.transaction_timeout = Duration::from_secs(2);
        assert_eq!(sink(&env, options.clone()).writer(schema(), context(0)).err().unwrap().number(), 1368);
        let mut brief = context(0);
        (brief.checkpoint_interval, brief.checkpoint_timeout) = (Duration::from_millis(500), Duration::from_secs(1));
        let failing = sink(&env, options.clone());
        let mut writer = failing.writer(schema(), brief).unwrap();
        tell(&mut *writer, 0, &[]).await;
        writer.write(&rows(0..5)).await.unwrap();
        let written = pre_commit(&mut *writer, 1).await;
        writer.write(&rows(5..9)).await.unwrap();
        env.sleep(Duration::from_secs(5)).await;
        let lost = failing.committer().unwrap().commit(&written).await.unwrap_err();
        assert!(lost.is_final() && lost.number() == 3333, "{lost}");
        for part in ["5 rows of epoch 1 of subtask 0 are lost", &format!("{prefix}-1-1-0-"), "--from"] {
            assert!(lost.to_string().contains(part), "{part} in {lost}");
        }
        // The one that was being written is aborted, too: its checkpoint fails, and nothing says that it is there.
        if tells_of_transactions().await {
            let late = writer.pre_commit(Epoch(2)).await.unwrap_err();
            assert!(!late.is_final() && late.number() == 2444, "{late}");
        } else {
            // As the broker does not tell, its commit is the first to find out.
            let late = pre_commit(&mut *writer, 2).await;
            let lost = failing.committer().unwrap().commit(&late).await.unwrap_err();
            assert!(lost.is_final() && lost.number() == 3333, "{lost}");
        }
        let going_on = KafkaSinkOptions { lost_transactions: LostTransactions::Skip, ..options };
        sink(&env, going_on).committer().unwrap().commit(&written).await.unwrap();
        assert!(read(&topic, 1).is_empty());
    });
}

#[test]
fn a_time_out_above_that_of_the_brokers_is_said_at_once() {
    run(|env| async move {
        let topic = unique("max");
        create_topic(&topic, 1).await;
        let options =
            KafkaSinkOptions { transaction_timeout: Duration::from_secs(3_600), ..options(&topic, &unique("max")) };
        let sink = sink(&env, options);
        let mut writer = writer(&sink, 0).await;
        let refused = writer.write(&rows(0..1)).await.unwrap_err();
        assert!(refused.is_final() && refused.number() == 1362, "{refused}");
        assert!(refused.to_string().contains("transaction.max.timeout.ms"), "{refused}");
    });
}

#[test]
fn a_topic_that_is_not_there_is_final_and_named() {
    run(|env| async move {
        for guarantee in [DeliveryGuarantee::ExactlyOnce, DeliveryGuarantee::AtLeastOnce] {
            let topic = unique("nowhere");
            let options = KafkaSinkOptions {
                guarantee,
                retry_timeout: Duration::from_secs(4),
                ..options(&topic, &unique("nowhere"))
            };
            let mut writer = writer(&sink(&env, options), 0).await;
            let error = match writer.write(&rows(0..3)).await {
                Ok(()) => writer.pre_commit(Epoch(1)).await.unwrap_err(),
                Err(e) => e,
            };
            assert!(error.is_final() && error.number() == 1348, "{guarantee:?}: {error}");
            assert!(error.place().contains(&topic) && error.advice().contains("create it"), "{error}");
        }
    });
}

/// A broker that is reached through a port that takes connections, and lets nothing through for a while.
async fn slow_port(env: &Env, closed: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let (clock, opens) = (env.clone(), env.now() + closed);
    env.spawn(Lane::Io, "a slow port", async move {
        while let Ok((mut theirs, _)) = listener.accept().await {
            let clock_of_one = clock.clone();
            clock.spawn(Lane::Io, "a slow connection", async move {
                clock_of_one.sleep(opens.since(clock_of_one.now())).await;
                let mut ours = TcpStream::connect(bootstrap()).await.unwrap();
                // Whoever leaves first.
                let _ = copy_bidirectional(&mut theirs, &mut ours).await;
            });
        }
    });
    at
}

/// It is made in steps, each of which goes on where the one before it has ended.
#[test]
fn a_producer_is_made_by_brokers_that_let_it_wait() {
    run(|env| async move {
        let (topic, prefix) = (unique("slow"), unique("slow"));
        create_topic(&topic, 1).await;
        let mut options = options(&topic, &prefix);
        options.bootstrap = vec![slow_port(&env, Duration::from_millis(3_500)).await];
        let sink = sink(&env, options);
        let mut writer = writer(&sink, 0).await;
        writer.write(&rows(0..3)).await.unwrap();
        let written = pre_commit(&mut *writer, 1).await;
        sink.committer().unwrap().commit(&written).await.unwrap();
        assert_eq!(values(&read(&topic, 1)), [0, 1, 2]);
    });
}

#[test]
fn a_producer_that_no_broker_makes_is_an_error_that_may_pass() {
    run(|env| async move {
        let mut options = options("t", &unique("nobody"));
        (options.bootstrap, options.retry_timeout) = (vec!["127.0.0.1:1".into()], Duration::from_secs(3));
        let mut writer = writer(&sink(&env, options), 0).await;
        let error = writer.write(&rows(0..1)).await.unwrap_err();
        assert!(!error.is_final() && error.number() == 2442, "{error}");
    });
}

/// `flush` of librdkafka says nothing of it, and a commit from outside would commit the rest.
#[test]
fn an_epoch_of_which_a_record_was_refused_is_never_committed() {
    run(|env| async move {
        let (topic, prefix) = (unique("large"), unique("large"));
        create_topic(&topic, 1).await;
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, false)]));
        let mut options = options(&topic, &prefix);
        // The broker is to refuse it.
        options.properties.insert("message.max.bytes".into(), "50000000".into());
        let sink = sink(&env, options);
        let mut writer = sink.writer(schema.clone(), context(0)).unwrap();
        tell(&mut *writer, 0, &[]).await;
        let batch =
            |s: String| RecordBatch::try_new(schema.clone(), vec![Arc::new(StringArray::from(vec![s]))]).unwrap();
        let mut outcome = writer.write(&batch("x".repeat(3 << 20))).await;
        env.sleep(Duration::from_secs(1)).await;
        if outcome.is_ok() {
            outcome = writer.write(&batch("small".into())).await;
        }
        let refused = match outcome {
            Ok(()) => writer.pre_commit(Epoch(1)).await.unwrap_err(),
            Err(e) => e,
        };
        assert!(refused.is_final() && refused.number() == 3330, "{refused}");
        assert!(read(&topic, 1).is_empty());
    });
}

/// Those of deployments that are gone; not those of newer ones, which there are when this one is over and does not know it,
/// nor of a sink whose prefix begins like this one's.
#[test]
fn what_nobody_will_commit_is_aborted() {
    run(|env| async move {
        let (topic, prefix) = (unique("left"), unique("left"));
        create_topic(&topic, 1).await;
        let record = [Record { value: Some("{\"n\":1}".into()), timestamp: 1_000, ..Record::default() }];
        let writer = "0-00000000000000ff-0";
        let ids = [
            format!("{prefix}-1-1-{writer}"),
            format!("{prefix}-1-1-1-{writer}"),
            format!("{prefix}-1-2-{writer}"),
            format!("{prefix}-1-3-{writer}"),
            format!("{prefix}-2-1-{writer}"),
            format!("{prefix}-x"),
        ];
        let open: Vec<_> = ids.iter().map(|id| begin(&topic, &record, id)).collect();
        let sink = sink(&env, options(&topic, &prefix));
        sink.committer().unwrap().clean_up(Generation(1), Execution(2)).await.unwrap();
        let brokers = brokers(&env, &bootstrap());
        if !tells_of_transactions().await {
            // Nobody knows of them: they are left to their time-out, and hold back readers until then.
            let end = async |isolation| {
                let place = (topic.clone(), 0);
                brokers.offsets(&[(place.clone(), At::Latest)], isolation).await.unwrap()[&place]
            };
            assert_eq!((end(Isolation::ReadCommitted).await, end(Isolation::ReadUncommitted).await), (0, 4));
            for id in &ids {
                brokers.fence(id, Duration::from_secs(60)).await.unwrap();
            }
            return;
        }
        let left: Vec<_> =
            brokers.ongoing_transactions(&prefix).await.unwrap().transactions.into_iter().map(|t| t.0).collect();
        assert_eq!(left, ids[1..]);
        drop(open);
        for id in &ids[1..] {
            brokers.fence(id, Duration::from_secs(60)).await.unwrap();
        }
    });
}

/// A writer of the same subtask begins while the transaction of one that is gone waits for its commit.
#[test]
fn who_begins_leaves_alone_what_the_version_lists() {
    run(|env| async move {
        let (topic, prefix) = (unique("listed"), unique("listed"));
        create_topic(&topic, 1).await;
        let sink = sink(&env, options(&topic, &prefix));
        let mut gone = writer(&sink, 0).await;
        gone.write(&rows(0..5)).await.unwrap();
        let waits = pre_commit(&mut *gone, 3).await;
        drop(gone);
        let mut writer = sink.writer(schema(), context(0)).unwrap();
        tell(&mut *writer, 3, std::slice::from_ref(&waits)).await;
        writer.write(&rows(5..9)).await.unwrap();
        let next = pre_commit(&mut *writer, 4).await;
        let mut committer = sink.committer().unwrap();
        committer.commit(&waits).await.unwrap();
        committer.commit(&next).await.unwrap();
        assert_eq!(values(&read(&topic, 1)), (0..9).collect::<Vec<_>>());
    });
}

#[test]
fn a_record_gets_key_partition_time_and_headers_from_columns() {
    run(|env| async move {
        let (topic, other) = (unique("columns"), unique("columns"));
        create_topic(&topic, 3).await;
        create_topic(&other, 3).await;
        let names = MapFieldNames { entry: "entries".into(), key: "key".into(), value: "value".into() };
        let mut headers = MapBuilder::new(Some(names), StringBuilder::new(), BinaryBuilder::new());
        headers.keys().append_value("a");
        headers.values().append_value(b"1");
        headers.keys().append_value("none");
        headers.values().append_null();
        headers.append(true).unwrap();
        headers.append(true).unwrap();
        let columns: [(&str, ArrayRef); 6] = [
            ("topic", Arc::new(StringArray::from(vec![topic.clone(), other.clone()]))),
            ("name", Arc::new(StringArray::from(vec!["x", "y"]))),
            ("partition", Arc::new(Int32Array::from(vec![2, 0]))),
            ("n", Arc::new(Int64Array::from(vec![1, 2]))),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![1_000_000_007, 1_000_000_008]))),
            ("headers", Arc::new(headers.finish())),
        ];
        let fields: Vec<_> = columns.iter().map(|(n, a)| Field::new(*n, a.data_type().clone(), false)).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(|c| c.1.clone()).collect()).unwrap();
        let name = RawFormat::new(Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, false)]))).unwrap();
        let mut options = options("", "");
        options.guarantee = DeliveryGuarantee::AtLeastOnce;
        options.topic = ToTopic::Column("topic".into());
        options.key = Some(Key { columns: vec!["name".into()], format: Arc::new(name) });
        let some = |name: &str| Some(name.to_owned());
        options.columns = FromColumns { partition: some("partition"), timestamp: some("at"), headers: some("headers") };
        let mut writer = sink(&env, options.clone()).writer(schema.clone(), context(0)).unwrap();
        writer.write(&batch).await.unwrap();
        writer.pre_commit(Epoch(1)).await.unwrap();
        let first = Seen {
            partition: 2,
            key: some("x"),
            value: some(r#"{"name":"x","n":1}"#),
            timestamp: 1_000_000_007,
            headers: vec![("a".into(), Some(b"1".to_vec())), ("none".into(), None)],
        };
        assert_eq!(read(&topic, 3), [first]);
        let second = read(&other, 3);
        assert_eq!((second.len(), second[0].partition, second[0].key.as_deref()), (1, 0, Some("y")));

        options.columns.partition = some("name");
        let wrong = sink(&env, options.clone()).writer(schema.clone(), context(0)).err().unwrap();
        assert!(wrong.number() == 1366 && wrong.to_string().contains("'name'"), "{wrong}");
        options.columns.partition = some("nowhere");
        let wrong = sink(&env, options).writer(schema, context(0)).err().unwrap();
        assert!(wrong.number() == 1366 && wrong.to_string().contains("'nowhere'"), "{wrong}");
    });
}

#[test]
fn a_changelog_becomes_upserts_and_tombstones_or_change_events() {
    run(|env| async move {
        let (upserts, events) = (unique("upsert"), unique("debezium"));
        create_topic(&upserts, 1).await;
        create_topic(&events, 1).await;
        let fields = vec![
            Field::new(ROW_KIND_COLUMN, DataType::UInt8, false),
            Field::new("k", DataType::Utf8, false),
            Field::new("n", DataType::Int64, false),
        ];
        let schema = Arc::new(Schema::new(fields));
        let columns: Vec<ArrayRef> = vec![
            // +I, -U, +U, -D
            Arc::new(UInt8Array::from(vec![0, 1, 2, 3])),
            Arc::new(StringArray::from(vec!["a", "a", "a", "a"])),
            Arc::new(Int64Array::from(vec![1, 1, 2, 2])),
        ];
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let mut options = KafkaSinkOptions { guarantee: DeliveryGuarantee::AtLeastOnce, ..options(&upserts, "") };
        let keyless = sink(&env, options.clone()).writer(schema.clone(), context(0)).err().unwrap();
        assert_eq!(keyless.number(), 1365, "{keyless}");
        options.key = Some(Key { columns: vec!["k".into()], format: Arc::new(JsonEncoding) });
        let write = async |options: KafkaSinkOptions| {
            let mut writer = sink(&env, options).writer(schema.clone(), context(0)).unwrap();
            writer.write(&batch).await.unwrap();
            assert_eq!(writer.pre_commit(Epoch(1)).await.unwrap().rows, 4);
        };
        write(options.clone()).await;
        let seen: Vec<_> = read(&upserts, 1).into_iter().map(|s| (s.key.unwrap(), s.value)).collect();
        let record = |value: Option<&str>| (r#"{"k":"a"}"#.to_owned(), value.map(str::to_owned));
        let expected = [record(Some(r#"{"k":"a","n":1}"#)), record(Some(r#"{"k":"a","n":2}"#)), record(None)];
        assert_eq!(seen, expected);

        options.topic = ToTopic::Named(events.clone());
        options.value = Arc::new(DebeziumEncoding);
        options.value_knows_changes = true;
        write(options).await;
        let ops: Vec<_> = read(&events, 1).into_iter().map(|s| s.value.unwrap()).collect();
        let of = |op: &str| ops.iter().filter(|v| v.contains(&format!("\"op\":\"{op}\""))).count();
        assert_eq!((ops.len(), of("c"), of("d")), (4, 2, 2), "{ops:?}");
    });
}
