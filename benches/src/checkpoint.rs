//! `bench checkpoint`: writes per checkpoint, as the S3 server counts them.
//!
//! Two jobs of different length run one after the other in a cluster of two workers. What the longer one made the
//! server count beyond the shorter one, over the versions that it has beyond the shorter one, is what a checkpoint
//! costs: starting, defining and stopping a job cancel out. Nothing else may use the server meanwhile.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use millstream_common::{Error, Result};

use crate::args::CheckpointArgs;
use crate::cluster::{Cluster, Plan};
use crate::counters::{get, samples};
use crate::filled::OPERATOR;
use crate::outside::{now, sleep};
use crate::place::StateKind;
use crate::stats::hundredths;
use crate::table::Table;
use crate::{Bench, note};

const WORKERS: u32 = 2;
/// Where MinIO tells how many requests it has answered.
const METRICS: &str = "/minio/v2/metrics/cluster";
/// MinIO refreshes its counters every 10 s: those that have not moved for longer are up to date.
const SETTLED: Duration = Duration::from_secs(14);
/// From one look at them to the next.
const LOOK: Duration = Duration::from_millis(500);
/// The most that `state.compaction.trigger-runs` takes: no compaction in jobs of fewer checkpoints.
const NO_COMPACTION: u64 = 64;

/// What a job left behind.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Writes that the server counted.
    server: f64,
    /// Writes that the engine counted.
    engine: f64,
    versions: f64,
    /// Workers with subtasks of the operator that holds the state.
    workers: usize,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &CheckpointArgs) -> Result<()> {
    let server = address_of(bench.places.endpoint()?)?;
    let mut table = Table::new(&[
        "parallelism",
        "compaction",
        "workers with changes",
        "checkpoints",
        "PUTs (server)",
        "PUTs a checkpoint (server)",
        "workers + 1",
        "PUTs a checkpoint (engine)",
    ]);
    for &parallelism in &args.parallelism {
        for compaction in [false, true] {
            let place = bench.places.fresh(StateKind::S3)?;
            let mut cluster = Plan::new(&bench.binary, &place, WORKERS, None)?.start()?;
            cluster.wait_for_workers()?;
            let mut before = settled(server)?;
            let mut cost = |checkpoints| {
                let cost = job(&mut cluster, args, parallelism, compaction, checkpoints)?;
                let now = settled(server)?;
                let server = now - std::mem::replace(&mut before, now);
                note(&format!("-p {parallelism}: {server} writes (server) for {} versions", cost.versions));
                Ok::<_, Error>(Cost { server, ..cost })
            };
            let (short, long) = (cost(args.checkpoints / 4)?, cost(args.checkpoints)?);
            table.row(row(parallelism, compaction, short, long));
        }
    }
    println!("## Writes per checkpoint\n");
    println!(
        "keyed-count, {} keys of 1,000 bytes, {} events/s, checkpoints every {}, {WORKERS} workers; PUTs as the S3 server",
        args.keys, args.rate, args.checkpoint_interval
    );
    println!("counts them, of a longer job beyond a shorter one. With compaction its objects and records count too.\n");
    println!("{table}");
    Ok(())
}

fn row(parallelism: u32, compaction: bool, short: Cost, long: Cost) -> Vec<String> {
    let versions = long.versions - short.versions;
    vec![
        parallelism.to_string(),
        if compaction { "by default" } else { "none" }.to_owned(),
        long.workers.to_string(),
        versions.to_string(),
        (long.server - short.server).to_string(),
        hundredths((long.server - short.server) / versions),
        (long.workers + 1).to_string(),
        hundredths((long.engine - short.engine) / versions),
    ]
}

