//! What was written and is on its way to the SSD.
//!
//! A flush or a compaction hands over the bytes of its object once that is in the store, and goes on. Behind it, one
//! section at a time, blocks are cut out of these bytes and put onto the SSD as fast as it takes them. What waits is
//! bounded by [`crate::StateStoreOptions::admission_bytes`]; what comes beyond is left out and counted there as
//! dropped. Nothing here is waited for and nothing fails: a block that is not on the SSD is read from the store.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::{BlockKey, ObjectId};
use millstream_common::Lane;
use parking_lot::Mutex;

use crate::behind::Pieces;
use crate::run::Run;
use crate::section::{BlockForm, Part, SharedBlock, decode_stored};
use crate::store::{Keep, StateStore};

/// Sections that wait.
#[derive(Default)]
pub(crate) struct Admissions(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Written>,
    /// Of those that wait and the one that is worked at.
    bytes: u64,
    /// Somebody works them off.
    busy: bool,
}

/// A section that was written.
pub(crate) struct Written {
    pub(crate) object: ObjectId,
    /// Where it begins in the object.
    pub(crate) offset: u64,
    pub(crate) parts: Vec<Arc<Part>>,
    /// Its stored bytes.
    pub(crate) pieces: Pieces,
    /// By part, in order: the blocks that are wanted; `None`: all.
    pub(crate) wanted: Option<Vec<Vec<usize>>>,
}

impl Written {
    /// The blocks that are wanted, decoded one by one. One that cannot be read is left to the read that wants it.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (BlockKey, SharedBlock)> {
        let is_wanted = |part: usize, block: &usize| match &self.wanted {
            None => true,
            Some(wanted) => wanted.get(part).is_some_and(|blocks| blocks.binary_search(block).is_ok()),
        };
        let all = self.parts.iter().enumerate().flat_map(move |(p, part)| {
            (0..part.blocks().len()).filter(move |b| is_wanted(p, b)).map(move |b| &part.blocks()[b])
        });
        all.filter_map(move |info| {
            let stored = self.pieces.range(&(info.offset..info.offset + u64::from(info.length)))?;
            let block = decode_stored(&stored, info.checksum, BlockForm::Walked).ok()?;
            Some((BlockKey { object: self.object, offset: self.offset + info.offset }, SharedBlock::from(block)))
        })
    }
}

impl StateStore {
    /// Takes a section that was written to be put onto the SSD, if there is one.
    pub(crate) fn admit_written(&self, run: &Run, parts: Vec<Arc<Part>>, pieces: Vec<Bytes>, keep: &Keep<'_>) {
        if !self.uses_ssd() {
            return;
        }
        let wanted = match keep {
            Keep::All => None,
            Keep::Hot(spans) => {
                let of = |part: &Arc<Part>| spans.blocks_of(part).into_iter().map(|(block, _)| block).collect();
                Some(parts.iter().map(of).collect::<Vec<Vec<usize>>>())
            }
        };
        let blocks = match &wanted {
            None => parts.iter().map(|p| p.blocks().len()).sum(),
            Some(wanted) => wanted.iter().map(Vec::len).sum::<usize>(),
        };
        if blocks == 0 {
            return;
        }
        let pieces = Pieces::new(pieces);
        let written = Written { object: run.object_id(), offset: run.offset, parts, pieces, wanted };
        {
            let mut queue = self.0.admissions.0.lock();
            if queue.bytes + written.pieces.bytes() > self.0.options.admission_bytes {
                drop(queue);
                return self.0.caches.count_dropped(blocks as u64);
            }
            queue.bytes += written.pieces.bytes();
            queue.waiting.push_back(written);
            if std::mem::replace(&mut queue.busy, true) {
                return;
            }
        }
        let store = self.clone();
        // It ends by itself, with what waits.
        drop(self.0.env.spawn(Lane::Background, "SSD admission", async move { store.work_off().await }));
    }

    async fn work_off(&self) {
        loop {
            let next = {
                let mut queue = self.0.admissions.0.lock();
                let next = queue.waiting.pop_front();
                queue.busy = next.is_some();
                next
            };
            let Some(written) = next else { return };
            self.0.caches.admit(written.blocks()).await;
            self.0.admissions.0.lock().bytes -= written.pieces.bytes();
        }
    }

    /// Bytes of objects that were written and wait for the SSD.
    #[cfg(test)]
    pub(crate) fn admission_bytes(&self) -> u64 {
        self.0.admissions.0.lock().bytes
    }
}
