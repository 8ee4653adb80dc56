//! Partitions as splits, on a real broker.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_schema::{DataType, Field, Schema};
use millstream_common::{Env, Error, ErrorKind};
use millstream_connectors::conformance;
use millstream_engine::source::{Position, Read, Source, Split, SplitReader};
use millstream_formats::DecodingFormat;
use millstream_formats::debezium::DebeziumDecoding;
use millstream_formats::json::{JsonDecoding, JsonRows};
use millstream_kafka::client::Isolation;
use millstream_kafka::source::{BadRecords, KafkaSource, KafkaSourceOptions, Metadata, StartAt, StopAt, Topics};

use super::support::{
    Record, add_partitions, bootstrap, brokers, create_compressed_topic, create_topic, delete_records, delete_topic,
    run, unique, write,
};

pub(super) fn numbers() -> Arc<dyn DecodingFormat> {
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    Arc::new(JsonDecoding::new(Arc::new(schema)).unwrap())
}

pub(super) fn options(topic: &str) -> KafkaSourceOptions {
    let mut options = KafkaSourceOptions::new(vec![bootstrap()], Topics::Named(vec![topic.to_owned()]));
    options.stop = Some(StopAt::Latest);
    options.retry_timeout = Duration::from_secs(5);
    options
}

pub(super) fn source(env: &Env, options: KafkaSourceOptions) -> KafkaSource {
    KafkaSource::new(env.clone(), options, numbers()).unwrap()
}

/// So many records `{"n":N}` in a partition, from N on.
pub(super) fn fill(topic: &str, partition: i32, numbers: std::ops::Range<i64>, transaction: Option<bool>) {
    let record = |n: i64| Record {
        partition,
        value: Some(format!("{{\"n\":{n}}}")),
        timestamp: 1_000_000 + n,
        ..Record::default()
    };
    write(topic, &numbers.map(record).collect::<Vec<_>>(), transaction);
}

pub(super) async fn splits(source: &KafkaSource, known: &[String]) -> Vec<Split> {
    source.enumerator().unwrap().discover(known).await.unwrap().new
}

pub(super) async fn next(reader: &mut dyn SplitReader, max_rows: usize) -> Result<Option<RecordBatch>, Error> {
    match poll_fn(|cx| reader.poll_next(cx, max_rows)).await? {
        Read::Batch(batch) => Ok(Some(batch)),
        Read::End => Ok(None),
    }
}

async fn rest(reader: &mut dyn SplitReader) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(batch) = next(reader, 1_000).await.unwrap() {
        lines.extend(lines_of(&batch));
    }
    lines
}

pub(super) fn lines_of(batch: &RecordBatch) -> Vec<String> {
    let mut out = Vec::new();
    JsonRows::new(&batch.schema()).unwrap().push(batch, &mut out).unwrap();
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

pub(super) async fn all(source: &KafkaSource) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for split in splits(source, &[]).await {
        found.push(rest(&mut *source.reader(&split, None).unwrap()).await);
    }
    found
}

pub(super) fn lines(numbers: std::ops::Range<i64>) -> Vec<String> {
    numbers.map(|n| format!("{{\"n\":{n}}}")).collect()
}

#[test]
fn it_passes_the_exam_of_sources() {
    run(|env| async move {
        let topic = unique("exam");
        create_topic(&topic, 3).await;
        fill(&topic, 0, 0..150, None);
        // Markers between and behind records: offsets have gaps, and the end is no record.
        fill(&topic, 2, 0..40, Some(true));
        fill(&topic, 2, 100..120, Some(false));
        fill(&topic, 2, 40..60, Some(true));
        assert_eq!(conformance::check_source(&source(&env, options(&topic)), 5).await, [150, 0, 60]);
    });
}

#[test]
fn committed_records_alone_or_all() {
    run(|env| async move {
        let topic = unique("isolation");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..3, Some(true));
        fill(&topic, 0, 3..6, Some(false));
        fill(&topic, 0, 6..9, Some(true));
        let committed: Vec<_> = lines(0..3).into_iter().chain(lines(6..9)).collect();
        assert_eq!(all(&source(&env, options(&topic))).await, [committed]);
        let mut uncommitted = options(&topic);
        uncommitted.isolation = Isolation::ReadUncommitted;
        assert_eq!(all(&source(&env, uncommitted)).await, [lines(0..9)]);
    });
}

