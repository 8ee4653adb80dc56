//! The seam for messages: how workers reach the coordinator, and how subtasks reach each other.
//!
//! Everything a transport gives out is the end of a bounded queue. A connection that breaks closes its queues: the
//! reader sees the end, the writer an error; nothing is repeated or reordered on a connection. [`in_process`] serves
//! one process; `network` speaks gRPC and framed TCP; a simulation brings its own with delays and cuts.

use millstream_common::{AssignmentId, Execution, Generation, Result, env::BoxFuture};
use millstream_proto::control::{ClientReply, ClientRequest, ToCoordinator, ToWorker};
use tokio::sync::{mpsc, oneshot};

use crate::element::StreamElement;

pub mod in_process;
pub mod network;

/// How many control messages a session holds before the sender waits.
pub const CONTROL_QUEUE: usize = 1024;
/// How many elements a data channel holds before the sender waits.
pub const DATA_QUEUE: usize = 4;
/// How many elements stand in a data channel at most: in the queue of either end, and as many that were granted.
pub const DATA_PLACES: usize = 3 * DATA_QUEUE;

/// Which channel a data connection is, and of which deployment: a receiver takes no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelKey {
    /// The job's id.
    pub job: String,
    /// The leader that deployed both ends.
    pub generation: Generation,
    /// The execution that both ends belong to.
    pub execution: Execution,
    /// The assignment that opened the channel.
    pub assignment: AssignmentId,
    /// Index of the edge in the job graph.
    pub edge: u32,
    /// The sending subtask.
    pub from: u32,
    /// The receiving subtask.
    pub to: u32,
}

/// A worker's end of its session with the coordinator.
pub struct WorkerLink {
    /// To the coordinator.
    pub tx: mpsc::Sender<ToCoordinator>,
    /// From the coordinator; ends when the session does.
    pub rx: mpsc::Receiver<ToWorker>,
}

/// The coordinator's end of a worker's session.
pub struct CoordinatorLink {
    /// To the worker.
    pub tx: mpsc::Sender<ToWorker>,
    /// From the worker; ends when the session does.
    pub rx: mpsc::Receiver<ToCoordinator>,
}

/// A client's call.
pub struct ClientCall {
    /// What is asked.
    pub request: ClientRequest,
    /// Where the answer goes.
    pub reply: oneshot::Sender<ClientReply>,
}

/// Who came to a coordinator.
pub enum Arrival {
    /// A worker opened a session.
    Worker(CoordinatorLink),
    /// A client asked.
    Client(ClientCall),
}

/// A data connection that a peer opened.
pub struct DataConnection {
    /// What the peer says it is.
    pub key: ChannelKey,
    /// What it sends; ends when the connection does.
    pub elements: mpsc::Receiver<StreamElement>,
}

/// How workers reach the coordinator and each other.
pub trait Transport: Send + Sync {
    /// Opens a session with the coordinator at `address`.
    fn connect_coordinator<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<WorkerLink>>;

    /// Starts to take data connections; gives the address that peers use, and what arrives.
    fn listen_data(&self) -> BoxFuture<'_, Result<(String, mpsc::Receiver<DataConnection>)>>;

    /// Opens a data connection to the worker at `address`.
    fn connect_data<'a>(
        &'a self,
        address: &'a str,
        key: ChannelKey,
    ) -> BoxFuture<'a, Result<mpsc::Sender<StreamElement>>>;

    /// Asks the coordinator at `address`.
    fn call<'a>(&'a self, address: &'a str, request: ClientRequest) -> BoxFuture<'a, Result<ClientReply>>;
}
