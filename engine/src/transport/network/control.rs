//! The control plane over gRPC: the coordinator's server, and what workers and clients call.
//!
//! gRPC starts tasks of its own on the runtime that it is used on; everything here therefore runs on the I/O lane.
//! Both ends send HTTP/2 pings, so that a peer whose machine is gone is noticed within [`PING`] + [`PING_ANSWER`].
//! A process that is stopped but alive may still answer pings from its kernel's buffers or not at all: the heart-beats
//! of coordinator and worker decide about those.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, Stream};
use millstream_common::{Env, Error, Lane, Result};
use millstream_proto::control::coordinator_client::CoordinatorClient;
use millstream_proto::control::coordinator_server::{Coordinator, CoordinatorServer};
use millstream_proto::control::{ClientReply, ClientRequest, ToCoordinator, ToWorker};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::error;

use super::CONNECT;
use super::session::{outgoing, pump};
use crate::transport::{Arrival, CONTROL_QUEUE, ClientCall, CoordinatorLink, WorkerLink};

/// Time between two pings of one end.
const PING: Duration = Duration::from_secs(2);
/// A ping without an answer for this long ends the connection.
const PING_ANSWER: Duration = Duration::from_secs(3);
/// The longest message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What a peer may send on a stream, and on a connection, before this end has read it.
const WINDOW_BYTES: u32 = 4 << 20;

/// Serves on `listener`. Ends when the receiver is dropped; sessions that stand go on until their own end.
pub(super) fn serve(env: &Env, listener: TcpListener) -> mpsc::Receiver<Arrival> {
    let (arrivals, arrived) = mpsc::channel(CONTROL_QUEUE);
    let service = CoordinatorServer::new(Service { env: env.clone(), arrivals: arrivals.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    env.spawn(Lane::Io, "coordinator-server", async move {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let gone = async move { arrivals.closed().await };
        if let Err(e) = server.serve_with_incoming_shutdown(service, incoming, gone).await {
            error!(error = %Error::unavailable("the coordinator's server ended").code(2127).source(e));
        }
    });
    arrived
}

struct Service {
    env: Env,
    arrivals: mpsc::Sender<Arrival>,
}

impl Service {
    async fn arrive(&self, arrival: Arrival) -> Result<(), Status> {
        self.arrivals.send(arrival).await.map_err(|_| Status::unavailable("the coordinator has stopped"))
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    type SessionStream = BoxStream<'static, Result<ToWorker, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<ToCoordinator>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to_worker, queued) = mpsc::channel(CONTROL_QUEUE);
        let (from_worker, link_rx) = mpsc::channel(CONTROL_QUEUE);
        self.arrive(Arrival::Worker(CoordinatorLink { tx: to_worker, rx: link_rx })).await?;
        let (stream, ends) = outgoing(queued);
        let pump = pump(self.env.clone(), "of a worker", request.into_inner(), from_worker, ends);
        self.env.spawn(Lane::Io, "session-in", pump);
        Ok(Response::new(stream.map(Ok).boxed()))
    }

    async fn call(&self, request: Request<ClientRequest>) -> Result<Response<ClientReply>, Status> {
        let (reply, answer) = oneshot::channel();
        self.arrive(Arrival::Client(ClientCall { request: request.into_inner(), reply })).await?;
        let gone = |_| Status::unavailable("the coordinator went away before it answered");
        answer.await.map(Response::new).map_err(gone)
    }
}

/// Opens a session with the coordinator at `address`.
pub(super) async fn connect(env: Env, address: String) -> Result<WorkerLink> {
    let mut client = client(&env, &address).await?;
    let (tx, queued) = mpsc::channel(CONTROL_QUEUE);
    let (from_coordinator, rx) = mpsc::channel(CONTROL_QUEUE);
    let (stream, ends) = outgoing(queued);
    let incoming = open(&env, &mut client, stream).await.map_err(|e| e.at(&address))?;
    env.spawn(Lane::Io, "session-in", pump(env.clone(), "with the coordinator", incoming, from_coordinator, ends));
    Ok(WorkerLink { tx, rx })
}

/// A coordinator that accepts connections but answers none (it is stopped, or hangs) counts as away.
async fn open(
    env: &Env,
    client: &mut CoordinatorClient<Channel>,
    stream: impl Stream<Item = ToCoordinator> + Send + 'static,
) -> Result<Streaming<ToWorker>> {
    let answer = env.timeout(CONNECT, "opening a session", client.session(stream)).await?;
    Ok(answer.map_err(|status| from_status(&status, 2150))?.into_inner())
}

/// Asks the coordinator at `address`; waits for as long as its answer takes.
pub(super) async fn call(env: Env, address: String, request: ClientRequest) -> Result<ClientReply> {
    let mut client = client(&env, &address).await?;
    let answer = client.call(request).await.map_err(|status| from_status(&status, 2152).at(&address))?;
    Ok(answer.into_inner())
}

async fn client(env: &Env, address: &str) -> Result<CoordinatorClient<Channel>> {
    let no_address = |e| Error::config("this is no address of a coordinator").code(1122).at(address).source(e);
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(no_address)?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let channel = env
        .timeout(CONNECT, "connecting", endpoint.connect())
        .await
        .and_then(|connected| connected.map_err(|e| Error::unavailable("no coordinator answers").source(e)))
        .map_err(|e| e.code(2150).at(address).next("check that it runs and that the address is right"))?;
    Ok(CoordinatorClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn from_status(status: &Status, code: u16) -> Error {
    let what = format!("the coordinator did not answer: {}", status.message());
    match status.code() {
        Code::Unimplemented => {
            Error::config("what answers is no Millstream coordinator, or one of another version").code(1122)
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            Error::config(what).code(1125).next("messages have 64 MiB at most")
        }
        _ => Error::unavailable(what).code(code),
    }
}
