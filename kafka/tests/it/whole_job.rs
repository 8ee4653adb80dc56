//! A whole job in this process: Avro through a schema registry into topics, through a job, and out of them again.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Env, Epoch, Execution, Generation, Lane, Result, SubtaskIndex};
use millstream_engine::coordinator::{CoordinatorOptions, run_coordinator};
use millstream_engine::dataflow::{Dataflow, JobContext, JobDefinition, JobRegistry, NoArgs};
use millstream_engine::graph::JobGraph;
use millstream_engine::settings::Settings;
use millstream_engine::sink::{DurableVersion, Sink, SinkContext};
use millstream_engine::transport::Transport;
use millstream_engine::transport::in_process::InProcess;
use millstream_engine::worker::stores::TaskMemory;
use millstream_engine::worker::{LeaveRequest, Role, Stores, WorkerOptions, run_worker};
use millstream_formats::avro::{AvroDecoding, AvroEncoding, Written};
use millstream_kafka::registry::HttpRegistry;
use millstream_kafka::sink::{DeliveryGuarantee, KafkaSink, KafkaSinkOptions, ToTopic};
use millstream_kafka::source::{KafkaSource, KafkaSourceOptions, StopAt, Topics};
use millstream_objects::{Meter, Store, StoreEnvironment, StoreOptions};
use millstream_proto::control::client_reply::Reply;
use millstream_proto::control::client_request::Request;
use millstream_proto::control::{ClientRequest, ProcessUsage, Status, Submit};
use millstream_state_store::Caches;

use super::registry::registry;
use super::source::all;
use super::support::{bootstrap, create_topic, run, unique};

const HERE: &str = "in-process";
const HEARTBEAT: Duration = Duration::from_millis(500);
const MEMORY: u64 = 16 << 20;

struct InMemory(Store);

impl Stores for InMemory {
    fn job_store(&self, name: &str, _: &Settings) -> Result<Store> {
        Ok(self.0.child(name).with_meter(Meter::new()))
    }

    fn caches(&self) -> Caches {
        Caches::in_memory(MEMORY, MEMORY)
    }

    fn task_memory(&self, _: &Settings, _: usize) -> TaskMemory {
        TaskMemory { rows_bytes: MEMORY, write_buffer_bytes: MEMORY, reads_bytes: MEMORY, due_bytes: MEMORY }
    }
}

/// Runs a job to its end, by a coordinator and a worker of this process.
async fn finish(env: &Env, registry: JobRegistry, job: &str, name: &str) {
    let store = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::default(), env).unwrap();
    let (stores, registry) = (Arc::new(InMemory(store)), Arc::new(registry));
    let net = InProcess::default();
    let arrivals = net.listen_coordinator(HERE);
    let net = Arc::new(net);
    let options = CoordinatorOptions {
        address: HERE.into(),
        state_url: "memory://".into(),
        cluster: None,
        heartbeat_interval: HEARTBEAT,
        heartbeat_timeout: HEARTBEAT * 20,
        usage: Arc::new(ProcessUsage::default),
        pid: 1,
    };
    let coordinator = run_coordinator(options, arrivals, net.clone(), registry.clone(), stores.clone(), env.clone());
    let _coordinator = env.run(Lane::Io, "coordinator", coordinator);
    let options = WorkerOptions {
        name: "worker".into(),
        role: Role::Worker,
        slots: 2,
        coordinators: vec![HERE.into()],
        pid: 1,
        heartbeat_interval: HEARTBEAT,
        heartbeat_timeout: HEARTBEAT * 20,
        usage: Arc::new(ProcessUsage::default),
        leave: LeaveRequest::default(),
        ledger: Default::default(),
        drain_timeout: Duration::ZERO,
    };
    let _worker = env.run(Lane::Io, "worker", run_worker(options, net.clone(), registry, stores, env.clone()));
    let ask = async |request: Request| {
        let reply = net.call(HERE, ClientRequest { request: Some(request) }).await.unwrap();
        reply.reply.unwrap()
    };
    let settings = [("checkpoint.timeout", "60s"), ("checkpoint.interval", "200ms")];
    let submit = Submit {
        job: job.into(),
        name: name.into(),
        parallelism: 2,
        settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..Submit::default()
    };
    let Reply::JobId(id) = ask(Request::Submit(submit)).await else { panic!("the job is refused") };
    loop {
        let Reply::Json(document) = ask(Request::Status(Status { job: id.clone() })).await else { panic!("no status") };
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        match document["state"].as_str() {
            Some("finished") => return,
            Some("failed" | "stopped" | "canceled") => panic!("{document}"),
            _ => env.sleep(Duration::from_millis(50)).await,
        }
    }
}

