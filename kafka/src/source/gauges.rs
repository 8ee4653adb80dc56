//! What the reader of a partition counts, for those who watch it, and how far it is behind the partition's end.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millstream_common::{Env, Error, Result};
use millstream_engine::source::{SplitFigures, SplitGauges};

use super::consumer::Consumer;
use super::splits::PartitionSplit;

/// There is none.
const NONE: i64 = i64::MIN;

/// Written by the reader once a call, read at any time by others.
pub(super) struct PartitionGauges {
    env: Env,
    /// Knows the end. Not held: it goes with its last reader.
    consumer: Weak<Consumer>,
    topic: CString,
    partition: i32,
    stop: Option<i64>,
    /// The partition is being fetched.
    open: AtomicBool,
    /// The split has ended.
    ended: AtomicBool,
    bytes: AtomicU64,
    dropped: AtomicU64,
    dead_letters: AtomicU64,
    decode_ns: AtomicU64,
    position: AtomicI64,
    /// Where the partition's end was when the reader came to it; [`NONE`] while there is more.
    reached: AtomicI64,
    /// The time stamp of the last record.
    written_ms: AtomicI64,
}

impl PartitionGauges {
    pub(super) fn new(consumer: &Arc<Consumer>, split: &PartitionSplit, position: i64, ended: bool) -> Result<Self> {
        let topic = CString::new(split.topic.as_str());
        Ok(Self {
            env: consumer.env().clone(),
            consumer: Arc::downgrade(consumer),
            topic: topic.map_err(|e| Error::internal("a topic's name has a zero byte").source(e))?,
            partition: split.partition,
            stop: split.stop,
            open: AtomicBool::new(false),
            ended: AtomicBool::new(ended),
            bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            decode_ns: AtomicU64::new(0),
            position: AtomicI64::new(position),
            reached: AtomicI64::new(NONE),
            written_ms: AtomicI64::new(NONE),
        })
    }

    /// Records were taken.
    pub(super) fn took(&self, bytes: usize, written_ms: Option<i64>) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(ms) = written_ms {
            self.written_ms.store(ms, Ordering::Relaxed);
        }
    }

    pub(super) fn decoded(&self, took: Duration) {
        self.decode_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn dropped_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn wrote_letters(&self, count: u64) {
        self.dead_letters.fetch_add(count, Ordering::Relaxed);
    }

    /// Where the partition ends, as librdkafka heard it with the last records: that of the leader, transactions that are open or
    /// were given up included.
    pub(super) fn end(&self) -> Option<i64> {
        self.consumer.upgrade()?.end(&self.topic, self.partition)
    }

    /// The reader stands at `position`; `reached`: and has handed out all there was when the partition ended there.
    pub(super) fn stands(&self, position: i64, reached: Option<i64>, (open, ended): (bool, bool)) {
        self.position.store(position, Ordering::Relaxed);
        self.reached.store(reached.unwrap_or(NONE), Ordering::Relaxed);
        self.open.store(open, Ordering::Relaxed);
        self.ended.store(ended, Ordering::Relaxed);
    }

    /// The reader is gone.
    pub(super) fn closed(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    fn lag_records(&self) -> Option<u64> {
        if self.ended.load(Ordering::Relaxed) {
            return Some(0);
        }
        let end = self.open.load(Ordering::Relaxed).then(|| self.end())??;
        // Markers of transactions stand behind the last record, and are no records.
        let (reached, position) = (self.reached.load(Ordering::Relaxed), self.position.load(Ordering::Relaxed));
        let from = if reached == NONE { position } else { reached };
        let to = self.stop.map_or(end, |stop| stop.min(end));
        Some(to.saturating_sub(from).max(0) as u64)
    }
}

impl SplitGauges for PartitionGauges {
    fn figures(&self) -> SplitFigures {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lag_records = self.lag_records();
        let written_ms = Some(self.written_ms.load(Ordering::Relaxed)).filter(|ms| *ms != NONE);
        let age = |ms: i64| Duration::from_millis(self.env.wall_ms().saturating_sub(ms).max(0) as u64);
        SplitFigures {
            bytes: Some(of(&self.bytes)),
            dropped: Some(of(&self.dropped)),
            dead_letters: Some(of(&self.dead_letters)),
            decode: Some(Duration::from_nanos(of(&self.decode_ns))),
            lag_records,
            lag: if lag_records == Some(0) { Some(Duration::ZERO) } else { written_ms.map(age) },
        }
    }
}