#[test]
fn where_it_starts_and_where_it_stops() {
    run(|env| async move {
        let (topic, group) = (unique("ends"), unique("g"));
        create_topic(&topic, 2).await;
        fill(&topic, 0, 0..10, None);
        fill(&topic, 1, 0..5, None);
        let with = |start: StartAt, stop: StopAt| {
            let mut o = options(&topic);
            (o.start, o.stop, o.group) = (start, Some(stop), Some(group.clone()));
            o
        };
        let offsets = |of_0| StartAt::Offsets([((topic.clone(), 0), of_0)].into());
        let up_to = |of_0| StopAt::Offsets([((topic.clone(), 0), of_0)].into());
        let read = async |start, stop| all(&source(&env, with(start, stop))).await;
        assert_eq!(read(StartAt::Earliest, StopAt::Latest).await, [lines(0..10), lines(0..5)]);
        assert_eq!(read(StartAt::Latest, StopAt::Latest).await, [lines(0..0), lines(0..0)]);
        assert_eq!(read(StartAt::Time(1_000_004), StopAt::Latest).await, [lines(4..10), lines(4..5)]);
        assert_eq!(read(offsets(7), StopAt::Latest).await, [lines(7..10), lines(0..5)]);
        assert_eq!(read(offsets(2), up_to(8)).await, [lines(2..8), lines(0..5)]);
        brokers(&env, &bootstrap()).commit(&group, &[((topic.clone(), 1), 3)].into()).await.unwrap();
        let group_or = |other| StartAt::Group(Box::new(other));
        assert_eq!(read(group_or(StartAt::Latest), StopAt::Latest).await, [lines(0..0), lines(3..5)]);
        assert_eq!(read(group_or(offsets(9)), StopAt::Latest).await, [lines(9..10), lines(3..5)]);

        let beyond = source(&env, with(StartAt::Earliest, up_to(11)));
        let error = beyond.enumerator().unwrap().discover(&[]).await.unwrap_err();
        assert!(error.number() == 1345 && error.what().contains("offset 11 of partition 0"), "{error}");
    });
}

#[test]
fn offsets_that_are_gone_are_an_error_that_says_so() {
    run(|env| async move {
        let topic = unique("gone");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..3, None);
        let mut o = options(&topic);
        o.start = StartAt::Offsets([((topic.clone(), 0), 77)].into());
        o.stop = None;
        let source = source(&env, o);
        let split = splits(&source, &[]).await.remove(0);
        let error = next(&mut *source.reader(&split, None).unwrap(), 10).await.unwrap_err();
        assert_eq!((error.number(), error.kind()), (3311, ErrorKind::Data), "{error}");
        assert!(error.to_string().contains("partition 0, offset 77"), "{error}");
    });
}

/// librdkafka only logs it when records are taken out in batches.
#[test]
fn a_topic_that_is_deleted_fails_its_reader() {
    run(|env| async move {
        let topic = unique("deleted");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..3, None);
        let source = source(&env, KafkaSourceOptions { stop: None, ..options(&topic) });
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        assert_eq!(next(&mut *reader, 3).await.unwrap().unwrap().num_rows(), 3);
        let read = env.timeout(Duration::from_secs(60), "an error", next(&mut *reader, 10));
        let (read, ()) = futures::join!(read, delete_topic(&topic));
        let error = read.unwrap().unwrap_err();
        assert_eq!((error.number(), error.kind()), (2414, ErrorKind::Unavailable), "{error}");
        assert!(error.to_string().contains(&topic), "{error}");
    });
}

#[test]
fn a_reader_waits_and_wakes_for_what_is_written() {
    run(|env| async move {
        let topic = unique("wakes");
        create_topic(&topic, 1).await;
        let mut o = options(&topic);
        o.stop = None;
        let source = source(&env, o);
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        for round in 0..3 {
            let waits = poll_fn(|cx| Poll::Ready(reader.poll_next(cx, 10).is_pending())).await;
            assert!(waits, "round {round}");
            let write = async {
                env.sleep(Duration::from_millis(300)).await;
                fill(&topic, 0, round..round + 1, None);
            };
            let read = env.timeout(Duration::from_secs(20), "a record", next(&mut *reader, 10));
            let (batch, ()) = futures::join!(read, write);
            let batch = batch.unwrap().unwrap().unwrap();
            assert_eq!(batch.num_rows(), 1, "round {round}");
            assert_eq!(reader.position().offset, round as u64 + 1);
        }
    });
}

