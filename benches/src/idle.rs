//! `bench idle`: what a job without events asks of the object store, as the S3 server counts it.
//!
//! A cluster of two workers runs a query whose source has one event and then none. Once the server's counters have caught up
//! with that, it is left alone for some minutes; everything that anyone asks the server meanwhile counts: checkpoints, the
//! collector, the leader. Nothing else may use the server.

use std::time::Duration;

use millstream_common::{Error, Result};

use crate::args::IdleArgs;
use crate::cluster::Plan;
use crate::outside::sleep;
use crate::place::StateKind;
use crate::s3_server::{Requests, S3Server};
use crate::stats::hundredths;
use crate::table::Table;
use crate::{Bench, note};

const WORKERS: u32 = 2;
/// The counters lag, so those of the wait before may show in it, and its own behind it.
const LAG: Duration = Duration::from_secs(20);

/// Measures and prints.
pub fn run(bench: &Bench, args: &IdleArgs) -> Result<()> {
    let server = S3Server::at(bench.places.endpoint()?)?;
    let mut table = Table::new(&[
        "run",
        "minutes",
        "GETs",
        "of which in each minute",
        "PUTs",
        "PUTs a minute",
        "LISTs",
        "HEADs",
        "DELETEs",
        "checkpoints",
        "bar",
    ]);
    for run in 1..=args.runs {
        let place = bench.places.fresh(StateKind::S3)?;
        let mut cluster = Plan::new(&bench.binary, &place, WORKERS)?.start()?;
        cluster.wait_for_workers()?;
        let id = cluster.ask(&format!(
            "submit nexmark-q17 -p 4 --checkpoint-interval {} -- --events 0 --rate 0.001 --output blackhole",
            args.checkpoint_interval
        ))?;
        cluster.wait_for_job(&id, "it has had its one event", |c| c.events_in >= 1.0 && c.checkpoints >= 1.0)?;
        // Not until they stand still: requests of the idle job itself would hold that up.
        sleep(LAG);
        let mut seen = vec![server.requests()?];
        for _ in 0..args.minutes {
            sleep(Duration::from_secs(60));
            seen.push(server.requests()?);
        }
        let gets: Vec<String> = seen.windows(2).map(|two| (two[1] - two[0]).gets.to_string()).collect();
        let asked = seen[seen.len() - 1] - seen[0];
        note(&format!("run {run}: {asked:?}"));
        let status = cluster.document(&format!("status {id} --json"))?;
        if status["state"] != "running" || status["restarts"] != 0 || status["events_in"] != 1 {
            return Err(Error::internal("the job was not idle")
                .at(format!(
                    "state {}, {} restarts, {} events",
                    status["state"], status["restarts"], status["events_in"]
                ))
                .next(format!("see the logs in {}", place.folder().display())));
        }
        table.row(row(run, args.minutes, asked, &gets.join(" "), &status["checkpoints"]["completed"].to_string()));
    }
    println!("## Requests of an idle job\n");
    println!(
        "nexmark-q17 at a parallelism of 4 on {WORKERS} workers, one event and then none, checkpoints every {}; all requests",
        args.checkpoint_interval
    );
    println!("that the S3 server counted, the leader's and the collector's among them.\n");
    println!("{table}");
    Ok(())
}

fn row(run: u32, minutes: u32, asked: Requests, gets: &str, checkpoints: &str) -> Vec<String> {
    vec![
        run.to_string(),
        minutes.to_string(),
        asked.gets.to_string(),
        gets.to_owned(),
        asked.writes.to_string(),
        hundredths(asked.writes / f64::from(minutes)),
        asked.lists.to_string(),
        asked.heads.to_string(),
        asked.deletes.to_string(),
        checkpoints.to_owned(),
        "0 GETs, 2 PUTs a minute".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_shown_a_minute() {
        let asked = Requests { gets: 1.0, writes: 5.0, lists: 2.0, ..Requests::default() };
        let row = row(1, 4, asked, "0 0 1 0", "3");
        assert_eq!(row[..7], ["1", "4", "1", "0 0 1 0", "5", "1.25", "2"].map(str::to_owned));
    }
}
