//! The object store of the cluster: one for all nodes, in memory, with faults.
//!
//! Three layers: each node has a [`Witness`] of its own, which puts its requests into the trace; below is one
//! `FaultyStore`, whose writes go on without their sender; below that is one [`Ledger`] over object_store's `InMemory`,
//! which sees what takes effect in truth.
//!
//! Replaces: the backend of `millstream_objects::Store`. Its retries, time-outs and the rules of each operation run as
//! they ship.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use millstream_common::planted::bug_is_planted;
use millstream_objects::{FaultyStore, object_store};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Kind;
use millstream_state_store::version::decode_record;
use millstream_state_store::version::delta::apply;
use millstream_state_store::version::garbage::objects_of;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

type Result<T, E = object_store::Error> = std::result::Result<T, E>;
use parking_lot::Mutex;

use super::trace::Trace;

/// A committable as a version lists it: sink, epoch, subtask, sequence, payload.
pub type ListedCommittable = (String, u64, u32, u32, Vec<u8>);

/// What has taken effect in the store. Clones share it.
#[derive(Clone)]
pub struct Ledger(Arc<LedgerInner>);

struct LedgerInner {
    store: InMemory,
    trace: Trace,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    /// By job: the newest record, whole.
    newest: BTreeMap<String, VersionRecord>,
    durable: BTreeMap<ListedCommittable, u64>,
    versions: u64,
    /// By job and version: the job's own objects that the record refers to. Of all that were ever in the chain.
    listed: BTreeMap<String, BTreeMap<u64, BTreeSet<String>>>,
    /// By job and version: its greatest epoch.
    epochs: BTreeMap<String, BTreeMap<u64, u64>>,
    /// By job and object of it: what versions of others refer to. By job and version of the referrer.
    shared: BTreeMap<(String, String), BTreeSet<(String, u64)>>,
    /// By job: the versions that readers hold.
    held: BTreeMap<String, Vec<u64>>,
    /// By job: the versions that took it over.
    take_overs: BTreeMap<String, BTreeSet<u64>>,
    /// By job: the greatest bound.
    bounds: BTreeMap<String, u64>,
    deleted: u64,
    /// Paths of objects that were deleted.
    gone: BTreeSet<String>,
}

impl Facts {
    fn bound(&self, job: &str) -> u64 {
        self.bounds.get(job).copied().unwrap_or_default()
    }

    /// What is wrong with deleting an object of a job.
    fn deleting(&mut self, job: &str, path: &str) -> Option<String> {
        self.deleted += 1;
        let bound = self.bound(job);
        let versions = self.listed.get(job)?;
        let held = self.held.get(job).map(Vec::as_slice).unwrap_or_default();
        if let Some(number) = path.strip_prefix("version/").and_then(|n| n.parse::<u64>().ok()) {
            if self.take_overs.get(job).is_some_and(|t| t.contains(&number)) {
                return Some(format!("version {number} is deleted, a take-over"));
            }
            let newest = versions.last_key_value().map(|(n, _)| *n);
            return (number >= bound && newest >= Some(number))
                .then(|| format!("version {number} is deleted, the boundary is at {bound}"));
        }
        let object = path.strip_prefix("data/")?;
        let sharers = self.shared.get(&(job.to_owned(), object.to_owned()));
        if let Some((fork, n)) = sharers.into_iter().flatten().find(|(fork, n)| *n >= self.bound(fork)) {
            return Some(format!("{path} of {job} is deleted, version {n} of {fork} refers to it"));
        }
        let kept = |n: &u64| *n >= bound || held.contains(n);
        let needs = versions.iter().find(|(n, objects)| kept(n) && objects.contains(object));
        needs.map(|(n, _)| format!("{path} is deleted, version {n} refers to it, the boundary is at {bound}"))
    }
}

impl Ledger {
    /// An empty store.
    #[must_use]
    pub fn new(trace: Trace) -> Self {
        Self(Arc::new(LedgerInner { store: InMemory::new(), trace, facts: Mutex::default() }))
    }

    /// Whether a version lists this committable.
    #[must_use]
    pub fn is_durable(&self, committable: &ListedCommittable) -> bool {
        self.0.facts.lock().durable.contains_key(committable)
    }

    /// Whether a version lists a committable with these bytes.
    #[must_use]
    pub fn is_listed(&self, payload: &[u8]) -> bool {
        self.0.facts.lock().durable.keys().any(|(.., of)| of == payload)
    }

    /// How many version records stand, of all jobs.
    #[must_use]
    pub fn versions(&self) -> u64 {
        self.0.facts.lock().versions
    }

    /// How many objects were deleted.
    #[must_use]
    pub fn deleted(&self) -> u64 {
        self.0.facts.lock().deleted
    }

