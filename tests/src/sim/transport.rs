//! The transport of one node over the simulated network.
//!
//! Replaces: `transport::network`. Messages pass as values; nothing is encoded.

use millstream_common::env::BoxFuture;
use millstream_common::{Error, Result};
use millstream_engine::element::StreamElement;
use millstream_engine::transport::{
    Arrival, CONTROL_QUEUE, ChannelKey, ClientCall, CoordinatorLink, DataConnection, Transport, WorkerLink,
};
use millstream_proto::control::{ClientReply, ClientRequest, ToCoordinator, ToWorker, to_coordinator, to_worker};
use tokio::sync::{mpsc, oneshot};

use super::net::{Net, Pipe, refused};

/// How one node reaches the others.
pub struct SimTransport {
    net: Net,
    host: String,
    /// Elements that each end of a data connection holds.
    data_queue: usize,
}

impl SimTransport {
    /// The transport of `host`.
    #[must_use]
    pub fn new(net: Net, host: &str, data_queue: usize) -> Self {
        Self { net, host: host.into(), data_queue }
    }

    async fn arrive(&self, address: &str, arrival: Arrival) -> Result<()> {
        let coordinator = self.net.coordinator(address).ok_or_else(|| refused(address))?;
        coordinator.try_send(arrival).map_err(|_| refused(address))
    }
}

impl Transport for SimTransport {
    fn connect_coordinator<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<WorkerLink>> {
        Box::pin(async move {
            self.net.travel(&self.host, address).await?;
            let (worker_tx, from_worker) = mpsc::channel(CONTROL_QUEUE);
            let (to_coordinator, coordinator_rx) = mpsc::channel(CONTROL_QUEUE);
            let (coordinator_tx, from_coordinator) = mpsc::channel(CONTROL_QUEUE);
            let (to_worker, worker_rx) = mpsc::channel(CONTROL_QUEUE);
            let link = CoordinatorLink { tx: coordinator_tx, rx: coordinator_rx };
            self.arrive(address, Arrival::Worker(link)).await?;
            let (here, there) = (self.host.clone(), address.to_owned());
            let (from, to) = (here.clone(), there.clone());
            let out = Pipe { from, to, rx: from_worker, tx: to_coordinator, describe: up, ends: |_| false };
            let (rx, tx) = (from_coordinator, to_worker);
            let back = Pipe { from: there, to: here, rx, tx, describe: down, ends: ends_all };
            self.net.open("session".into(), out, Some(back));
            self.net.travel(address, &self.host).await?;
            Ok(WorkerLink { tx: worker_tx, rx: worker_rx })
        })
    }

    fn listen_data(&self) -> BoxFuture<'_, Result<(String, mpsc::Receiver<DataConnection>)>> {
        let (tx, rx) = mpsc::channel(CONTROL_QUEUE);
        self.net.listen_data(&self.host, tx);
        Box::pin(std::future::ready(Ok((self.host.clone(), rx))))
    }

    fn connect_data<'a>(
        &'a self,
        address: &'a str,
        key: ChannelKey,
    ) -> BoxFuture<'a, Result<mpsc::Sender<StreamElement>>> {
        Box::pin(async move {
            self.net.travel(&self.host, address).await?;
            let (writer, rx) = mpsc::channel(self.data_queue);
            let (tx, elements) = mpsc::channel(self.data_queue);
            let what = format!(
                "edge {} {}->{} of {}.{}.{}",
                key.edge, key.from, key.to, key.generation, key.execution, key.assignment
            );
            let listener = self.net.data(address).ok_or_else(|| refused(address))?;
            listener.try_send(DataConnection { key, elements }).map_err(|_| refused(address))?;
            let (from, to) = (self.host.clone(), address.to_owned());
            let out = Pipe { from, to, rx, tx, describe: element, ends: |_| false };
            self.net.open(what, out, None::<Pipe<()>>);
            self.net.travel(address, &self.host).await?;
            Ok(writer)
        })
    }

    fn call<'a>(&'a self, address: &'a str, request: ClientRequest) -> BoxFuture<'a, Result<ClientReply>> {
        Box::pin(async move {
            self.net.travel(&self.host, address).await?;
            let (reply, answer) = oneshot::channel();
            self.arrive(address, Arrival::Client(ClientCall { request, reply })).await?;
            let answer = answer.await.map_err(|_| {
                Error::unavailable("the coordinator went away before it answered").code(2102).at(address)
            })?;
            self.net.travel(address, &self.host).await?;
            Ok(answer)
        })
    }
}

