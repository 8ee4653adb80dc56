//! Opens a job: reads what stands at its place, decides whether it may start, takes it over.

use std::sync::Arc;

use millstream_common::{Env, Epoch, Error, Result};
use millstream_objects::Store;
use millstream_proto::control::JobSpec;
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Status;
use millstream_state_store::version::{CommitOutcome, VersionLog};

use super::master::{End, JobMaster, KnownSplit};
use super::record::{self, Admission, Identity};
use crate::dataflow::{JobContext, JobRegistry};
use crate::graph::{Head, JobGraph};
use crate::settings::Settings;

/// What to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Latest,
    None,
    Version(u64),
}

/// What a submission says.
#[derive(Clone)]
pub(crate) struct OpenRequest {
    pub(crate) spec: JobSpec,
    /// `None`: what the newest version has, else 1.
    pub(crate) parallelism: Option<u32>,
    pub(crate) from: From,
    pub(crate) discard_state: bool,
    /// A new leader takes it over: it is restarting until it runs, and one that was stopped has ended. Else it is new, or
    /// a stopped one goes on.
    pub(crate) taken_over: bool,
}

/// An opened job.
pub(crate) struct Opened {
    pub(crate) master: JobMaster,
    pub(crate) graph: JobGraph,
    pub(crate) log: VersionLog,
    pub(crate) store: Store,
    pub(crate) already_finished: bool,
}

/// A take-over that others keep winning is given up after so many tries.
const TRIES: usize = 100;

/// Opens the job; its take-over record stands when this returns, unless it had finished.
pub(crate) async fn open(registry: Arc<JobRegistry>, store: Store, request: OpenRequest, env: Env) -> Result<Opened> {
    let spec = request.spec;
    let settings = Settings::from_job_map(&spec.settings)?;
    let job = registry.build(&spec.job, &spec.args, &JobContext { env: env.clone() })?;
    let identity = Identity { job: spec.job.clone(), args: job.identity_args.clone(), plan: job.graph.describe() };
    let log = VersionLog::new(store.clone(), env.clone());
    for _ in 0..TRIES {
        let (newest, floor) = match request.from {
            From::Latest => newest_readable(&log).await?,
            // Whoever goes back may do so because the newest one is damaged.
            From::Version(_) | From::None => newest_whole(&log).await?,
        };
        let base = match request.from {
            From::Version(n) if newest.is_some() => Some(version(&log, n).await?),
            From::Version(n) => return Err(no_such_version(n)),
            From::Latest | From::None => newest,
        };
        let base = match record::admit(base, &identity, request.from == From::None, request.discard_state)? {
            Admission::Finished(record) => {
                let master = JobMaster::ended(spec, settings, *record, End::Finished, env.now())?;
                return Ok(Opened { master, graph: job.graph, log, store, already_finished: true });
            }
            Admission::Continue(record) if request.taken_over && record.status() == Status::Stopped => {
                let master = JobMaster::ended(spec, settings, *record, End::Stopped, env.now())?;
                return Ok(Opened { master, graph: job.graph, log, store, already_finished: false });
            }
            Admission::Continue(record) => {
                if matches!(request.from, From::Version(_)) {
                    for sink in job.graph.tasks.iter().flat_map(|t| &t.sinks) {
                        sink.sink.check_goes_back(Epoch(record.epoch))?;
                    }
                }
                Some(*record)
            }
            Admission::Fresh => {
                for sink in job.graph.tasks.iter().flat_map(|t| &t.sinks) {
                    sink.sink.check_fresh()?;
                }
                None
            }
        };
        let (splits, complete) = discover(&job.graph, base.as_ref()).await?;
        let parallelism =
            request.parallelism.or(base.as_ref().and_then(|b| b.job.as_ref()).map(|j| j.parallelism)).unwrap_or(1);
        let mut taken = record::take_over(
            base.as_ref(),
            &identity,
            &job.graph,
            parallelism.max(1),
            floor.number,
            floor.generation + 1,
            floor.epoch,
        )?;
        taken.retained_checkpoints = settings.checkpoint.retained;
        taken.nonce = env.unique_id();
        taken.committed_ms = env.wall_ms();
        if let CommitOutcome::Committed = log.commit(&taken).await? {
            let restored = base.map(|b| b.number);
            let mut master = JobMaster::new(spec, settings, taken, restored, splits, complete, env.now())?;
            master.taken_over = request.taken_over;
            return Ok(Opened { master, graph: job.graph, log, store, already_finished: false });
        }
    }
    Err(Error::unavailable("others keep taking this job over")
        .code(5002)
        .at(store.url())
        .next("end the other processes that run it"))
}

