//! `fsck`: proves, without a running job, that everything that a version refers to is there and whole.
//!
//! For every job below the state prefix: each version record at or above the boundary, and each pinned one, can be read and is
//! well-formed, follows its predecessor without losing anything, and each run that any of them lists has an object of the
//! right size and with the right head, whose section has the right checksum, be it the job's own or of the job that it
//! was forked from. What the collector of the job would delete now is none of it, nor of what other jobs refer to. A job
//! with state objects and no version record has lost its records. It only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use millstream_common::hash::stable_hash;
use millstream_common::{Env, Epoch, Error, Result, VersionNumber};
use millstream_objects::{Listed, Purpose, Store};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Kind;
use prost::Message;

use crate::run::{Run, object_path};
use crate::tree::{Tree, check_successor};
use crate::version::boundary;
use crate::version::garbage::{Chain, kept_of, objects_of, writer_of};
use crate::version::pins::Pinned;
use crate::version::{VersionLog, number_of};

/// What `check` found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// Objects of any kind below the prefix.
    pub found: u64,
    /// Whether a cluster keeps records of its own there.
    pub cluster: bool,
    /// The jobs, by name.
    pub jobs: Vec<String>,
    /// Version records that were read.
    pub versions: u64,
    /// Of them, those below the boundary that no pin keeps: take-overs, and what is about to be deleted.
    pub given_up: u64,
    /// Pins that keep a version.
    pub pins: u64,
    /// State objects that some version refers to and that are there.
    pub objects: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// State objects that no version refers to (left over from attempts that failed, or about to be deleted; harmless), and
    /// their bytes.
    pub unreferenced: (u64, u64),
    /// Of them, those that no record says of that they are to be deleted, by job and generation of their writer.
    pub leaks: BTreeMap<(String, u64), u64>,
    /// What is wrong; empty when all is well.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object, below the state prefix.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Begins every bundle object (docs/formats.md): magic and format.
const BUNDLE_HEAD: [u8; 8] = *b"MSBD\x01\0\0\0";
/// The folder of the cluster beside those of jobs.
const CLUSTER: &str = "_cluster";
/// Objects that are read at the same time.
const READS_AT_ONCE: usize = 8;
/// Bytes of a section that are read at once.
const PIECE_BYTES: u64 = 4 << 20;

/// Checks all jobs below `store`, the state prefix.
pub async fn check(store: &Store, env: &Env) -> Result<FsckReport> {
    let mut report = FsckReport::default();
    let mut jobs: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
    for listed in store.list("", Purpose::Check).await? {
        report.found += 1;
        if let Some((job, path)) = listed.path.split_once('/') {
            jobs.entry(job.to_owned()).or_default().push(Listed { path: path.to_owned(), bytes: listed.bytes });
        }
    }
    report.cluster = jobs.remove(CLUSTER).is_some();
    let sizes: Sizes = jobs
        .iter()
        .map(|(job, objects)| (job.clone(), objects.iter().map(|o| (o.path.clone(), o.bytes)).collect()))
        .collect();
    let mut states = BTreeMap::new();
    for (job, objects) in &jobs {
        if !objects.iter().any(|o| number_of(&o.path).is_some()) {
            report.problems.extend(without_versions(job, objects));
            continue;
        }
        let mut check = JobCheck { store: store.child(job), env, job, report: &mut report };
        let state = check.records(objects).await?;
        states.insert(job.clone(), state);
        report.jobs.push(job.clone());
    }
    // Objects by the job below whose prefix they lie.
    let mut needed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (job, state) in &states {
        for run in state.runs.values() {
            let owner = if run.origin.is_empty() { job } else { &run.origin };
            needed.entry(owner.clone()).or_default().insert(run.object.clone());
        }
        needed.entry(job.clone()).or_default().extend(state.kept.keys().cloned());
    }
    let none = BTreeSet::new();
    for (job, state) in states {
        let mut check = JobCheck { store: store.child(&job), env, job: &job, report: &mut report };
        check.garbage(&state, needed.get(&job).unwrap_or(&none), &sizes);
        check.objects(&sizes, &state);
        let present = |r: &Arc<Run>| sizes_of(&sizes, &job, r) == Some(r.object_bytes);
        let present: Vec<Arc<Run>> = state.runs.into_values().filter(present).collect();
        check.heads(&present).await?;
        check.sections(present).await?;
    }
    report.problems.sort();
    Ok(report)
}

