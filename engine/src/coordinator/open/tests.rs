//! A program that changes from one release to the next, and the state that it finds.

use std::time::Duration;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::env::BoxFuture;
use millstream_objects::StoreOptions;
use millstream_objects::object_store::memory::InMemory;
use millstream_proto::version::version_record::Kind;
use millstream_proto::version::{KeyGroupRange, Run, RunState, SplitState};

use super::*;
use crate::dataflow::{Dataflow, JobDefinition, KeyedStream, NoArgs, Stream, TtlClock, count, max, min, sum};
use crate::sink::{Committer, Sink, SinkContext, SinkWriter};
use crate::source::{Discovery, Position, Source, Split, SplitEnumerator, SplitReader};

struct Orders;

impl Source for Orders {
    fn schema(&self) -> SchemaRef {
        let column = |name: &str, of| Field::new(name, of, false);
        let columns = [("shop", DataType::Utf8), ("amount", DataType::Int64), ("weight", DataType::Int64)];
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

struct Nowhere;

impl Sink for Nowhere {
    fn writer(&self, _: SchemaRef, _: SinkContext) -> Result<Box<dyn SinkWriter>> {
        Err(Error::internal("not written"))
    }
    fn committer(&self) -> Result<Box<dyn Committer>> {
        Err(Error::internal("not written"))
    }
}

/// Opens the job with this plan behind its keyed orders.
async fn open_release(
    store: &Store,
    env: &Env,
    source: &'static str,
    plan: impl Fn(&KeyedStream) -> Stream + Send + Sync + 'static,
) -> Result<Opened> {
    let job = JobDefinition::new("shops", "orders by shop", move |_: &NoArgs, _: &JobContext| {
        let flow = Dataflow::new();
        plan(&flow.source(source, Arc::new(Orders)).key_by(["shop"])).sink("out", Arc::new(Nowhere));
        flow.build()
    });
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
        keyed.aggregate("largest", [max("amount")]).sink("largest", Arc::new(Nowhere));
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
    let weights = |keyed: &KeyedStream| keyed.aggregate("totals", [count(), sum("weight").as_("total")]);
    let words = ["aggregate total", "'values of amount' there", "'values of weight' here"];
    must_say(open_release(&store, &env, "orders", weights).await, 1515, &words);
    // An operator that has another id now.
    let other = |keyed: &KeyedStream| first(keyed).uid("sums");
    must_say(open_release(&store, &env, "orders", other).await, 1515, &["'aggregates'", "totals", "would be lost"]);
    // A source of another name.
    must_say(open_release(&store, &env, "purchases", first).await, 1515, &["positions of source 'orders'"]);
    // Nothing of this has changed anything.
    assert_eq!(open_release(&store, &env, "orders", first).await.unwrap().master.record.number, 3);
}
