//! `bench checkpoint`: writes per checkpoint, as the S3 server counts them.
//!
//! Two jobs of different length run one after the other in a cluster of two workers. What the longer one made the
//! server count beyond the shorter one, over the versions that it has beyond the shorter one, is what a checkpoint
//! costs: starting, defining and stopping a job cancel out. Nothing else may use the server meanwhile.

use millstream_common::{Error, Result};

use crate::args::CheckpointArgs;
use crate::cluster::{Cluster, Plan};
use crate::filled::OPERATOR;
use crate::place::StateKind;
use crate::s3_server::S3Server;
use crate::stats::hundredths;
use crate::table::Table;
use crate::{Bench, note};

const WORKERS: u32 = 2;
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
    let server = S3Server::at(bench.places.endpoint()?)?;
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
            let mut cluster = Plan::new(&bench.binary, &place, WORKERS)?.start()?;
            cluster.wait_for_workers()?;
            let mut before = server.settled(|r| r.writes)?.writes;
            let mut cost = |checkpoints| {
                let cost = job(&mut cluster, args, parallelism, compaction, checkpoints)?;
                let now = server.settled(|r| r.writes)?.writes;
                let written = now - std::mem::replace(&mut before, now);
                note(&format!("-p {parallelism}: {written} writes (server) for {} versions", cost.versions));
                Ok::<_, Error>(Cost { server: written, ..cost })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_costs_the_difference() {
        let cost = |server, engine, versions| Cost { server, engine, versions, workers: 2 };
        let cells = row(4, false, cost(24.0, 22.0, 7.0), cost(78.0, 76.0, 25.0));
        assert_eq!(cells, ["4", "none", "2", "18", "54", "3.00", "3", "3.00"]);
    }
}
