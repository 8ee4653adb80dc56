//! One process: the ends of a connection are the two ends of one queue.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{Error, Result, env::BoxFuture};
use millstream_proto::control::{ClientReply, ClientRequest};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::{
    Arrival, CONTROL_QUEUE, ChannelKey, ClientCall, CoordinatorLink, DATA_QUEUE, DataConnection, Transport, WorkerLink,
};
use crate::element::StreamElement;

/// Connects a coordinator and workers of one process. Clones share the addresses.
#[derive(Clone, Default)]
pub struct InProcess(Arc<Mutex<Addresses>>);

#[derive(Default)]
struct Addresses {
    coordinators: BTreeMap<String, mpsc::Sender<Arrival>>,
    workers: BTreeMap<String, mpsc::Sender<DataConnection>>,
}

impl InProcess {
    /// What arrives for a coordinator at `address`.
    pub fn listen_coordinator(&self, address: &str) -> mpsc::Receiver<Arrival> {
        let (tx, rx) = mpsc::channel(CONTROL_QUEUE);
        self.0.lock().coordinators.insert(address.to_owned(), tx);
        rx
    }

    async fn arrive(&self, address: &str, arrival: Arrival) -> Result<()> {
        let coordinator = self.0.lock().coordinators.get(address).cloned();
        let nobody = || Error::unavailable("nobody answers").code(2150).at(address);
        coordinator.ok_or_else(nobody)?.send(arrival).await.map_err(|_| nobody())
    }
}

impl Transport for InProcess {
    fn connect_coordinator<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<WorkerLink>> {
        Box::pin(async move {
            let (to_coordinator, from_worker) = mpsc::channel(CONTROL_QUEUE);
            let (to_worker, from_coordinator) = mpsc::channel(CONTROL_QUEUE);
            self.arrive(address, Arrival::Worker(CoordinatorLink { tx: to_worker, rx: from_worker })).await?;
            Ok(WorkerLink { tx: to_coordinator, rx: from_coordinator })
        })
    }

    fn listen_data(&self) -> BoxFuture<'_, Result<(String, mpsc::Receiver<DataConnection>)>> {
        Box::pin(async move {
            let (tx, rx) = mpsc::channel(CONTROL_QUEUE);
            let mut addresses = self.0.lock();
            let address = format!("in-process-{}", addresses.workers.len());
            addresses.workers.insert(address.clone(), tx);
            Ok((address, rx))
        })
    }

    fn connect_data<'a>(
        &'a self,
        address: &'a str,
        key: ChannelKey,
    ) -> BoxFuture<'a, Result<mpsc::Sender<StreamElement>>> {
        Box::pin(async move {
            let worker = self.0.lock().workers.get(address).cloned();
            let nobody = || Error::unavailable("no worker answers").code(2151).at(address);
            let (tx, elements) = mpsc::channel(DATA_QUEUE);
            worker.ok_or_else(nobody)?.send(DataConnection { key, elements }).await.map_err(|_| nobody())?;
            Ok(tx)
        })
    }

    fn call<'a>(&'a self, address: &'a str, request: ClientRequest) -> BoxFuture<'a, Result<ClientReply>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.arrive(address, Arrival::Client(ClientCall { request, reply })).await?;
            answer
                .await
                .map_err(|_| Error::unavailable("the coordinator went away before it answered").code(2152).at(address))
        })
    }
}