fn up(m: &ToCoordinator) -> String {
    use to_coordinator::Message as M;
    match &m.message {
        Some(M::Hello(_)) => "hello".into(),
        Some(M::Heartbeat(_)) => "heartbeat".into(),
        Some(M::Deployed(d)) => format!("deployed a{}", d.assignment_id),
        Some(M::Report(r)) => {
            format!("report e{} runs {} committables {}", r.epoch, r.runs.len(), r.committables.len())
        }
        Some(M::CheckpointFailed(f)) => format!("checkpoint failed e{}", f.epoch),
        Some(M::TaskFailed(f)) => {
            format!("task failed {} {}: {}", f.task_uid, f.subtask, f.failure.as_ref().map_or("", |f| f.what.as_str()))
        }
        Some(M::Confirmed(c)) => format!("confirmed {} failed {}", c.committables.len(), c.failure.is_some()),
        Some(M::CompactionDone(c)) => format!("compacted c{} to {}", c.number, c.outputs.len()),
        Some(M::CompactionFailed(c)) => format!("not compacted c{}", c.number),
        Some(M::Serving(s)) => format!("serving a{}", s.assignment_id),
        Some(M::SplitsFinished(s)) => format!("splits finished {}", s.splits.len()),
        Some(M::CompactionsHeld(_)) => "compactions held".into(),
        Some(M::Leave(l)) => format!("leave within {} ms", l.wait_ms),
        Some(M::Prepared(p)) => format!("prepared a{}", p.assignment_id),
        None => "nothing".into(),
    }
}

fn down(m: &ToWorker) -> String {
    use to_worker::Message as M;
    match &m.message {
        Some(M::Welcome(w)) => format!("welcome g{}", w.generation),
        Some(M::Deploy(d)) => {
            let j = d.job.clone().unwrap_or_default();
            format!("deploy {}.{} subtasks {:?} join {}", j.generation, j.execution, d.subtasks, d.join)
        }
        Some(M::InjectBarrier(b)) => format!("barrier e{} {:?}", b.epoch, b.kind()),
        Some(M::VersionCommitted(v)) => format!("version {}", v.record.as_ref().map_or(0, |r| r.number)),
        Some(M::CommitNow(c)) => format!("commit now {}", c.committables.len()),
        Some(M::StopJob(_)) => "stop job".into(),
        Some(M::LiveSplits(_)) => "live splits".into(),
        Some(M::AlignWatermarks(a)) => format!("align {:?}", a.groups.iter().map(|g| g.least_ms).collect::<Vec<_>>()),
        Some(M::AddSplits(a)) => format!("add {} splits", a.splits.len()),
        Some(M::EndOfInput(_)) => "end of input".into(),
        Some(M::PrepareRescale(p)) => format!("prepare a{}", p.assignment.as_ref().map_or(0, |a| a.id)),
        Some(M::Compact(c)) => {
            format!("compact c{} {} of {}.{} {:?}", c.number, c.inputs.len(), c.task_id, c.subtask, c.bottom)
        }
        Some(M::HoldCompactions(h)) => format!("hold compactions {}", h.hold),
        Some(M::LetGo(l)) => format!("let go, {:?} wait", l.waiting),
        Some(M::Ping(_)) => "ping".into(),
        None => "nothing".into(),
    }
}

/// Whether a worker that takes this runs nothing of before any more. There is one job.
fn ends_all(m: &ToWorker) -> bool {
    use to_worker::Message as M;
    match &m.message {
        Some(M::Welcome(_) | M::StopJob(_) | M::CommitNow(_) | M::LetGo(_)) => true,
        Some(M::Deploy(d)) => !d.join,
        _ => false,
    }
}

fn element(e: &StreamElement) -> String {
    match e {
        StreamElement::Batch(b) => format!("{} rows", b.num_rows()),
        StreamElement::Watermark(w) => format!("watermark {w}"),
        StreamElement::Idle => "idle".into(),
        StreamElement::Barrier(b) => format!("barrier e{}", b.epoch),
    }
}
