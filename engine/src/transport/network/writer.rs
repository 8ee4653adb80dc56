//! The sending end of a data connection: takes elements from its queue, writes their frames.
//!
//! Order of events: wait for an element, and for credit; encode it and whatever else is queued already (up to
//! [`WRITE_BYTES`] and what credit is left); write all of it; again. So a lone watermark goes at once and a busy channel
//! needs few system calls. When the queue's senders are gone, what is queued is written as credit comes and the connection
//! closed; when the peer closes, the queue closes.

use std::io::IoSlice;

use millstream_common::{Error, Result, select};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::credit::Credit;
use super::encode::{Encoder, Pending};
use crate::element::StreamElement;
use crate::transport::ChannelKey;

/// Encoded bytes at which the writer turns to the socket before it takes more elements.
const WRITE_BYTES: usize = 256 << 10;
/// Pieces that go with one system call.
const SLICES: usize = 64;

/// Writes until the queue ends or the connection does.
pub(super) async fn write(
    stream: TcpStream,
    key: ChannelKey,
    peer: String,
    encoder: Encoder,
    mut queue: mpsc::Receiver<StreamElement>,
) {
    let (mut read, mut write) = stream.into_split();
    let mut credit = Credit::default();
    match write_loop(&mut read, &mut write, encoder, &mut queue, &mut credit).await {
        Ok(()) => debug!(%peer, ?key, "data connection ended"),
        Err(error) => warn!(%peer, ?key, %error, "data connection closed"),
    }
    drop(queue);
    // A peer that is gone does not care.
    let _ = write.shutdown().await;
    // It has read all once it closes. A socket that is closed before, with grants in it that nobody read, is reset, and
    // what was still on its way is lost.
    while matches!(credit.next(&mut read).await, Ok(true)) {}
}

async fn write_loop(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    mut encoder: Encoder,
    queue: &mut mpsc::Receiver<StreamElement>,
    credit: &mut Credit,
) -> Result<()> {
    let mut pending = Pending::default();
    loop {
        let may_send = credit.is_left();
        let mut first = None;
        select! {
            element = queue.recv(), if may_send => match element {
                Some(element) => first = Some(element),
                None => return Ok(()),
            },
            open = credit.next(read) => if !open? {
                return Ok(());
            },
        }
        let Some(first) = first else { continue };
        if !credit.take_ready(read)? {
            return Ok(());
        }
        let encoded = encode_queued(first, &mut encoder, queue, credit, &mut pending);
        write_pending(write, &mut pending).await?;
        encoded?;
    }
}

/// Encodes `first` and what else is queued, as far as credit goes. What was encoded before an error still goes out.
fn encode_queued(
    first: StreamElement,
    encoder: &mut Encoder,
    queue: &mut mpsc::Receiver<StreamElement>,
    credit: &mut Credit,
    pending: &mut Pending,
) -> Result<()> {
    let mut next = Some(first);
    while let Some(element) = next {
        let before = pending.frames();
        encoder.encode(&element, pending)?;
        credit.spend(pending.frames() - before);
        next = if pending.bytes() < WRITE_BYTES && credit.is_left() { queue.try_recv().ok() } else { None };
    }
    Ok(())
}

async fn write_pending(write: &mut OwnedWriteHalf, pending: &mut Pending) -> Result<()> {
    while pending.bytes() > 0 {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = pending.fill(&mut slices);
        let failed = |e| Error::unavailable("the data connection broke").code(2124).source(e);
        let written = write.write_vectored(&slices[..filled]).await.map_err(failed)?;
        if written == 0 {
            return Err(Error::unavailable("the data connection takes nothing more").code(2124));
        }
        pending.advance(written);
    }
    Ok(())
}
