//! Opening a version for reading.

use std::sync::Arc;

use millstream_common::{Env, Error, KeyGroup, KeyGroupRange, KeyGroupRanges, Result, TaskId, VersionNumber};
use millstream_objects::Store;
use millstream_proto::version::{VersionRecord, pin};
use millstream_state_store::Caches;
use millstream_state_store::tree::StateEntry;
use millstream_state_store::version::VersionLog;
use millstream_state_store::version::pins::{Pinned, given_up};
use millstream_state_store::{
    Layout, Layouts, MergeOperators, ReadTime, Run, StateStore, StateStoreOptions, Tree, View,
};
use serde_json::{Value, json};

/// There is no state of this name.
pub const NO_SUCH_STATE: u16 = 1430;
/// There is no version of this job.
pub const NO_VERSION: u16 = 1422;
/// There is no version of this number.
const NO_SUCH_VERSION: u16 = 1504;

/// Blocks and metadata that one look keeps in memory, bytes.
const CACHE_BYTES: (u64, u64) = (32 << 20, 32 << 20);
/// Bytes of GETs on their way, and of one GET.
const GET_BYTES: (u64, u64) = (32 << 20, 4 << 20);

/// A version that can be read.
pub struct OpenVersion {
    /// Its number.
    pub number: u64,
    /// What it lists.
    pub tree: Tree,
    store: StateStore,
    committed_ms: i64,
    /// Up to where key groups of tasks have fired.
    fired: Vec<(TaskId, KeyGroupRange, i64)>,
}

/// Opens version `at` (none: the newest) of the job whose prefix `store` is. Nothing keeps it alive while it is read: who
/// looks for long pins it before.
pub async fn open_version(store: &Store, env: &Env, job: &str, at: Option<u64>) -> Result<OpenVersion> {
    let log = VersionLog::new(store.clone(), env.clone());
    let record = match at {
        Some(number) => log.read(VersionNumber(number)).await?,
        None => log.newest().await?,
    };
    let Some(record) = record else {
        return Err(absent(&log, job, at).await?.at(store.url()));
    };
    if let Some(number) = at {
        let bound = log.boundaries().find().await?.bound;
        let keeps = |p: &Pinned| p.confirmed && p.pin.version == number && p.pin.kind() != pin::Kind::Start;
        if number < bound && !log.pins().list().await?.iter().any(keeps) {
            // Its record may stand for ever; what it refers to does not.
            return Err(given_up(number, bound).at(store.url()));
        }
    }
    of_record(store, env, &record)
}

async fn absent(log: &VersionLog, job: &str, at: Option<u64>) -> Result<Error> {
    let mut numbers = log.list().await?;
    let bound = log.boundaries().find().await?.bound;
    numbers.retain(|n| n.0 >= bound);
    Ok(match (at, numbers.first(), numbers.last()) {
        (Some(number), Some(first), Some(last)) => {
            Error::config(format!("there is no version {number} of '{job}': there are {first} to {last}"))
                .code(NO_SUCH_VERSION)
                .next("`millstream versions NAME --state URL` lists those that are there")
        }
        _ => Error::config(format!("there is no version of '{job}'"))
            .code(NO_VERSION)
            .next("`millstream list --state URL` shows the names that are there"),
    })
}

fn of_record(store: &Store, env: &Env, record: &VersionRecord) -> Result<OpenVersion> {
    let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    let fired = record.progress.iter().filter_map(|p| {
        let range = p.range.as_ref()?;
        Some((TaskId(u16::try_from(p.task_id).ok()?), KeyGroupRange { start: range.start, end: range.end }, p.fired_ms))
    });
    let options =
        StateStoreOptions { bytes_in_flight: GET_BYTES.0, request_bytes: GET_BYTES.1, ..StateStoreOptions::default() };
    let caches = Caches::in_memory(CACHE_BYTES.0, CACHE_BYTES.1);
    Ok(OpenVersion {
        number: record.number,
        tree,
        store: StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default()),
        committed_ms: record.committed_ms,
        fired: fired.collect(),
    })
}

