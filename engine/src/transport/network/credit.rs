//! Credit of a data connection: the receiving end grants frames, the sending end sends no more than that (docs/wire.md).
//!
//! Without it a connection would hold what the socket buffers of two kernels hold, megabytes, and a barrier behind rows
//! for a slow subtask would wait for all of them. (Flink has credit-based flow control for the same reason.)

use futures::FutureExt;
use millstream_common::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::{DATA_PLACES, DATA_QUEUE};

/// What a connection may send before the first grant, frames. Part of the protocol: both ends must have the same.
const FIRST: u32 = 4;
/// So many frames are granted together.
const TOGETHER: u32 = 2;
const _: () = assert!(TOGETHER >= 1 && TOGETHER <= FIRST);
const _: () = assert!(DATA_PLACES == 2 * DATA_QUEUE + FIRST as usize);
/// Bytes of a grant.
const GRANT_BYTES: usize = size_of::<u32>();
/// A peer that grants more than this at a time, or as the sum of what was not sent yet, is none of ours.
const CREDIT_MAX: i64 = 1 << 16;

/// The receiving end's side: grants again what was taken.
#[derive(Debug, Default)]
pub(super) struct Grants {
    taken: u32,
    /// The peer takes none any more; what it has sent is still to be read.
    refused: bool,
}

impl Grants {
    /// A frame has been taken: it stands in the queue of its receiver.
    pub(super) async fn taken(&mut self, to_peer: &mut (impl AsyncWrite + Unpin)) {
        self.taken += 1;
        if self.taken < TOGETHER || self.refused {
            return;
        }
        let grant = std::mem::take(&mut self.taken).to_le_bytes();
        self.refused = to_peer.write_all(&grant).await.is_err();
    }
}

/// The sending end's side: how many frames it may send.
#[derive(Debug)]
pub(super) struct Credit {
    /// Less than none behind a batch that had to go as several frames.
    frames: i64,
    /// The first bytes of a grant that has not come in whole.
    partial: [u8; GRANT_BYTES],
    partial_bytes: usize,
}

impl Default for Credit {
    fn default() -> Self {
        Self { frames: FIRST.into(), partial: [0; GRANT_BYTES], partial_bytes: 0 }
    }
}

impl Credit {
    /// Whether a frame may be sent.
    pub(super) fn is_left(&self) -> bool {
        self.frames > 0
    }

    /// So many frames have been sent.
    pub(super) fn spend(&mut self, frames: usize) {
        self.frames -= i64::try_from(frames).unwrap_or(i64::MAX);
    }

    /// Takes the next grant; false when the peer has ended the connection. Cancel-safe. Behind an error there is no other.
    pub(super) async fn next(&mut self, from_peer: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        while self.partial_bytes < GRANT_BYTES {
            match from_peer.read(&mut self.partial[self.partial_bytes..]).await {
                // Whether it closes or resets: it takes nothing more.
                Ok(0) | Err(_) => return Ok(false),
                Ok(bytes) => self.partial_bytes += bytes,
            }
        }
        let grant = i64::from(u32::from_le_bytes(self.partial));
        if grant == 0 || self.frames + grant > CREDIT_MAX {
            let what = format!("the peer grants {grant} frames, with {} granted before", self.frames);
            return Err(Error::corrupt(what).code(4125));
        }
        self.partial_bytes = 0;
        self.frames += grant;
        Ok(true)
    }

    /// Takes all grants that have come; false when the peer has ended the connection. Does not wait.
    pub(super) fn take_ready(&mut self, from_peer: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        while let Some(open) = self.next(from_peer).now_or_never() {
            if !open? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_granted_again_and_never_more() {
        let (mut grants, mut credit) = (Grants::default(), Credit::default());
        let (mut receiver, mut sender) = tokio::io::duplex(64);
        let mut on_their_way = 0;
        for _ in 0..100 {
            while credit.is_left() {
                credit.spend(1);
                on_their_way += 1;
            }
            assert!((1..=FIRST).contains(&on_their_way), "{on_their_way}");
            grants.taken(&mut receiver).await;
            on_their_way -= 1;
            assert!(credit.take_ready(&mut sender).unwrap());
        }
    }

    #[tokio::test]
    async fn a_grant_comes_byte_by_byte_and_an_overdraft_is_paid_first() {
        let mut credit = Credit::default();
        credit.spend(FIRST as usize + 2);
        let (mut receiver, mut sender) = tokio::io::duplex(64);
        for byte in 3u32.to_le_bytes() {
            assert!(!credit.is_left());
            receiver.write_all(&[byte]).await.unwrap();
            assert!(credit.take_ready(&mut sender).unwrap());
        }
        credit.spend(1);
        assert!(!credit.is_left(), "three were granted, two were owed");
    }

    #[tokio::test]
    async fn the_end_of_the_peer_is_an_end_and_a_grant_that_cannot_be_is_an_error() {
        for (grant, expected) in [(None, Ok(false)), (Some(0), Err(4125)), (Some(u32::MAX), Err(4125))] {
            let (mut receiver, mut sender) = tokio::io::duplex(64);
            if let Some(grant) = grant {
                let grant: u32 = grant;
                receiver.write_all(&grant.to_le_bytes()).await.unwrap();
            }
            drop(receiver);
            let mut credit = Credit::default();
            for _ in 0..2 {
                let came = credit.next(&mut sender).await;
                assert_eq!(came.map_err(|e| e.number()), expected, "{grant:?}");
            }
        }
    }
}
