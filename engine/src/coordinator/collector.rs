//! The collector of one job: gives up versions that are no longer kept, and deletes what no kept version needs.
//!
//! It runs beside the master of the job, in the process that leads it, and never in the way of a commit. Order of events of a
//! collection: compute the bound; draw the boundary; list the pins; make sure that nobody else has taken the job over;
//! delete the objects that only versions below the bound refer to; delete the records that no kept version is read from, but
//! never a take-over. The records go last: as long as they stand, they say what is left to be deleted, whoever goes on
//! after a crash.
//!
//! Once in a while it lists the state objects, too, and deletes those of earlier deployments, and of compactions that were
//! given up, that no version refers to.
//!
//! What is to be kept is decided in `state-store/src/version/garbage.rs`; docs/garbage.md has the proof. A job that commits
//! nothing makes no request here. No clock decides what goes, only when to look.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::{AbortOnDrop, Moment};
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, ErrorKind, Generation, Lane, Result, VersionNumber};
use millstream_objects::{Purpose, Store};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::pin::Kind as PinKind;
use millstream_proto::version::version_record::Kind;
use millstream_state_store::object_path;
use millstream_state_store::version::VersionLog;
use millstream_state_store::version::boundary::{Drawn, Known};
use millstream_state_store::version::garbage::{Chain, OpenCompactions, Retention, is_over, objects_of};
use millstream_state_store::version::pins::Pinned;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::fork::pin_id;
use crate::settings::Settings;

/// How often and how much.
#[derive(Clone, Copy, Debug)]
struct Options {
    retention: Retention,
    interval: Duration,
    records: u64,
    orphan_delay: Duration,
    orphan_interval: Duration,
}

impl Options {
    fn of(settings: &Settings) -> Self {
        let v = &settings.versions;
        Self {
            retention: Retention {
                checkpoints: settings.checkpoint.retained,
                age_ms: settings.checkpoint.retained_for.as_millis() as i64,
            },
            interval: v.collect_interval,
            records: v.collect_records.into(),
            orphan_delay: v.orphan_delay,
            orphan_interval: v.orphan_interval,
        }
    }
}

/// What the coordinator knows and the collector acts on.
#[derive(Default)]
struct Facts {
    chain: Chain,
    /// Records at or above the boundary that cannot be read: what they refer to is not known.
    unreadable: BTreeSet<u64>,
    /// The oldest version that a worker may read from.
    in_use: Option<u64>,
    /// The present deployment.
    execution: u64,
    /// Its compactions that may still come into a record.
    compactions: OpenCompactions,
    /// Of a fork that may need it: the job that it was forked from.
    parent: Option<String>,
    /// What the record in flight refers to.
    in_flight: BTreeSet<String>,
    /// Objects that no record will ever list.
    stale: Vec<String>,
    done: Done,
    /// All records that stand are in `chain`.
    complete: bool,
}

impl Facts {
    /// What a kept version needs must be known before anything goes.
    fn check_readable(&self, bound: u64) -> Result<()> {
        match self.unreadable.range(bound..).next() {
            None => Ok(()),
            Some(n) => Err(Error::corrupt(format!("version {n} cannot be read, so what it needs is not known"))
                .code(4007)
                .next("it is collected once the version is no longer kept")),
        }
    }
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
struct Done {
    collections: u64,
    objects: u64,
    bytes: u64,
    records: u64,
    orphans: u64,
    orphan_bytes: u64,
    failed: u64,
    last_ms: Option<i64>,
    pins: u64,
}

/// The coordinator's handle; dropping it ends the collector.
pub(crate) struct Collector {
    facts: Arc<Mutex<Facts>>,
    log: VersionLog,
    _task: Option<AbortOnDrop>,
}

impl Collector {
    /// Starts collecting for the leader whose take-over record `taken` stands.
    pub(crate) fn start(
        env: Env,
        log: VersionLog,
        store: Store,
        name: &str,
        settings: &Settings,
        taken: &VersionRecord,
    ) -> Self {
        let facts: Arc<Mutex<Facts>> = Arc::default();
        {
            let mut facts = facts.lock();
            facts.chain.add(taken);
            facts.complete = taken.number <= 1;
            facts.parent = taken.fork.as_ref().map(|f| f.job.clone());
        }
        let options = Options::of(settings);
        let work = Work {
            env: env.clone(),
            log: log.clone(),
            store,
            name: name.to_owned(),
            options,
            facts: facts.clone(),
            generation: Generation(taken.generation),
            collected_at: 0,
            orphans_at: None,
            listed_at: taken.number,
            started: env.now(),
        };
        let task =
            (!options.interval.is_zero()).then(|| AbortOnDrop(env.spawn(Lane::Background, "collector", work.run())));
        Self { facts, log, _task: task }
    }

