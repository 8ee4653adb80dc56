//! `fsck`: proves, without a running job, that everything that a version refers to is there and whole.
//!
//! For every job below the state prefix: each version record can be read and is well-formed, follows its predecessor
//! without losing anything, and each run that any of them lists has an object of the right size and with the right head,
//! whose section has the right checksum. A job with state objects and no version record has lost its records. It only
//! reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{Stream, StreamExt};
use millstream_common::hash::stable_hash;
use millstream_common::{Env, Epoch, Error, Result, VersionNumber};
use millstream_objects::{Listed, Purpose, Store};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Kind;
use prost::Message;

use crate::run::Run;
use crate::tree::{Tree, check_successor};
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
    /// State objects that some version refers to and that are there.
    pub objects: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// State objects that no version refers to (left over from attempts that failed; harmless), and their bytes.
    pub unreferenced: (u64, u64),
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
    for (job, objects) in jobs {
        if !objects.iter().any(|o| number_of(&o.path).is_some()) {
            report.problems.extend(without_versions(&job, &objects));
            continue;
        }
        let mut check = JobCheck { store: store.child(&job), env, job: &job, report: &mut report };
        check.run(&objects).await?;
        report.jobs.push(job);
    }
    report.problems.sort();
    Ok(report)
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

    async fn run(&mut self, objects: &[Listed]) -> Result<()> {
        let sizes: BTreeMap<&str, u64> = objects.iter().map(|o| (o.path.as_str(), o.bytes)).collect();
        let log = VersionLog::new(self.store.clone(), self.env.clone());
        let mut runs: BTreeMap<(String, u64), Arc<Run>> = BTreeMap::new();
        let mut before: Option<(VersionRecord, Tree)> = None;
        // What a take-over may have gone back to: the state of any version, or none.
        let mut earlier = BTreeSet::from([content(&VersionRecord::default())]);
        for number in objects.iter().filter_map(|o| number_of(&o.path)) {
            let Some((record, tree)) = self.version(&log, number).await? else {
                before = None;
                continue;
            };
            if let Some((old, old_tree)) = &before {
                let went_back = record.kind() == Kind::TakeOver && earlier.contains(&content(&record));
                self.successor((old, old_tree), (&record, &tree), went_back);
            }
            earlier.insert(content(&record));
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
            before = Some((record, tree));
        }
        self.objects(&sizes, &runs);
        let present: Vec<Arc<Run>> =
            runs.into_values().filter(|r| sizes.get(r.path().as_str()) == Some(&r.object_bytes)).collect();
        self.heads(&present).await?;
        self.sections(present).await
    }

    /// A record and its tree; `None` when something is wrong with it, which is noted.
    async fn version(&mut self, log: &VersionLog, number: VersionNumber) -> Result<Option<(VersionRecord, Tree)>> {
        let path = VersionLog::path(number);
        self.report.versions += 1;
        let record = match log.read(number).await {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.problem(&path, "it was listed and is gone");
                return Ok(None);
            }
            Err(e) if e.is_final() => {
                self.problem(&path, e.what());
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        match Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default())) {
            Ok(tree) => Ok(Some((record, tree))),
            Err(e) => {
                self.problem(&path, e.what());
                Ok(None)
            }
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

    fn objects(&mut self, sizes: &BTreeMap<&str, u64>, runs: &BTreeMap<(String, u64), Arc<Run>>) {
        let referenced: BTreeSet<String> = runs.values().map(|r| r.path()).collect();
        for (path, bytes) in sizes.iter().filter(|(path, _)| path.starts_with("data/")) {
            if referenced.contains(*path) {
                self.report.objects += 1;
                self.report.bytes += bytes;
            } else {
                self.report.unreferenced.0 += 1;
                self.report.unreferenced.1 += bytes;
            }
        }
        let mut seen = BTreeSet::new();
        for run in runs.values().filter(|r| seen.insert(r.object.clone())) {
            let path = run.path();
            match sizes.get(path.as_str()) {
                None => self.problem(&path, "a version refers to it and it is not there"),
                Some(bytes) if *bytes != run.object_bytes => {
                    self.problem(&path, format!("it has {bytes} bytes instead of {}", run.object_bytes));
                }
                Some(_) => {}
            }
        }
    }

    async fn heads(&mut self, present: &[Arc<Run>]) -> Result<()> {
        let paths: BTreeSet<String> = present.iter().map(|r| r.path()).collect();
        let store = self.store.clone();
        let checks = futures::stream::iter(paths).map(move |path| {
            let store = store.clone();
            async move {
                let head = store.get_range(&path, 0..BUNDLE_HEAD.len() as u64, Purpose::Check).await;
                let wrong = |head: &[u8]| {
                    (head != BUNDLE_HEAD).then(|| "its first 8 bytes are not those of a bundle of state".to_owned())
                };
                (path, head.map(|h| wrong(&h)))
            }
        });
        self.gather(checks.buffer_unordered(READS_AT_ONCE)).await
    }

    async fn sections(&mut self, present: Vec<Arc<Run>>) -> Result<()> {
        let store = self.store.clone();
        let checks = futures::stream::iter(present).map(move |run| {
            let store = store.clone();
            async move {
                let wrong = |checksum| {
                    let what = || format!("the section at {} does not match its checksum", run.offset);
                    (checksum != run.checksum).then(what)
                };
                (run.path(), section_checksum(&store, &run).await.map(wrong))
            }
        });
        self.gather(checks.buffer_unordered(READS_AT_ONCE)).await
    }

    /// Notes what is wrong with objects: what a check found, or the error that says that an object is damaged.
    async fn gather(&mut self, checks: impl Stream<Item = (String, Result<Option<String>>)>) -> Result<()> {
        let mut checks = std::pin::pin!(checks);
        while let Some((path, outcome)) = checks.next().await {
            match outcome {
                Ok(None) => {}
                Ok(Some(what)) => self.problem(&path, what),
                Err(e) if e.is_final() => self.problem(&path, e.what()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Stands for the runs that are live in a version.
fn content(record: &VersionRecord) -> u64 {
    let runs = record.tree.iter().flat_map(|t| &t.runs);
    stable_hash(&runs.flat_map(Message::encode_length_delimited_to_vec).collect::<Vec<u8>>())
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
}
