//! Where the output of the simulation goes. In most runs to a sink of its own: rows are staged under a name that is used once,
//! outside of all nodes, and become visible by a commit. In the others to topics, by the Kafka sink as it ships, on a
//! model of the broker. What must never happen is checked when it would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType, UInt8Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use millstream_common::env::BoxFuture;
use millstream_common::{Env, Epoch, Error, Execution, Generation, Lane, Result};
use millstream_engine::dataflow::JobContext;
use millstream_engine::sink::{Committable, Committer, PreCommit, Sink, SinkContext, SinkWriter};
use millstream_formats::{Encoder, EncodingFormat, Records};
use millstream_kafka::model::{By, Faults, ModelBroker, Written};
use millstream_kafka::sink::{KafkaSink, KafkaSinkOptions, LostTransactions, ToTopic};
use parking_lot::Mutex;

use super::dice::Dice;
use super::plan::ToTopics;
use super::store::Ledger;
use super::trace::Trace;

/// A row of an output; `None` is null.
pub type Row = Vec<Option<i64>>;

/// Which commit: epoch, subtask, sequence.
type CommitKey = (u64, u32, u32);

/// What a sink has made visible: the staged name and its rows.
type Commitments = BTreeMap<CommitKey, (String, Vec<Row>)>;

/// The places where output goes, one of them. They outlive every node. Clones share them.
#[derive(Clone)]
pub struct Outside(Arc<Inner>, Arc<str>);

/// Latest moment at which a request takes effect that its sender has given up.
const LATE: Duration = Duration::from_secs(20);

struct Inner {
    env: Env,
    trace: Trace,
    ledger: Ledger,
    state: Mutex<State>,
    /// Output goes to topics of a broker.
    kafka: Option<Kafka>,
}

struct Kafka {
    broker: ModelBroker,
    to: ToTopics,
    seen: Arc<Mutex<Transactions>>,
}

/// What became of transactions.
#[derive(Default)]
struct Transactions {
    /// One that a version lists was given up.
    lost: bool,
    /// Those that were aborted, as a version would list them, by the id under which they would be written again.
    aborted: BTreeMap<String, Vec<u8>>,
    /// The ids under which some were.
    again: BTreeSet<String>,
}

struct State {
    dice: Dice,
    /// Requests that fail, in 100; half of them after they took effect.
    faults: u64,
    staged: BTreeMap<String, Staged>,
    /// By place and sink.
    committed: BTreeMap<(String, String), Commitments>,
    names: BTreeMap<String, (String, CommitKey)>,
}

#[derive(Clone)]
struct Staged {
    rows: Vec<Row>,
    writer: (Generation, Execution),
    place: Arc<str>,
}

impl Outside {
    /// A place without output.
    #[must_use]
    pub fn new(env: Env, trace: Trace, ledger: Ledger, dice: Dice, to_kafka: Option<ToTopics>) -> Self {
        let state =
            State { dice, faults: 0, staged: BTreeMap::new(), committed: BTreeMap::new(), names: BTreeMap::new() };
        let kafka = to_kafka.map(|to| {
            let seen = Arc::<Mutex<Transactions>>::default();
            let broker = broker(env.clone(), trace.clone(), ledger.clone(), to, seen.clone());
            Kafka { broker, to, seen }
        });
        Self(Arc::new(Inner { env, trace, ledger, state: Mutex::new(state), kafka }), "".into())
    }

    /// The sink `name` of a job, as a process makes it.
    pub fn sink(&self, name: &str, context: &JobContext) -> Result<Arc<dyn Sink>> {
        let Some(kafka) = &self.0.kafka else { return Ok(Arc::new(SimSink(self.clone()))) };
        let prefix = format!("{}-{name}", context.name);
        let to = ToTopic::Named(name.to_owned());
        let mut options = KafkaSinkOptions::new(vec!["model:9092".to_owned()], to, Arc::new(Numbers), prefix);
        options.value_knows_changes = true;
        options.retry_timeout = Duration::from_secs(5);
        options.transaction_timeout = kafka.to.transaction_timeout;
        if kafka.to.write_again {
            options.lost_transactions = LostTransactions::WriteAgain;
        }
        Ok(Arc::new(KafkaSink::over_model(context.env.clone(), options, &kafka.broker)?))
    }

    /// Another place beside this one.
    #[must_use]
    pub fn at(&self, place: &str) -> Self {
        Self(self.0.clone(), place.into())
    }

    /// So many requests in 100 fail from now on.
    pub fn set_faults(&self, percent: u64) {
        self.0.state.lock().faults = percent;
        if let Some(Kafka { broker, .. }) = &self.0.kafka {
            broker.set_faults(Faults { percent, late: LATE });
        }
    }

