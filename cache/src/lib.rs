//! What a process keeps of state objects: data blocks in memory and on the local SSD, and decoded metadata.
//!
//! Blocks are the unit, not objects. A look-up goes to memory first ([`Caches::block`], synchronous), then to the SSD
//! ([`Caches::disk_block`]), then to whoever fetches the block already ([`Caches::begin`]: single flight), and only
//! then to the object store, which this crate knows nothing of. The SSD tier may lose or damage anything at any time:
//! what comes back from it is checked, and a failure there is a miss that is counted, never an error.
//!
//! Without an SSD tier nothing here spawns or waits.

mod admission;
mod blocks;
mod budget;
mod disk;
mod drops;
mod files;
mod flight;
mod health;
mod metadata;
mod options;
mod pins;
mod turnover;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_common::env::Moment;
use millstream_common::latency::Latencies;
use millstream_common::{Env, Result};
use parking_lot::Mutex;

use drops::Drops;
use health::{Change, Health, Outcome};

pub use budget::DiskBudget;
pub use files::{FileRange, FileStats, Filling, LocalFiles};
pub use flight::{Flight, Lead, Wait};
pub use options::{CacheOptions, DiskOptions};
pub use turnover::TURNOVER_STEPS;

/// An object's name in the caches: 128 bits of a hash of its name. Object names are unique for ever and random in
/// part, so two of them do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(u128);

impl ObjectId {
    /// The id of the object of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
    }
}

/// Names a block (or a meta part): where it begins in which object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// The offset in the object.
    pub offset: u64,
}

/// What the caches did, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks found in memory.
    pub memory_hits: u64,
    /// Blocks found on the SSD.
    pub disk_hits: u64,
    /// Blocks found in neither.
    pub misses: u64,
    /// Look-ups on the SSD that failed or gave damaged bytes, and writes that failed.
    pub disk_errors: u64,
    /// Look-ups on the SSD that were given up because they took longer than the object store would have.
    pub disk_slow: u64,
    /// Blocks that were not written onto the SSD because they came faster than it took them, or while it rested.
    pub disk_dropped: u64,
    /// The SSD has failed or been slow too often and is left alone for a while.
    pub disk_rests: bool,
    /// Bytes of blocks in memory now.
    pub memory_bytes: u64,
    /// Bytes of metadata in memory now.
    pub metadata_bytes: u64,
    /// Blocks in memory now.
    pub memory_entries: u64,
    /// Bytes of blocks that memory holds at most.
    pub memory_capacity_bytes: u64,
    /// Meta parts that were asked for and were in memory.
    pub metadata_hits: u64,
    /// Meta parts that were asked for and were not.
    pub metadata_misses: u64,
    /// Meta parts in memory now.
    pub metadata_entries: u64,
    /// Bytes of metadata that memory holds at most.
    pub metadata_capacity_bytes: u64,
    /// Size of the SSD tier, bytes; 0: there is none.
    pub disk_capacity_bytes: u64,
    /// Bytes read from the SSD.
    pub disk_read_bytes: u64,
    /// Bytes written onto the SSD.
    pub disk_write_bytes: u64,
    /// How long look-ups on the SSD took that came to an end, hits and misses.
    pub disk_look_ups: Latencies,
    /// Bytes of blocks and metadata that are pinned, beside those.
    pub pinned_bytes: u64,
    /// Blocks and metadata that were to be pinned and found no room.
    pub pins_refused: u64,
}

/// A look-up on the SSD that takes longer is given up, unless the object store takes longer, too.
const DISK_PATIENCE: Duration = Duration::from_millis(150);
/// However slow that is.
const LONGEST_DISK_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Counters {
    memory_hits: AtomicU64,
    disk_hits: AtomicU64,
    misses: AtomicU64,
    disk_errors: AtomicU64,
    disk_slow: AtomicU64,
    disk_dropped: AtomicU64,
    metadata_hits: AtomicU64,
    metadata_misses: AtomicU64,
    disk_look_ups: Mutex<Latencies>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A block as the cache holds it.
pub trait CacheBlock: Clone + Send + Sync + 'static {
    /// Its bytes: what the SSD tier keeps.
    fn body(&self) -> &[u8];
    /// Bytes of memory that it takes.
    fn memory_bytes(&self) -> usize;
    /// The block of bytes that came back from the SSD.
    fn of_body(body: Bytes) -> Result<Self>;
}

impl CacheBlock for Bytes {
    fn body(&self) -> &[u8] {
        self
    }

    fn memory_bytes(&self) -> usize {
        self.len()
    }

    fn of_body(body: Bytes) -> Result<Self> {
        Ok(body)
    }
}

/// The caches of a process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Caches<B: CacheBlock = Bytes>(Arc<Inner<B>>);