    /// The newest record of a job, whole.
    #[must_use]
    pub fn newest(&self, job: &str) -> Option<VersionRecord> {
        self.0.facts.lock().newest.get(job).cloned()
    }

    /// The greatest epoch in a version of a job.
    #[must_use]
    pub fn epoch_of(&self, job: &str, version: u64) -> Option<u64> {
        self.0.facts.lock().epochs.get(job)?.get(&version).copied()
    }

    /// A reader's pin on a version of a job is confirmed.
    pub fn hold(&self, job: &str, version: u64) {
        self.0.facts.lock().held.entry(job.to_owned()).or_default().push(version);
    }

    /// The reader lets go of it.
    pub fn let_go(&self, job: &str, version: u64) {
        if let Some(held) = self.0.facts.lock().held.get_mut(job)
            && let Some(i) = held.iter().position(|v| *v == version)
        {
            held.swap_remove(i);
        }
    }

    /// Whether a version of the job's chain has ever referred to an object, and it was never deleted. One that was may come
    /// again, by a write that lands late: then it is left over like one that was never listed.
    #[must_use]
    pub fn must_be_known(&self, job: &str, object: &str) -> bool {
        let facts = self.0.facts.lock();
        let listed = facts.listed.get(job).is_some_and(|versions| versions.values().any(|o| o.contains(object)));
        listed && !facts.gone.contains(&format!("{job}/data/{object}"))
    }

    /// Whether an object of this path was deleted once.
    #[must_use]
    pub fn was_deleted(&self, path: &str) -> bool {
        self.0.facts.lock().gone.contains(path)
    }

    fn deleting(&self, path: &Path) {
        self.0.trace.event("deleting", "store", path.as_ref());
        let whole = path.as_ref().to_owned();
        let Some((job, path)) = whole.split_once('/') else { return };
        let mut facts = self.0.facts.lock();
        let wrong = facts.deleting(job, path);
        facts.gone.insert(whole.clone());
        drop(facts);
        if let Some(what) = wrong {
            self.0.trace.violation(what);
        }
    }

    async fn content(&self, path: &Path) -> Option<Bytes> {
        self.0.store.get(path).await.ok()?.bytes().await.ok()
    }

    async fn absent_or_same(&self, path: &Path, payload: &PutPayload) {
        if self.content(path).await.is_some_and(|there| there != body(payload)) {
            self.0.trace.violation(format!("{path} is overwritten with something else"));
        }
    }

    fn landed(&self, path: &Path, payload: &PutPayload) {
        if let Some((job, _)) = path.as_ref().split_once("/boundary/") {
            let bound = boundary_of(&body(payload));
            let mut facts = self.0.facts.lock();
            let there = facts.bounds.entry(job.to_owned()).or_default();
            let before = std::mem::replace(there, bound.max(*there));
            drop(facts);
            if bound < before {
                self.0.trace.violation(format!("{path} lowers the boundary from {before} to {bound}"));
            }
            return;
        }
        let Some((job, number)) = path.as_ref().split_once("/version/") else { return };
        let record = match decode_record(&body(payload)) {
            Ok(record) => record,
            Err(e) => return self.0.trace.violation(format!("{path} is no version record: {e}")),
        };
        let mut wrong = Vec::new();
        let mut facts = self.0.facts.lock();
        if number.parse() != Ok(record.number) {
            wrong.push(format!("{path} holds version {}", record.number));
        }
        let before = facts.newest.get(job);
        let newest = before.map_or(0, |b| b.number);
        // One that was collected may come again, from somebody who has slept: it counts for nothing.
        let again = record.number <= newest && record.number < facts.bound(job);
        if !again {
            facts.versions += 1;
            if record.number != newest + 1 {
                wrong.push(format!("{path} lands behind version {newest}"));
            }
            match whole(facts.newest.get(job), record) {
                Ok(record) => wrong.extend(facts.add(job, record)),
                Err(what) => wrong.push(what),
            }
        }
        drop(facts);
        for what in wrong {
            self.0.trace.violation(what);
        }
    }
}

impl Facts {
    /// A record of the chain stands; what is wrong with it.
    fn add(&mut self, job: &str, record: VersionRecord) -> Option<String> {
        let back = self.newest.get(job).filter(|b| record.generation < b.generation || record.epoch < b.epoch);
        let wrong = back.map(|_| format!("{job}: generation or epoch went back in version {}", record.number));
        for c in &record.committables {
            let listed = (c.sink_uid.clone(), c.epoch, c.subtask, c.sequence, c.payload.clone());
            self.durable.entry(listed).or_insert(record.number);
        }
        self.listed.entry(job.to_owned()).or_default().insert(record.number, objects_of(&record));
        self.epochs.entry(job.to_owned()).or_default().insert(record.number, record.epoch);
        if record.kind() == Kind::TakeOver {
            self.take_overs.entry(job.to_owned()).or_default().insert(record.number);
        }
        for run in record.tree.iter().flat_map(|t| &t.runs).filter(|r| !r.origin.is_empty()) {
            let key = (run.origin.clone(), run.object.clone());
            self.shared.entry(key).or_default().insert((job.to_owned(), record.number));
        }
        self.newest.insert(job.to_owned(), record);
        wrong
    }
}