    /// A record is being written: what it refers to is needed, whoever wrote it.
    pub(crate) fn sent(&self, record: &VersionRecord) {
        self.facts.lock().in_flight = objects_of(record);
    }

    /// A record stands.
    pub(crate) fn committed(&self, record: &VersionRecord) {
        let mut facts = self.facts.lock();
        facts.chain.add(record);
        facts.in_flight.clear();
    }

    /// The present deployment, the oldest version that it may read from, and its compactions that may still come into a
    /// record.
    pub(crate) fn deployment(&self, execution: u64, in_use: Option<u64>, compactions: OpenCompactions) {
        let mut facts = self.facts.lock();
        (facts.execution, facts.in_use, facts.compactions) = (execution, in_use, compactions);
    }

    /// Objects of the present deployment that no record will ever list.
    pub(crate) fn stale(&self, objects: Vec<String>) {
        self.facts.lock().stale.extend(objects);
    }

    /// The versions that stand, and the state objects of the job's own that they refer to, those included that the next
    /// collection deletes. Null as long as a new leader has not read what stood before it came.
    pub(crate) fn versions(&self) -> Value {
        let facts = self.facts.lock();
        if !facts.complete {
            return Value::Null;
        }
        let standing = facts.chain.standing();
        json!({
            "checkpoints": standing.checkpoints, "records": standing.records,
            "objects": standing.objects, "bytes": standing.bytes,
        })
    }

    /// For the status.
    pub(crate) fn status(&self) -> Value {
        let known = self.log.boundaries().known();
        let done = self.facts.lock().done.clone();
        json!({
            "boundary": known.bound, "boundaries": known.number, "collections": done.collections,
            "objects_deleted": done.objects, "bytes_deleted": done.bytes, "records_deleted": done.records,
            "orphans_deleted": done.orphans, "orphan_bytes_deleted": done.orphan_bytes,
            "failed": done.failed, "last_ms": done.last_ms, "pins": done.pins,
        })
    }
}

struct Work {
    env: Env,
    log: VersionLog,
    store: Store,
    name: String,
    options: Options,
    facts: Arc<Mutex<Facts>>,
    generation: Generation,
    /// The newest record at the last collection.
    collected_at: u64,
    orphans_at: Option<Moment>,
    /// The newest record when the objects were listed last.
    listed_at: u64,
    started: Moment,
}

impl Work {
    async fn run(mut self) {
        loop {
            let jitter = self.env.random_below(self.options.interval.as_millis() as u64 / 8 + 1);
            self.env.sleep(self.options.interval + Duration::from_millis(jitter)).await;
            match self.turn().await {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::Fenced => {
                    // A planted bug: whoever was deposed takes its versions along.
                    if bug_is_planted(9) {
                        let _ = self.clean_up().await;
                    }
                    // The master learns of it by its next commit.
                    tracing::info!("job {}: nothing is collected any more: {e}", self.name);
                    return;
                }
                Err(e) => {
                    self.facts.lock().done.failed += 1;
                    tracing::warn!("job {}: the collection of garbage will be tried again: {e}", self.name);
                }
            }
        }
    }

    /// For a planted bug.
    async fn clean_up(&self) -> Result<()> {
        let (dead, records) = {
            let facts = self.facts.lock();
            let newest = facts.chain.newest();
            (facts.chain.dead_objects(newest, &BTreeSet::new()), facts.chain.dead_records(newest, &BTreeSet::new()))
        };
        let paths: Vec<String> = dead.iter().map(|(o, _)| object_path(o)).collect();
        self.store.delete_all(&paths, Purpose::State).await?;
        self.delete_records(&records).await
    }

    async fn turn(&mut self) -> Result<()> {
        let stale = std::mem::take(&mut self.facts.lock().stale);
        if !stale.is_empty()
            && let Err(e) = self.delete_orphans(stale.clone()).await
        {
            self.facts.lock().stale.extend(stale);
            return Err(e);
        }
        let newest = self.facts.lock().chain.newest();
        if newest >= self.collected_at + self.options.records {
            self.collect().await?;
            self.collected_at = newest;
        }
        let now = self.env.now();
        let due = match self.orphans_at {
            None => now.since(self.started) >= self.options.orphan_delay,
            Some(last) => now.since(last) >= self.options.orphan_interval && newest > self.listed_at,
        };
        if due {
            self.collect_orphans().await?;
            (self.orphans_at, self.listed_at) = (Some(now), newest);
        }
        Ok(())
    }