/// `OPERATOR/STATE`: what stands behind the last slash is the state's name.
fn name_of(entry: &StateEntry) -> String {
    format!("{}/{}", entry.operator_uid, entry.name)
}

impl OpenVersion {
    /// The state of this name, or an error that names the nearest.
    pub fn state(&self, name: &str) -> Result<&StateEntry> {
        if let Some(entry) = self.find(name) {
            return Ok(entry);
        }
        let mut names: Vec<String> = self.tree.states().iter().map(name_of).collect();
        names.sort_by_cached_key(|n| (strsim::osa_distance(n, name), n.clone()));
        names.truncate(5);
        let there = if names.is_empty() { "it has none".to_owned() } else { format!("nearest: {}", names.join(", ")) };
        Err(Error::config(format!("version {} has no state '{name}'", self.number))
            .code(NO_SUCH_STATE)
            .next(format!("{there}; `millstream state ls` lists all")))
    }

    /// The state of this name, if it is there.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&StateEntry> {
        self.tree.states().iter().find(|s| name_of(s) == name)
    }

    /// All runs of a task that are live in `ranges`, with the layouts of a version that knows its states.
    #[must_use]
    pub fn view(&self, task: TaskId, ranges: &KeyGroupRanges, layouts: &Layouts) -> View {
        self.view_of(self.tree.runs_of(task, ranges), ranges, layouts)
    }

    /// Some runs, of whatever version of the job.
    #[must_use]
    pub fn view_of(&self, runs: Vec<Arc<Run>>, ranges: &KeyGroupRanges, layouts: &Layouts) -> View {
        self.store.view(runs, ranges.clone(), layouts.clone())
    }

    /// Up to where the key groups of a task have fired.
    #[must_use]
    pub fn fired(&self, task: TaskId) -> Fired {
        Fired(self.fired.iter().filter(|f| f.0 == task).map(|f| (f.1, f.2)).collect())
    }

    /// What time it was when the version was committed: nothing is gone by a clock of now.
    #[must_use]
    pub fn time(&self, task: TaskId) -> ReadTime {
        let least = self.fired(task).0.iter().map(|f| f.1).min();
        ReadTime { event_time_ms: least.unwrap_or(i64::MIN), processing_time_ms: self.committed_ms }
    }

    /// The states with what they hold.
    #[must_use]
    pub fn list(&self) -> Value {
        self.tree.states().iter().map(|s| self.describe(s)).collect()
    }

    fn describe(&self, state: &StateEntry) -> Value {
        let (mut entries, mut bytes, mut runs) = (0, 0, 0);
        for run in self.tree.runs() {
            let Some(held) = run.states.iter().find(|s| s.state == state.id) else { continue };
            entries += held.entries;
            // A section holds all states of a task: its bytes are shared out by their entries.
            let share = u128::from(run.length) * u128::from(held.entries) / u128::from(run.entries.max(1));
            bytes += share as u64;
            runs += 1;
        }
        let schema = state.schemas.last();
        json!({
            "state": name_of(state),
            "operator": state.operator_uid,
            "name": state.name,
            "layout": match state.layout {
                Layout::Point => "point",
                Layout::TimeOrdered => "time-ordered",
                Layout::Map => "map",
            },
            "schema": schema.map_or_else(|| state.value_schema.clone(), ToString::to_string),
            "schema_version": state.schemas.len(),
            "ttl": schema.and_then(|s| s.ttl).map(|t| t.to_string()),
            "entries": entries,
            "bytes": bytes,
            "runs": runs,
        })
    }
}

/// Up to where key groups have fired.
pub struct Fired(Vec<(KeyGroupRange, i64)>);

impl Fired {
    /// Up to where `group` has; before the beginning of time when it never did.
    #[must_use]
    pub fn of(&self, group: KeyGroup) -> i64 {
        self.0.iter().find(|f| f.0.contains(group)).map_or(i64::MIN, |f| f.1)
    }
}
