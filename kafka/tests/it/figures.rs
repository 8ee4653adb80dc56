//! What is said of partitions and sinks while they are read and written, on a real broker.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millstream_common::{Env, Epoch, Error};
use millstream_engine::sink::{DurableVersion, Sink, WriterFigures};
use millstream_engine::source::{Source, SplitFigures, SplitGauges, SplitReader};
use millstream_kafka::client::Isolation;
use millstream_kafka::sink::{DeliveryGuarantee, KafkaSinkOptions};
use millstream_kafka::source::{BadRecords, KafkaSourceOptions};

use super::sink::{pre_commit, rows, sink, writer};
use super::source::{fill, next, options, source, splits};
use super::support::{Record, begin, create_topic, run, unique, write};

/// Reads until there are so many rows.
async fn read_rows(reader: &mut dyn SplitReader, mut count: usize) {
    while count > 0 {
        count -= next(reader, count).await.unwrap().unwrap().num_rows();
    }
}

/// What the reader, which has nothing to read, says once it says that it is behind by so many records.
async fn once_behind_by(env: &Env, reader: &mut dyn SplitReader, records: u64) -> SplitFigures {
    let gauges = reader.gauges().unwrap();
    for _ in 0..400 {
        let waits = poll_fn(|cx| Poll::Ready(reader.poll_next(cx, 1_000).is_pending())).await;
        assert!(waits, "a record that nobody has written for it");
        if gauges.figures().lag_records == Some(records) {
            return gauges.figures();
        }
        env.sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", gauges.figures());
}

/// The same without a look at the reader.
async fn behind_by(env: &Env, gauges: &Arc<dyn SplitGauges>, records: u64) -> SplitFigures {
    for _ in 0..400 {
        if gauges.figures().lag_records == Some(records) {
            return gauges.figures();
        }
        env.sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", gauges.figures());
}

#[test]
fn lag_and_bytes_are_those_of_what_was_written() {
    run(|env| async move {
        let topic = unique("lag");
        create_topic(&topic, 1).await;
        let written_ms = env.wall_ms() - 3_600_000;
        let record = |n: i64| Record {
            key: Some("key"),
            value: Some(format!("{{\"n\":{n}}}")),
            timestamp: written_ms,
            ..Record::default()
        };
        let of = |numbers: std::ops::Range<i64>| numbers.map(record).collect::<Vec<_>>();
        let bytes = |records: &[Record]| -> u64 {
            records.iter().map(|r| 3 + r.value.as_ref().map_or(0, String::len) as u64).sum()
        };
        write(&topic, &of(0..100), None);
        let source = source(&env, KafkaSourceOptions { stop: None, ..options(&topic) });
        let split = splits(&source, &[]).await.remove(0);
        let mut reader = source.reader(&split, None).unwrap();
        let gauges = reader.gauges().unwrap();
        let nothing = SplitFigures {
            bytes: Some(0),
            dropped: Some(0),
            dead_letters: Some(0),
            decode: Some(Duration::ZERO),
            ..SplitFigures::default()
        };
        assert_eq!(gauges.figures(), nothing, "nobody has heard of the partition");

        read_rows(&mut *reader, 30).await;
        let f = gauges.figures();
        assert_eq!((f.bytes, f.lag_records), (Some(bytes(&of(0..30))), Some(70)));
        assert!(f.lag.is_some_and(|lag| (3_600..3_700).contains(&lag.as_secs())), "{f:?}");
        assert!(f.decode.is_some_and(|d| !d.is_zero()), "{f:?}");

        read_rows(&mut *reader, 70).await;
        let f = gauges.figures();
        assert_eq!((f.bytes, f.lag_records, f.lag), (Some(bytes(&of(0..100))), Some(0), Some(Duration::ZERO)));

        // Nobody reads meanwhile, as when receivers do not keep up.
        write(&topic, &of(100..105), None);
        let f = behind_by(&env, &gauges, 5).await;
        assert!(f.lag.is_some_and(|lag| lag.as_secs() >= 3_600), "{f:?}");
        read_rows(&mut *reader, 5).await;
        assert_eq!(gauges.figures().lag_records, Some(0));
        // Also behind the end that librdkafka has told of by now.
        once_behind_by(&env, &mut *reader, 0).await;
        write(&topic, &of(105..109), None);
        behind_by(&env, &gauges, 4).await;

        drop(reader);
        let f = gauges.figures();
        assert_eq!((f.bytes, f.lag_records), (Some(bytes(&of(0..105))), None), "counters stay");
    });
}

#[test]
fn a_reader_that_has_all_it_may_read_is_behind_by_nothing() {
    run(|env| async move {
        let topic = unique("lag-transactions");
        create_topic(&topic, 1).await;
        fill(&topic, 0, 0..10, Some(true));
        let of = |isolation| {
            let source = source(&env, KafkaSourceOptions { stop: None, isolation, ..options(&topic) });
            async move {
                let split = splits(&source, &[]).await.remove(0);
                source.reader(&split, None).unwrap()
            }
        };
        let mut reader = of(Isolation::ReadCommitted).await;
        read_rows(&mut *reader, 10).await;
        // The marker behind the last record is no record.
        once_behind_by(&env, &mut *reader, 0).await;
        fill(&topic, 0, 10..13, Some(false));
        once_behind_by(&env, &mut *reader, 0).await;
        // What is open may be read by others.
        let open = begin(
            &topic,
            &[Record { value: Some("{\"n\":13}".into()), timestamp: 1, ..Record::default() }],
            &unique("t"),
        );
        let mut hasty = of(Isolation::ReadUncommitted).await;
        read_rows(&mut *hasty, 14).await;
        once_behind_by(&env, &mut *hasty, 0).await;
        drop(open);

        // Up to where it stops.
        let bounded = source(&env, options(&topic));
        let split = splits(&bounded, &[]).await.remove(0);
        let mut reader = bounded.reader(&split, None).unwrap();
        read_rows(&mut *reader, 4).await;
        let gauges = reader.gauges().unwrap();
        assert!(gauges.figures().lag_records.is_some_and(|lag| lag >= 6), "{:?}", gauges.figures());
        while next(&mut *reader, 100).await.unwrap().is_some() {}
        drop(reader);
        assert_eq!(gauges.figures().lag_records, Some(0), "it has ended");
    });
}

#[test]
fn bad_records_are_counted_by_partition() {
    run(|env| async move {
        let (topic, dead) = (unique("bad-by-partition"), unique("dead"));
        create_topic(&topic, 2).await;
        create_topic(&dead, 1).await;
        let record = |partition: i32, text: &str| Record {
            partition,
            value: Some(text.into()),
            timestamp: 1,
            ..Record::default()
        };
        let good = "{\"n\":1}";
        write(&topic, &[record(0, "{"), record(0, good), record(0, "["), record(1, good), record(1, "x")], None);
        let figures = async |bad_records: BadRecords| -> Result<Vec<SplitFigures>, Error> {
            let source = source(&env, KafkaSourceOptions { bad_records, ..options(&topic) });
            let mut all = Vec::new();
            for split in splits(&source, &[]).await {
                let mut reader = source.reader(&split, None)?;
                while next(&mut *reader, 10).await?.is_some() {}
                all.push(reader.gauges().unwrap().figures());
            }
            Ok(all)
        };
        let counts = |f: &SplitFigures| (f.dropped.unwrap(), f.dead_letters.unwrap(), f.bytes.unwrap());
        let dropped = figures(BadRecords::Drop).await.unwrap();
        assert_eq!(dropped.iter().map(counts).collect::<Vec<_>>(), [(2, 0, 9), (1, 0, 8)]);
        let written = figures(BadRecords::DeadLetter { topic: dead.clone() }).await.unwrap();
        assert_eq!(written.iter().map(counts).collect::<Vec<_>>(), [(0, 2, 9), (0, 1, 8)]);
    });
}

#[test]
fn a_writer_says_what_it_wrote_and_which_transactions_are_open() {
    run(|env| async move {
        let (topic, prefix) = (unique("written"), unique("written"));
        create_topic(&topic, 1).await;
        let sink = sink(&env, super::sink::options(&topic, &prefix));
        let mut w = writer(&sink, 0).await;
        let of = |bytes, open| WriterFigures { bytes: Some(bytes), open_transactions: Some(open) };
        assert_eq!(w.figures(), of(0, 0));
        // {"n":N}, without a key.
        w.write(&rows(0..10)).await.unwrap();
        assert_eq!(w.figures(), of(70, 1));
        let first = pre_commit(&mut *w, 1).await;
        assert_eq!(w.figures(), of(70, 1), "it waits for its commit");
        w.write(&rows(10..12)).await.unwrap();
        assert_eq!(w.figures(), of(86, 2));
        let listed = [first];
        w.on_version(DurableVersion { epoch: Epoch(1), committables: &listed }).await.unwrap();
        assert_eq!(w.figures(), of(86, 2));
        sink.committer().unwrap().commit(&listed[0]).await.unwrap();
        let second = pre_commit(&mut *w, 2).await;
        w.on_version(DurableVersion { epoch: Epoch(2), committables: &[second] }).await.unwrap();
        assert_eq!(w.figures(), of(86, 1), "a version no longer lists the first");

        let at_least_once = KafkaSinkOptions {
            guarantee: DeliveryGuarantee::AtLeastOnce,
            ..super::sink::options(&topic, &unique("unused"))
        };
        let mut w = writer(&super::sink::sink(&env, at_least_once), 0).await;
        w.write(&rows(0..10)).await.unwrap();
        assert_eq!(w.figures(), WriterFigures { bytes: Some(70), open_transactions: None });
    });
}