    /// Learns of the records that stood when this leader came.
    async fn load(&mut self) -> Result<()> {
        if self.facts.lock().complete {
            return Ok(());
        }
        let bound = self.log.boundaries().newest().await?.bound;
        let pinned: BTreeSet<u64> = self.log.pins().list().await?.iter().map(|p| p.pin.version).collect();
        let numbers: BTreeSet<VersionNumber> = self.log.list().await?.into_iter().collect();
        let unknown: Vec<VersionNumber> = {
            let facts = self.facts.lock();
            numbers.iter().filter(|n| !facts.chain.holds(n.0)).copied().collect()
        };
        // A take-over that stands alone below the bound: what it refers to went before the records around it did.
        let is_done = |n: VersionNumber, record: &VersionRecord| {
            let alone = n.0 < bound && !numbers.contains(&n.next()) && !pinned.contains(&n.0);
            alone && record.kind() == Kind::TakeOver
        };
        let facts = self.facts.clone();
        self.log
            .read_each(&unknown, |number, record| {
                let mut facts = facts.lock();
                match record {
                    Ok(Some(record)) if is_done(number, &record) => {}
                    Ok(Some(record)) => facts.chain.add(&record),
                    Ok(None) => {}
                    Err(e) => {
                        tracing::warn!("version {number} cannot be read: {e}");
                        facts.chain.add_unreadable(number.0);
                        facts.unreadable.insert(number.0);
                    }
                }
                Ok(())
            })
            .await?;
        self.facts.lock().complete = true;
        Ok(())
    }

    /// Gives up what is not kept any more, and deletes what only that needed.
    async fn collect(&mut self) -> Result<()> {
        self.load().await?;
        // A planted bug: a pin may come between this listing and the delete.
        let early = if bug_is_planted(28) { Some(self.log.pins().list().await?) } else { None };
        let known = self.log.boundaries().newest().await?;
        let wanted = {
            let facts = self.facts.lock();
            facts.chain.bound(self.options.retention, facts.in_use)
        };
        let known = if wanted > known.bound { self.draw(known, wanted).await? } else { known };
        let bound = known.bound;
        self.facts.lock().check_readable(bound)?;
        let pins = match early {
            Some(pins) => pins,
            None => self.log.pins().list().await?,
        };
        self.still_leads().await?;
        let newest = self.facts.lock().chain.newest();
        let (versions, objects, origins) = self.pinned(&pins, bound, newest).await?;
        let (dead, records) = {
            let facts = self.facts.lock();
            (facts.chain.dead_objects(bound, &objects), facts.chain.dead_records(bound, &versions))
        };
        // A planted bug: what is left to be deleted is forgotten before it is deleted.
        if bug_is_planted(21) {
            self.delete_records(&records).await?;
        }
        let paths: Vec<String> = dead.iter().map(|(o, _)| object_path(o)).collect();
        self.store.delete_all(&paths, Purpose::State).await?;
        {
            let mut facts = self.facts.lock();
            dead.iter().for_each(|(o, _)| facts.chain.remove_object(o));
            facts.done.objects += dead.len() as u64;
            facts.done.bytes += dead.iter().map(|(_, bytes)| bytes).sum::<u64>();
        }
        self.delete_records(&records).await?;
        self.release(&pins, newest, &origins, bound).await?;
        let mut facts = self.facts.lock();
        facts.done.collections += 1;
        facts.done.pins = pins.iter().filter(|p| p.holds(newest)).count() as u64;
        facts.done.last_ms = Some(self.env.wall_ms());
        Ok(())
    }

    async fn delete_records(&self, records: &[u64]) -> Result<()> {
        let paths: Vec<String> = records.iter().map(|n| VersionLog::path(VersionNumber(*n))).collect();
        self.store.delete_all(&paths, Purpose::Version).await?;
        let mut facts = self.facts.lock();
        for n in records {
            facts.chain.remove_record(*n);
            facts.unreadable.remove(n);
        }
        facts.done.records += records.len() as u64;
        Ok(())
    }

    /// Draws a boundary at `bound`; one that somebody drew before is taken as it is.
    async fn draw(&self, known: Known, bound: u64) -> Result<Known> {
        match self.log.boundaries().draw(known, bound, self.generation).await? {
            Drawn::Theirs(known) if known.generation > self.generation => Err(fenced(known.generation)),
            // That of a predecessor, or an earlier one of ours: the next collection draws another.
            Drawn::Ours(known) | Drawn::Theirs(known) => Ok(known),
        }
    }

    async fn still_leads(&self) -> Result<()> {
        let newest = self.facts.lock().chain.newest();
        match self.log.successor(newest, self.generation).await? {
            Some(generation) => Err(fenced(generation)),
            None => Ok(()),
        }
    }

