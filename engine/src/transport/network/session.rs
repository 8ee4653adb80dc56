//! Between a gRPC stream pair and the two queues of a session, the same on both ends.
//!
//! Each end has a pump, which moves messages from the incoming stream into a queue, and an [`Outgoing`], which is the
//! stream that gRPC takes messages from. Whichever ends first ends the other: when the owner drops either of its
//! queue ends, when the peer ends its stream, or when the connection breaks. What was queued to be sent before the
//! end still goes out, as long as the peer reads it within [`FAREWELL`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use millstream_common::{Env, select};
use tokio::sync::{mpsc, oneshot};
use tonic::Streaming;
use tracing::debug;

/// How long an ended session waits for the peer to end it too.
const FAREWELL: Duration = Duration::from_secs(2);

/// The stream of what this end sends.
pub(super) struct Outgoing<T> {
    queue: mpsc::Receiver<T>,
    /// Resolves when nothing more comes in.
    incoming_ended: Option<oneshot::Receiver<()>>,
    /// Dropped to say that nothing more goes out.
    alive: Option<oneshot::Sender<()>>,
}

/// What a pump needs to know of the [`Outgoing`] beside it.
pub(super) struct Ends {
    /// Dropped to say that nothing more comes in.
    incoming_alive: oneshot::Sender<()>,
    /// Resolves when nothing more goes out.
    outgoing_ended: oneshot::Receiver<()>,
}

/// A stream of what `queue` holds, and what ties a pump to it.
pub(super) fn outgoing<T>(queue: mpsc::Receiver<T>) -> (Outgoing<T>, Ends) {
    let (incoming_alive, incoming_ended) = oneshot::channel();
    let (alive, outgoing_ended) = oneshot::channel();
    let stream = Outgoing { queue, incoming_ended: Some(incoming_ended), alive: Some(alive) };
    (stream, Ends { incoming_alive, outgoing_ended })
}

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = &mut *self;
        if let Some(ended) = &mut this.incoming_ended
            && Pin::new(ended).poll(cx).is_ready()
        {
            this.incoming_ended = None;
            // Nothing more gets in; what is in still gets out.
            this.queue.close();
        }
        let next = this.queue.poll_recv(cx);
        if let Poll::Ready(None) = next {
            this.alive = None;
        }
        next
    }
}

/// Moves messages from `incoming` into `queue` until the session ends.
pub(super) async fn pump<T: Send + 'static>(
    env: Env,
    name: &'static str,
    mut incoming: Streaming<T>,
    queue: mpsc::Sender<T>,
    ends: Ends,
) {
    let Ends { incoming_alive, mut outgoing_ended } = ends;
    let peer_ended = select! {
        () = pump_loop(name, &mut incoming, &queue) => true,
        () = queue.closed() => false,
        _ = &mut outgoing_ended => false,
    };
    drop(queue);
    drop(incoming_alive);
    if peer_ended {
        return;
    }
    // Dropping the stream would reset it, and with it what this end still sends: let the peer end it.
    let drained = async { while let Ok(Some(_)) = incoming.message().await {} };
    if env.timeout(FAREWELL, "the end of a session", drained).await.is_err() {
        debug!(session = name, "the peer did not end its side in time");
    }
}

async fn pump_loop<T>(name: &'static str, incoming: &mut Streaming<T>, queue: &mpsc::Sender<T>) {
    loop {
        match incoming.message().await {
            Ok(Some(message)) => {
                if queue.send(message).await.is_err() {
                    // The select of the caller sees the same.
                    std::future::pending::<()>().await;
                }
            }
            Ok(None) => return debug!(session = name, "ended by the peer"),
            Err(status) => return debug!(session = name, %status, "broken"),
        }
    }
}
