//! Which keys some runs say anything of: for comparing two versions by what one has and the other has not.

use bytes::Bytes;
use millstream_common::{Result, StateId};
use millstream_objects::Purpose;

use crate::cursor::{Ahead, Chain, Cursors, KeyRange, ReadMode, Step};
use crate::key;
use crate::view::View;

/// A piece of a walk over keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPiece {
    /// Store keys, in order.
    pub keys: Vec<Bytes>,
    /// Where the next piece begins; `None` when this was the last.
    pub next: Option<Bytes>,
}

impl View {
    /// The keys of a state, from `from` (inclusive), of which the view's runs hold any entry: those that it deletes and
    /// those that have expired, too. A piece ends once it holds `max_bytes` of keys; go on at `next`.
    pub async fn touched_keys(&self, state: StateId, from: &[u8], max_bytes: usize) -> Result<KeyPiece> {
        let mut report = crate::ReadReport::default();
        let range = KeyRange::new(Bytes::copy_from_slice(from), key::state_end(state).into(), self.layouts());
        let ranges = [range];
        let (parts, clips) = self.parts_in(&ranges, &mut report).await?;
        let mode = ReadMode { purpose: Purpose::State, ahead: Ahead::Each(self.store.options().read_ahead_bytes) };
        let mut cursors = Cursors::new(&self.store, self.layouts(), clips, &parts, &ranges, mode);
        let (mut chain, mut piece, mut bytes) = (Chain::default(), KeyPiece::default(), 0);
        loop {
            match cursors.next_chain(&mut chain)? {
                Step::End => break,
                Step::Dry => cursors.fill(&mut report).await?,
                Step::Chain => {
                    bytes += chain.key.len();
                    piece.keys.push(Bytes::copy_from_slice(&chain.key));
                    if bytes >= max_bytes {
                        chain.key.push(0);
                        piece.next = Some(Bytes::copy_from_slice(&chain.key));
                        cursors.keep_rest();
                        break;
                    }
                }
            }
        }
        self.store.add_to_totals(&report);
        Ok(piece)
    }
}
