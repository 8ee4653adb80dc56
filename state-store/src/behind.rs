//! Sections that were written and are on their way to a file on the local disk.
//!
//! A flush hands its section over once that is in the object store, and goes on: no checkpoint waits for the disk.
//! Behind it, one after the other, sections become files as fast as the disk takes them. What waits is read from here
//! meanwhile, and is bounded by [`crate::StateStoreOptions::admission_bytes`]; what comes beyond is not kept, and is
//! fetched when the next version is seen. Nothing here fails.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use millstream_cache::{BlockKey, LocalFiles};
use millstream_common::Lane;
use parking_lot::Mutex;

use crate::store::StateStore;

/// Sections that wait.
#[derive(Default)]
pub(crate) struct Behind(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    sections: BTreeMap<BlockKey, Pieces>,
    /// Of `sections`, and of some that were taken out of it since.
    order: VecDeque<BlockKey>,
    bytes: u64,
    /// Somebody works them off.
    busy: bool,
}

/// The stored bytes of a section, in the pieces in which it was written.
pub(crate) struct Pieces {
    /// Where each ends.
    ends: Vec<u64>,
    pieces: Vec<Bytes>,
}

impl Pieces {
    pub(crate) fn new(pieces: Vec<Bytes>) -> Self {
        let add = |end: &mut u64, piece: &Bytes| {
            *end += piece.len() as u64;
            Some(*end)
        };
        Self { ends: pieces.iter().scan(0, add).collect(), pieces }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// What stands there, if there is so much. A block lies in one piece and is not copied.
    pub(crate) fn range(&self, range: &Range<u64>) -> Option<Bytes> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
        let piece = self.pieces.get(first)?;
        let (from, to) = ((range.start - start) as usize, (range.end - start) as usize);
        if to <= piece.len() {
            return Some(piece.slice(from..to));
        }
        if range.end > self.bytes() {
            return None;
        }
        let mut all = BytesMut::with_capacity(to - from);
        all.extend_from_slice(&piece[from..]);
        for piece in &self.pieces[first + 1..] {
            let left = to - from - all.len();
            all.extend_from_slice(&piece[..left.min(piece.len())]);
        }
        Some(all.freeze())
    }
}

impl Behind {
    pub(crate) fn has(&self, section: &BlockKey) -> bool {
        self.0.lock().sections.contains_key(section)
    }

    /// Bytes of a section that waits.
    pub(crate) fn range(&self, section: &BlockKey, range: &Range<u64>) -> Option<Bytes> {
        self.0.lock().sections.get(section)?.range(range)
    }

    /// It is not wanted any more.
    pub(crate) fn remove(&self, section: &BlockKey) -> bool {
        let mut queue = self.0.lock();
        let removed = queue.sections.remove(section);
        queue.bytes -= removed.as_ref().map_or(0, Pieces::bytes);
        removed.is_some()
    }

    pub(crate) fn clear(&self) {
        let mut queue = self.0.lock();
        queue.sections.clear();
        queue.order.clear();
        queue.bytes = 0;
    }
}

impl StateStore {
    /// Takes a section to become a file, unless too much waits already.
    pub(crate) fn keep_behind(&self, files: &LocalFiles, section: BlockKey, pieces: Vec<Bytes>) {
        let pieces = Pieces::new(pieces);
        {
            let mut queue = self.behind().0.lock();
            if queue.bytes + pieces.bytes() > self.0.options.admission_bytes {
                return;
            }
            queue.bytes += pieces.bytes();
            queue.order.push_back(section);
            queue.sections.insert(section, pieces);
            if std::mem::replace(&mut queue.busy, true) {
                return;
            }
        }
        let (store, files) = (self.clone(), files.clone());
        // It ends by itself, with what waits.
        drop(self.0.env.spawn(Lane::Background, "local state", async move { store.write_behind(&files).await }));
    }

    async fn write_behind(&self, files: &LocalFiles) {
        loop {
            let (section, pieces) = {
                let mut queue = self.behind().0.lock();
                let Some(section) = queue.order.pop_front() else {
                    queue.busy = false;
                    return;
                };
                let Some(waiting) = queue.sections.get(&section) else { continue };
                (section, waiting.pieces.clone())
            };
            files.write(section, pieces).await;
            // It is read here until it is read there. Whoever has let it go meanwhile could not delete the file.
            if !self.behind().remove(&section) {
                files.remove(&section);
            }
        }
    }

    /// Bytes that were written and wait to become files on the local disk.
    #[cfg(test)]
    pub(crate) fn behind_bytes(&self) -> u64 {
        self.behind().0.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_the_pieces_is_read() {
        let all: Vec<u8> = (0..100).collect();
        let cut = [&all[..1], &all[1..40], &all[40..90], &all[90..]];
        let pieces = Pieces::new(cut.iter().map(|piece| Bytes::copy_from_slice(piece)).collect());
        for start in 0..100 {
            for end in start + 1..=100 {
                let read = pieces.range(&(start as u64..end as u64)).unwrap();
                assert_eq!(read, all[start..end], "{start}..{end}");
            }
        }
        assert_eq!((pieces.range(&(99..101)), pieces.range(&(100..101))), (None, None));
    }
}