/// Runs a job for so many checkpoints and stops it.
fn job(
    cluster: &mut Cluster<'_>,
    args: &CheckpointArgs,
    parallelism: u32,
    compaction: bool,
    checkpoints: u64,
) -> Result<Cost> {
    let trigger = if compaction { String::new() } else { format!("-D state.compaction.trigger-runs={NO_COMPACTION}") };
    let id = cluster.ask(&format!(
        "submit keyed-count --name n{checkpoints} -p {parallelism} --checkpoint-interval {} -D checkpoint.retained=100000 {trigger} -- \
         --keys {} --value-bytes 1000 --events 0 --rate {} --output blackhole",
        args.checkpoint_interval, args.keys, args.rate
    ))?;
    cluster.wait_for_job(&id, "it has taken its checkpoints", |c| c.checkpoints >= checkpoints as f64)?;
    let running = cluster.document(&format!("status {id} --json"))?;
    let operators = running["operators"].as_array().into_iter().flatten();
    let subtasks = operators.filter(|o| o["uid"] == OPERATOR).flat_map(|o| o["subtasks"].as_array()).flatten();
    let mut workers: Vec<&str> = subtasks.filter_map(|s| s["worker"].as_str()).collect();
    workers.sort_unstable();
    workers.dedup();
    let stopped = cluster.document(&format!("stop {id} --json"))?;
    let versions = cluster.document(&format!("versions {id} --json"))?;
    let versions = versions.as_array().map_or(0, Vec::len) as f64;
    let engine = stopped.pointer("/object_store/put").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    Ok(Cost { server: 0.0, engine, versions, workers: workers.len() })
}

/// What the server has counted once its counters stand still.
fn settled(server: SocketAddr) -> Result<f64> {
    let mut count = writes(server)?;
    let mut since = now();
    while since.elapsed() < SETTLED {
        sleep(LOOK);
        let next = writes(server)?;
        if next != count {
            (count, since) = (next, now());
        }
    }
    Ok(count)
}

fn writes(server: SocketAddr) -> Result<f64> {
    let unusable = |e: std::io::Error| {
        Error::config("the S3 server does not tell how many requests it has answered")
            .at(format!("http://{server}{METRICS}"))
            .next("use a MinIO with MINIO_PROMETHEUS_AUTH_TYPE=public, as scripts/minio.sh starts it")
            .source(e)
    };
    Ok(writes_in(&get(server, METRICS).map_err(unusable)?))
}

/// Requests that write objects.
fn writes_in(text: &str) -> f64 {
    let write = |api: &str| {
        ["putobject", "copyobject", "postpolicy", "newmultipart", "completemultipart"]
            .iter()
            .any(|w| api.starts_with(w))
    };
    let of_s3 = samples(text).filter(|s| s.name == "minio_s3_requests_total");
    of_s3.filter(|s| s.labels.get("api").is_some_and(|a| write(a))).map(|s| s.value).sum()
}

fn address_of(endpoint: &str) -> Result<SocketAddr> {
    let host = endpoint.strip_prefix("http://").map(|h| h.trim_end_matches('/'));
    host.and_then(|h| h.to_socket_addrs().ok()?.next()).ok_or_else(|| {
        Error::config("the counters of this S3 server cannot be read: not of the form http://HOST:PORT")
            .at(format!("AWS_ENDPOINT_URL={endpoint}"))
            .next("use a MinIO on this machine (scripts/minio.sh run COMMAND)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_puts_of_objects() {
        let of = |api: &str, n: u32| format!("minio_s3_requests_total{{api=\"{api}\",server=\"a:1\"}} {n}\n");
        let text = of("putobject", 10) + &of("putobjectpart", 2) + &of("putbucket", 100) + &of("getobject", 1_000);
        assert_eq!(writes_in(&text), 12.0);
        assert_eq!(writes_in("minio_s3_requests_4xx_errors_total{api=\"putobject\"} 3\n"), 0.0);
    }

    #[test]
    fn a_checkpoint_costs_the_difference() {
        let cost = |server, engine, versions| Cost { server, engine, versions, workers: 2 };
        let cells = row(4, false, cost(24.0, 22.0, 7.0), cost(78.0, 76.0, 25.0));
        assert_eq!(cells, ["4", "none", "2", "18", "54", "3.00", "3", "3.00"]);
    }

    #[test]
    fn the_server_is_found_by_its_address() {
        assert_eq!(address_of("http://127.0.0.1:9000/").unwrap().port(), 9000);
        assert!(address_of("https://127.0.0.1:9000").unwrap_err().to_string().contains("https"));
    }
}
