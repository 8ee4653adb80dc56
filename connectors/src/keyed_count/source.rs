//! The keys of keyed-count as a source.

use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use arrow_array::{Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow_buffer::ScalarBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use millstream_common::{Error, Result};
use millstream_engine::source::{
    EventTimeFn, Position, Read, Source, Split, SplitEnumerator, SplitReader, event_time_column,
};

use super::permutation::Permutation;
use super::zipf::Zipf;
use crate::numbered::{NumberedSplits, Run, SplitCursor};
use crate::random::{Draws, mix};

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]))
});

/// `key` Int64, and `time`, the event time: the number of the event in milliseconds since 1970.
#[must_use]
pub fn keyed_count_schema() -> SchemaRef {
    SCHEMA.clone()
}

/// The event times of batches of [`keyed_count_schema`].
#[must_use]
pub fn event_times() -> EventTimeFn {
    event_time_column("time")
}

/// How often which key comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// All alike. When the events are a multiple of the keys, each key comes equally often, in a random order of all
    /// events; else (and without end) each key comes once in every `keys` events, each time in another order.
    Uniform,
    /// The k-th most frequent key has a share in proportion to `k^-skew`; which key that is, is random.
    Zipf {
        /// 0.99 is usual; finite, not negative.
        skew: f64,
    },
}

/// A source of keys 0 to `keys - 1`. Positions count the events of a split that were handed out; going to one costs
/// nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyedCountSource {
    /// How many keys there are; at least 1.
    pub keys: u64,
    /// How many events there are; 0: without end.
    pub events: u64,
    /// How often which key comes.
    pub distribution: Distribution,
    /// Whether each key comes once, in random order, before the first event of `distribution`.
    pub fill: bool,
    /// How many splits share the events; at least 1. Part of the meaning of positions: never changes for a job.
    pub splits: u32,
}

/// Seeds orders and ranks.
const SEED: u64 = 0x6b65_7973;
/// Seeds the order in which each key comes once.
const FILL_SEED: u64 = 0x6669_6c6c;

impl KeyedCountSource {
    /// 16 splits.
    #[must_use]
    pub fn new(keys: u64, events: u64, distribution: Distribution) -> Self {
        Self { keys, events, distribution, fill: false, splits: 16 }
    }

    fn numbered(&self) -> NumberedSplits {
        NumberedSplits { prefix: "keys", splits: self.splits, events: self.events }
    }

    fn order(&self) -> Result<KeyOrder> {
        let then = self.order_by_distribution()?;
        Ok(KeyOrder { filling: self.fill.then(|| (self.keys, Permutation::new(self.keys, FILL_SEED))), then })
    }

    fn order_by_distribution(&self) -> Result<Order> {
        if self.keys == 0 || self.keys > i64::MAX as u64 {
            return Err(Error::config(format!("{} keys", self.keys)).code(1303).next("give 1 or more"));
        }
        Ok(match self.distribution {
            Distribution::Uniform if self.events > 0 && self.events.is_multiple_of(self.keys) => {
                Order::Shuffled(Permutation::new(self.events, SEED), self.keys)
            }
            Distribution::Uniform => Order::PassByPass { keys: self.keys, pass: 0, order: pass(self.keys, 0) },
            Distribution::Zipf { skew } if skew.is_finite() && skew >= 0.0 => {
                Order::Zipf(Zipf::new(self.keys, skew), Permutation::new(self.keys, SEED))
            }
            Distribution::Zipf { skew } => {
                return Err(Error::config(format!("a skew of {skew}")).code(1309).next("0.99 is usual; 0 is uniform"));
            }
        })
    }
}

impl Source for KeyedCountSource {
    fn schema(&self) -> SchemaRef {
        keyed_count_schema()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        self.order()?;
        self.numbered().enumerator()
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(KeyReader { order: self.order()?, cursor: self.numbered().open(split, position)? }))
    }
}

/// Which key an event has, by its number.
struct KeyOrder {
    /// How many events have each another key, before all others, and which.
    filling: Option<(u64, Permutation)>,
    then: Order,
}

impl KeyOrder {
    fn keys(&mut self, run: Run) -> Vec<i64> {
        let Some((until, order)) = self.filling.as_ref().filter(|(until, _)| run.first < *until) else {
            return self.then.keys(run);
        };
        let filling = (until - run.first).div_ceil(run.step).min(run.count as u64);
        let mut keys: Vec<i64> = (0..filling).map(|i| order.get(run.first + i * run.step) as i64).collect();
        let rest = Run { first: run.first + filling * run.step, count: run.count - filling as usize, ..run };
        keys.extend(self.then.keys(rest));
        keys
    }
}

/// Which key an event has when each has had its own, or need not.
enum Order {
    /// All events in one random order; number modulo keys.
    Shuffled(Permutation, u64),
    /// An order of the keys for each pass.
    PassByPass { keys: u64, pass: u64, order: Permutation },
    /// Ranks, and which key has which rank.
    Zipf(Zipf, Permutation),
}

fn pass(keys: u64, pass: u64) -> Permutation {
    Permutation::new(keys, SEED ^ mix(pass + 1))
}

impl Order {
    fn keys(&mut self, run: Run) -> Vec<i64> {
        let numbers = (0..run.count as u64).map(|i| run.first + i * run.step);
        match self {
            Self::Shuffled(order, keys) => numbers.map(|n| (order.get(n) % *keys) as i64).collect(),
            Self::PassByPass { keys, pass: now, order } => numbers
                .map(|n| {
                    if n / *keys != *now {
                        *now = n / *keys;
                        *order = pass(*keys, *now);
                    }
                    order.get(n % *keys) as i64
                })
                .collect(),
            Self::Zipf(zipf, order) => numbers.map(|n| order.get(zipf.draw(&mut Draws::of(SEED, n))) as i64).collect(),
        }
    }
}

