//! The object store of the cluster: one for all nodes, in memory, with faults.
//!
//! Three layers: each node has a [`Witness`] of its own, which puts its requests into the trace; below is one
//! `FaultyStore`, whose writes go on without their sender; below that is one [`Ledger`] over object_store's `InMemory`,
//! which sees what takes effect in truth.
//!
//! Replaces: the backend of `millstream_objects::Store`. Its retries, time-outs and the rules of each operation run as
//! they ship.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use millstream_objects::object_store;
use millstream_proto::version::VersionRecord;
use millstream_state_store::version::decode_record;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
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
    /// By path: the newest record.
    newest: BTreeMap<String, VersionRecord>,
    durable: BTreeMap<ListedCommittable, u64>,
    versions: u64,
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

    /// How many version records stand, of all jobs.
    #[must_use]
    pub fn versions(&self) -> u64 {
        self.0.facts.lock().versions
    }

    async fn absent_or_same(&self, path: &Path, payload: &PutPayload) {
        if let Ok(there) = self.0.store.get(path).await
            && let Ok(bytes) = there.bytes().await
            && bytes != body(payload)
        {
            self.0.trace.violation(format!("{path} is overwritten with something else"));
        }
    }

    fn landed(&self, path: &Path, payload: &PutPayload) {
        let Some((job, number)) = path.as_ref().split_once("/version/") else { return };
        let record = match decode_record(&body(payload)) {
            Ok(record) => record,
            Err(e) => return self.0.trace.violation(format!("{path} is no version record: {e}")),
        };
        let mut wrong = Vec::new();
        let mut facts = self.0.facts.lock();
        facts.versions += 1;
        if number.parse() != Ok(record.number) {
            wrong.push(format!("{path} holds version {}", record.number));
        }
        let before = facts.newest.get(job);
        if record.number != before.map_or(0, |b| b.number) + 1 {
            wrong.push(format!("{path} lands behind version {}", before.map_or(0, |b| b.number)));
        }
        if let Some(b) = before
            && (record.generation < b.generation || record.epoch < b.epoch)
        {
            wrong.push(format!("{path}: generation or epoch went back"));
        }
        for c in &record.committables {
            let listed = (c.sink_uid.clone(), c.epoch, c.subtask, c.sequence, c.payload.clone());
            facts.durable.entry(listed).or_insert(record.number);
        }
        facts.newest.insert(job.to_owned(), record);
        drop(facts);
        for what in wrong {
            self.0.trace.violation(what);
        }
    }
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
        self.0.store.delete_stream(paths)
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

/// The requests of one node, in the trace.
pub struct Witness {
    store: Arc<dyn ObjectStore>,
    trace: Trace,
    node: String,
}

impl Witness {
    /// The store as `node` sees it.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, trace: Trace, node: &str) -> Self {
        Self { store, trace, node: node.into() }
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
        let result = self.store.get_opts(path, options).await;
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
