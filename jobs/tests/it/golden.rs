//! The queries over the golden events give the golden tables, for any batch size and number of subtasks.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use arrow_array::RecordBatch;
use millstream_engine::dataflow::Job;
use millstream_formats::json::JsonRows;

use crate::executor::{Outcome, execute};
use crate::job;

const ALL: [&str; 8] = ["q0", "q1", "q2", "q5", "q7", "q8", "q11", "q17"];

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data/nexmark-10k").join(format!("{file}.ndjson.gz"))
}

fn lines(file: &str) -> Vec<String> {
    let mut text = String::new();
    let packed = std::fs::File::open(golden(file)).unwrap();
    flate2::read::MultiGzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The table that rows make: a changelog is applied, and never takes back a row that is not there.
fn table(rows: &[RecordBatch]) -> BTreeMap<String, i64> {
    let mut table = BTreeMap::new();
    for batch in rows {
        let mut text = Vec::new();
        JsonRows::new(&batch.schema()).unwrap().push(batch, &mut text).unwrap();
        for line in String::from_utf8(text).unwrap().lines() {
            let (op, row) = match line.strip_prefix("{\"op\":\"") {
                Some(rest) => (&rest[..2], format!("{{{}", &rest[4..])),
                None => ("+I", line.to_owned()),
            };
            let n = table.entry(row).or_insert(0);
            *n += if op.starts_with('+') { 1 } else { -1 };
            assert!(*n >= 0, "{line} is taken back and is not there");
        }
    }
    table.retain(|_, n| *n > 0);
    table
}

fn check(query: &str, outcome: &Outcome, what: &str) {
    let mut want = BTreeMap::new();
    for line in lines(query) {
        *want.entry(line).or_insert(0) += 1;
    }
    let got = table(&outcome.rows);
    let missing = want.iter().find(|(row, n)| got.get(*row) != Some(n));
    let extra = got.iter().find(|(row, n)| want.get(*row) != Some(n));
    assert!(
        missing.is_none() && extra.is_none(),
        "{query} {what}: {} rows, golden {}; missing {missing:?}, extra {extra:?}",
        got.values().sum::<i64>(),
        want.values().sum::<i64>(),
    );
}

fn query(name: &str, input: &[PathBuf]) -> Job {
    let mut args = vec!["--input".to_owned()];
    args.extend(input.iter().map(|p| p.to_string_lossy().into_owned()));
    job(&format!("nexmark-{name}"), &args)
}

#[test]
fn golden_tables_for_any_batch_size_and_parallelism() {
    for name in ALL {
        let job = query(name, &[golden("events")]);
        for (p, batch_rows) in [(1, 8_192), (2, 1_000), (3, 77), (1, 10_000)] {
            let outcome = execute(&job.graph, p, batch_rows);
            check(name, &outcome, &format!("with {p} subtasks and batches of {batch_rows}"));
            assert_eq!(outcome.late_rows, 0, "{name}");
        }
    }
}

#[test]
fn golden_tables_from_events_out_of_order_in_several_files() {
    let folder = tempfile::tempdir().unwrap();
    // Out of order by less than the watermark's delay: rows change places within 700 events, 3.5 s.
    let mut events = lines("events");
    for chunk in events.chunks_mut(700) {
        let n = chunk.len();
        for i in 0..n {
            chunk.swap(i, (i * 7_919 + 13) % n);
        }
    }
    let files: Vec<PathBuf> = (0..5).map(|i| folder.path().join(format!("part-{i}.ndjson"))).collect();
    for (i, file) in files.iter().enumerate() {
        let mine: Vec<&str> = events.iter().skip(i).step_by(5).map(String::as_str).collect();
        std::fs::write(file, mine.join("\n") + "\n").unwrap();
    }
    for name in ALL {
        let job = query(name, &files);
        for (p, batch_rows) in [(1, 500), (3, 64), (4, 1)] {
            if batch_rows == 1 && name != "q5" && name != "q17" {
                continue;
            }
            let outcome = execute(&job.graph, p, batch_rows);
            check(name, &outcome, &format!("disordered, with {p} subtasks and batches of {batch_rows}"));
            assert_eq!(outcome.late_rows, 0, "{name}");
        }
    }
}

#[test]
fn rows_behind_the_watermark_are_late_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut events = lines("events");
    // The first 100 events come last: their windows have fired by then.
    events.rotate_left(100);
    let file = folder.path().join("late.ndjson");
    std::fs::write(&file, events.join("\n") + "\n").unwrap();
    let bids = lines("events").iter().take(100).filter(|l| l.contains("\"event_type\":2")).count() as u64;
    let late = |name| execute(&query(name, std::slice::from_ref(&file)).graph, 2, 50).late_rows;
    assert_eq!((late("q7"), late("q5"), late("q0"), late("q17")), (bids, bids, 0, 0));
    // Sessions that still go on take old rows in.
    assert!((1..bids).contains(&late("q11")));
}

#[test]
fn an_exchange_in_front_of_a_hot_window_carries_few_rows() {
    let all = lines("events").len();
    for name in ["q5", "q7"] {
        let outcome = execute(&query(name, &[golden("events")]).graph, 2, 8_192);
        // The first exchange carries each bid once, the second only what may be the greatest of its window.
        assert!(outcome.exchanged_rows < all + 200, "{name}: {} rows exchanged", outcome.exchanged_rows);
    }
}