struct KeyReader {
    order: KeyOrder,
    cursor: SplitCursor,
}

impl KeyReader {
    fn batch(&mut self, run: Run) -> Result<Read> {
        let times: Vec<i64> = (0..run.count as u64).map(|i| (run.first + i * run.step) as i64).collect();
        let keys = Int64Array::new(ScalarBuffer::from(self.order.keys(run)), None);
        let times = TimestampMillisecondArray::new(ScalarBuffer::from(times), None);
        RecordBatch::try_new(keyed_count_schema(), vec![Arc::new(keys), Arc::new(times)])
            .map(Read::Batch)
            .map_err(|e| Error::internal("the columns of keys do not fit together").source(e))
    }
}

impl SplitReader for KeyReader {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        Poll::Ready(match self.cursor.next(max_rows) {
            None => Ok(Read::End),
            Some(run) => self.batch(run),
        })
    }

    fn position(&self) -> Position {
        self.cursor.position()
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::cast::AsArray;
    use arrow_array::types::Int64Type;

    use super::*;
    use crate::conformance;

    /// Keys of the first `events` events, by number.
    fn keys(source: &KeyedCountSource, events: u64) -> Vec<i64> {
        source.order().unwrap().keys(Run { first: 0, step: 1, count: events as usize })
    }

    #[test]
    fn filling_lets_each_key_come_first() {
        let zipf = KeyedCountSource::new(1_000, 0, Distribution::Zipf { skew: 0.99 });
        let filled = KeyedCountSource { fill: true, ..zipf.clone() };
        let all = keys(&filled, 3_000);
        assert_eq!(counts(&all[..1_000], 1_000), [1; 1_000]);
        assert_ne!(all[..1_000], all[1_000..2_000]);
        assert_eq!(all[1_000..], keys(&zipf, 3_000)[1_000..]);
        // Whatever the pieces are.
        let mut order = filled.order().unwrap();
        let pieces = [(3, 4), (995, 40), (1_001, 5)];
        for (first, count) in pieces {
            let run = order.keys(Run { first, step: 16, count });
            let expected: Vec<i64> = (0..count as u64).map(|i| all[(first + i * 16) as usize]).collect();
            assert_eq!(run, expected);
        }
    }

    fn counts(keys: &[i64], of: u64) -> Vec<u32> {
        let mut counts = vec![0; of as usize];
        keys.iter().for_each(|k| counts[*k as usize] += 1);
        counts
    }

    #[tokio::test]
    async fn every_distribution_passes_the_exam_of_sources() {
        for distribution in [Distribution::Uniform, Distribution::Zipf { skew: 0.99 }] {
            for (keys, events, expected) in [(100, 1_000, 1_000), (300, 1_000, 1_000), (1, 5, 5), (1_000, 0, 16 * 50)] {
                let source = KeyedCountSource::new(keys, events, distribution);
                let rows = conformance::check_source_up_to(&source, 11, 50).await;
                assert_eq!(rows.iter().sum::<usize>().min(expected), expected.min(16 * 50), "{rows:?}");
            }
        }
    }

    #[test]
    fn each_key_comes_as_often_as_there_are_passes() {
        for (of, passes) in [(1_000, 1), (1_000, 3), (777, 5), (1, 4)] {
            let source = KeyedCountSource::new(of, of * passes, Distribution::Uniform);
            let all = keys(&source, of * passes);
            assert!(counts(&all, of).iter().all(|c| u64::from(*c) == passes));
            assert!(of == 1 || !all.is_sorted());
        }
        // Not a multiple, and without end: pass by pass.
        for events in [2_500, 0] {
            let source = KeyedCountSource::new(1_000, events, Distribution::Uniform);
            let all = keys(&source, 2_500);
            assert!(all.chunks(1_000).take(2).all(|p| counts(p, 1_000).iter().all(|c| *c == 1)));
            assert!(counts(&all[2_000..], 1_000).iter().all(|c| *c <= 1));
            assert_ne!(all[..1_000], all[1_000..2_000]);
        }
    }

    #[test]
    fn few_keys_have_most_events_under_a_skew() {
        let source = KeyedCountSource::new(10_000, 100_000, Distribution::Zipf { skew: 0.99 });
        let mut counts = counts(&keys(&source, 100_000), 10_000);
        assert_ne!(
            counts.iter().enumerate().max_by_key(|c| c.1).unwrap().0,
            0,
            "the most frequent key is not the first"
        );
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let top: u32 = counts[..100].iter().sum();
        assert!((48_000..60_000).contains(&top), "{top}");
    }

    #[test]
    fn time_is_the_number_and_nonsense_is_refused() {
        let source = KeyedCountSource::new(10, 100, Distribution::Uniform);
        let split = Split { id: "keys-03".into(), payload: 3_u32.to_le_bytes().to_vec() };
        let mut reader = source.reader(&split, None).unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Ok(Read::Batch(batch))) = reader.poll_next(&mut cx, 3) else { panic!("three rows") };
        assert_eq!(event_times()(&batch).unwrap().values()[..], [3, 3 + 16, 3 + 2 * 16]);
        assert_eq!(batch.column(0).as_primitive::<Int64Type>().len(), 3);
        for bad in [
            KeyedCountSource::new(0, 1, Distribution::Uniform),
            KeyedCountSource::new(1, 1, Distribution::Zipf { skew: f64::NAN }),
            KeyedCountSource { splits: 0, ..source.clone() },
        ] {
            assert!(bad.enumerator().is_err());
        }
        assert!(source.reader(&Split { id: "x".into(), payload: vec![99, 0, 0, 0] }, None).is_err());
    }
}