struct Inner<B: CacheBlock> {
    blocks: blocks::Blocks<B>,
    metadata: metadata::Metadata,
    pins: pins::Pins<B>,
    block_flights: flight::Flights<B>,
    metadata_flights: flight::Flights<()>,
    counters: Counters,
    turnover: turnover::Turnover,
    /// Time for the SSD tier; none without one.
    env: Option<Env>,
    /// Size of the SSD tier.
    disk_bytes: u64,
    health: Mutex<Health>,
    admission: admission::Admission,
}

impl<B: CacheBlock> Caches<B> {
    /// Caches as `options` say. Opens the SSD tier when there is one.
    pub async fn new(options: &CacheOptions, env: &Env) -> Result<Self> {
        options.validate()?;
        let blocks = blocks::Blocks::open(options).await?;
        let env = blocks.has_disk().then(|| env.clone());
        let disk_bytes = options.disk.as_ref().filter(|_| blocks.has_disk()).map_or(0, |d| d.bytes);
        let bytes = (options.memory_bytes, options.metadata_bytes, options.pinned_bytes);
        Ok(Self::of(blocks, bytes, env, disk_bytes))
    }

    /// Caches in memory alone; what is pinned has no bound.
    #[must_use]
    pub fn in_memory(memory_bytes: u64, metadata_bytes: u64) -> Self {
        Self::of(blocks::Blocks::in_memory(memory_bytes), (memory_bytes, metadata_bytes, u64::MAX), None, 0)
    }

    fn of(blocks: blocks::Blocks<B>, bytes: (u64, u64, u64), env: Option<Env>, disk_bytes: u64) -> Self {
        let (memory_bytes, metadata_bytes, pinned_bytes) = bytes;
        Self(Arc::new(Inner {
            blocks,
            metadata: metadata::Metadata::new(metadata_bytes),
            pins: pins::Pins::new(pinned_bytes),
            block_flights: flight::Flights::default(),
            metadata_flights: flight::Flights::default(),
            counters: Counters::default(),
            turnover: turnover::Turnover::new(memory_bytes),
            env,
            disk_bytes,
            health: Mutex::default(),
            admission: admission::Admission::default(),
        }))
    }

    /// A block from memory. Counts a hit, not a miss.
    #[inline]
    #[must_use]
    pub fn block(&self, key: &BlockKey) -> Option<B> {
        let found = self.0.pins.block(key).or_else(|| self.0.blocks.memory(key));
        if found.is_some() {
            self.count_memory_hits(1);
        }
        found
    }

    /// Counts blocks that were found in memory by a way of the caller's own.
    pub fn count_memory_hits(&self, blocks: u64) {
        self.0.counters.memory_hits.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Moves on while blocks come into memory: by [`TURNOVER_STEPS`] until as much has come as memory holds. Whoever reaches a block
    /// by a way of its own calls [`Caches::touch`] when this differs from when it last did, so that what is read often
    /// stays; while nothing comes in, nobody need be told anything.
    #[inline]
    #[must_use]
    pub fn turnover(&self) -> u32 {
        self.0.turnover.now()
    }

    /// A block was read by a way of the caller's own.
    pub fn touch(&self, key: &BlockKey) {
        drop(self.0.blocks.memory(key));
    }

    /// Whether [`Caches::disk_block`] can find anything: there is an SSD tier, and it does not rest.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.0.env.as_ref().is_some_and(|env| self.0.health.lock().is_usable(env.now()))
    }

    /// A block from the SSD, if it is there and whole. Counts a hit; a miss is for [`Caches::count_misses`]. `otherwise`:
    /// how long nearly all GETs take that would bring it, as far as that is known; the SSD is given as long, within
    /// bounds.
    pub async fn disk_block(&self, key: &BlockKey, otherwise: Option<Duration>) -> Option<B> {
        let found = match &self.0.env {
            Some(env) => self.judge(env, otherwise, self.0.blocks.disk(key)).await,
            None => None,
        };
        if let Some(block) = &found {
            count(&self.0.counters.disk_hits);
            self.0.turnover.add(block.memory_bytes() as u64);
        }
        found
    }

    /// The same for whoever walks or warms up: what is found gets no place in memory, and pushes nothing out of it.
    pub async fn disk_block_aside(&self, key: &BlockKey, otherwise: Option<Duration>) -> Option<B> {
        let found = match &self.0.env {
            Some(env) => self.judge(env, otherwise, self.0.blocks.disk_aside(key)).await,
            None => None,
        };
        if found.is_some() {
            count(&self.0.counters.disk_hits);
        }
        found
    }

    /// Counts blocks that were found in no tier, by who had to fetch them.
    pub fn count_misses(&self, blocks: u64) {
        self.0.counters.misses.fetch_add(blocks, Ordering::Relaxed);
    }

