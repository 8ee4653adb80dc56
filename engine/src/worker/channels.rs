//! Which data channels a worker waits for, and which have arrived. Both sides meet by [`ChannelKey`]: a connection of
//! another execution or assignment finds nobody and is dropped with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::Result;
use millstream_common::planted::bug_is_planted;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::element::StreamElement;
use crate::task::gate::ChannelEnd;
use crate::transport::{ChannelKey, DATA_QUEUE, Transport};

/// Connections that nobody waits for yet are kept up to this many.
const UNCLAIMED_MAX: usize = 16_384;

/// The meeting point; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Channels(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    expected: BTreeMap<ChannelKey, oneshot::Sender<mpsc::Receiver<StreamElement>>>,
    unclaimed: BTreeMap<ChannelKey, mpsc::Receiver<StreamElement>>,
}

/// The planted bug 27 forgets which deployment a connection belongs to.
fn identity(mut key: ChannelKey) -> ChannelKey {
    if bug_is_planted(27) {
        key.generation = millstream_common::Generation(0);
        key.execution = millstream_common::Execution(0);
        key.assignment = millstream_common::AssignmentId(0);
    }
    key
}

impl Channels {
    /// The receiving end of a channel that a peer opens, perhaps later.
    pub(crate) fn expect(&self, key: ChannelKey) -> ChannelEnd {
        let key = identity(key);
        let mut waiting = self.0.lock();
        if let Some(rx) = waiting.unclaimed.remove(&key) {
            return ChannelEnd::Open(rx);
        }
        let (tx, rx) = oneshot::channel();
        waiting.expected.insert(key, tx);
        ChannelEnd::Waiting(rx)
    }

    /// A peer (or this worker itself) has opened a channel.
    pub(crate) fn arrived(&self, key: ChannelKey, elements: mpsc::Receiver<StreamElement>) {
        let key = identity(key);
        let mut waiting = self.0.lock();
        match waiting.expected.remove(&key) {
            // The receiving subtask may be gone by now: the connection goes with it.
            Some(tx) => drop(tx.send(elements)),
            None => {
                if waiting.unclaimed.len() >= UNCLAIMED_MAX {
                    waiting.unclaimed.pop_first();
                }
                waiting.unclaimed.insert(key, elements);
            }
        }
    }

    /// Opens a channel to the worker at `address`; `own` is this worker's.
    pub(crate) async fn connect(
        &self,
        transport: &dyn Transport,
        own: &str,
        address: &str,
        key: ChannelKey,
    ) -> Result<mpsc::Sender<StreamElement>> {
        if address == own {
            let (tx, rx) = mpsc::channel(DATA_QUEUE);
            self.arrived(key, rx);
            return Ok(tx);
        }
        transport.connect_data(address, key).await
    }

    /// Forgets the channels of a job's deployment.
    pub(crate) fn forget(&self, job: &str) {
        let mut waiting = self.0.lock();
        waiting.expected.retain(|k, _| k.job != job);
        if !bug_is_planted(27) {
            waiting.unclaimed.retain(|k, _| k.job != job);
        }
    }
}