/// What the next record must be above.
struct Floor {
    number: u64,
    generation: u64,
    epoch: u64,
}

async fn newest_readable(log: &VersionLog) -> Result<(Option<VersionRecord>, Floor)> {
    let newest = log.newest().await?;
    let floor = newest.as_ref().map_or(Floor { number: 0, generation: 0, epoch: 0 }, |r| Floor {
        number: r.number,
        generation: r.generation,
        epoch: r.epoch,
    });
    Ok((newest, floor))
}

/// Epochs that may lie between two records at most, however many checkpoints failed.
const EPOCHS_BETWEEN_RECORDS: u64 = 1_000;

/// The newest record that can be read, and what is above all that stand: each record is of at most one generation more
/// than its predecessor.
async fn newest_whole(log: &VersionLog) -> Result<(Option<VersionRecord>, Floor)> {
    match newest_readable(log).await {
        Err(e) if e.is_final() => {}
        found => return found,
    }
    let mut numbers = log.list().await?;
    let Some(&last) = numbers.last() else { return newest_readable(log).await };
    while let Some(number) = numbers.pop() {
        match log.read(number).await {
            Ok(None) => {}
            Err(e) if e.is_final() => tracing::warn!("version {number} is passed over: {e}"),
            Err(e) => return Err(e),
            Ok(Some(record)) => {
                let above = last.0 - record.number;
                let floor = Floor {
                    number: last.0,
                    generation: record.generation + above,
                    epoch: record.epoch + above * EPOCHS_BETWEEN_RECORDS,
                };
                return Ok((Some(record), floor));
            }
        }
    }
    Ok((None, Floor { number: last.0, generation: last.0, epoch: last.0 * EPOCHS_BETWEEN_RECORDS }))
}

async fn version(log: &VersionLog, n: u64) -> Result<VersionRecord> {
    log.read(millstream_common::VersionNumber(n)).await?.ok_or_else(|| no_such_version(n))
}

fn no_such_version(n: u64) -> Error {
    Error::config(format!("there is no version {n}")).code(1504).next("see `millstream versions`")
}

async fn discover(graph: &JobGraph, base: Option<&VersionRecord>) -> Result<(Vec<KnownSplit>, bool)> {
    let mut splits = Vec::new();
    let mut complete = true;
    for task in &graph.tasks {
        let Head::Source(source) = &task.head else { continue };
        let known: Vec<_> = base.iter().flat_map(|b| &b.splits).filter(|s| s.source_uid == source.uid).collect();
        let ids: Vec<String> = known.iter().map(|s| s.split_id.clone()).collect();
        let found = source.source.enumerator()?.discover(&ids).await?;
        complete &= found.complete;
        splits.extend(known.iter().map(|s| KnownSplit {
            source_uid: source.uid.clone(),
            id: s.split_id.clone(),
            payload: s.payload.clone(),
        }));
        splits.extend(found.new.into_iter().map(|s| KnownSplit {
            source_uid: source.uid.clone(),
            id: s.id,
            payload: s.payload,
        }));
    }
    splits.sort_by(|a, b| (&a.source_uid, &a.id).cmp(&(&b.source_uid, &b.id)));
    Ok((splits, complete))
}
