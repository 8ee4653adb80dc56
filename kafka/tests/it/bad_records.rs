//! Records that cannot be read and go to a topic of their own, on a real broker.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::env::BoxFuture;
use millstream_common::{ErrorKind, Result};
use millstream_connectors::conformance;
use millstream_engine::source::{Read, Source};
use millstream_formats::avro::{AvroDecoding, SchemaRegistry, Written};
use millstream_formats::debezium::DebeziumDecoding;
use millstream_kafka::security::{Sasl, Security};
use millstream_kafka::source::{BadRecords, KafkaSource, KafkaSourceOptions, Metadata, Topics};

use super::security::{login, tls};
use super::source::{all, lines, lines_of, next, numbers, options, source, splits};
use super::support::{Record, Seen, bootstrap, create_topic, create_topic_with, read, run, unique, variable, write};

fn to_topic(read: &str, dead: &str) -> KafkaSourceOptions {
    KafkaSourceOptions { bad_records: BadRecords::DeadLetter { topic: dead.to_owned() }, ..options(read) }
}

fn value(text: &str) -> Record {
    Record { value: Some(text.to_owned()), timestamp: 1_000_000, ..Record::default() }
}

fn table() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn header(of: &Seen, name: &str) -> Option<String> {
    let value = of.headers.iter().rev().find(|(n, _)| n == name)?.1.clone();
    Some(String::from_utf8(value?).unwrap())
}

/// The offsets of the bad records that have come, each once.
fn offsets(dead: &str) -> BTreeSet<i64> {
    read(dead, 1).iter().map(|seen| header(seen, "millstream.error.offset").unwrap().parse().unwrap()).collect()
}

#[test]
fn a_bad_record_goes_to_its_topic_as_it_came_with_the_cause() {
    run(|env| async move {
        let (topic, dead) = (unique("some-bad"), unique("dead"));
        create_topic(&topic, 2).await;
        create_topic(&dead, 1).await;
        let bad = Record {
            partition: 1,
            key: Some("k"),
            headers: vec![("h", Some(b"1")), ("none", None), ("millstream.error.topic", Some(b"older"))],
            timestamp: 1_767_225_604_330,
            ..value("{\"n\":\"x\"}")
        };
        let of_1 = |text| Record { partition: 1, ..value(text) };
        let tombstone = Record { value: None, ..of_1("") };
        write(&topic, &[of_1("{\"n\":0}"), bad, of_1("{\"n\":2}"), tombstone, of_1("nonsense")], None);
        let source = source(&env, to_topic(&topic, &dead));
        assert_eq!(all(&source).await, [vec![], [lines(0..1), lines(2..3)].concat()]);
        assert_eq!((source.dead_letter_records(), source.dropped_records()), (2, 0));

        let found = read(&dead, 1);
        assert_eq!(found.len(), 2, "{found:?}");
        let (first, second) = (&found[0], &found[1]);
        assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some("k"), Some("{\"n\":\"x\"}")));
        assert_eq!(first.timestamp, 1_767_225_604_330);
        let own: Vec<_> = first.headers[..3].iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        assert_eq!(own, [("h", Some(&b"1"[..])), ("none", None), ("millstream.error.topic", Some(b"older"))]);
        let cause = |of: &Seen| {
            ["topic", "partition", "offset", "timestamp", "format", "number"]
                .map(|name| header(of, &format!("millstream.error.{name}")).unwrap())
        };
        assert_eq!(cause(first), [&topic, "1", "1", "1767225604330", "json", "MS3301"]);
        assert_eq!(cause(second), [&topic, "1", "4", "1000000", "json", "MS3301"]);
        let text = header(first, "millstream.error.message").unwrap();
        assert!(text.contains("n: 'x'"), "{text}");
        assert_eq!((second.key.as_deref(), second.value.as_deref()), (None, Some("nonsense")));
    });
}