/// By job and path: the size of every object.
type Sizes = BTreeMap<String, BTreeMap<String, u64>>;

fn sizes_of(sizes: &Sizes, job: &str, run: &Run) -> Option<u64> {
    let owner = if run.origin.is_empty() { job } else { &run.origin };
    sizes.get(owner)?.get(&run.path()).copied()
}

/// What the records of a job say.
struct JobState {
    /// What the versions that are kept list.
    runs: BTreeMap<(String, u64), Arc<Run>>,
    /// What sinks keep with these versions, with sizes.
    kept: BTreeMap<String, u64>,
    /// All records, kept or not.
    chain: Chain,
    bound: u64,
    pinned: BTreeSet<String>,
}

/// A job's first version record stands before its first state object.
fn without_versions(job: &str, objects: &[Listed]) -> Option<Problem> {
    let count = objects.iter().filter(|o| o.path.starts_with("data/")).count();
    (count > 0).then(|| Problem {
        object: format!("{job}/version"),
        what: format!("there is no version record, but {count} objects of state: what they belong to is lost"),
    })
}

struct JobCheck<'a> {
    store: Store,
    env: &'a Env,
    job: &'a str,
    report: &'a mut FsckReport,
}

impl JobCheck<'_> {
    fn problem(&mut self, path: &str, what: impl Into<String>) {
        self.report.problems.push(Problem { object: format!("{}/{path}", self.job), what: what.into() });
    }

    /// The boundary and the pins that keep something.
    async fn kept(&mut self, objects: &[Listed], log: &VersionLog) -> Result<(u64, Vec<Pinned>)> {
        let boundaries: Vec<u64> = objects.iter().filter_map(|o| boundary::number_of(&o.path)).collect();
        if let Some(hole) = (1..).zip(&boundaries).find(|(i, n)| i != *n) {
            self.problem(&boundary::BoundaryLog::path(hole.0), "it is missing, and later boundaries are there");
        }
        let bound = match log.boundaries().find().await {
            Ok(known) => known.bound,
            Err(e) if e.is_final() => {
                self.problem("boundary", e.what());
                0
            }
            Err(e) => return Err(e),
        };
        let newest = objects.iter().filter_map(|o| number_of(&o.path)).max().map_or(0, |n| n.0);
        match log.pins().list().await {
            // One that was never confirmed may be too late for its version.
            Ok(mut pins) => {
                pins.retain(|p| p.holds(newest) && p.confirmed);
                self.report.pins += pins.len() as u64;
                Ok((bound, pins))
            }
            Err(e) if e.is_final() => {
                self.problem("pins", e.what());
                Ok((bound, Vec::new()))
            }
            Err(e) => Err(e),
        }
    }

    /// Reads the records and checks what they say of each other.
    async fn records(&mut self, objects: &[Listed]) -> Result<JobState> {
        let log = VersionLog::new(self.store.clone(), self.env.clone());
        let (bound, pins) = self.kept(objects, &log).await?;
        let pinned_versions: BTreeSet<u64> = pins.iter().map(|p| p.pin.version).collect();
        let numbers: Vec<VersionNumber> = objects.iter().filter_map(|o| number_of(&o.path)).collect();
        for missing in pinned_versions.iter().filter(|p| !numbers.contains(&VersionNumber(**p))) {
            let what = "it is pinned and is not there: lost, or the pin came back by a write that was carried out late, behind its \
                release; then release it again";
            self.problem(&VersionLog::path(VersionNumber(*missing)), what);
        }
        let oldest = numbers.first().map_or(0, |n| n.0).max(bound);
        let mut state = JobState {
            runs: BTreeMap::new(),
            kept: BTreeMap::new(),
            chain: Chain::default(),
            bound,
            pinned: BTreeSet::new(),
        };
        let mut before: Option<(VersionRecord, Tree)> = None;
        // What a take-over may have gone back to: the state of any version, or none.
        let mut earlier = BTreeSet::from([content(&VersionRecord::default())]);
        log.read_each(&numbers, |number, record| {
            self.report.versions += 1;
            let kept = number.0 >= bound || pinned_versions.contains(&number.0);
            self.report.given_up += u64::from(!kept);
            let record = match record {
                Ok(Some(record)) => record,
                Ok(None) if !kept => return Ok(()),
                Ok(None) => {
                    self.problem(&VersionLog::path(number), "it was listed and is gone");
                    before = None;
                    return Ok(());
                }
                Err(e) => {
                    if kept {
                        self.problem(&VersionLog::path(number), e.what());
                    }
                    before = None;
                    return Ok(());
                }
            };
            state.chain.add(&record);
            if pinned_versions.contains(&number.0) {
                state.pinned.extend(objects_of(&record));
            }
            let tree = match Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default())) {
                Ok(tree) => tree,
                Err(e) => {
                    if kept {
                        self.problem(&VersionLog::path(number), e.what());
                    }
                    before = None;
                    return Ok(());
                }
            };
            if let Some((old, old_tree)) = before.as_ref().filter(|b| b.0.number >= bound) {
                let gone = record.base != 0 && record.base < oldest;
                let went_back = record.kind() == Kind::TakeOver && (earlier.contains(&content(&record)) || gone);
                self.successor((old, old_tree), (&record, &tree), went_back);
            }
            earlier.insert(content(&record));
            if kept {
                self.gather_runs(number, &tree, &mut state.runs);
                state.kept.extend(kept_of(&record).map(|k| (k.object.clone(), k.bytes)));
            }
            before = Some((record, tree));
            Ok(())
        })
        .await?;
        Ok(state)
    }

    fn gather_runs(&mut self, number: VersionNumber, tree: &Tree, runs: &mut BTreeMap<(String, u64), Arc<Run>>) {
        for run in tree.runs() {
            let identity = (run.object.clone(), run.offset);
            match runs.get(&identity) {
                Some(known) if run.with_clip(known.clip.clone()) != **known => {
                    let what = format!("version {number} describes the run at {} in another way", run.offset);
                    self.problem(&run.path(), what);
                }
                Some(_) => {}
                None => drop(runs.insert(identity, run.clone())),
            }
        }
    }

    /// What may be deleted is nothing that anybody needs. `needed`: the objects of this job that versions refer to, its
    /// own and those of its forks.
    fn garbage(&mut self, state: &JobState, needed: &BTreeSet<String>, sizes: &Sizes) {
        for (object, _) in state.chain.dead_objects(state.bound, &state.pinned) {
            if needed.contains(&*object) {
                self.problem(&object_path(&object), "a version refers to it and the collector may delete it");
            }
        }
        let there = sizes.get(self.job).into_iter().flatten().filter_map(|(p, _)| p.strip_prefix("data/"));
        for object in there.filter(|o| !needed.contains(*o) && !state.chain.knows(o)) {
            let generation = writer_of(object).map_or(0, |w| w.0);
            *self.report.leaks.entry((self.job.to_owned(), generation)).or_default() += 1;
        }
    }

    /// `went_back`: the new one starts from the state of an earlier version, as its user asked for.
    fn successor(
        &mut self,
        (old, old_tree): (&VersionRecord, &Tree),
        (new, new_tree): (&VersionRecord, &Tree),
        went_back: bool,
    ) {
        let path = VersionLog::path(VersionNumber(new.number));
        if new.number != old.number + 1 {
            self.problem(&path, format!("the records between {} and it are missing", old.number));
            return;
        }
        if new.generation < old.generation {
            let what = format!("it is of generation {}, its predecessor of {}", new.generation, old.generation);
            self.problem(&path, what);
        }
        if new.epoch < old.epoch {
            self.problem(&path, format!("it is of epoch {}, its predecessor of {}", new.epoch, old.epoch));
        }
        if !went_back && let Err(e) = check_successor(old_tree, new_tree, (Epoch(old.epoch), Epoch(new.epoch))) {
            self.problem(&path, e.what());
        }
    }

    fn objects(&mut self, sizes: &Sizes, state: &JobState) {
        let runs = &state.runs;
        let own = runs.values().filter(|r| r.origin.is_empty()).map(|r| r.path());
        let referenced: BTreeSet<String> = own.chain(state.kept.keys().map(|o| object_path(o))).collect();
        let there = sizes.get(self.job).into_iter().flatten();
        for (path, bytes) in there.filter(|(path, _)| path.starts_with("data/")) {
            if referenced.contains(path) {
                self.report.objects += 1;
                self.report.bytes += bytes;
            } else {
                self.report.unreferenced.0 += 1;
                self.report.unreferenced.1 += bytes;
            }
        }
        let mut seen = BTreeSet::new();
        for run in runs.values().filter(|r| seen.insert(r.object.clone())) {
            let path = self.place(run);
            match sizes_of(sizes, self.job, run) {
                None => self.problem_at(path, "a version refers to it and it is not there".to_owned()),
                Some(bytes) if bytes != run.object_bytes => {
                    self.problem_at(path, format!("it has {bytes} bytes instead of {}", run.object_bytes));
                }
                Some(_) => {}
            }
        }
        for (object, bytes) in &state.kept {
            let path = object_path(object);
            match sizes.get(self.job).and_then(|there| there.get(&path)) {
                None => self.problem(&path, "a version lists it with output to be committed, and it is not there"),
                Some(found) if found != bytes => {
                    self.problem(&path, format!("it has {found} bytes instead of {bytes}"))
                }
                Some(_) => {}
            }
        }
    }

    /// Where a run's object lies, below the state prefix.
    fn place(&self, run: &Run) -> String {
        let owner = if run.origin.is_empty() { self.job } else { &run.origin };
        format!("{owner}/{}", run.path())
    }

    fn store_of(&self, run: &Run) -> Store {
        if run.origin.is_empty() { self.store.clone() } else { self.store.sibling(&run.origin) }
    }

    fn problem_at(&mut self, object: String, what: String) {
        self.report.problems.push(Problem { object, what });
    }

    async fn heads(&mut self, present: &[Arc<Run>]) -> Result<()> {
        let objects: BTreeMap<String, (Store, String)> =
            present.iter().map(|r| (self.place(r), (self.store_of(r), r.path()))).collect();
        let checks = futures::stream::iter(objects).map(move |(place, (store, path))| async move {
            let head = store.get_range(&path, 0..BUNDLE_HEAD.len() as u64, Purpose::Check).await;
            let wrong = |head: &[u8]| {
                (head != BUNDLE_HEAD).then(|| "its first 8 bytes are not those of a bundle of state".to_owned())
            };
            (place, head.map(|h| wrong(&h)))
        });
        self.gather(checks.buffer_unordered(READS_AT_ONCE)).await
    }

    async fn sections(&mut self, present: Vec<Arc<Run>>) -> Result<()> {
        let placed: Vec<_> = present.into_iter().map(|r| (self.place(&r), self.store_of(&r), r)).collect();
        let checks = futures::stream::iter(placed).map(move |(place, store, run)| async move {
            let wrong = |checksum| {
                let what = || format!("the section at {} does not match its checksum", run.offset);
                (checksum != run.checksum).then(what)
            };
            (place, section_checksum(&store, &run).await.map(wrong))
        });
        self.gather(checks.buffer_unordered(READS_AT_ONCE)).await
    }

    /// Notes what is wrong with objects: what a check found, or the error that says that an object is damaged.
    async fn gather(&mut self, checks: impl Stream<Item = (String, Result<Option<String>>)>) -> Result<()> {
        let mut checks = std::pin::pin!(checks);
        while let Some((place, outcome)) = checks.next().await {
            match outcome {
                Ok(None) => {}
                Ok(Some(what)) => self.problem_at(place, what),
                Err(e) if e.is_final() => self.problem_at(place, e.what().to_owned()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Stands for the runs that are live in a version.
fn content(record: &VersionRecord) -> u64 {
    let mut runs: Vec<_> = record.tree.iter().flat_map(|t| &t.runs).collect();
    // Records of old have them in any order.
    runs.sort_by(|a, b| (&a.object, a.offset).cmp(&(&b.object, b.offset)));
    stable_hash(&runs.into_iter().flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<u8>>())
}

async fn section_checksum(store: &Store, run: &Run) -> Result<u32, Error> {
    let end = run.offset + run.length;
    let mut checksum = 0;
    let mut at = run.offset;
    while at < end {
        let next = (at + PIECE_BYTES).min(end);
        let piece = store.get_range(&run.path(), at..next, Purpose::Check).await?;
        checksum = crc32c::crc32c_append(checksum, &piece);
        at = next;
    }
    Ok(checksum)
}

#[cfg(test)]
mod tests {
    use millstream_common::KeyGroupRanges;

    use super::*;
    use crate::testing::*;
    use crate::{Expiry, Interval, SectionWriter, StateStoreOptions};

    /// A job with one version and one state object; gives the path of the object.
    async fn state_of_a_job(job: &Store, env: &Env) -> String {
        let states = state_store(job, env, false, StateStoreOptions::default());
        let mut writer = SectionWriter::new(TASK);
        writer.put(&point(POINT, b"key"), b"value", Expiry::Never);
        let interval = Interval::of(Epoch(1), 0);
        let section = writer.encode(&states.options().section, &layouts(), KeyGroupRanges::all(), interval).unwrap();
        let run = states.write_bundle(WRITER, vec![section]).await.unwrap().remove(0);
        let path = run.path();
        let mut tree = tree();
        tree.add_runs([Arc::new(run)]);
        let record = VersionRecord {
            number: 1,
            kind: Kind::Checkpoint.into(),
            generation: 1,
            nonce: "1".repeat(32),
            epoch: 1,
            hash_id: 1,
            key_codec_id: 1,
            tree: Some(tree.to_proto()),
            ..VersionRecord::default()
        };
        VersionLog::new(job.clone(), env.clone()).commit(&record).await.unwrap();
        path
    }

    #[tokio::test(start_paused = true)]
    async fn no_byte_of_an_object_can_change_unseen() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let job = store.child("job");
        let path = state_of_a_job(&job, &env).await;
        let report = check(&store, &env).await.unwrap();
        assert_eq!((report.problems.as_slice(), report.objects, report.found), (&[][..], 1, 2));
        let whole = job.get(&path, Purpose::Check).await.unwrap().unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 1;
            job.put(&path, vec![damaged.into()], Purpose::Check).await.unwrap();
            let problems = check(&store, &env).await.unwrap().problems;
            let word = if at < BUNDLE_HEAD.len() { "first 8 bytes" } else { "checksum" };
            assert!(problems.len() == 1 && problems[0].what.contains(word), "byte {at}: {problems:?}");
            assert_eq!(problems[0].object, format!("job/{path}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn state_without_records_is_no_empty_place() {
        let env = Env::test(1);
        let store = memory_store(&env);
        assert_eq!(check(&store, &env).await.unwrap(), FsckReport::default());
        state_of_a_job(&store.child("job"), &env).await;
        store.child("job").delete(&VersionLog::path(1.into()), Purpose::Check).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert!(report.jobs.is_empty() && report.problems.len() == 1, "{report:?}");
        assert!(report.problems[0].what.contains("no version record, but 1 objects"), "{report:?}");
    }

    /// `record` as version 2 of a job, without its state.
    async fn without_state(job: &Store, env: &Env, record: &VersionRecord) {
        let mut next = VersionRecord { number: 2, generation: 2, nonce: "2".repeat(32), ..record.clone() };
        next.set_kind(Kind::TakeOver);
        next.tree.as_mut().unwrap().runs.clear();
        VersionLog::new(job.clone(), env.clone()).commit(&next).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_fork_shares_must_be_pinned_in_its_parent() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let (parent, fork) = (store.child("parent"), store.child("fork"));
        let path = state_of_a_job(&parent, &env).await;
        let log = VersionLog::new(parent.clone(), env.clone());
        let mut record = log.newest().await.unwrap().unwrap();
        without_state(&parent, &env, &record).await;
        for run in &mut record.tree.as_mut().unwrap().runs {
            run.origin = "parent".to_owned();
        }
        record.set_kind(Kind::TakeOver);
        VersionLog::new(fork.clone(), env.clone()).commit(&record).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert_eq!((report.problems.as_slice(), report.given_up), (&[][..], 0));
        // The parent gives up the version that the fork shares.
        log.boundaries().draw(Default::default(), 2, millstream_common::Generation(2)).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert_eq!((report.problems.len(), report.given_up), (1, 1), "{report:?}");
        assert!(report.problems[0].what.contains("the collector may delete it"), "{report:?}");
        // A pin keeps it; one that came too late would not.
        let pin = millstream_proto::version::Pin { id: "fork-fork".to_owned(), version: 1, ..Default::default() };
        let late = log.pins().pin(&pin, log.boundaries()).await;
        assert_eq!(late.unwrap_err().number(), 1509);
        parent.delete(&boundary::BoundaryLog::path(1), Purpose::Check).await.unwrap();
        let fresh = VersionLog::new(parent.clone(), env.clone());
        fresh.pins().pin(&pin, fresh.boundaries()).await.unwrap();
        fresh.boundaries().draw(Default::default(), 2, millstream_common::Generation(2)).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert_eq!((report.problems.as_slice(), report.given_up, report.pins), (&[][..], 0, 1));
        // It is gone all the same: both notice.
        parent.delete(&path, Purpose::Check).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert_eq!(report.problems.len(), 2, "{report:?}");
        assert!(report.problems.iter().all(|p| p.object == format!("parent/{path}")), "{report:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn holes_pins_without_versions_and_leaks_are_seen() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let job = store.child("job");
        state_of_a_job(&job, &env).await;
        job.put("data/00/3-1-left", vec![vec![0].into()], Purpose::State).await.unwrap();
        let report = check(&store, &env).await.unwrap();
        assert_eq!(report.leaks, BTreeMap::from([(("job".to_owned(), 3), 1)]));
        assert_eq!((report.problems.as_slice(), report.unreferenced), (&[][..], (1, 1)));
        let log = VersionLog::new(job.clone(), env.clone());
        let pin = millstream_proto::version::Pin { id: "p".to_owned(), version: 7, ..Default::default() };
        log.pins().pin(&pin, log.boundaries()).await.unwrap();
        for bound in [1, 1] {
            log.boundaries().draw(log.boundaries().known(), bound, millstream_common::Generation(1)).await.unwrap();
        }
        job.delete(&boundary::BoundaryLog::path(1), Purpose::Check).await.unwrap();
        let problems = check(&store, &env).await.unwrap().problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].object.contains("boundary") && problems[0].what.contains("missing"), "{problems:?}");
        assert!(problems[1].what.contains("pinned and is not there"), "{problems:?}");
    }
}