    /// Whether the broker has given up a transaction that a version lists.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.0.kafka.as_ref().is_some_and(|k| k.seen.lock().lost)
    }

    /// How many transactions were written again.
    #[must_use]
    pub fn written_again(&self) -> usize {
        self.0.kafka.as_ref().map_or(0, |k| k.seen.lock().again.len())
    }

    /// What the sink `name` has made visible, in the order of epochs, then subtasks.
    #[must_use]
    pub fn rows(&self, name: &str) -> Vec<Row> {
        self.rows_until(name, u64::MAX)
    }

    /// As [`Outside::rows`], of epochs up to `epoch`. A broker knows no epochs: there it is all rows.
    #[must_use]
    pub fn rows_until(&self, name: &str, epoch: u64) -> Vec<Row> {
        if let Some(Kafka { broker, .. }) = &self.0.kafka {
            return broker.decided(name).iter().map(numbers).collect();
        }
        let state = self.0.state.lock();
        let committed = state.committed.get(&(self.1.to_string(), sink_uid(name)));
        let until = committed.into_iter().flatten().filter(|(key, _)| key.0 <= epoch);
        until.flat_map(|(_, (_, rows))| rows.clone()).collect()
    }

    /// How long a request takes, and whether it fails before or after its effect.
    fn request(&self) -> (Duration, bool, bool) {
        let mut state = self.0.state.lock();
        let wait = state.dice.millis(1..30);
        let fails = state.faults > 0 && { state.dice.within(0..100) < state.faults };
        let after = state.dice.chance(50);
        (wait, fails && !after, fails && after)
    }

    /// A request: goes there, takes effect unless it fails before, comes back unless it fails after. The effect does not
    /// depend on whether the sender still lives.
    async fn perform<T: Send + 'static>(&self, effect: impl FnOnce(&Outside) -> T + Send + 'static) -> Result<T> {
        let (wait, before, after) = self.request();
        if before {
            self.0.env.sleep(wait).await;
            return Err(Error::unavailable("the sink's place did not take the request").code(2100));
        }
        let this = self.clone();
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.0.env.spawn(Lane::Io, "request to the outside", async move {
            this.0.env.sleep(wait / 2).await;
            // The sender may be gone.
            let _ = tx.send(effect(&this));
        });
        let outcome = rx.await.map_err(|_| Error::canceled("the outside is gone"))?;
        self.0.env.sleep(wait / 2).await;
        if after {
            Err(Error::unavailable("the answer of the sink's place was lost").code(2100).maybe_applied())
        } else {
            Ok(outcome)
        }
    }

    fn stage(&self, name: &str, staged: Staged) {
        let mut state = self.0.state.lock();
        if let Some(there) = state.staged.get(name)
            && there.rows != staged.rows
        {
            drop(state);
            return self.0.trace.violation(format!("{name} is staged twice with different rows"));
        }
        state.staged.insert(name.into(), staged);
    }

    fn commit(&self, c: &Committable) {
        let listed = (c.sink_uid.clone(), c.epoch.0, c.subtask.0, c.sequence, c.payload.clone());
        let name = String::from_utf8_lossy(&c.payload).into_owned();
        let key = (c.epoch.0, c.subtask.0, c.sequence);
        self.0.trace.event("commit", "outside", &format!("{} {key:?} {name}", c.sink_uid));
        if !self.0.ledger.is_durable(&listed) {
            self.0.trace.violation(format!("{key:?} {name} is committed, but no version lists it"));
        }
        let mut state = self.0.state.lock();
        let sink = (self.1.to_string(), c.sink_uid.clone());
        let of_sink = state.committed.entry(sink.clone()).or_default();
        if let Some((there, _)) = of_sink.get(&key) {
            // As an Iceberg snapshot tells a repeated commit: by job and epoch.
            if *there != name {
                let what = format!("{key:?} is committed as {there} and as {name}");
                drop(state);
                self.0.trace.violation(what);
            }
            return;
        }
        let Some(staged) = state.staged.get(&name).cloned() else {
            drop(state);
            return self
                .0
                .trace
                .violation(format!("{key:?} {name} is committed, but nothing is staged under that name"));
        };
        if staged.rows.len() as u64 != c.rows {
            self.0.trace.violation(format!("{name} has {} rows, the committable says {}", staged.rows.len(), c.rows));
        }
        state.names.insert(name.clone(), (c.sink_uid.clone(), key));
        state.committed.entry(sink).or_default().insert(key, (name, staged.rows));
    }

    /// What older writers left and nobody committed goes.
    fn clean_up(&self, generation: Generation, execution: Execution) {
        let mut state = self.0.state.lock();
        let committed: Vec<String> = state.names.keys().cloned().collect();
        let goes = |s: &Staged| s.place == self.1 && s.writer < (generation, execution);
        state.staged.retain(|name, s| !goes(s) || committed.binary_search(name).is_ok());
    }
}

