//! An object store that counts: requests and bytes, and when each read began and ended.
//!
//! It wraps any backend, so Millstream and its peers are counted, and delayed, in the same place. It changes nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use millstream_objects::object_store::path::Path;
use millstream_objects::object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::outside::now;

/// What was asked of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Reads.
    pub gets: u64,
    /// Bytes that they brought.
    pub get_bytes: u64,
    /// Writes; the parts of a multipart write and its end count each.
    pub puts: u64,
    /// Bytes of them.
    pub put_bytes: u64,
}

impl std::ops::Sub for Requests {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            gets: self.gets - other.gets,
            get_bytes: self.get_bytes - other.get_bytes,
            puts: self.puts - other.puts,
            put_bytes: self.put_bytes - other.put_bytes,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    gets: AtomicU64,
    get_bytes: AtomicU64,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    /// Begin and end of each read, since `origin`.
    reads: Mutex<Vec<(Duration, Duration)>>,
}

impl Counters {
    fn put(&self, bytes: u64) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.put_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A backend that counts; clones share the account.
#[derive(Clone)]
pub struct Observed {
    store: Arc<dyn ObjectStore>,
    counters: Arc<Counters>,
    origin: std::time::Instant,
}

impl Observed {
    /// Around `store`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, counters: Arc::default(), origin: now() }
    }

    /// What was asked so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.counters;
        Requests { gets: of(&c.gets), get_bytes: of(&c.get_bytes), puts: of(&c.puts), put_bytes: of(&c.put_bytes) }
    }

    /// Forgets when reads happened.
    pub fn forget_reads(&self) {
        self.reads().clear();
    }

    /// The longest chain of reads each of which began after the one before it had ended.
    #[must_use]
    pub fn waves(&self) -> usize {
        longest_chain(&mut self.reads().clone())
    }

    fn reads(&self) -> std::sync::MutexGuard<'_, Vec<(Duration, Duration)>> {
        // Nothing panics while it is held.
        self.counters.reads.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The greatest number of intervals that follow one another: always the one that ends first.
fn longest_chain(intervals: &mut [(Duration, Duration)]) -> usize {
    intervals.sort_unstable_by_key(|i| i.1);
    let (mut count, mut end) = (0, Duration::ZERO);
    for (from, to) in intervals.iter() {
        if count == 0 || *from >= end {
            count += 1;
            end = *to;
        }
    }
    count
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("store", &self.store).finish_non_exhaustive()
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, counted", self.store)
    }
}

#[async_trait]
impl ObjectStore for Observed {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.counters.put(payload.content_length() as u64);
        self.store.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(&self, to: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.store.put_multipart_opts(to, options).await?;
        Ok(Box::new(ObservedUpload { upload, counters: self.counters.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return self.store.get_opts(location, options).await;
        }
        let from = self.origin.elapsed();
        let result = self.store.get_opts(location, options).await?;
        self.counters.gets.fetch_add(1, Ordering::Relaxed);
        self.counters.get_bytes.fetch_add(result.range.end - result.range.start, Ordering::Relaxed);
        self.reads().push((from, self.origin.elapsed()));
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct ObservedUpload {
    upload: Box<dyn MultipartUpload>,
    counters: Arc<Counters>,
}

#[async_trait]
impl MultipartUpload for ObservedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.counters.put(data.content_length() as u64);
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.counters.put(0);
        self.upload.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    use millstream_objects::object_store::ObjectStoreExt;
    use millstream_objects::object_store::memory::InMemory;

    use super::*;

    #[test]
    fn a_chain_holds_what_follows_one_another() {
        let at = |pairs: &[(u64, u64)]| -> usize {
            let mut all: Vec<_> =
                pairs.iter().map(|&(a, b)| (Duration::from_millis(a), Duration::from_millis(b))).collect();
            longest_chain(&mut all)
        };
        assert_eq!(at(&[]), 0);
        assert_eq!(at(&[(0, 30), (1, 31), (2, 60)]), 1);
        assert_eq!(at(&[(0, 30), (0, 10), (31, 50), (12, 20), (60, 61)]), 4);
    }

    #[tokio::test]
    async fn requests_and_bytes_are_counted() {
        let store = Observed::new(Arc::new(InMemory::new()));
        let path = Path::from("a/b");
        store.put(&path, vec![0; 100].into()).await.unwrap();
        store.get_range(&path, 10..30).await.unwrap();
        store.get(&path).await.unwrap().bytes().await.unwrap();
        store.head(&path).await.unwrap();
        assert_eq!(store.requests(), Requests { gets: 2, get_bytes: 120, puts: 1, put_bytes: 100 });
        assert_eq!(store.waves(), 2);
        store.forget_reads();
        assert_eq!(store.waves(), 0);
    }
}
