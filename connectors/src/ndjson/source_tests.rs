use std::io::Write;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::conformance;
use crate::ndjson::NexmarkLines;
use crate::nexmark::{auctions, bids, event_times, persons};

const EVENTS: &[u8] = include_bytes!("../../tests/data/events-500.ndjson");

fn source(files: &[&std::path::Path]) -> NdjsonSource {
    NdjsonSource::new(files.iter().map(|f| f.to_str().unwrap().to_owned()).collect(), Arc::new(NexmarkLines))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// All rows of a file of these bytes, or the error.
fn read(bytes: &[u8], name: &str) -> Result<Vec<RecordBatch>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    std::fs::write(&file, bytes).unwrap();
    read_file(&file)
}

fn read_file(file: &std::path::Path) -> Result<Vec<RecordBatch>> {
    let source = source(&[file]);
    let split = super::super::splits::splits(&source.patterns)?.remove(0);
    let mut reader = source.reader(&split, None)?;
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut batches = Vec::new();
    loop {
        match reader.poll_next(&mut cx, 1_000_000) {
            Poll::Ready(Ok(Read::Batch(b))) => batches.push(b),
            Poll::Ready(Ok(Read::End)) => return Ok(batches),
            Poll::Ready(Err(e)) => return Err(e),
            Poll::Pending => unreachable!("files are never pending"),
        }
    }
}

#[tokio::test]
async fn plain_and_compressed_files_pass_the_exam_of_sources() {
    let dir = tempfile::tempdir().unwrap();
    let [plain, packed, open_end, empty] =
        ["a.ndjson", "b.ndjson.gz", "c.ndjson", "d.ndjson"].map(|n| dir.path().join(n));
    std::fs::write(&plain, EVENTS).unwrap();
    // Two members, as `cat a.gz b.gz` makes them.
    let half = EVENTS.len() / 2;
    std::fs::write(&packed, [gzip(&EVENTS[..half]), gzip(&EVENTS[half..])].concat()).unwrap();
    std::fs::write(&open_end, &EVENTS[..EVENTS.len() - 1]).unwrap();
    std::fs::write(&empty, "").unwrap();
    let rows = conformance::check_source(&source(&[&plain, &packed, &open_end, &empty]), 7).await;
    assert_eq!(rows, [500, 500, 500, 0]);
}

#[test]
fn events_keep_their_values() {
    let batch = read(EVENTS, "e.ndjson").unwrap().remove(0);
    assert_eq!(batch.num_rows(), 500);
    let [persons, auctions, bids] = [persons(&batch).unwrap(), auctions(&batch).unwrap(), bids(&batch).unwrap()];
    assert_eq!([persons.num_rows(), auctions.num_rows(), bids.num_rows()], [10, 30, 460]);
    let times = event_times(&batch).unwrap();
    assert_eq!((times.len(), times.values().iter().max()), (500, Some(&(1_767_225_600_000 + 2_500))));
    assert_eq!(persons.column(1).as_string::<i32>().value(0), "Saul White");
    assert_eq!(auctions.column(3).as_primitive::<arrow_array::types::Int64Type>().value(1), 2_895_121);
    // Escapes are undone.
    assert!(bids.column(6).as_string::<i32>().value(4).starts_with("lxgsdmxPUVQY]njal"));
    assert!(bids.column(6).as_string::<i32>().iter().flatten().any(|t| t.contains('\\') && !t.contains("\\\\")));
}

