//! Exactly once on brokers before Apache Kafka 3.0, which neither describe transactions nor list them.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Env, Epoch, Execution, Generation, SubtaskIndex};
use millstream_engine::sink::{Committable, DurableVersion, Sink, SinkContext, SinkWriter};
use millstream_formats::json::JsonEncoding;

use super::committable::UNTOLD;
use super::*;
use crate::model::ModelBroker;

const TIMEOUT: Duration = Duration::from_secs(60);

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn sink(env: &Env, broker: &ModelBroker) -> KafkaSink {
    let to = ToTopic::Named("t".into());
    let mut options = KafkaSinkOptions::new(vec!["model:9092".into()], to, Arc::new(JsonEncoding), "job");
    options.transaction_timeout = TIMEOUT;
    KafkaSink::over_model(env.clone(), options, broker).unwrap()
}

async fn writer(sink: &KafkaSink) -> Box<dyn SinkWriter> {
    let mut context = SinkContext::new(SubtaskIndex(0), Generation(1), Execution(1), 7);
    (context.checkpoint_interval, context.checkpoint_timeout) = (Duration::from_secs(1), Duration::from_secs(1));
    let mut writer = sink.writer(schema(), context).unwrap();
    writer.on_version(DurableVersion { epoch: Epoch(0), committables: &[] }).await.unwrap();
    writer
}

async fn write(writer: &mut dyn SinkWriter, n: i64, epoch: u64) -> Committable {
    let batch = RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(vec![n]))]).unwrap();
    writer.write(&batch).await.unwrap();
    let done = writer.pre_commit(Epoch(epoch)).await.unwrap();
    let (payload, rows) = (done.committable.unwrap(), done.rows);
    Committable {
        sink_uid: "s".into(),
        epoch: Epoch(epoch),
        subtask: SubtaskIndex(0),
        sequence: 0,
        payload,
        rows,
        kept: Vec::new(),
    }
}

fn seen(broker: &ModelBroker) -> Vec<String> {
    broker.decided("t").into_iter().map(|w| String::from_utf8(w.value.unwrap()).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_version_lists_is_committed_by_whoever_and_once() {
    let env = Env::test(1);
    let broker = ModelBroker::new(env.clone(), |_| {});
    broker.set_old(true);
    let first = sink(&env, &broker);
    let mut gone = writer(&first).await;
    let listed = write(&mut *gone, 1, 1).await;
    assert_eq!(Transaction::decode(&listed.payload).unwrap().started_ms, UNTOLD);
    drop(gone);

    let next = sink(&env, &broker);
    let mut committer = next.committer().unwrap();
    for _ in 0..2 {
        committer.commit(&listed).await.unwrap();
        assert_eq!(seen(&broker), [r#"{"n":1}"#]);
    }
    committer.clean_up(Generation(1), Execution(2)).await.unwrap();
    // Brokers that were made newer meanwhile find the same.
    broker.set_old(false);
    sink(&env, &broker).committer().unwrap().commit(&listed).await.unwrap();
    assert_eq!(seen(&broker), [r#"{"n":1}"#]);
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_has_given_up_is_a_loud_loss() {
    let env = Env::test(2);
    let broker = ModelBroker::new(env.clone(), |_| {});
    broker.set_old(true);
    let sink = sink(&env, &broker);
    let mut writer = writer(&sink).await;
    let late = write(&mut *writer, 1, 1).await;
    let taken = write(&mut *writer, 2, 2).await;
    broker.init(&Transaction::decode(&taken.payload).unwrap().id, TIMEOUT);
    let mut committer = sink.committer().unwrap();
    let lost = committer.commit(&taken).await.unwrap_err();
    assert!(lost.is_final() && lost.number() == 3333, "{lost}");
    assert!(lost.to_string().contains("1 rows of epoch 2") && lost.to_string().contains("another epoch"), "{lost}");
    env.sleep(TIMEOUT * 2).await;
    let lost = committer.commit(&late).await.unwrap_err();
    assert!(lost.is_final() && lost.number() == 3333, "{lost}");
    assert!(lost.to_string().contains("longer than its time-out"), "{lost}");
    assert!(seen(&broker).is_empty());
}
