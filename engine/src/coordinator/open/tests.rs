//! A program that changes from one release to the next, and the state that it finds.

use std::time::Duration;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::env::BoxFuture;
use millstream_common::hash::HASH_ID;
use millstream_objects::StoreOptions;
use millstream_objects::object_store::memory::InMemory;
use millstream_proto::version::{Committable, KeyGroupRange, Run, RunState, SplitState};
use millstream_state_store::key::KEY_CODEC_ID;

use super::*;
use crate::dataflow::{Dataflow, JobDefinition, KeyedStream, NoArgs, Stream, TtlClock, count, max, min, sum};
use crate::sink::{Committer, Sink, SinkContext, SinkWriter};
use crate::source::{Discovery, Position, Source, Split, SplitEnumerator, SplitReader};
use crate::worker::deploy::check_program;

struct Orders;

impl Source for Orders {
    fn schema(&self) -> SchemaRef {
        let column = |name: &str, of| Field::new(name, of, false);
        let columns = [
            ("shop", DataType::Utf8),
            ("amount", DataType::Int64),
            ("weight", DataType::Int64),
            ("city", DataType::Utf8),
        ];
        Arc::new(Schema::new(columns.map(|(name, of)| column(name, of)).to_vec()))
    }
    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(Self))
    }
    fn reader(&self, _: &Split, _: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        Err(Error::internal("not read"))
    }
}

impl SplitEnumerator for Orders {
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>> {
        let all = [Split { id: "0".to_owned(), payload: Vec::new() }];
        let new = all.into_iter().filter(|s| !known.contains(&s.id)).collect();
        Box::pin(async { Ok(Discovery { new, complete: true }) })
    }
}

/// A place that holds something already, or nothing.
struct Nowhere {
    taken: bool,
}

impl Sink for Nowhere {
    fn writer(&self, _: SchemaRef, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Err(Error::internal("not written"))
    }
    fn committer(&self) -> Result<Box<dyn Committer>> {
        Err(Error::internal("not written"))
    }
    fn check_fresh(&self) -> Result<()> {
        if self.taken { Err(Error::config("it holds the output of others")) } else { Ok(()) }
    }
}

fn nowhere() -> Arc<dyn Sink> {
    Arc::new(Nowhere { taken: false })
}

/// The plan behind orders by `key`.
fn graph(source: &str, key: &str, plan: impl Fn(&KeyedStream) -> Stream) -> Result<JobGraph> {
    let flow = Dataflow::new();
    plan(&flow.source(source, Arc::new(Orders)).key_by([key])).sink("out", nowhere());
    flow.build()
}

/// Opens the job with this plan behind its orders by shop.
async fn open_release(
    store: &Store,
    env: &Env,
    source: &'static str,
    plan: impl Fn(&KeyedStream) -> Stream + Send + Sync + 'static,
) -> Result<Opened> {
    open_keyed(store, env, (source, "shop"), plan).await
}

async fn open_keyed(
    store: &Store,
    env: &Env,
    (source, key): (&'static str, &'static str),
    plan: impl Fn(&KeyedStream) -> Stream + Send + Sync + 'static,
) -> Result<Opened> {
    let build = move |_: &NoArgs, _: &JobContext| graph(source, key, &plan);
    let job = JobDefinition::new("shops", "orders by shop", build);
    let spec = JobSpec { id: "1".into(), name: "shops".into(), job: "shops".into(), ..JobSpec::default() };
    let request = OpenRequest { spec, parallelism: None, from: From::Latest, discard_state: false, taken_over: false };
    open(Arc::new(JobRegistry::new().with(job)), store.clone(), request, 0, env.clone()).await
}

