//! Warming up: bringing blocks into memory before anybody asks for them.

use millstream_common::Result;
use millstream_objects::Purpose;

use crate::fetch::BlockWish;
use crate::report::ReadReport;
use crate::run::Run;
use crate::view::View;

/// About as many bytes are asked for at once: reads that somebody waits for do not queue behind more.
const AT_ONCE_BYTES: u64 = 16 << 20;

impl View {
    /// Puts the blocks that this view shows into memory, those of the newest runs first, as far as the cache has room:
    /// nothing is pushed out. What is there already costs nothing. `wanted` is asked again as it goes on: runs may die
    /// under way.
    pub async fn warm(&self, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        let mut report = ReadReport::default();
        let result = self.warm_all(wanted, &mut report).await;
        self.store.add_to_totals(&report);
        result.map(|()| report)
    }

    async fn warm_all(&self, wanted: impl Fn(&Run) -> bool + Send, report: &mut ReadReport) -> Result<()> {
        let caches = &self.store.0.caches;
        for (i, run) in self.runs().iter().enumerate().filter(|(_, run)| wanted(run)) {
            let runs = [run];
            let metas = self.store.metas(&runs, Purpose::State, report).await?;
            let key = |wish: &BlockWish| self.store.block_key(&runs, &metas, wish);
            let mine = |b: &usize| metas[0].blocks()[*b].overlaps(self.clip(i));
            let mut blocks = (0..metas[0].blocks().len()).filter(mine).peekable();
            while blocks.peek().is_some() && wanted(run) {
                let mut room = caches.room_bytes().min(AT_ONCE_BYTES);
                let mut wishes = Vec::new();
                while let Some(&block) = blocks.peek() {
                    let wish = BlockWish { run: 0, block };
                    if !caches.holds_block(&key(&wish)) {
                        let bytes = u64::from(metas[0].blocks()[block].body_length);
                        if bytes > room {
                            break;
                        }
                        room -= bytes;
                        wishes.push(wish);
                    }
                    blocks.next();
                }
                if wishes.is_empty() && blocks.peek().is_some() {
                    return Ok(());
                }
                let keep = |i: usize, body| {
                    caches.insert_in_memory(key(&wishes[i]), body);
                    Ok(())
                };
                self.store.blocks(&runs, &metas, &wishes, (Purpose::State, false), report, keep).await?;
            }
        }
        Ok(())
    }
}