/// Markers of transactions and aborted records are behind a reader that has come to the end: else a restart would ask for
/// records that an idle topic has let go.
#[test]
fn a_position_passes_what_is_no_record() {
    run(|env| async move {
        let topic = unique("markers");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..3, Some(true));
        fill(&topic, 0, 3..6, Some(false));
        let source = source(&env, KafkaSourceOptions { stop: None, ..options(&topic) });
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        let mut found = Vec::new();
        // Three records, three that were aborted, and two markers.
        let at_the_end = poll_fn(|cx| {
            while let Poll::Ready(read) = reader.poll_next(cx, 2) {
                let Read::Batch(batch) = read.unwrap() else { panic!("it has no end") };
                found.extend(lines_of(&batch));
            }
            if reader.position().offset == 8 { Poll::Ready(()) } else { Poll::Pending }
        });
        env.timeout(Duration::from_secs(20), "the end", at_the_end).await.unwrap();
        assert_eq!(found, lines(0..3));
        let (before, at_the_end) = (Position { offset: 3, detail: Vec::new() }, reader.position());
        drop(reader);
        delete_records(&topic, 0, 8).await;
        let error = next(&mut *source.reader(&split, Some(&before)).unwrap(), 10).await.unwrap_err();
        assert_eq!(error.number(), 3311, "{error}");
        let mut again = source.reader(&split, Some(&at_the_end)).unwrap();
        fill(&topic, 0, 6..8, None);
        assert_eq!(lines_of(&next(&mut *again, 10).await.unwrap().unwrap())[..1], lines(6..7));
    });
}

#[test]
fn partitions_that_come_later_are_read_from_their_beginning() {
    run(|env| async move {
        let topic = unique("grows");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..3, None);
        let mut o = options(&topic);
        o.start = StartAt::Latest;
        let source = source(&env, o);
        let first = splits(&source, &[]).await;
        add_partitions(&topic, 3).await;
        fill(&topic, 2, 0..4, None);
        let known: Vec<String> = first.iter().map(|s| s.id.clone()).collect();
        assert_eq!(known, [format!("{topic}/0")]);
        // The broker tells of them a moment later.
        let mut later = Vec::new();
        while later.len() < 2 {
            env.sleep(Duration::from_millis(50)).await;
            later = splits(&source, &known).await;
        }
        assert_eq!(
            later.iter().map(|s| s.id.clone()).collect::<Vec<_>>(),
            [format!("{topic}/1"), format!("{topic}/2")]
        );
        assert_eq!(rest(&mut *source.reader(&first[0], None).unwrap()).await, lines(0..0));
        assert_eq!(rest(&mut *source.reader(&later[1], None).unwrap()).await, lines(0..4));
    });
}

#[test]
fn topics_by_pattern() {
    run(|env| async move {
        let prefix = unique("p");
        for name in ["a", "ab", "b"] {
            create_topic(&format!("{prefix}.{name}"), 1).await;
        }
        let mut o = options("");
        o.topics = Topics::Matching(format!("{prefix}\\.a.?"));
        let found = splits(&source(&env, o), &[]).await;
        let ids: Vec<_> = found.iter().map(|s| s.id.clone()).collect();
        assert_eq!(ids, [format!("{prefix}.a/0"), format!("{prefix}.ab/0")]);
        let mut o = options("");
        o.topics = Topics::Matching("(".into());
        let error = source(&env, o).enumerator().unwrap().discover(&[]).await.unwrap_err();
        assert_eq!(error.number(), 1344);
    });
}