/// A broker whose transactions are committed only when a version lists them. One that was aborted may be written again, once.
fn broker(env: Env, trace: Trace, ledger: Ledger, to: ToTopics, seen: Arc<Mutex<Transactions>>) -> ModelBroker {
    ModelBroker::new(env, move |ended| {
        let what = format!("{:?} {} {} rows since {}", ended.by, ended.id, ended.records, ended.started_ms);
        trace.event("transaction", "broker", &what);
        let listed = ledger.is_listed(&ended.committable());
        let mut seen = seen.lock();
        match ended.by {
            By::Commit if listed => {}
            By::Commit if !seen.aborted.get(&ended.id).is_some_and(|of| ledger.is_listed(of)) => {
                trace.violation(format!("a transaction of {} is committed, but no version lists it", ended.id));
            }
            By::Commit if !seen.again.insert(ended.id.clone()) => {
                trace.violation(format!("what {} holds is written again twice", ended.id));
            }
            By::Commit => {}
            // What follows one that is written again is aborted, too.
            By::Abort if listed && !(to.write_again && (seen.lost || !seen.again.is_empty())) => {
                trace.violation(format!("a transaction of {} is aborted, which a version lists", ended.id));
            }
            By::Abort | By::Timeout => {
                seen.lost |= listed;
                seen.aborted.insert(ended.again(), ended.committable());
            }
        }
    })
}

/// Rows of numbers as text: one behind the other, nothing for null.
struct Numbers;

impl EncodingFormat for Numbers {
    fn encoder(&self, _: &SchemaRef) -> Result<Box<dyn Encoder>> {
        Ok(Box::new(Self))
    }
}

impl Encoder for Numbers {
    fn encode(&mut self, batch: &RecordBatch, records: &mut Records) -> Result<()> {
        for row in rows_of(batch)? {
            let text: Vec<String> = row.iter().map(|n| n.map_or_else(String::new, |n| n.to_string())).collect();
            records.bytes_mut().extend_from_slice(text.join(",").as_bytes());
            records.end();
        }
        Ok(())
    }
}

fn numbers(record: &Written) -> Row {
    let text = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
    text.split(',').map(|n| n.parse().ok()).collect()
}

/// The stable id of the sink `name`.
#[must_use]
pub fn sink_uid(name: &str) -> String {
    format!("to-{name}")
}

/// A sink into the outside.
pub struct SimSink(pub Outside);

impl Sink for SimSink {
    fn is_a_place(&self) -> bool {
        true
    }

    fn writer(&self, schema: SchemaRef, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let outside = self.0.clone();
        Ok(Box::new(Writer { outside, schema, context, rows: Vec::new(), sequence: 0 }))
    }

    fn committer(&self) -> Result<Box<dyn Committer>> {
        Ok(Box::new(Commits(self.0.clone())))
    }
}

struct Writer {
    outside: Outside,
    schema: SchemaRef,
    context: SinkContext,
    rows: Vec<Row>,
    sequence: u64,
}

impl SinkWriter for Writer {
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        let right = batch.schema().fields() == self.schema.fields();
        let taken =
            if right { rows_of(batch).map(|r| self.rows.extend(r)) } else { Err(Error::internal("another schema")) };
        Box::pin(std::future::ready(taken))
    }

    fn pre_commit(&mut self, epoch: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        Box::pin(async move {
            if self.rows.is_empty() {
                return Ok(PreCommit::default());
            }
            self.sequence += 1;
            let c = &self.context;
            let name =
                format!("{}-{}-{}-{:016x}-{epoch}-{}", c.generation, c.execution, c.subtask, c.unique, self.sequence);
            let rows = std::mem::take(&mut self.rows);
            let staged = Staged { rows, writer: (c.generation, c.execution), place: self.outside.1.clone() };
            let count = staged.rows.len() as u64;
            for attempt in 0.. {
                let (to, staged) = (name.clone(), staged.clone());
                match self.outside.perform(move |o| o.stage(&to, staged)).await {
                    Ok(()) => break,
                    Err(e) if attempt == 5 => return Err(e),
                    Err(_) => {}
                }
            }
            Ok(PreCommit { rows: count, committable: Some(name.into_bytes()), ..PreCommit::default() })
        })
    }
}

struct Commits(Outside);

impl Committer for Commits {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        let c = committable.clone();
        Box::pin(async move { self.0.perform(move |o| o.commit(&c)).await })
    }

    fn clean_up(&mut self, generation: Generation, execution: Execution) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.0.perform(move |o| o.clean_up(generation, execution)).await })
    }
}

/// A batch as rows of numbers.
fn rows_of(batch: &RecordBatch) -> Result<Vec<Row>> {
    let mut rows = vec![Row::with_capacity(batch.num_columns()); batch.num_rows()];
    for column in batch.columns() {
        let value: Box<dyn Fn(usize) -> i64 + '_> = match column.data_type() {
            DataType::Int64 => Box::new(|i| column.as_primitive::<Int64Type>().value(i)),
            DataType::UInt8 => Box::new(|i| i64::from(column.as_primitive::<UInt8Type>().value(i))),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Box::new(|i| column.as_primitive::<TimestampMillisecondType>().value(i))
            }
            other => return Err(Error::internal(format!("the simulated sink takes no {other}"))),
        };
        for (i, row) in rows.iter_mut().enumerate() {
            row.push(column.is_valid(i).then(|| value(i)));
        }
    }
    Ok(rows)
}
