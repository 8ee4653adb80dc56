//! Data connections: opening one, and taking those that peers open.
//!
//! One TCP connection per channel, from the sending subtask's worker to the receiving one's. Order of events on the
//! taking side: accept, handshake (at most [`HANDSHAKE`]), into the queue of arrivals, answer, frames.

use std::net::SocketAddr;
use std::time::Duration;

use millstream_common::{Env, Error, Lane, Result, select};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::encode::Encoder;
use super::frame::PAYLOAD_BYTES_MAX;
use super::handshake::{self, Answer, Refusal};
use super::{CONNECT, reader, writer};
use crate::element::StreamElement;
use crate::transport::{CONTROL_QUEUE, ChannelKey, DATA_QUEUE, DataConnection};

/// A peer that takes longer for its part of the handshake is cut off.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection on which nothing has come for so long is probed by the kernel,
const SILENCE: Duration = Duration::from_secs(10);
/// so often,
const PROBE: Duration = Duration::from_secs(5);
/// and broken off when so many probes stay unanswered.
const PROBES: u32 = 3;
/// How long the listener rests when the system gives it no more sockets.
const REST: Duration = Duration::from_millis(100);

/// Starts to take connections on `listener`. Ends when the receiver is dropped; connections that stand go on.
pub(super) fn listen(env: &Env, listener: TcpListener) -> mpsc::Receiver<DataConnection> {
    let (arrivals, taken) = mpsc::channel(CONTROL_QUEUE);
    env.spawn(Lane::Io, "data-listen", accept_loop(env.clone(), listener, arrivals));
    taken
}

async fn accept_loop(env: Env, listener: TcpListener, arrivals: mpsc::Sender<DataConnection>) {
    loop {
        let accepted = select! {
            accepted = listener.accept() => accepted,
            () = arrivals.closed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                env.spawn(Lane::Io, "data-in", serve(env.clone(), stream, peer, arrivals.clone()));
            }
            // Out of descriptors, or the peer left while it waited: neither ends the listener.
            Err(error) => {
                warn!(%error, "cannot take a data connection");
                env.sleep(REST).await;
            }
        }
    }
}

async fn serve(env: Env, mut stream: TcpStream, peer: SocketAddr, arrivals: mpsc::Sender<DataConnection>) {
    match env.timeout(HANDSHAKE, "the handshake", take(&mut stream, &arrivals)).await.and_then(|taken| taken) {
        Ok((key, queue)) => {
            // It may run for as long as the job does: it must not keep the listener's queue open.
            drop(arrivals);
            reader::read(stream, key, peer.to_string(), queue).await;
        }
        Err(error) => warn!(%peer, %error, "data connection refused"),
    }
}

/// Shakes hands and hands the connection over.
async fn take(
    stream: &mut TcpStream,
    arrivals: &mpsc::Sender<DataConnection>,
) -> Result<(ChannelKey, mpsc::Sender<StreamElement>)> {
    set_options(stream).map_err(|e| Error::unavailable("a socket without options").code(2126).source(e))?;
    let key = match handshake::read(stream).await {
        Ok(key) => key,
        Err(Refusal::OtherProtocol(error)) => {
            let _ = handshake::answer(stream, Answer::OtherProtocol).await;
            return Err(error);
        }
        Err(Refusal::Bad(error)) => return Err(error),
    };
    let (queue, elements) = mpsc::channel(DATA_QUEUE);
    if arrivals.send(DataConnection { key: key.clone(), elements }).await.is_err() {
        let _ = handshake::answer(stream, Answer::Closed).await;
        return Err(Error::unavailable("this worker takes no more data connections").code(2126));
    }
    let broken = |e| Error::unavailable("the data connection broke").code(2126).source(e);
    handshake::answer(stream, Answer::Taken).await.map_err(broken)?;
    debug!(?key, "data connection taken");
    Ok((key, queue))
}

/// Opens the connection for `key` to the worker at `address`.
pub(super) async fn connect(env: Env, address: String, key: ChannelKey) -> Result<mpsc::Sender<StreamElement>> {
    let hello = handshake::encode(&key)?;
    let mut stream = env
        .timeout(CONNECT, "connecting", TcpStream::connect(&address))
        .await
        .and_then(|connected| connected.map_err(|e| Error::unavailable("no worker answers").source(e)))
        .map_err(|e| e.code(2151).at(&address))?;
    env.timeout(HANDSHAKE, "the handshake", shake_hands(&mut stream, &hello))
        .await
        .and_then(|done| done)
        .map_err(|e| e.at(&address))?;
    let (queue, elements) = mpsc::channel(DATA_QUEUE);
    let encoder = Encoder::new(key.execution, PAYLOAD_BYTES_MAX);
    env.spawn(Lane::Io, "data-out", writer::write(stream, key, address, encoder, elements));
    Ok(queue)
}

/// Small frames go at once; and a peer whose machine is gone is noticed although nothing is to be sent, since a sender without
/// credit waits for its grants alone.
fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let alive = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBE).with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&alive)
}

async fn shake_hands(stream: &mut TcpStream, hello: &[u8]) -> Result<()> {
    let broken = |e| Error::unavailable("the data connection broke").code(2122).source(e);
    set_options(stream).map_err(broken)?;
    tokio::io::AsyncWriteExt::write_all(stream, hello).await.map_err(broken)?;
    handshake::read_answer(stream).await
}