#[test]
fn what_a_record_has_besides_its_value() {
    run(|env| async move {
        let topic = unique("metadata");
        create_topic(&topic, 2).await;
        let full = Record {
            partition: 1,
            key: Some("k"),
            value: Some("{\"n\":1}".into()),
            timestamp: 1_767_225_604_330,
            headers: vec![("h", Some(b"1")), ("h", Some(b"")), ("none", None)],
        };
        let bare = Record { key: None, headers: vec![], ..full.clone() };
        write(&topic, &[full, bare], None);
        let mut o = options(&topic);
        o.metadata = [
            ("topic", Metadata::Topic),
            ("partition", Metadata::Partition),
            ("offset", Metadata::Offset),
            ("at", Metadata::Timestamp),
            ("key", Metadata::Key),
            ("headers", Metadata::Headers),
        ]
        .map(|(name, what)| (name.to_owned(), what))
        .to_vec();
        let expected = format!("{{\"n\":1,\"topic\":\"{topic}\",\"partition\":1,\"offset\":");
        let lines = all(&source(&env, o.clone())).await.remove(1);
        let rest = |line: &str| line.strip_prefix(&expected).unwrap().to_owned();
        // Keys and values of headers are bytes, which JSON shows in base64.
        let first = r#"0,"at":"2026-01-01 00:00:04.330","key":"aw==","headers":{"h":"MQ==","h":"","none":null}}"#;
        assert_eq!(rest(&lines[0]), first);
        assert_eq!(rest(&lines[1]), r#"1,"at":"2026-01-01 00:00:04.330","key":null,"headers":{}}"#);
        o.metadata.push(("n".into(), Metadata::Offset));
        assert_eq!(KafkaSource::new(env, o, numbers()).err().unwrap().number(), 1344);
    });
}

#[test]
fn a_bad_record_fails_with_its_place_or_is_dropped() {
    run(|env| async move {
        let topic = unique("bad");
        create_topic(&topic, 1).await;
        let value = |v: Option<&str>| Record { value: v.map(str::to_owned), ..Record::default() };
        write(
            &topic,
            &[value(Some("{\"n\":0}")), value(None), value(Some("{\"n\":\"x\"}")), value(Some("{\"n\":3}"))],
            None,
        );
        let mut o = options(&topic);
        let failing = source(&env, o.clone());
        let split = splits(&failing, &[]).await.remove(0);
        let mut reader = failing.reader(&split, None).unwrap();
        assert_eq!(next(&mut *reader, 10).await.unwrap().unwrap().num_rows(), 1);
        let position = reader.position();
        let error = next(&mut *reader, 10).await.unwrap_err();
        assert_eq!((error.number(), error.kind()), (3310, ErrorKind::Data));
        let text = error.to_string();
        assert!(text.contains(&format!("topic {topic}, partition 0, offset 2")) && text.contains("n: 'x'"), "{text}");
        // A restart meets it again.
        let again = next(&mut *failing.reader(&split, Some(&position)).unwrap(), 10).await.unwrap_err();
        assert_eq!(again.to_string(), text);
        o.bad_records = BadRecords::Drop;
        let kept = [lines(0..1), lines(3..4)].concat();
        assert_eq!(all(&source(&env, o)).await, [kept]);
    });
}

#[test]
fn records_are_read_however_they_are_compressed() {
    run(|env| async move {
        for codec in ["gzip", "lz4", "snappy", "zstd"] {
            let topic = unique(codec);
            create_compressed_topic(&topic, 1, codec).await;
            fill(&topic, 0, 0..100, None);
            assert_eq!(all(&source(&env, options(&topic))).await, [lines(0..100)], "{codec}");
        }
    });
}

#[test]
fn a_record_of_two_rows_is_taken_up_between_them() {
    run(|env| async move {
        let topic = unique("changes");
        create_topic(&topic, 1).await;
        let record = |v: &str| Record { value: Some(v.to_owned()), ..Record::default() };
        let update = |a, b| record(&format!(r#"{{"before":{{"n":{a}}},"after":{{"n":{b}}},"op":"u"}}"#));
        let records = [record(r#"{"after":{"n":1},"op":"c"}"#), update(1, 2), Record::default(), update(2, 3)];
        write(&topic, &records, None);
        let table = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
        let format = Arc::new(DebeziumDecoding::new(Arc::new(table)).unwrap());
        let source = KafkaSource::new(env, options(&topic), format).unwrap();
        assert_eq!(conformance::check_source(&source, 9).await, [5]);
    });
}

#[test]
fn brokers_that_do_not_answer_fail_the_source_after_a_while() {
    run(|env| async move {
        let mut o = options("x");
        o.bootstrap = vec!["127.0.0.1:1".into()];
        let source = source(&env, o);
        let payload = br#"{"topic":"x","partition":0,"start":0,"stop":null}"#.to_vec();
        let split = Split { id: "x/0".into(), payload };
        let mut reader = source.reader(&split, None).unwrap();
        let start = env.now();
        let read = env.timeout(Duration::from_secs(30), "an error", next(&mut *reader, 10)).await.unwrap();
        assert_eq!(read.unwrap_err().number(), 2412);
        assert!(env.now().since(start) >= Duration::from_secs(5));
    });
}

/// librdkafka tells of the broker that it cannot reach, and of none that it reaches.
#[test]
fn a_quiet_topic_fails_nothing_though_one_of_the_brokers_is_down() {
    run(|env| async move {
        let topic = unique("quiet");
        create_topic(&topic, 1).await;
        let mut o = options(&topic);
        o.bootstrap.insert(0, "127.0.0.1:1".into());
        o.stop = None;
        o.retry_timeout = Duration::from_secs(1);
        let source = source(&env, o);
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        let write = async {
            env.sleep(Duration::from_secs(5)).await;
            fill(&topic, 0, 0..1, None);
        };
        let read = env.timeout(Duration::from_secs(20), "a record", next(&mut *reader, 10));
        let (batch, ()) = futures::join!(read, write);
        assert_eq!(batch.unwrap().unwrap().unwrap().num_rows(), 1);
    });
}

#[test]
fn options_that_cannot_be_are_refused() {
    run(|env| async move {
        let refused = |change: &dyn Fn(&mut KafkaSourceOptions)| {
            let mut o = options("t");
            change(&mut o);
            KafkaSource::new(env.clone(), o, numbers()).err().unwrap().number()
        };
        assert_eq!(refused(&|o| o.bootstrap.clear()), 1342);
        assert_eq!(refused(&|o| o.topics = Topics::Named(vec![])), 1344);
        assert_eq!(refused(&|o| o.start = StartAt::Group(Box::new(StartAt::Latest))), 1344);
        assert_eq!(refused(&|o| o.start = StartAt::Offsets([(("t".into(), 0), -1)].into())), 1344);
        let property = |name: &'static str| refused(&move |o| drop(o.properties.insert(name.into(), "x".into())));
        assert_eq!(property("isolation.level"), 1344);
        assert_eq!(property("sasl.mechanism"), 1418);
        // Only librdkafka knows its own.
        let mut o = options("t");
        o.properties.insert("no.such.property".into(), "x".into());
        let source = source(&env, o);
        let payload = br#"{"topic":"t","partition":0,"start":0,"stop":null}"#.to_vec();
        let error = source.reader(&Split { id: "t/0".into(), payload }, None).err().unwrap();
        assert_eq!(error.number(), 1346);
    });
}

#[test]
fn one_reader_takes_over_from_another() {
    run(|env| async move {
        let topic = unique("handover");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..100, None);
        let source = source(&env, options(&topic));
        let split = splits(&source, &[]).await.remove(0);
        let mut old = source.reader(&split, None).unwrap();
        let first = next(&mut *old, 10).await.unwrap().unwrap();
        assert_eq!(first.column(0).as_primitive::<arrow_array::types::Int64Type>().value(0), 0);
        let mut new = source.reader(&split, Some(&old.position())).unwrap();
        let from = old.position().offset as i64;
        assert_eq!(next(&mut *new, 5).await.unwrap().unwrap().num_rows(), 5);
        assert_eq!(next(&mut *old, 10).await.unwrap_err().kind(), ErrorKind::Canceled);
        drop(old);
        assert_eq!(rest(&mut *new).await, lines(from + 5..100));
    });
}

/// Whoever watches the lag of the group sees what is durable.
#[test]
fn the_group_hears_what_is_durable() {
    run(|env| async move {
        let (topic, group) = (unique("durable"), unique("g"));
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..10, None);
        let source = source(&env, KafkaSourceOptions { group: Some(group.clone()), ..options(&topic) });
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        next(&mut *reader, 4).await.unwrap();
        let position = reader.position();
        next(&mut *reader, 100).await.unwrap();
        let (brokers, place) = (brokers(&env, &bootstrap()), (topic, 0));
        assert!(brokers.committed(&group, std::slice::from_ref(&place)).await.unwrap().is_empty());
        reader.on_durable(&position);
        let told = async || brokers.committed(&group, std::slice::from_ref(&place)).await.unwrap().get(&place).copied();
        while told().await.is_none() {
            env.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(told().await, Some(position.offset as i64));
    });
}
