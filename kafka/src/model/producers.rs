//! Producers that write to the model as librdkafka writes to a broker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use millstream_common::env::{AbortOnDrop, BoxFuture, Lane};
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;

use super::broker::{ModelBroker, Written};
use crate::sink::{Identity, Outgoing, Producer, Producers};

/// So many records wait before they are sent by themselves.
const LINGER: usize = 5;
/// Records that a producer holds.
const ROOM: usize = 64;
/// From one request for a producer to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// From one try of records to the next.
const PAUSE: Duration = Duration::from_millis(20);

/// Makes producers of a process.
pub struct ModelProducers {
    env: Env,
    broker: ModelBroker,
    transaction_timeout: Duration,
}

impl ModelProducers {
    /// `env`: of the process; what it has begun ends with it.
    #[must_use]
    pub fn new(env: Env, broker: ModelBroker, transaction_timeout: Duration) -> Self {
        Self { env, broker, transaction_timeout }
    }
}

impl Producers for ModelProducers {
    fn plain(&self) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        let (env, broker) = (self.env.clone(), self.broker.clone());
        Box::pin(async move {
            let producer_id = broker.perform(ModelBroker::plain).await?;
            Ok(Box::new(ModelProducer::new(env, broker, String::new(), (producer_id, -1))) as Box<dyn Producer>)
        })
    }

    fn transactional(&self, id: String) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        let (env, broker, timeout) = (self.env.clone(), self.broker.clone(), self.transaction_timeout);
        Box::pin(async move {
            let identity = loop {
                let of = id.clone();
                match broker.perform(move |b| b.init(&of, timeout)).await {
                    Ok(identity) => break identity,
                    // For as long as somebody waits for it.
                    Err(_) => env.sleep(AGAIN).await,
                }
            };
            Ok(Box::new(ModelProducer::new(env, broker, id, identity)) as Box<dyn Producer>)
        })
    }
}

struct ModelProducer {
    env: Env,
    broker: ModelBroker,
    id: String,
    identity: (i64, i16),
    queue: Arc<Mutex<Queue>>,
    sender: Option<AbortOnDrop>,
}

#[derive(Default)]
struct Queue {
    /// Topic, sequence number and record.
    waiting: VecDeque<(String, i64, Written)>,
    next_sequence: i64,
    sending: bool,
    failed: Option<ResponseError>,
}

impl ModelProducer {
    fn new(env: Env, broker: ModelBroker, id: String, identity: (i64, i16)) -> Self {
        Self { env, broker, id, identity, queue: Arc::default(), sender: None }
    }

    /// Sends what waits, in order, again until it is answered.
    fn start(&mut self) {
        if std::mem::replace(&mut self.queue.lock().sending, true) {
            return;
        }
        let (queue, broker, env) = (self.queue.clone(), self.broker.clone(), self.env.clone());
        let (id, identity) = (self.id.clone(), self.identity);
        self.sender = Some(AbortOnDrop(self.env.spawn(Lane::Io, "records to the broker", async move {
            loop {
                let batch: Vec<_> = {
                    let mut queue = queue.lock();
                    queue.sending = !queue.waiting.is_empty() && queue.failed.is_none();
                    if !queue.sending {
                        return;
                    }
                    queue.waiting.iter().cloned().collect()
                };
                let (of, count) = (id.clone(), batch.len());
                let sent = broker.perform(move |b| {
                    batch.into_iter().try_for_each(|(topic, sequence, record)| {
                        if of.is_empty() {
                            b.append(identity.0, sequence, &topic, record);
                            return Ok(());
                        }
                        b.produce(&of, identity, sequence, &topic, record)
                    })
                });
                match sent.await {
                    Ok(Ok(())) => drop(queue.lock().waiting.drain(..count)),
                    Ok(Err(refused)) => queue.lock().failed = Some(refused),
                    Err(_) => env.sleep(PAUSE).await,
                }
            }
        })));
    }
}

impl Producer for ModelProducer {
    fn identity(&self) -> Option<Identity> {
        let (producer_id, producer_epoch) = self.identity;
        (producer_epoch >= 0).then_some(Identity { producer_id, producer_epoch })
    }

    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<bool> {
        let mut queue = self.queue.lock();
        if queue.waiting.len() >= ROOM {
            return Ok(false);
        }
        let owned = Written { key: record.key.map(<[u8]>::to_vec), value: record.value.map(<[u8]>::to_vec) };
        let sequence = queue.next_sequence;
        queue.next_sequence += 1;
        queue.waiting.push_back((record.topic.to_owned(), sequence, owned));
        let many = queue.waiting.len() >= LINGER;
        drop(queue);
        if many {
            self.start();
        }
        Ok(true)
    }

    fn poll(&mut self) -> Result<()> {
        match self.queue.lock().failed {
            None => Ok(()),
            Some(refused) => Err(Error::unavailable(format!("a record was not written: {refused}")).code(2444)),
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    fn hurry(&mut self) {
        self.start();
    }
}