#[test]
fn a_bad_line_is_named_with_its_column_and_rows_before_it_are_read() {
    let good: Vec<&[u8]> = EVENTS.split(|b| *b == b'\n').take(50).collect();
    let first_bid = String::from_utf8(good[2].to_vec()).unwrap();
    let bid = |from: &str, to: &str| {
        assert!(first_bid.contains(from));
        first_bid.replacen(from, to, 1)
    };
    for (line, expected) in [
        (r#"{"event_type":2,"bid":{"auction":}"#.to_owned(), "no JSON of an event"),
        (
            r#"{"event_type":2,"person":null,"auction":null,"bid":{"auction":"x"}}"#.to_owned(),
            "bid.auction must be a 64-bit integer, and is the string \"x\"",
        ),
        (bid(r#""price":43006546,"#, ""), "bid.price is missing"),
        (bid(r#""price":43006546,"#, r#""price":4.5,"#), "bid.price must be a 64-bit integer, and is the number 4.5"),
        (bid(r#""channel":"channel-5456""#, r#""channel":null"#), "bid.channel must be a string, and is null"),
        (bid("00:00:00.015", "00:00:60.015"), "bid.dateTime must be a time stamp"),
        (bid(r#""event_type":2"#, r#""event_type":1"#), "of event_type 1 'auction' must be an object"),
        (
            bid(r#""event_type":2"#, r#""event_type":7"#),
            "event_type must be 0 (person), 1 (auction) or 2 (bid), and is 7",
        ),
        (bid(r#""event_type":2,"#, ""), "event_type is missing"),
        ("[]".into(), "must be a JSON object, and is a list"),
    ] {
        let text = [good.join(&b"\n"[..]), line.into_bytes(), good[0].to_vec()].join(&b'\n');
        let error = read(&text, "field.ndjson").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data);
        assert!(error.place().ends_with("field.ndjson line 51"), "{error}");
        assert!(error.what().contains(expected), "{error}");
    }
}

#[test]
fn other_line_separators_do_not_end_a_line() {
    let line = String::from_utf8(EVENTS.split(|b| *b == b'\n').nth(2).unwrap().to_vec()).unwrap();
    let odd = line.replacen("\"extra\":\"", "\"extra\":\"\u{2028}\u{85}", 1);
    let batches = read(format!("{odd}\r\n\n\r\n{line}").as_bytes(), "odd.ndjson").unwrap();
    let bids = bids(&batches[0]).unwrap();
    assert_eq!(bids.num_rows(), 2);
    assert!(bids.column(6).as_string::<i32>().value(0).starts_with("\u{2028}\u{85}"));
}

#[test]
fn damaged_and_changed_files_are_refused() {
    let packed = gzip(EVENTS);
    let error = read(&packed[..packed.len() / 2], "cut.ndjson.gz").unwrap_err();
    assert!(error.kind() == ErrorKind::Data && error.to_string().contains("cut.ndjson.gz"), "{error}");
    assert_eq!(read(EVENTS, "plain.ndjson.gz").unwrap_err().kind(), ErrorKind::Data);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.ndjson");
    std::fs::write(&file, &EVENTS[..1_000]).unwrap();
    let source = source(&[&file]);
    let split = super::super::splits::splits(&source.patterns).unwrap().remove(0);
    for offset in [17, 2_000] {
        let position = Position { offset, detail: 1_u64.to_le_bytes().to_vec() };
        let mut reader = source.reader(&split, Some(&position)).unwrap();
        assert_eq!(reader.position(), position);
        let Poll::Ready(Err(error)) = reader.poll_next(&mut Context::from_waker(std::task::Waker::noop()), 10) else {
            panic!("it is read from {offset}");
        };
        assert!(error.kind() == ErrorKind::Data && error.to_string().contains("x.ndjson"), "{error}");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over_and_other_encodings_are_named() {
    let marked = [b"\xEF\xBB\xBF", EVENTS].concat();
    assert_eq!(read(&marked, "marked.ndjson").unwrap()[0], read(EVENTS, "plain.ndjson").unwrap()[0]);
    assert!(read(b"\xEF\xBB\xBF", "empty.ndjson").unwrap().is_empty());
    let latin = [b"{\"event_type\":2,\"bid\":{\"url\":\"caf\xE9\"}}\n", EVENTS].concat();
    let error = read(&latin, "latin.ndjson").unwrap_err();
    assert!(error.what().contains("no UTF-8: byte 34 of it is 0xe9"), "{error}");
    assert!(error.place().ends_with("latin.ndjson line 1"), "{error}");
}

#[test]
fn more_files_than_may_be_open_are_read_in_turn() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..6 {
        let bytes = if i % 2 == 0 { EVENTS.to_vec() } else { gzip(EVENTS) };
        std::fs::write(dir.path().join(format!("{i}.ndjson{}", ["", ".gz"][i % 2])), bytes).unwrap();
    }
    let mut source = NdjsonSource::new(vec![dir.path().join("*").display().to_string()], Arc::new(NexmarkLines));
    source.files = OpenFiles::at_most(2);
    let splits = super::super::splits::splits(&source.patterns).unwrap();
    let mut readers: Vec<_> = splits.iter().map(|s| source.reader(s, None).unwrap()).collect();
    assert_eq!(source.files.open(), 0, "a file is opened when it is read first");
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let mut rows = vec![0; readers.len()];
    for _ in 0..=500 / 7 {
        for (reader, rows) in readers.iter_mut().zip(&mut rows) {
            let Poll::Ready(Ok(Read::Batch(batch))) = reader.poll_next(&mut cx, 7) else { panic!("no rows") };
            *rows += batch.num_rows();
            assert!(source.files.open() <= 2);
        }
    }
    assert_eq!(rows, [500; 6]);
    assert!(readers.iter_mut().all(|r| matches!(r.poll_next(&mut cx, 7), Poll::Ready(Ok(Read::End)))));
    assert_eq!(source.files.open(), 0, "a file is closed at its end");
}

#[test]
fn a_file_that_was_replaced_while_it_rested_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.ndjson");
    // More than is read at a time.
    std::fs::write(&file, EVENTS.repeat(20)).unwrap();
    let mut source = source(&[&file]);
    source.files = OpenFiles::at_most(0);
    let split = super::super::splits::splits(&source.patterns).unwrap().remove(0);
    let mut reader = source.reader(&split, None).unwrap();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(matches!(reader.poll_next(&mut cx, 10), Poll::Ready(Ok(Read::Batch(_)))));
    let other = dir.path().join("y.ndjson");
    std::fs::write(&other, EVENTS.repeat(20)).unwrap();
    std::fs::rename(&other, &file).unwrap();
    let error = loop {
        match reader.poll_next(&mut cx, 100) {
            Poll::Ready(Ok(Read::Batch(_))) => {}
            Poll::Ready(Err(e)) => break e,
            other => panic!("{other:?}"),
        }
    };
    assert!(error.number() == 3003 && error.place().ends_with("x.ndjson"), "{error}");
}

/// The lines of a golden file, sorted.
fn golden(name: &str) -> Vec<String> {
    let file = golden_path(name);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()), &mut text)
        .unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn golden_path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nexmark-10k").join(name)
}

fn printed(batch: &RecordBatch) -> Vec<String> {
    let mut text = Vec::new();
    millstream_formats::json::JsonRows::new(&batch.schema()).unwrap().push(batch, &mut text).unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bids_print_byte_for_byte_as_in_the_golden_results() {
    let batches = read_file(&golden_path("events.ndjson.gz")).unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 10_000);
    let (mut q0, mut q1) = (Vec::new(), Vec::new());
    for batch in &batches {
        let bids = bids(batch).unwrap().project(&[0, 1, 2, 5, 6]).unwrap();
        q0.extend(printed(&bids));
        let prices = bids.column(2).as_primitive::<arrow_array::types::Int64Type>().values().iter();
        let prices = arrow_array::Decimal128Array::from_iter_values(prices.map(|p| i128::from(*p) * 908));
        let mut columns = bids.columns().to_vec();
        columns[2] = Arc::new(prices.with_precision_and_scale(23, 3).unwrap());
        let names = ["auction", "bidder", "price", "dateTime", "extra"];
        q1.extend(printed(&RecordBatch::try_from_iter(names.into_iter().zip(columns)).unwrap()));
    }
    q0.sort();
    q1.sort();
    assert_eq!(q0, golden("q0.ndjson.gz"));
    assert_eq!(q1, golden("q1.ndjson.gz"));
}
