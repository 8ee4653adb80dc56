//! Opens a job: reads what stands at its place, decides whether it may start, takes it over.

use std::sync::Arc;

use millstream_common::{Env, Error, Result};
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
    /// A job that was stopped has ended; else it goes on.
    pub(crate) stays_stopped: bool,
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
        let newest = log.newest().await?;
        let (newest_number, newest_generation, newest_epoch) =
            newest.as_ref().map_or((0, 0, 0), |r| (r.number, r.generation, r.epoch));
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
            Admission::Continue(record) if request.stays_stopped && record.status() == Status::Stopped => {
                let master = JobMaster::ended(spec, settings, *record, End::Stopped, env.now())?;
                return Ok(Opened { master, graph: job.graph, log, store, already_finished: false });
            }
            Admission::Continue(record) => Some(*record),
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
            newest_number,
            newest_generation + 1,
            newest_epoch,
        )?;
        taken.nonce = env.unique_id();
        taken.committed_ms = env.wall_ms();
        if let CommitOutcome::Committed = log.commit(&taken).await? {
            let restored = base.map(|b| b.number);
            let master = JobMaster::new(spec, settings, taken, restored, splits, complete, env.now())?;
            return Ok(Opened { master, graph: job.graph, log, store, already_finished: false });
        }
    }
    Err(Error::unavailable("others keep taking this job over")
        .code(5002)
        .at(store.url())
        .next("end the other processes that run it"))
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
