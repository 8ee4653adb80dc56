//! The transport of a cluster: control goes by gRPC, data over plain TCP connections of framed Arrow batches.
//!
//! Owns sockets and the tasks that serve them; all run on the I/O lane. Owns no decision: a connection that breaks
//! closes its queues, and what that means is for coordinator and worker to say. It never opens a connection again by
//! itself, never repeats a message, and never looks into one. The wire format is written down in docs/wire.md.
//!
//! - [`control`] and [`session`]: the coordinator's service, sessions and calls.
//! - [`data`], [`writer`], [`reader`]: data connections, and [`credit`] for how much is on its way in one; [`handshake`],
//!   [`frame`], [`encode`], [`decode`]: their bytes;
//!   [`ipc_schema`] and [`ipc_batch`] stand guard before the Arrow decoder.
//! - [`address`]: what may be bound, and what is told to others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::{Env, Error, Lane, Result, env::BoxFuture};
use millstream_proto::control::{ClientReply, ClientRequest};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Arrival, ChannelKey, DataConnection, Transport, WorkerLink};
use crate::element::StreamElement;

mod address;
mod control;
mod credit;
mod data;
mod decode;
mod encode;
mod frame;
mod handshake;
mod ipc_batch;
mod ipc_schema;
mod reader;
mod session;
#[cfg(test)]
mod tests;
mod writer;

/// How long a peer may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// Where a process listens, and what it tells others.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// Where data connections are taken, `HOST:PORT`; port 0 takes a free one.
    pub data_listen: String,
    /// What other workers are told, `HOST:PORT` or `HOST`; else the address that was bound.
    pub data_advertise: Option<String>,
    /// Whether addresses may be bound that other machines reach, although connections are not protected.
    pub insecure: bool,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        Self { data_listen: "127.0.0.1:0".to_owned(), data_advertise: None, insecure: false }
    }
}

/// Connects the processes of a cluster. Clones are the same transport.
#[derive(Clone)]
pub struct Network {
    env: Env,
    settings: Arc<NetworkSettings>,
}

impl Network {
    /// A transport whose tasks run in `env`.
    #[must_use]
    pub fn new(env: Env, settings: NetworkSettings) -> Self {
        Self { env, settings: Arc::new(settings) }
    }

    /// Serves as a coordinator at `listen` (`HOST:PORT`); gives the bound address and what arrives. Serving ends when
    /// the receiver is dropped; sessions that stand go on until their own end.
    pub async fn serve_coordinator(&self, listen: &str) -> Result<(SocketAddr, mpsc::Receiver<Arrival>)> {
        let (env, insecure, listen) = (self.env.clone(), self.settings.insecure, listen.to_owned());
        self.on_io("serve-coordinator", async move {
            let listener = address::bind(&listen, insecure).await?;
            Ok((local_address(&listener)?, control::serve(&env, listener)))
        })
        .await
    }

    /// Runs `future` on the I/O lane, where sockets are registered and gRPC starts its tasks.
    async fn on_io<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.env.run(Lane::Io, name, future).await?
    }
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr> {
    listener.local_addr().map_err(|e| Error::unavailable("a listener without an address").code(2128).source(e))
}

impl Transport for Network {
    fn connect_coordinator<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<WorkerLink>> {
        Box::pin(self.on_io("connect-coordinator", control::connect(self.env.clone(), address.to_owned())))
    }

    fn listen_data(&self) -> BoxFuture<'_, Result<(String, mpsc::Receiver<DataConnection>)>> {
        let (env, settings) = (self.env.clone(), self.settings.clone());
        Box::pin(self.on_io("listen-data", async move {
            let listener = address::bind(&settings.data_listen, settings.insecure).await?;
            let told = address::advertised(settings.data_advertise.as_deref(), local_address(&listener)?)?;
            Ok((told, data::listen(&env, listener)))
        }))
    }

    fn connect_data<'a>(
        &'a self,
        address: &'a str,
        key: ChannelKey,
    ) -> BoxFuture<'a, Result<mpsc::Sender<StreamElement>>> {
        Box::pin(self.on_io("connect-data", data::connect(self.env.clone(), address.to_owned(), key)))
    }

    fn call<'a>(&'a self, address: &'a str, request: ClientRequest) -> BoxFuture<'a, Result<ClientReply>> {
        Box::pin(self.on_io("call", control::call(self.env.clone(), address.to_owned(), request)))
    }
}
