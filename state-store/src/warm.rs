//! Warming up: bringing blocks into memory before anybody asks for them.

use std::sync::Arc;

use millstream_common::Result;
use millstream_objects::Purpose;

use crate::fetch::BlockWish;
use crate::report::ReadReport;
use crate::run::Run;
use crate::view::View;

impl View {
    /// Puts the blocks that this view shows into memory, those of the newest runs first, as far as the cache has room:
    /// nothing is pushed out. What is there already costs nothing.
    pub async fn warm(&self) -> Result<ReadReport> {
        let mut report = ReadReport::default();
        let result = self.warm_all(&mut report).await;
        self.store.add_to_totals(&report);
        result.map(|()| report)
    }

    async fn warm_all(&self, report: &mut ReadReport) -> Result<()> {
        let runs: Vec<&Arc<Run>> = self.runs().iter().collect();
        let metas = self.store.metas(&runs, Purpose::State, report).await?;
        let mut room = self.store.0.caches.room_bytes();
        let mut wishes = Vec::new();
        'runs: for (run, meta) in metas.iter().enumerate() {
            for (block, info) in meta.blocks().iter().enumerate() {
                let wish = BlockWish { run, block };
                if !info.overlaps(self.clip(run))
                    || self.store.0.caches.holds_block(&self.store.block_key(&runs, &metas, &wish))
                {
                    continue;
                }
                let bytes = u64::from(info.body_length);
                if bytes > room {
                    break 'runs;
                }
                room -= bytes;
                wishes.push(wish);
            }
        }
        let mode = (Purpose::State, false);
        let keep = |i: usize, body| {
            let key = self.store.block_key(&runs, &metas, &wishes[i]);
            self.store.0.caches.insert_in_memory(key, body);
            Ok(())
        };
        self.store.blocks(&runs, &metas, &wishes, mode, report, keep).await
    }
}
