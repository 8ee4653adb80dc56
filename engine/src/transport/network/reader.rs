//! The receiving end of a data connection: reads frames, puts their elements into its queue.
//!
//! Back-pressure is by grants: a frame that stands in the queue is granted again, and while the queue is full none is. A frame that cannot be closes the connection with
//! a warning that says why; the receiver sees the end. When the receiver drops its queue, the connection closes.

use bytes::BufMut;
use millstream_common::{Error, Execution, Result, select};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::credit::Grants;
use super::decode::Decoder;
use super::frame::{HEADER_BYTES, Header};
use crate::element::StreamElement;
use crate::transport::ChannelKey;

/// What one system call brings at most beyond a payload: several small frames, or a header and a frame's beginning.
const READ_BYTES: usize = 32 << 10;

/// Reads until the peer or the receiver ends.
pub(super) async fn read(stream: TcpStream, key: ChannelKey, peer: String, queue: mpsc::Sender<StreamElement>) {
    let (read, write) = stream.into_split();
    let reading = read_loop(BufReader::with_capacity(READ_BYTES, read), write, key.execution, &queue);
    let ended = select! {
        result = reading => result,
        () = queue.closed() => Ok(()),
    };
    match ended {
        Ok(()) => debug!(%peer, ?key, "data connection ended"),
        Err(error) => warn!(%peer, ?key, %error, "data connection closed"),
    }
}

async fn read_loop(
    mut stream: BufReader<OwnedReadHalf>,
    mut to_peer: OwnedWriteHalf,
    execution: Execution,
    queue: &mpsc::Sender<StreamElement>,
) -> Result<()> {
    let broken = |e| Error::unavailable("the data connection broke").code(2125).source(e);
    let mut decoder = Decoder::default();
    let mut grants = Grants::default();
    loop {
        // Between two frames the end is an end, inside of one it is a break.
        if stream.fill_buf().await.map_err(broken)?.is_empty() {
            return Ok(());
        }
        let mut bytes = [0; HEADER_BYTES];
        stream.read_exact(&mut bytes).await.map_err(broken)?;
        let header = Header::parse(&bytes, execution)?;
        let length = header.length as usize;
        let mut payload = Vec::with_capacity(length);
        while payload.len() < length {
            // Reads into the vector's spare room: no byte is written twice.
            let missing = length - payload.len();
            if stream.read_buf(&mut (&mut payload).limit(missing)).await.map_err(broken)? == 0 {
                return Err(Error::unavailable("the data connection broke inside a frame").code(2125));
            }
        }
        header.check(&bytes, &payload)?;
        let element = decoder.decode(&header, payload)?;
        if queue.send(element).await.is_err() {
            return Ok(());
        }
        grants.taken(&mut to_peer).await;
    }
}
