//! Bringing many blocks onto the SSD at once, no faster than it takes them.
//!
//! The disk engine drops what comes faster than it writes, without a word. Blocks that were fetched for a read come one
//! by one, and a dropped one is only a miss to come; a flush or a compaction brings thousands. So those go in rounds: a
//! round is handed over, and the next one waits until the disk has it. One caller at a time has its rounds; what waits
//! is the caller's to bound.

use std::time::Duration;

use crate::health::Outcome;
use crate::{BlockKey, CacheBlock, Caches, Drops, count};

/// Bytes of a round: a quarter of what the engine buffers, so that what reads bring has room beside it.
const ROUND_BYTES: u64 = 4 << 20;

/// The SSD rounds every block up to pages of this size.
const PAGE_BYTES: u64 = 4 << 10;

/// A round that takes longer is a sign of a disk that fails.
const ROUND_PATIENCE: Duration = Duration::from_secs(5);

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Admission(tokio::sync::Mutex<()>);

impl<B: CacheBlock> Caches<B> {
    /// Puts blocks onto the SSD alone, as fast as it takes them; how many it was given. Those that come while it rests or
    /// after it failed are counted as dropped. Without an SSD nothing happens.
    pub async fn admit(&self, blocks: impl Iterator<Item = (BlockKey, B)> + Send) -> u64 {
        let Some(env) = self.0.env.clone() else { return 0 };
        let _turn = self.0.admission.0.lock().await;
        let (mut given, mut round) = (0, 0);
        for (key, block) in blocks {
            if !self.has_disk() {
                count(&self.0.counters.disk_dropped);
                continue;
            }
            round += (block.body().len() as u64 + 64).next_multiple_of(PAGE_BYTES);
            self.0.blocks.insert_on_disk(key, block);
            given += 1;
            if round >= ROUND_BYTES {
                round = 0;
                self.end_round(&env).await;
            }
        }
        if round > 0 {
            self.end_round(&env).await;
        }
        given
    }

    /// Waits for the disk, and takes note of what became of the round.
    async fn end_round(&self, env: &millstream_common::Env) {
        let failed = || self.0.blocks.drops().map_or(0, Drops::failed);
        let (before, started) = (failed(), env.now());
        let outcome = match env.timeout(ROUND_PATIENCE, "a write to the SSD", self.0.blocks.written()).await {
            Err(_) => Outcome::Slow,
            Ok(()) if failed() > before => Outcome::Failed,
            Ok(()) => Outcome::Good,
        };
        if outcome == Outcome::Slow {
            count(&self.0.counters.disk_slow);
        }
        self.note(env, outcome, started);
    }
}