/// A checkpoint behind the take-over: every state has entries, the split is half read.
async fn checkpoint(opened: &Opened) {
    let base = &opened.master.record;
    let mut record =
        VersionRecord { number: base.number + 1, epoch: base.epoch + 1, nonce: "1".into(), ..base.clone() };
    record.set_kind(Kind::Checkpoint);
    let tree = record.tree.as_mut().expect("a tree");
    let states =
        tree.states.iter().map(|s| RunState { state_id: s.state_id, time_min: 1, entries: 1, ..RunState::default() });
    tree.runs.push(Run {
        task_id: tree.tasks[0].task_id,
        object: "a".into(),
        length: 100,
        meta_offset: 50,
        meta_length: 50,
        directory_length: 20,
        object_bytes: 100,
        clip: vec![KeyGroupRange { start: 0, end: millstream_common::KEY_GROUPS }],
        epoch_min: record.epoch,
        epoch_max: record.epoch,
        entries: 1,
        states: states.collect(),
        ..Run::default()
    });
    record.splits =
        vec![SplitState { source_uid: "orders".into(), split_id: "0".into(), offset: 7, ..Default::default() }];
    settle(Some(base), &mut record);
    let outcome = opened.log.commit(&stored(Some(base), &record)).await.expect("it is committed");
    assert!(matches!(outcome, CommitOutcome::Committed));
}

fn first(keyed: &KeyedStream) -> Stream {
    keyed.aggregate("totals", [count(), sum("amount").as_("total")])
}

async fn first_release() -> (Store, Env) {
    let env = Env::test(1);
    let store = Store::from_backend(Arc::new(InMemory::new()), "memory://", &StoreOptions::default(), &env);
    let opened = open_release(&store, &env, "orders", first).await.expect("nothing stands in its way");
    checkpoint(&opened).await;
    (store, env)
}

#[tokio::test(start_paused = true)]
async fn aggregates_may_come_go_and_change_their_names() {
    let (store, env) = first_release().await;
    let second = |keyed: &KeyedStream| {
        let keyed = keyed.state_ttl(Duration::from_secs(60), TtlClock::EventTime);
        let kept = sum("amount").as_("turnover").renamed_from("total");
        keyed.aggregate("totals", [kept, max("weight").as_("heaviest")])
    };
    let opened = open_release(&store, &env, "orders", second).await.unwrap();
    let tree = opened.master.record.tree.as_ref().unwrap();
    assert_eq!((tree.states.len(), tree.states[0].schemas.len(), tree.runs.len()), (1, 2, 1));
    assert_eq!(opened.master.record.splits[0].offset, 7);
}

