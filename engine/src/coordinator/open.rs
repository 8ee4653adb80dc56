//! Opens a job: reads what stands at its place, decides whether it may start, takes it over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Epoch, Error, Result, VersionNumber};
use millstream_objects::Store;
use millstream_proto::control::JobSpec;
use millstream_proto::version::version_record::{Kind, Status};
use millstream_proto::version::{Pin, VersionRecord, pin};
use millstream_state_store::version::delta::{settle, stored};
use millstream_state_store::version::pins::{Pinned, given_up};
use millstream_state_store::version::{CommitOutcome, VersionLog};

use super::master::{End, JobMaster, KnownSplit};
use super::record::{self, Admission, CommittableKey, Identity, committable_key};
use crate::dataflow::{JobContext, JobRegistry};
use crate::graph::{Head, JobGraph};
use crate::settings::Settings;
use crate::source::SplitEnumerator;

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
    pub(crate) enumerators: Enumerators,
}

/// By source: who found its splits, where more may come.
pub(crate) type Enumerators = BTreeMap<String, Box<dyn SplitEnumerator>>;

/// A take-over that others keep winning is given up after so many tries.
const TRIES: usize = 100;

/// Opens the job; its take-over record stands when this returns, unless it had finished. `leader`: the generation that the
/// cluster is led with; 0 for a process that runs this job alone.
pub(crate) async fn open(
    registry: Arc<JobRegistry>,
    store: Store,
    request: OpenRequest,
    leader: u64,
    env: Env,
) -> Result<Opened> {
    let spec = request.spec;
    let settings = Settings::from_job_map(&spec.settings)?;
    let job = registry.build(&spec.job, &spec.args, &JobContext::new(env.clone(), &spec.name))?;
    let identity = Identity::new(&spec.job, job.identity_args.clone(), &job.graph)?;
    let log = VersionLog::new(store.clone(), env.clone());
    // A planted bug: the state that a take-over starts from is read once, and is older than the number that it gets.
    let mut read_once = None;
    for _ in 0..TRIES {
        let (newest, floor) = match request.from {
            From::Latest => newest_readable(&log).await?,
            // Whoever goes back may do so because the newest one is damaged.
            From::Version(_) | From::None => newest_whole(&log).await?,
        };
        let newest = if bug_is_planted(2) { read_once.get_or_insert(newest).clone() } else { newest };
        check_leads(newest.as_ref(), leader)?;
        // Where a fork's pin is does not depend on what it starts from.
        let origin = newest.as_ref().and_then(|n| n.fork.clone());
        let mut kept = None;
        let base = match request.from {
            From::Version(n) if newest.is_some() => {
                // Nobody collects it from here on, until the take-over record refers to what it needs.
                version(&log, n).await?;
                kept = Some(keep(&log, n, floor.number + 1, &env).await?);
                let mut base = version(&log, n).await?;
                let confirmed = confirmed_later(&log, &base, floor.number).await?;
                base.committables.retain(|c| !confirmed.contains(&committable_key(c)));
                Some(base)
            }
            From::Version(n) => return Err(no_such_version(n)),
            From::Latest | From::None => newest,
        };
        let base = match record::admit(base, &identity, request.from == From::None, request.discard_state)? {
            Admission::Finished(record) => {
                let master = JobMaster::ended(spec, settings, *record, End::Finished, env.now())?;
                let enumerators = Enumerators::new();
                return Ok(Opened { master, graph: job.graph, log, store, already_finished: true, enumerators });
            }
            Admission::Continue(record) if request.taken_over && record.status() == Status::Stopped => {
                let master = JobMaster::ended(spec, settings, *record, End::Stopped, env.now())?;
                let enumerators = Enumerators::new();
                return Ok(Opened { master, graph: job.graph, log, store, already_finished: false, enumerators });
            }
            Admission::Continue(record) => {
                // Releases that did not list sinks went on with the plan that they had.
                let before: &[String] = record.job.as_ref().map_or(&[], |j| &j.sinks);
                for sink in job.graph.tasks.iter().flat_map(|t| &t.sinks) {
                    if !before.is_empty() && !before.contains(&sink.uid) {
                        sink.sink.check_fresh()?;
                    } else if matches!(request.from, From::Version(_)) {
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
        let (splits, enumerators) = discover(&job.graph, base.as_ref()).await?;
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
        taken.retained_for_ms = settings.checkpoint.retained_for.as_millis() as u64;
        taken.base = base.as_ref().map_or(0, |b| b.number);
        taken.fork = taken.fork.or(origin);
        taken.leader = leader;
        taken.nonce = env.unique_id();
        taken.committed_ms = record::committed_ms(base.as_ref(), env.wall_ms());
        let known = log.boundaries().known();
        (taken.boundary, taken.bound) = (known.number, known.bound);
        settle(None, &mut taken);
        let outcome = log.commit(&stored(None, &taken)).await?;
        if let Some(pinned) = kept {
            // Its number is taken: the pin holds nothing any more. One that is left goes with the next collection.
            if let Err(e) = log.pins().release(&pinned).await {
                tracing::debug!("the pin of a start is left over: {e}");
            }
        }
        if let CommitOutcome::Committed = outcome {
            let restored = base.map(|b| b.number);
            let open = enumerators.keys().cloned().collect();
            let mut master = JobMaster::new(spec, settings, taken, restored, splits, open, env.now())?;
            master.taken_over = request.taken_over;
            master.alignment = job.graph.alignment();
            return Ok(Opened { master, graph: job.graph, log, store, already_finished: false, enumerators });
        }
    }
    Err(Error::unavailable("others keep taking this job over")
        .code(5002)
        .at(store.url())
        .next("end the other processes that run it"))
}

/// A leader that was deposed while it opened a job must not take it from its successor, who would be fenced by it.
fn check_leads(newest: Option<&VersionRecord>, leader: u64) -> Result<()> {
    let theirs = newest.map_or(0, |n| n.leader);
    // A planted bug: nobody asks under whom the job runs.
    if leader > 0 && theirs > leader && !bug_is_planted(33) {
        return Err(Error::fenced(format!(
            "the job runs under a newer coordinator: generation {leader} of the cluster is fenced by {theirs}"
        ))
        .code(5004));
    }
    Ok(())
}

/// What the next record must be above.
struct Floor {
    number: u64,
    generation: u64,
    epoch: u64,
}

/// Pins the version that the take-over record `until` starts from.
async fn keep(log: &VersionLog, version: u64, until: u64, env: &Env) -> Result<Pinned> {
    let pin = Pin {
        id: format!("start-{}", env.unique_id()),
        version,
        kind: pin::Kind::Start.into(),
        who: "a start from this version".to_owned(),
        created_ms: env.wall_ms(),
        until,
    };
    log.pins().pin(&pin, log.boundaries()).await
}

async fn newest_readable(log: &VersionLog) -> Result<(Option<VersionRecord>, Floor)> {
    let newest = log.newest().await?;
    if let Some(record) = &newest {
        log.boundaries().learn(record.boundary, record.bound);
        log.boundaries().newest().await?;
    }
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
    let bound = log.boundaries().find().await?.bound;
    let mut numbers = log.list().await?;
    numbers.retain(|n| n.0 >= bound);
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

/// A version to start from.
async fn version(log: &VersionLog, n: u64) -> Result<VersionRecord> {
    let bound = log.boundaries().known().bound;
    match log.read(VersionNumber(n)).await {
        Ok(Some(record)) => Ok(record),
        Ok(None) if n >= bound => Err(no_such_version(n)),
        Ok(None) => Err(given_up(n, bound)),
        // What it was read from has been collected.
        Err(e) if e.is_final() && n < bound => Err(given_up(n, bound)),
        Err(e) => Err(e),
    }
}

/// What `base` lists to be committed, and the records up to `newest` that follow from it show to be: the first one that no longer
/// lists it was written when its commit had been confirmed. The place that it was committed to may have forgotten that since.
async fn confirmed_later(log: &VersionLog, base: &VersionRecord, newest: u64) -> Result<BTreeSet<CommittableKey>> {
    let all: BTreeSet<CommittableKey> = base.committables.iter().map(committable_key).collect();
    let mut open = all.clone();
    let mut before = base.number;
    while !open.is_empty() && before < newest {
        let number = VersionNumber(before + 1);
        let next = match log.read(number).await {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(e) if e.is_final() => {
                tracing::warn!("what was committed behind version {before} is not known: {e}");
                break;
            }
            Err(e) => return Err(e),
        };
        // The job went back from here before, or began anew.
        if next.kind() == Kind::TakeOver && next.base != before {
            break;
        }
        let listed: BTreeSet<CommittableKey> = next.committables.iter().map(committable_key).collect();
        open.retain(|key| listed.contains(key));
        before = number.0;
    }
    Ok(&all - &open)
}

fn no_such_version(n: u64) -> Error {
    Error::config(format!("there is no version {n}")).code(1504).next("see `millstream versions`")
}

/// All splits.
async fn discover(graph: &JobGraph, base: Option<&VersionRecord>) -> Result<(Vec<KnownSplit>, Enumerators)> {
    let mut splits = Vec::new();
    let mut enumerators = Enumerators::new();
    for task in &graph.tasks {
        let Head::Source(source) = &task.head else { continue };
        let known: Vec<_> = base.iter().flat_map(|b| &b.splits).filter(|s| s.source_uid == source.uid).collect();
        let ids: Vec<String> = known.iter().map(|s| s.split_id.clone()).collect();
        let mut enumerator = source.source.enumerator()?;
        let found = enumerator.discover(&ids).await?;
        if !found.complete {
            enumerators.insert(source.uid.clone(), enumerator);
        }
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
    Ok((splits, enumerators))
}

#[cfg(test)]
mod tests;
