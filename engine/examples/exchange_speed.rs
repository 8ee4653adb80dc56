//! How fast batches cross a data connection on loopback, and what that costs: both ends in this process, as two
//! workers on one machine would do it. Not a test: run it with `--release`.
//!
//! `cargo run --release -p millstream-engine --example exchange_speed [GIGABYTES] [ROWS] [CHANNELS]`

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use millstream_common::env::Runtimes;
use millstream_common::{AssignmentId, Env, Error, Execution, Generation, Lane, Result};
use millstream_engine::element::StreamElement;
use millstream_engine::transport::network::{Network, NetworkSettings};
use millstream_engine::transport::{ChannelKey, Transport};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows like the bids of an auction: five numbers, a time, and two short texts.
fn batch(rows: i64) -> Result<RecordBatch> {
    let number = |factor: i64| Arc::new(Int64Array::from_iter_values((0..rows).map(|i| i * factor))) as ArrayRef;
    let text =
        |name: &str| Arc::new(StringArray::from_iter_values((0..rows).map(|i| format!("{name}-{i:08}")))) as ArrayRef;
    let time = Arc::new(TimestampMillisecondArray::from_iter_values(0..rows)) as ArrayRef;
    let columns = [
        ("auction", number(3)),
        ("bidder", number(5)),
        ("price", number(7)),
        ("date_time", time),
        ("channel", text("channel")),
        ("url", text("https://auctions.example/item")),
    ];
    RecordBatch::try_from_iter(columns).map_err(|e| Error::internal("no batch").source(e))
}

/// CPU seconds of this process so far, from the 14th and 15th field of its stat file (hundredths of a second).
fn cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(|e| Error::unavailable("no /proc").source(e))?;
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = behind_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

async fn measure(env: Env, gigabytes: f64, rows: i64, channels: u32) -> Result<()> {
    let network = Network::new(env.clone(), NetworkSettings::default());
    let (address, mut arrivals) = network.listen_data().await?;
    let batch = batch(rows)?;
    let bytes: usize = batch.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum();
    let count = (gigabytes * 1e9 / bytes as f64 / f64::from(channels)).ceil() as u64;
    let (start, cpu) = (env.now(), cpu_seconds()?);
    let mut receivers = Vec::new();
    for from in 0..channels {
        let key = ChannelKey {
            job: "speed".to_owned(),
            generation: Generation(1),
            execution: Execution(1),
            assignment: AssignmentId(1),
            edge: 0,
            from,
            to: 0,
        };
        let tx = network.connect_data(&address, key).await?;
        let mut connection = arrivals.recv().await.ok_or_else(|| Error::internal("no connection came"))?;
        let batch = batch.clone();
        env.spawn(Lane::Compute, "sender", async move {
            for _ in 0..count {
                if tx.send(StreamElement::Batch(batch.clone())).await.is_err() {
                    return;
                }
            }
        });
        receivers.push(env.run(Lane::Compute, "receiver", async move {
            let mut rows = 0;
            while let Some(element) = connection.elements.recv().await {
                if let StreamElement::Batch(batch) = element {
                    rows += batch.num_rows() as u64;
                }
            }
            rows
        }));
    }
    for receiver in receivers {
        let came = receiver.await?;
        if came != count * rows as u64 {
            return Err(Error::internal(format!("{came} rows came, {} were sent", count * rows as u64)));
        }
    }
    let total = count as f64 * f64::from(channels) * bytes as f64 / 1e9;
    let (seconds, cpu) = (env.now().since(start).as_secs_f64(), cpu_seconds()? - cpu);
    println!(
        "{total:.1} GB in batches of {rows} rows ({bytes} bytes) over {channels} channels: \
         {:.2} GB/s, {:.3} CPU-s/GB, {:.0} batches/s",
        total / seconds,
        cpu / total,
        count as f64 * f64::from(channels) / seconds,
    );
    Ok(())
}

fn main() -> Result<()> {
    let number = |nth: usize, default: f64| {
        std::env::args()
            .nth(nth)
            .map_or(Ok(default), |a| a.parse().map_err(|_| Error::config(format!("'{a}' is no number"))))
    };
    let (gigabytes, rows, channels) = (number(1, 10.0)?, number(2, 8192.0)?, number(3, 1.0)?);
    let runtimes = Runtimes::start(2)?;
    let env = runtimes.env();
    runtimes.block_on(measure(env, gigabytes, rows as i64, channels as u32))
}