    /// The versions that pins keep, the objects that these refer to, and the jobs whose objects they refer to.
    async fn pinned(
        &self,
        pins: &[Pinned],
        bound: u64,
        newest: u64,
    ) -> Result<(BTreeSet<u64>, BTreeSet<String>, BTreeSet<String>)> {
        let versions: BTreeSet<u64> = pins.iter().filter(|p| p.holds(newest)).map(|p| p.pin.version).collect();
        let mut objects = BTreeSet::new();
        let mut origins = BTreeSet::new();
        let is_sure = |n| pins.iter().any(|p| p.confirmed && p.pin.version == n && p.holds(newest));
        for &n in versions.range(..bound) {
            match self.log.read(VersionNumber(n)).await {
                Ok(Some(record)) => {
                    objects.extend(objects_of(&record));
                    let runs = record.tree.iter().flat_map(|t| &t.runs);
                    origins.extend(runs.filter(|r| !r.origin.is_empty()).map(|r| r.origin.clone()));
                }
                // A pin that came too late.
                Ok(None) => {}
                Err(e) if e.is_final() && !is_sure(n) => {
                    tracing::warn!("version {n}, pinned late, cannot be read: {e}")
                }
                // As long as it is not known what it needs, nothing is deleted.
                Err(e) => return Err(e),
            }
        }
        Ok((versions, objects, origins))
    }

    /// Releases pins that hold nothing any more: those of starts that are over, and that of a fork in its parent once no
    /// version that is kept needs the parent's objects.
    async fn release(&self, pins: &[Pinned], newest: u64, pinned: &BTreeSet<String>, bound: u64) -> Result<()> {
        let spent = pins.iter().filter(|p| p.pin.kind() == PinKind::Start && !p.holds(newest));
        for pin in spent {
            self.log.pins().release(pin).await?;
        }
        self.let_go_of_parent(pinned, bound).await
    }

    /// A fork whose kept versions refer to no other job's objects any more needs its parent no longer.
    async fn let_go_of_parent(&self, pinned: &BTreeSet<String>, bound: u64) -> Result<()> {
        let parent = {
            let mut facts = self.facts.lock();
            let needed = !pinned.is_empty() || !facts.chain.origins(bound).is_empty();
            if needed { None } else { facts.parent.take() }
        };
        let Some(parent) = parent else { return Ok(()) };
        let log = VersionLog::new(self.store.sibling(&parent), self.env.clone());
        let released = async {
            for pin in log.pins().list().await?.iter().filter(|p| p.pin.id == pin_id(&self.name)) {
                log.pins().release(pin).await?;
            }
            Ok(())
        };
        let outcome = released.await;
        if outcome.is_err() {
            self.facts.lock().parent = Some(parent);
        }
        outcome
    }

    /// Lists the state objects and deletes what earlier deployments have left and no version refers to.
    async fn collect_orphans(&mut self) -> Result<()> {
        self.load().await?;
        // What was over when the listing began can be in no record but those that stand or are in flight when it ends.
        let (current, compactions) = {
            let facts = self.facts.lock();
            ((self.generation.0, facts.execution), facts.compactions.clone())
        };
        let listed = self.store.list("data", Purpose::State).await?;
        let pins = self.log.pins().list().await?;
        self.still_leads().await?;
        let bound = self.log.boundaries().known().bound;
        let newest = self.facts.lock().chain.newest();
        let (_, objects, _) = self.pinned(&pins, bound, newest).await?;
        let mut orphans = Vec::new();
        let mut bytes = 0;
        {
            let facts = self.facts.lock();
            facts.check_readable(bound)?;
            for found in &listed {
                let Some(object) = found.path.strip_prefix("data/") else { continue };
                // What a record refers to is for `collect`.
                let needed = facts.chain.knows(object) || facts.in_flight.contains(object) || objects.contains(object);
                if !needed && is_over(object, current, &compactions) {
                    orphans.push(object.to_owned());
                    bytes += found.bytes;
                }
            }
        }
        self.delete_orphans(orphans).await?;
        self.facts.lock().done.orphan_bytes += bytes;
        Ok(())
    }

    async fn delete_orphans(&self, objects: Vec<String>) -> Result<()> {
        let paths: Vec<String> = objects.iter().map(|o| object_path(o)).collect();
        self.store.delete_all(&paths, Purpose::State).await?;
        self.facts.lock().done.orphans += objects.len() as u64;
        Ok(())
    }
}

fn fenced(generation: Generation) -> Error {
    Error::fenced(format!("generation {generation} has taken the job over"))
}
