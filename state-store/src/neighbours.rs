//! What GETs bring besides the blocks that were wanted. It was paid for, so it is kept as long as the cache has room. Decoding it
//! takes longer than decoding what was asked for: it is done while no GET of the batch is there, and what is left then
//! before the batch is answered.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;

use crate::fetch::PartOf;
use crate::section::{BlockForm, SharedBlock, decode_stored};
use crate::store::StateStore;

/// Of all bytes that may be in flight all reads together keep this part waiting, and one GET more.
const SHARE_OF_FLIGHT: u64 = 4;

/// What a GET brought, once the blocks that were wanted are taken.
pub(crate) struct Brought<'s> {
    /// The first part that lies in its object, by its place among those that the caller reads.
    pub(crate) object: usize,
    /// Where in the object the bytes stand.
    pub(crate) range: Range<u64>,
    pub(crate) bytes: Bytes,
    /// The bytes count as in flight until they are gone.
    pub(crate) permit: SemaphorePermit<'s>,
}

/// What one read has waiting.
pub(crate) struct Later<'s> {
    store: &'s StateStore,
    brought: VecDeque<Brought<'s>>,
}

impl<'s> Later<'s> {
    pub(crate) fn of(store: &'s StateStore) -> Self {
        Self { store, brought: VecDeque::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.brought.is_empty()
    }

    /// Whether some of it must go before anything else is done.
    pub(crate) fn has_too_much(&self) -> bool {
        let most = self.store.0.options.bytes_in_flight / SHARE_OF_FLIGHT;
        !self.is_empty() && self.store.0.undecoded_bytes.load(Ordering::Relaxed) > most
    }

    pub(crate) fn push(&mut self, brought: Brought<'s>) {
        self.store.0.undecoded_bytes.fetch_add(brought.bytes.len() as u64, Ordering::Relaxed);
        self.brought.push_back(brought);
    }

    fn pop(&mut self) -> Option<Brought<'s>> {
        let brought = self.brought.pop_front()?;
        self.store.0.undecoded_bytes.fetch_sub(brought.bytes.len() as u64, Ordering::Relaxed);
        Some(brought)
    }

    /// Keeps what the oldest GET has brought. `firsts`: for each part the first one that lies in the same object.
    pub(crate) fn keep_one(&mut self, parts: &[PartOf<'_>], firsts: &[usize]) {
        let Some(Brought { object, range, bytes, permit }) = self.pop() else { return };
        for (of, _) in parts.iter().zip(firsts).filter(|(_, first)| **first == object) {
            self.store.keep_neighbours(of, &range, &bytes);
        }
        drop((bytes, permit));
    }
}

impl Drop for Later<'_> {
    /// A read that is given up leaves nothing counted.
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl StateStore {
    /// Puts what there is of a part in a GET's bytes into the cache, as long as that is not full. Whether anybody will search
    /// it is open: it gets its table when somebody does, and has room for it. A damaged block is left to the read that
    /// wants it.
    fn keep_neighbours(&self, of: &PartOf<'_>, range: &Range<u64>, bytes: &Bytes) {
        let mut room = self.0.caches.room_bytes();
        let first = of.part.blocks().partition_point(|b| of.run.offset + b.offset < range.start);
        for (i, info) in of.part.blocks().iter().enumerate().skip(first) {
            let own = of.range(i);
            if own.end > range.end || room < info.searched_bytes() {
                return;
            }
            let key = of.key(i);
            if self.0.caches.holds_block(&key) {
                continue;
            }
            let stored = &bytes[(own.start - range.start) as usize..(own.end - range.start) as usize];
            if let Ok(block) = decode_stored(stored, info.checksum, BlockForm::Walked) {
                room -= info.searched_bytes();
                self.0.caches.insert_in_memory(key, SharedBlock::from(block));
            }
        }
    }
}
