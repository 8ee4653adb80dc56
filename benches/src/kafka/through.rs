//! All records of a topic, read by the source as subtasks read it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use millstream_common::env::Lane;
use millstream_common::{Env, Result};
use millstream_engine::source::{Read, Source, SplitReader};
use millstream_formats::DecodingFormat;
use millstream_kafka::source::{KafkaSource, KafkaSourceOptions, StopAt, Topics};

/// Rows of a batch at most.
const ROWS: usize = 8_192;

/// Reads what is there, in so many tasks that share the partitions, and says how many rows it was.
pub async fn through(
    env: &Env,
    broker: &str,
    topic: &str,
    format: Arc<dyn DecodingFormat>,
    tasks: usize,
) -> Result<u64> {
    let mut options = KafkaSourceOptions::new(vec![broker.to_owned()], Topics::Named(vec![topic.to_owned()]));
    options.stop = Some(StopAt::Latest);
    let source = KafkaSource::new(env.clone(), options, format)?;
    let splits = source.enumerator()?.discover(&[]).await?.new;
    let mut readers: Vec<Vec<Box<dyn SplitReader>>> = (0..tasks).map(|_| Vec::new()).collect();
    for (i, split) in splits.iter().enumerate() {
        readers[i % tasks].push(source.reader(split, None)?);
    }
    let running: Vec<_> = readers.into_iter().map(|some| env.run(Lane::Compute, "reading", count(some))).collect();
    let mut rows = 0;
    for task in running {
        rows += task.await??;
    }
    Ok(rows)
}

/// One after the other as they have something, as a source subtask reads its splits.
async fn count(mut readers: Vec<Box<dyn SplitReader>>) -> Result<u64> {
    let mut rows = 0;
    while !readers.is_empty() {
        let (i, read) = poll_fn(|cx| {
            for (i, reader) in readers.iter_mut().enumerate() {
                if let Poll::Ready(read) = reader.poll_next(cx, ROWS) {
                    return Poll::Ready((i, read));
                }
            }
            Poll::Pending
        })
        .await;
        match read? {
            Read::Batch(batch) => rows += batch.num_rows() as u64,
            Read::End => drop(readers.remove(i)),
        }
    }
    Ok(rows)
}