/// Whatever is asked for while bad records are on their way.
#[test]
fn batches_and_positions_are_right_around_bad_records() {
    run(|env| async move {
        let (topic, dead) = (unique("changes-bad"), unique("dead"));
        create_topic(&topic, 1).await;
        create_topic(&dead, 1).await;
        let update = |n: i64| value(&format!(r#"{{"before":{{"n":{n}}},"after":{{"n":{}}},"op":"u"}}"#, n + 1));
        let record = |i: i64| if i % 3 == 1 { value("{") } else { update(i) };
        write(&topic, &(0..40).map(record).collect::<Vec<_>>(), None);
        let bad: BTreeSet<i64> = (0..40).filter(|i| i % 3 == 1).collect();
        let format = Arc::new(DebeziumDecoding::new(table()).unwrap());
        let source = KafkaSource::new(env, to_topic(&topic, &dead), format).unwrap();
        assert_eq!(conformance::check_source(&source, 9).await, [54]);
        assert_eq!(offsets(&dead), bad);

        // What is wanted falls between the look that finds the bad records and the one that finds them written.
        let split = splits(&source, &[]).await.remove(0);
        let (mut found, mut sizes) = (Vec::new(), [100, 1, 3, 2].into_iter().cycle());
        let mut position = None;
        for step in 0.. {
            // Every other time a reader takes up what another one has left.
            let mut reader = source.reader(&split, position.as_ref()).unwrap();
            let mut ended = false;
            for _ in 0..=step % 2 {
                let mut wanted = 0;
                let read = poll_fn(|cx| {
                    wanted = sizes.next().unwrap();
                    reader.poll_next(cx, wanted)
                });
                let read = read.await.unwrap();
                ended = matches!(read, Read::End);
                if let Read::Batch(batch) = read {
                    assert!(batch.num_rows() <= wanted, "{} of {wanted}", batch.num_rows());
                    found.extend(lines_of(&batch));
                }
            }
            position = Some(reader.position());
            if ended {
                break;
            }
        }
        let whole = all(&source).await.remove(0);
        assert_eq!(whole.len(), 54);
        assert_eq!(found, whole);
    });
}

#[test]
fn a_whole_topic_of_bad_records_comes_through() {
    run(|env| async move {
        let (topic, dead) = (unique("all-bad"), unique("dead"));
        create_topic(&topic, 2).await;
        create_topic(&dead, 1).await;
        let text = "x".repeat(1_000);
        for partition in 0..2 {
            let records: Vec<_> = (0..3_000).map(|_| Record { partition, ..value(&text) }).collect();
            write(&topic, &records, None);
        }
        let source = source(&env, to_topic(&topic, &dead));
        let found = splits(&source, &[]).await;
        let mut readers: Vec<_> = found.iter().map(|split| source.reader(split, None).unwrap()).collect();
        let (first, second) = readers.split_at_mut(1);
        let (a, b) = futures::join!(next(&mut *first[0], 100), next(&mut *second[0], 100));
        assert!(a.unwrap().is_none() && b.unwrap().is_none());
        assert_eq!([first[0].position().offset, second[0].position().offset], [3_000, 3_000]);
        assert_eq!(source.dead_letter_records(), 6_000);
        let places: BTreeSet<_> = read(&dead, 1)
            .iter()
            .map(|seen| ["partition", "offset"].map(|name| header(seen, &format!("millstream.error.{name}"))))
            .collect();
        assert_eq!(places.len(), 6_000);
    });
}

#[test]
fn a_topic_for_bad_records_that_cannot_be_written_fails_the_source() {
    run(|env| async move {
        let (topic, missing, small) = (unique("bad-too"), unique("missing"), unique("small"));
        create_topic(&topic, 1).await;
        create_topic_with(&small, 1, &[("max.message.bytes", "1000")]).await;
        let large = format!("{{\"n\":\"{}\"}}", "x".repeat(5_000));
        write(&topic, &[value("{\"n\":0}"), value(&large), value("{\"n\":2}")], None);
        for (dead, number, kind, why) in [
            (missing, 1349, ErrorKind::Config, "there is no "),
            (small, 3312, ErrorKind::Data, "larger than brokers or producer take"),
        ] {
            let source = source(&env, to_topic(&topic, &dead));
            let split = splits(&source, &[]).await.remove(0);
            let mut reader = source.reader(&split, None).unwrap();
            let error = loop {
                match next(&mut *reader, 10).await {
                    // The good one before it may have come by itself.
                    Ok(rows) => assert!(rows.is_some_and(|batch| lines_of(&batch) == lines(0..1))),
                    Err(e) => break e,
                }
            };
            assert_eq!((error.number(), error.kind()), (number, kind), "{error}");
            assert_eq!(error.place(), format!("topic {topic}, partition 0, offset 1"));
            let text = error.to_string();
            assert!(text.contains(&format!("'{dead}'")) && text.contains(why), "{text}");
            assert!(reader.position().offset <= 1, "a version would lie behind a record that is nowhere");
            assert_eq!(source.dead_letter_records(), 0);
        }
    });
}

/// Knows no schema.
struct NoSchemas;

impl SchemaRegistry for NoSchemas {
    fn schema(&self, _: u32) -> BoxFuture<'_, Result<Option<String>>> {
        Box::pin(async { Ok(None) })
    }

    fn register(&self, _: &str, _: &str) -> BoxFuture<'_, Result<u32>> {
        Box::pin(async { Ok(1) })
    }
}