#[tokio::test(start_paused = true)]
async fn operators_without_state_may_come_and_state_of_new_ones_begins_empty() {
    let (store, env) = first_release().await;
    let opened = open_release(&store, &env, "orders", |keyed| {
        let totals = first(keyed);
        keyed.aggregate("largest", [max("amount")]).sink("largest", nowhere());
        totals.map("same", totals.schema().clone(), |rows| Ok(rows.clone()))
    });
    let opened = opened.await.unwrap();
    assert_eq!(opened.master.record.tree.as_ref().unwrap().states.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_place_or_means_something_else_is_refused() {
    let (store, env) = first_release().await;
    let must_say = |opened: Result<Opened>, number: u16, words: &[&str]| {
        let error = opened.err().expect("it is refused");
        assert_eq!(error.number(), number, "{error}");
        words.iter().for_each(|w| assert!(error.to_string().contains(w), "{w}: {error}"));
    };
    // Another function under the same name.
    let smallest = |keyed: &KeyedStream| keyed.aggregate("totals", [count(), min("amount").as_("total")]);
    must_say(open_release(&store, &env, "orders", smallest).await, 1202, &["total", "sum", "min"]);
    // The same function over something else.
    let words = ["aggregate total", "'values of amount' there", "'values of weight' here"];
    must_say(open_release(&store, &env, "orders", over_weights).await, 1515, &words);
    // The same key columns by their types, and others.
    let words = ["key of input 0", "'shop' there", "'city' here"];
    must_say(open_keyed(&store, &env, ("orders", "city"), first).await, 1515, &words);
    // A new sink whose place is not empty.
    let more = |keyed: &KeyedStream| {
        keyed.aggregate("largest", [max("amount")]).sink("largest", Arc::new(Nowhere { taken: true }));
        first(keyed)
    };
    must_say(open_release(&store, &env, "orders", more).await, 1000, &["of others"]);
    // An operator that has another id now.
    let other = |keyed: &KeyedStream| first(keyed).uid("sums");
    must_say(open_release(&store, &env, "orders", other).await, 1515, &["'aggregates'", "totals", "would be lost"]);
    // A source of another name.
    must_say(open_release(&store, &env, "purchases", first).await, 1515, &["positions of source 'orders'"]);
    // Nothing of this has changed anything.
    assert_eq!(open_release(&store, &env, "orders", first).await.unwrap().master.record.number, 3);
}

fn over_weights(keyed: &KeyedStream) -> Stream {
    keyed.aggregate("totals", [count(), sum("weight").as_("total")])
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_release_wrote_wants_the_plan_that_it_had() {
    let (store, env) = first_release().await;
    let mut record = open_release(&store, &env, "orders", first).await.unwrap().master.record;
    let job = record.job.as_mut().unwrap();
    (job.parameters, job.sinks) = (Vec::new(), Vec::new());
    let admitted = |plan: fn(&KeyedStream) -> Stream| {
        let here = Identity::new("shops", Vec::new(), &graph("orders", "shop", plan).unwrap()).unwrap();
        record::admit(Some(record.clone()), &here, false, false)
    };
    assert!(admitted(first).is_ok());
    let error = admitted(over_weights).unwrap_err();
    assert!(error.number() == 1515 && error.to_string().contains("(project shop, weight)"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_another_release_runs_nothing() {
    let (store, env) = first_release().await;
    let opened = open_release(&store, &env, "orders", first).await.unwrap();
    let check = |graph: &JobGraph| check_program(&opened.master.record, graph);
    check(&opened.graph).unwrap();
    let others = [graph("orders", "shop", over_weights), graph("orders", "city", first)];
    others.into_iter().for_each(|other| assert_eq!(check(&other.unwrap()).unwrap_err().number(), 7026));
}

/// Version 1 lists what epochs 1, 2 and 3 left; 2 still does, 3 only epochs 2 and 3, 4 is a take-over of 3, 5 lists epoch 3
/// alone. Then somebody goes back to version 1: 6.
#[tokio::test(start_paused = true)]
async fn what_a_later_version_of_the_same_chain_does_not_list_is_committed() {
    let env = Env::test(1);
    let store = Store::from_backend(Arc::new(InMemory::new()), "memory://", &StoreOptions::default(), &env);
    let log = VersionLog::new(store, env.clone());
    let chain: [(u64, Kind, u64, &[u64]); 6] = [
        (1, Kind::Checkpoint, 0, &[1, 2, 3]),
        (2, Kind::Compaction, 0, &[1, 2, 3]),
        (3, Kind::Checkpoint, 0, &[2, 3]),
        (4, Kind::TakeOver, 3, &[2, 3]),
        (5, Kind::Checkpoint, 0, &[3]),
        (6, Kind::TakeOver, 1, &[]),
    ];
    let mut records = Vec::new();
    for (number, kind, base, epochs) in chain {
        let listed = |&epoch: &u64| Committable { sink_uid: "out".into(), epoch, ..Committable::default() };
        let mut record = VersionRecord {
            number,
            nonce: number.to_string(),
            base,
            hash_id: HASH_ID,
            key_codec_id: KEY_CODEC_ID,
            committables: epochs.iter().map(listed).collect(),
            ..VersionRecord::default()
        };
        record.set_kind(kind);
        settle(None, &mut record);
        assert!(matches!(log.commit(&stored(None, &record)).await.unwrap(), CommitOutcome::Committed));
        records.push(record);
    }
    let confirmed = async |of: usize, newest: u64| -> Vec<u64> {
        let found = confirmed_later(&log, &records[of - 1], newest).await.unwrap();
        found.into_iter().map(|key| key.1).collect()
    };
    assert_eq!(confirmed(1, 6).await, [1, 2], "3 may have been committed, or not");
    assert!(confirmed(1, 2).await.is_empty(), "nothing behind it says so");
    assert_eq!(confirmed(3, 6).await, [2]);
    assert!(confirmed(5, 6).await.is_empty(), "version 6 does not follow from it");
}