    /// Counts blocks that were to go onto the SSD, and did not because too many wait for it.
    pub fn count_dropped(&self, blocks: u64) {
        self.0.counters.disk_dropped.fetch_add(blocks, Ordering::Relaxed);
    }

    /// What a look-up on the SSD finds, and what its outcome says of the SSD.
    async fn judge(
        &self,
        env: &Env,
        otherwise: Option<Duration>,
        look: impl Future<Output = Result<Option<B>, String>>,
    ) -> Option<B> {
        let started = env.now();
        let patience = otherwise.map_or(DISK_PATIENCE, |o| o.clamp(DISK_PATIENCE, LONGEST_DISK_PATIENCE));
        let looked = env.timeout(patience, "a look-up on the SSD", look).await;
        if matches!(looked, Ok(Ok(None))) {
            // The index in memory said so: nothing was asked of the disk.
            return None;
        }
        if looked.is_ok() {
            self.0.counters.disk_look_ups.lock().note(env.now().since(started));
        }
        let (outcome, found) = match looked {
            Ok(Ok(found)) => (Outcome::Good, found),
            Ok(Err(reason)) => {
                count(&self.0.counters.disk_errors);
                tracing::debug!(reason, "a block could not be read from the cache on disk");
                (Outcome::Failed, None)
            }
            Err(_) => {
                count(&self.0.counters.disk_slow);
                (Outcome::Slow, None)
            }
        };
        self.note(env, outcome, started);
        found
    }

    /// Takes note of the outcome of what began at `started`.
    fn note(&self, env: &Env, outcome: Outcome, started: Moment) {
        let change = self.0.health.lock().note(outcome, started, env.now());
        match change {
            Change::None => {}
            Change::Rests(rest) => {
                tracing::warn!("the cache on disk fails or is too slow: it is left alone for {rest:?}");
            }
            Change::Recovered => tracing::info!("the cache on disk is well again"),
        }
    }

    /// Whether a block is in memory; counts nothing and does not make it hotter.
    #[must_use]
    pub fn holds_block(&self, key: &BlockKey) -> bool {
        self.0.pins.holds(key) || self.0.blocks.contains(key)
    }

    /// Whether a block is pinned.
    #[must_use]
    pub fn is_pinned(&self, key: &BlockKey) -> bool {
        self.0.pins.holds(key)
    }

    /// Keeps a block in memory until [`Caches::unpin`], beyond the bound of the cache; whether there was room among
    /// what is pinned.
    pub fn pin_block(&self, key: BlockKey, block: B) -> bool {
        let pinned = self.0.pins.pin_block(key, block);
        if pinned {
            self.0.blocks.forget(&key);
        }
        pinned
    }

    /// Bytes that a block takes among what is pinned: as many as [`Caches::unpin`] says that it frees.
    #[must_use]
    pub fn pin_bytes(block: &B) -> u64 {
        pins::Pins::cost_bytes(block)
    }