/// The whole record that a stored one stands for.
fn whole(before: Option<&VersionRecord>, stored: VersionRecord) -> Result<VersionRecord, String> {
    match (before, &stored.delta) {
        (_, None) => Ok(stored),
        (Some(before), Some(_)) => apply(before, &stored).map_err(|e| e.to_string()),
        (None, Some(_)) => Err("the first version is a delta".to_owned()),
    }
}

/// The bound in a boundary's object; 0 when it is none.
fn boundary_of(bytes: &[u8]) -> u64 {
    use prost::Message;
    let payload = bytes.get(10..).unwrap_or_default();
    millstream_proto::version::Boundary::decode(payload).map_or(0, |b| b.bound)
}

fn body(payload: &PutPayload) -> Bytes {
    payload.iter().flat_map(|b| b.iter().copied()).collect()
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger")
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store")
    }
}

#[async_trait]
impl ObjectStore for Ledger {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if options.mode == PutMode::Overwrite {
            self.absent_or_same(path, &payload).await;
        }
        let result = self.0.store.put_opts(path, payload.clone(), options).await;
        if result.is_ok() {
            self.0.trace.event("landed", "store", &format!("{path} {} bytes", payload.content_length()));
            self.landed(path, &payload);
        }
        result
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.store.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let seen = paths.inspect(move |path| {
            if let Ok(path) = path {
                this.deleting(path);
            }
        });
        self.0.store.delete_stream(seen.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.store.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Ledger {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.0.store.create_multipart(path).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        self.0.store.put_part(path, id, index, data).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let before = self.content(path).await;
        let result = self.0.store.complete_multipart(path, id, parts).await?;
        let after = self.content(path).await;
        self.0.trace.event(
            "landed",
            "store",
            &format!("{path} {} bytes in parts", after.as_ref().map_or(0, Bytes::len)),
        );
        if before.is_some() && before != after {
            self.0.trace.violation(format!("{path} is overwritten with something else"));
        }
        Ok(result)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.0.store.abort_multipart(path, id).await
    }
}

/// The requests of one node, in the trace.
pub struct Witness {
    store: FaultyStore,
    /// For a planted bug: another replica, that has no faults, answers reads.
    replica: Option<Ledger>,
    trace: Trace,
    node: String,
}

impl Witness {
    /// The store as `node` sees it.
    #[must_use]
    pub fn new(store: FaultyStore, ledger: Ledger, trace: Trace, node: &str) -> Self {
        let replica = bug_is_planted(23).then_some(ledger);
        Self { store, replica, trace, node: node.into() }
    }

    fn answer<T>(&self, what: &str, path: &str, result: Result<T>) -> Result<T> {
        let outcome = match &result {
            Ok(_) => "ok".to_owned(),
            Err(object_store::Error::NotFound { .. }) => "absent".to_owned(),
            Err(object_store::Error::AlreadyExists { .. }) => "exists".to_owned(),
            Err(e) => e.to_string(),
        };
        self.trace.event(what, &self.node, &format!("{path}: {outcome}"));
        result
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Witness").field(&self.node).finish()
    }
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {} sees it", self.store, self.node)
    }
}

#[async_trait]
impl ObjectStore for Witness {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let result = self.store.put_opts(path, payload, options).await;
        self.answer("put", path.as_ref(), result)
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let unreachable = self.store.faults().unreachable;
        let result = match &self.replica {
            Some(replica) => replica.get_opts(path, options).await,
            None => self.store.get_opts(path, options).await,
        };
        // A fault that does not hit what it should hit proves nothing.
        if unreachable && result.is_ok() {
            self.trace.violation(format!("{path} is read from a store that nobody can reach"));
        }
        self.answer("get", path.as_ref(), result)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.trace.event("delete", &self.node, "");
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.trace.event("list", &self.node, prefix.map_or("", AsRef::as_ref));
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.trace.event("list", &self.node, offset.as_ref());
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let result = self.store.copy_opts(from, to, options).await;
        self.answer("copy", to.as_ref(), result)
    }
}

#[async_trait]
impl MultipartStore for Witness {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let result = self.store.create_multipart(path).await;
        self.answer("begin", path.as_ref(), result)
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        let result = self.store.put_part(path, id, index, data).await;
        self.answer("part", path.as_ref(), result)
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let result = self.store.complete_multipart(path, id, parts).await;
        self.answer("complete", path.as_ref(), result)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let result = self.store.abort_multipart(path, id).await;
        self.answer("abort", path.as_ref(), result)
    }
}
