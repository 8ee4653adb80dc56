//! The exam of sources: whatever the batch size, and wherever it is interrupted and opened again, a split gives the
//! same rows, each once, in the same order.

use std::future::poll_fn;

use arrow_array::RecordBatch;
use millstream_engine::source::{Discovery, Position, Read, Source, Split, SplitReader};

use super::must;
use crate::random::Draws;

/// Examines a source that ends; `seed` picks batch sizes and interruptions. Gives how many rows each split has, in the
/// order of discovery.
pub async fn check_source(source: &dyn Source, seed: u64) -> Vec<usize> {
    check_source_up_to(source, seed, usize::MAX).await
}

/// As [`check_source`], but reads `rows` rows of each split at most: for sources that have many or do not end.
pub async fn check_source_up_to(source: &dyn Source, seed: u64, rows: usize) -> Vec<usize> {
    let splits = check_enumerator(source).await;
    let mut counts = Vec::new();
    for (i, split) in splits.iter().enumerate() {
        let whole = Reading { source, split, rows, draws: Draws::of(seed, i as u64) };
        counts.push(whole.check().await);
    }
    counts
}

async fn discover(source: &dyn Source, known: &[String]) -> Discovery {
    let mut enumerator = must("an enumerator", source.enumerator());
    must("discovery", enumerator.discover(known).await)
}

/// Names are unique and stable, and what is known is not found again.
async fn check_enumerator(source: &dyn Source) -> Vec<Split> {
    let first = discover(source, &[]).await;
    assert!(first.complete, "all splits are there at once");
    let ids: Vec<String> = first.new.iter().map(|s| s.id.clone()).collect();
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "names of splits are unique: {ids:?}");
    assert!(ids.iter().all(|id| !id.is_empty()), "splits have names");
    for known in [0, 1, ids.len() / 2, ids.len()] {
        let known = &ids[..known.min(ids.len())];
        let found = discover(source, known).await;
        assert_eq!(found.new, first.new[known.len()..], "with {known:?} known");
        assert!(found.complete);
    }
    let mut enumerator = must("an enumerator", source.enumerator());
    must("discovery", enumerator.discover(&[]).await);
    assert!(must("discovery", enumerator.discover(&ids).await).new.is_empty(), "a second look finds nothing new");
    first.new
}

struct Reading<'a> {
    source: &'a dyn Source,
    split: &'a Split,
    rows: usize,
    draws: Draws,
}

impl Reading<'_> {
    async fn check(mut self) -> usize {
        let all = self.read(|_| 1_000, |_| false).await;
        for size in [1, 2, 7, 64, 100_000] {
            let again = self.read(|_| size, |_| false).await;
            self.compare(&all, &again, &format!("in batches of {size}"));
        }
        for round in 0..4 {
            let one_in = [1, 2, 5, 10][round];
            let again = self.read(|d| 1 + d.below(40) as usize, |d| d.below(one_in) == 0).await;
            self.compare(&all, &again, &format!("interrupted after one in {one_in} batches"));
        }
        all.len()
    }

    fn open(&self, position: Option<&Position>) -> Box<dyn SplitReader> {
        let reader =
            must(&format!("split {} at {position:?}", self.split.id), self.source.reader(self.split, position));
        if let Some(p) = position {
            assert_eq!(reader.position(), *p, "an opened reader stands where it was opened");
        }
        reader
    }

    /// The rows one by one, read in batches of `size`, by a new reader whenever `interrupt` says so.
    async fn read(
        &mut self,
        size: impl Fn(&mut Draws) -> usize,
        interrupt: impl Fn(&mut Draws) -> bool,
    ) -> Vec<RecordBatch> {
        let mut reader = self.open(None);
        let mut rows = Vec::new();
        while rows.len() < self.rows {
            let max = size(&mut self.draws).min(self.rows - rows.len());
            let before = reader.position();
            match must(&self.split.id, poll_fn(|cx| reader.poll_next(cx, max)).await) {
                Read::Batch(batch) => {
                    let n = batch.num_rows();
                    assert!((1..=max).contains(&n), "split {}: {n} rows where 1 to {max} are due", self.split.id);
                    assert_eq!(batch.schema(), self.source.schema(), "split {}", self.split.id);
                    assert_ne!(reader.position(), before, "rows move the position of split {}", self.split.id);
                    rows.extend((0..n).map(|i| batch.slice(i, 1)));
                }
                Read::End => {
                    let again = must(&self.split.id, poll_fn(|cx| reader.poll_next(cx, 1)).await);
                    assert!(matches!(again, Read::End), "split {} goes on after its end", self.split.id);
                    let mut reopened = self.open(Some(&reader.position()));
                    let again = must(&self.split.id, poll_fn(|cx| reopened.poll_next(cx, 1)).await);
                    assert!(matches!(again, Read::End), "split {} goes on after its end, opened again", self.split.id);
                    break;
                }
            }
            if interrupt(&mut self.draws) {
                reader = self.open(Some(&reader.position()));
            }
        }
        rows
    }

    fn compare(&self, all: &[RecordBatch], again: &[RecordBatch], how: &str) {
        assert_eq!(again.len(), all.len(), "rows of split {} {how}", self.split.id);
        let differs = all.iter().zip(again).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the row of split {} that differs {how}", self.split.id);
    }
}