    /// The same as [`Caches::pin_block`] for metadata of `bytes` bytes.
    pub fn pin_metadata<T: Send + Sync + 'static>(&self, key: BlockKey, value: Arc<T>, bytes: usize) -> bool {
        let pinned = self.0.pins.pin_metadata(key, value, bytes as u64);
        if pinned {
            self.0.metadata.forget(&key);
        }
        pinned
    }

    /// A number for whoever claims what he pins: no other has it.
    #[must_use]
    pub fn pin_owner(&self) -> u64 {
        self.0.pins.owner()
    }

    /// What is pinned of the stretch of an object that begins at `stretch` is this owner's, whoever had it before.
    pub fn claim_pins(&self, stretch: BlockKey, owner: u64) {
        self.0.pins.claim(stretch, owner);
    }

    /// The owner is done with that stretch. Whether it was his still: then what is pinned of it is his to unpin.
    #[must_use]
    pub fn disclaim_pins(&self, stretch: &BlockKey, owner: u64) -> bool {
        self.0.pins.disclaim(stretch, owner)
    }

    /// Lets go of what is pinned of this stretch of an object, as far as `goes` says so of a block or of metadata. How
    /// many bytes that frees.
    pub fn unpin(&self, object: ObjectId, stretch: std::ops::Range<u64>, goes: impl Fn(&BlockKey) -> bool) -> u64 {
        if self.0.pins.is_empty() { 0 } else { self.0.pins.unpin(object, &stretch, goes) }
    }

    /// A block from memory; counts nothing. It makes the block hotter: whoever walks looks where it knows of it first.
    #[must_use]
    pub fn peek_block(&self, key: &BlockKey) -> Option<B> {
        self.0.pins.block(key).or_else(|| self.0.blocks.memory(key))
    }

    /// Bytes of blocks that would push none out of memory, about.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.0.blocks.room_bytes()
    }

    /// Puts a block into memory and, when there is one, onto the SSD.
    pub fn insert_block(&self, key: BlockKey, block: B) {
        if self.0.env.is_some() && !self.has_disk() {
            count(&self.0.counters.disk_dropped);
            return self.insert_in_memory(key, block);
        }
        self.0.turnover.add(block.memory_bytes() as u64);
        self.0.blocks.insert(key, block);
    }

    /// Puts a block into memory alone: nobody has asked for it yet.
    pub fn insert_in_memory(&self, key: BlockKey, block: B) {
        self.0.turnover.add(block.memory_bytes() as u64);
        self.0.blocks.insert_in_memory(key, block);
    }

    /// Puts a block into the place of the same block in memory, and counts it as read once.
    pub fn replace_in_memory(&self, key: BlockKey, block: B) {
        self.0.blocks.insert_in_memory(key, block);
        self.touch(&key);
    }

    /// Whether a block is on the SSD, as far as is known without asking it; it may still be on its way there.
    #[must_use]
    pub fn may_be_on_disk(&self, key: &BlockKey) -> bool {
        self.has_disk() && self.0.blocks.may_be_on_disk(key)
    }

    /// Drops a block from memory.
    pub fn forget_block(&self, key: &BlockKey) {
        self.0.blocks.forget(key);
    }

    /// Fetch the block yourself, or wait for somebody who does.
    #[must_use]
    pub fn begin(&self, key: BlockKey) -> Flight<B> {
        self.0.block_flights.begin(key, || self.peek_block(&key))
    }

    /// The same for metadata: who waited finds it in the cache, if that had room. `Ready` never comes.
    #[must_use]
    pub fn begin_metadata(&self, key: BlockKey) -> Flight<()> {
        self.0.metadata_flights.begin(key, || None)
    }

    /// A decoded meta part.
    #[must_use]
    pub fn metadata<T: Send + Sync + 'static>(&self, key: &BlockKey) -> Option<Arc<T>> {
        let found = self.peek_metadata(key);
        count(if found.is_some() { &self.0.counters.metadata_hits } else { &self.0.counters.metadata_misses });
        found
    }

    /// The same for whoever reads nothing by it: counts neither a hit nor a miss.
    #[must_use]
    pub fn peek_metadata<T: Send + Sync + 'static>(&self, key: &BlockKey) -> Option<Arc<T>> {
        self.0.pins.metadata(key).or_else(|| self.0.metadata.get(key))
    }

    /// Keeps a decoded meta part of `bytes` bytes. One that is pinned is there already: it takes no second place.
    pub fn insert_metadata<T: Send + Sync + 'static>(&self, key: BlockKey, value: Arc<T>, bytes: usize) {
        if self.0.pins.holds_metadata(&key) {
            return;
        }
        self.0.metadata.insert(key, value, bytes);
    }

    /// Drops metadata.
    pub fn forget_metadata(&self, key: &BlockKey) {
        self.0.metadata.forget(key);
    }

    /// What the caches did so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let c = &self.0.counters;
        CacheStats {
            memory_hits: c.memory_hits.load(Ordering::Relaxed),
            disk_hits: c.disk_hits.load(Ordering::Relaxed),
            misses: c.misses.load(Ordering::Relaxed),
            disk_errors: c.disk_errors.load(Ordering::Relaxed) + self.0.blocks.drops().map_or(0, Drops::failed),
            disk_slow: c.disk_slow.load(Ordering::Relaxed),
            disk_dropped: c.disk_dropped.load(Ordering::Relaxed) + self.0.blocks.drops().map_or(0, Drops::dropped),
            disk_rests: self.0.env.is_some() && !self.has_disk(),
            memory_bytes: self.0.blocks.memory_bytes(),
            metadata_bytes: self.0.metadata.bytes(),
            memory_entries: self.0.blocks.memory_entries(),
            memory_capacity_bytes: self.0.blocks.memory_capacity_bytes(),
            metadata_hits: c.metadata_hits.load(Ordering::Relaxed),
            metadata_misses: c.metadata_misses.load(Ordering::Relaxed),
            metadata_entries: self.0.metadata.entries(),
            metadata_capacity_bytes: self.0.metadata.capacity_bytes(),
            disk_capacity_bytes: self.0.disk_bytes,
            disk_read_bytes: self.0.blocks.disk_bytes().0,
            disk_write_bytes: self.0.blocks.disk_bytes().1,
            disk_look_ups: *c.disk_look_ups.lock(),
            pinned_bytes: self.0.pins.bytes(),
            pins_refused: self.0.pins.refused(),
        }
    }

    /// Ends the SSD tier in order: what was inserted is on it afterwards. Without one, nothing happens.
    pub async fn close(&self) {
        self.0.blocks.close().await;
    }
}

#[cfg(test)]
mod tests;