#[test]
fn a_record_whose_schema_is_unknown_goes_there_too() {
    run(|env| async move {
        let (topic, dead) = (unique("no-schema"), unique("dead"));
        create_topic(&topic, 1).await;
        create_topic(&dead, 1).await;
        write(&topic, &[value("\0\0\0\0\u{7}abc")], None);
        let format = Arc::new(AvroDecoding::new(table(), Written::Registered(Arc::new(NoSchemas))).unwrap());
        let source = KafkaSource::new(env, to_topic(&topic, &dead), format).unwrap();
        assert_eq!(all(&source).await, [Vec::<String>::new()]);
        let found = read(&dead, 1).remove(0);
        assert_eq!(found.value.as_deref(), Some("\0\0\0\0\u{7}abc"));
        let of = |name: &str| header(&found, &format!("millstream.error.{name}")).unwrap();
        assert_eq!((of("number"), of("format")), ("MS3320".into(), "avro-confluent".into()));
        assert!(of("message").contains("no schema 7"), "{}", of("message"));
    });
}

#[test]
fn it_is_written_as_securely_as_the_others_are_read() {
    run(|env| async move {
        let (topic, dead) = (unique("secured-bad"), unique("dead"));
        create_topic(&topic, 1).await;
        create_topic(&dead, 1).await;
        write(&topic, &[value("{"), value("{\"n\":1}")], None);
        let mut options = to_topic(&topic, &dead);
        options.bootstrap = vec![variable("KAFKA_BOOTSTRAP_SASL_TLS")];
        options.security = Security { tls: Some(tls()), sasl: Some(Sasl::ScramSha512(login())) };
        assert_eq!(all(&source(&env, options)).await, [lines(1..2)]);
        assert_eq!(offsets(&dead), [0].into());
    });
}

#[test]
fn dropped_records_are_counted() {
    run(|env| async move {
        let topic = unique("dropped");
        create_topic(&topic, 1).await;
        write(&topic, &[value("{\"n\":0}"), value("{"), value("{"), value("{\"n\":3}")], None);
        let source = source(&env, KafkaSourceOptions { bad_records: BadRecords::Drop, ..options(&topic) });
        assert_eq!(all(&source).await, [[lines(0..1), lines(3..4)].concat()]);
        assert_eq!((source.dropped_records(), source.dead_letter_records()), (2, 0));
    });
}

#[test]
fn a_topic_for_bad_records_is_none_of_those_that_are_read() {
    run(|env| async move {
        let of = |topics: Topics, dead: &str| {
            let mut options = KafkaSourceOptions::new(vec![bootstrap()], topics);
            options.bad_records = BadRecords::DeadLetter { topic: dead.to_owned() };
            KafkaSource::new(env.clone(), options, numbers()).err().map(|e| e.number())
        };
        let named = || Topics::Named(vec!["a".into(), "b".into()]);
        assert_eq!((of(named(), "b"), of(named(), ""), of(named(), "c")), (Some(1344), Some(1344), None));
        let matching = || Topics::Matching("a.*".into());
        assert_eq!((of(matching(), "a-bad"), of(matching(), "bad-a")), (Some(1344), None));
    });
}

/// As a client in another language may write it. Who does not ask for headers is not told.
#[test]
fn a_header_whose_name_is_no_text_is_a_bad_record() {
    run(|env| async move {
        let (topic, dead) = (unique("names"), unique("dead"));
        create_topic(&topic, 1).await;
        create_topic(&dead, 1).await;
        // SAFETY: it is handed to librdkafka as bytes, and read as text by nobody.
        let name: &'static str = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) }.leak();
        let strange = Record { headers: vec![("h", Some(b"1")), (name, None)], ..value("{\"n\":1}") };
        write(&topic, &[value("{\"n\":0}"), strange, value("{\"n\":2}")], None);
        let mut options = to_topic(&topic, &dead);
        assert_eq!(all(&source(&env, options.clone())).await, [lines(0..3)]);

        options.metadata = vec![("headers".to_owned(), Metadata::Headers)];
        let with_headers = |n: i64| format!("{{\"n\":{n},\"headers\":{{}}}}");
        assert_eq!(all(&source(&env, options)).await, [[with_headers(0), with_headers(2)]]);
        let found = read(&dead, 1);
        assert_eq!((found.len(), found[0].value.as_deref()), (1, Some("{\"n\":1}")));
        assert_eq!(header(&found[0], "millstream.error.number").as_deref(), Some("MS3313"));
        assert_eq!(header(&found[0], "h"), None, "none of its own is there");
    });
}