fn orders() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("name", DataType::Utf8, true)]))
}

fn avro(subject: &str, registry: &Arc<HttpRegistry>) -> Arc<AvroEncoding> {
    Arc::new(AvroEncoding::new("shop.Order").unwrap().registered(subject, registry.clone()))
}

fn reading(topic: &str, env: &Env, registry: &Arc<HttpRegistry>) -> Result<KafkaSource> {
    let mut options = KafkaSourceOptions::new(vec![bootstrap()], Topics::Named(vec![topic.to_owned()]));
    options.stop = Some(StopAt::Latest);
    let format = AvroDecoding::new(orders(), Written::Registered(registry.clone()))?;
    KafkaSource::new(env.clone(), options, Arc::new(format))
}

/// Writes rows as Avro, under the schema of their columns.
async fn fill(env: &Env, topic: &str, registry: &Arc<HttpRegistry>, columns: Vec<(&str, ArrayRef)>) {
    let to = ToTopic::Named(topic.to_owned());
    let mut options = KafkaSinkOptions::new(vec![bootstrap()], to, avro(&format!("{topic}-value"), registry), "");
    options.guarantee = DeliveryGuarantee::AtLeastOnce;
    let fields: Vec<_> = columns
        .iter()
        .map(|(n, a)| orders().field_with_name(n).unwrap().clone().with_data_type(a.data_type().clone()))
        .collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, a)| a).collect()).unwrap();
    let context = SinkContext::new(SubtaskIndex(0), Generation(1), Execution(1), 1);
    let mut writer = KafkaSink::new(env.clone(), options).unwrap().writer(schema, context).unwrap();
    writer.on_version(DurableVersion { epoch: Epoch(0), committables: &[] }).await.unwrap();
    writer.write(&batch).await.unwrap();
    writer.pre_commit(Epoch(1)).await.unwrap();
}

fn even(batch: &RecordBatch) -> Result<BooleanArray> {
    Ok(BooleanArray::from_unary(batch.column(0).as_primitive::<Int64Type>(), |n| n % 2 == 0))
}

/// Records of two schemas come in, those of a third one go out, exactly once.
#[test]
fn a_job_reads_and_writes_avro_through_a_registry() {
    run(|env| async move {
        let (from, to) = (unique("orders"), unique("even-orders"));
        create_topic(&from, 2).await;
        create_topic(&to, 2).await;
        let registry = registry(&env);
        let numbers = |numbers: std::ops::Range<i64>| Arc::new(Int64Array::from_iter_values(numbers)) as ArrayRef;
        fill(&env, &from, &registry, vec![("n", numbers(0..50))]).await;
        let names = Arc::new(StringArray::from_iter_values((50..100).map(|n| format!("name of {n}"))));
        fill(&env, &from, &registry, vec![("n", numbers(50..100)), ("name", names)]).await;

        let (topics, through) = ((from.clone(), to.clone()), registry.clone());
        let build = move |_: &NoArgs, context: &JobContext| -> Result<JobGraph> {
            let flow = Dataflow::new();
            let orders = flow.source("orders", Arc::new(reading(&topics.0, &context.env, &through)?));
            let format = avro(&format!("{}-value", topics.1), &through);
            let named = ToTopic::Named(topics.1.clone());
            let options = KafkaSinkOptions::new(vec![bootstrap()], named, format, context.name.clone());
            orders.filter("even", even).sink("out", Arc::new(KafkaSink::new(context.env.clone(), options)?));
            flow.build()
        };
        let jobs = JobRegistry::new().with(JobDefinition::new("even", "orders with an even number", build));
        finish(&env, jobs, "even", &unique("job")).await;

        let due = |n: i64| match n {
            0..50 => format!("{{\"n\":{n},\"name\":null}}"),
            _ => format!("{{\"n\":{n},\"name\":\"name of {n}\"}}"),
        };
        let mut due: Vec<_> = (0..100).step_by(2).map(due).collect();
        let mut found = all(&reading(&to, &env, &registry).unwrap()).await.concat();
        due.sort();
        found.sort();
        assert_eq!(found, due);
    });
}
