//! Rows as records of topics: at least once, or exactly once.
//!
//! Exactly once: the rows of an epoch go into a transaction of the broker. At the barrier it is flushed, and the version keeps
//! which one it is. Once the version is durable it is committed, by a request of our own that any process can send: a
//! writer may be gone by then. A writer has several transactional ids ([`ids`]), and uses one again when no version lists its
//! last transaction. No other writer has them: a request to make a producer, which ends what is open under its id, may arrive
//! when its sender is long gone. Each transaction has a producer of its own, and so an epoch of its own: a
//! commit that was asked for more than once, and arrives late, must not hit the transaction after it.
//!
//! Brokers before Apache Kafka 3.0 do not describe transactions: who the producer is, librdkafka then tells, and whether a
//! transaction was lost, the answer to its commit.
//!
//! Protocol: what a broker answers was measured on Apache Kafka 2.8.2 to 4.1.1; its source is the protocol guide.

mod again;
mod committable;
mod committer;
mod copy;
mod ids;
#[cfg(feature = "librdkafka")]
mod librdkafka;
mod options;
mod produce;
mod records;
#[cfg(feature = "librdkafka")]
mod refused;
mod slots;
#[cfg(feature = "librdkafka")]
mod threads;
mod writer;

use std::sync::Arc;

use arrow_schema::SchemaRef;
use millstream_common::{Env, Error, Result};
use millstream_engine::sink::{Committer, Sink, SinkContext, SinkWriter};

#[cfg(feature = "librdkafka")]
use crate::client::TcpDial;
use crate::client::{Brokers, BrokersOptions, Dial};
#[cfg(any(test, feature = "model"))]
pub(crate) use committable::Transaction;
use committer::{NothingToCommit, TransactionCommitter};
#[cfg(feature = "librdkafka")]
pub use librdkafka::Librdkafka;
pub use options::{DeliveryGuarantee, FromColumns, KafkaSinkOptions, Key, LostTransactions, ToTopic};
pub use produce::{Identity, Outgoing, Producer, Producers};
#[cfg(feature = "librdkafka")]
pub(crate) use produce::{PAUSE, flush};
use records::RecordMaker;
use writer::{AtLeastOnce, ExactlyOnce};

/// Writes rows to topics.
pub struct KafkaSink(Arc<Shared>);

/// What writers and committers of a process share.
struct Shared {
    env: Env,
    options: KafkaSinkOptions,
    brokers: Brokers,
    producers: Box<dyn Producers>,
}

impl KafkaSink {
    /// An error says which option cannot be.
    #[cfg(feature = "librdkafka")]
    pub fn new(env: Env, options: KafkaSinkOptions) -> Result<Self> {
        let brokers = asking(&env, &options, Arc::new(TcpDial));
        let producers = Box::new(Librdkafka::new(env.clone(), brokers.clone(), &options));
        Self::with(env, options, brokers, producers)
    }

    /// Over a broker that is none.
    #[cfg(any(test, feature = "model"))]
    pub fn over_model(env: Env, options: KafkaSinkOptions, broker: &crate::model::ModelBroker) -> Result<Self> {
        let brokers = asking(&env, &options, Arc::new(crate::model::ModelDial::new(broker.clone())));
        let producers = crate::model::ModelProducers::new(env.clone(), broker.clone(), options.transaction_timeout);
        Self::with(env, options, brokers, Box::new(producers))
    }

    fn with(env: Env, options: KafkaSinkOptions, brokers: Brokers, producers: Box<dyn Producers>) -> Result<Self> {
        options.check()?;
        Ok(Self(Arc::new(Shared { env, options, brokers, producers })))
    }
}

fn asking(env: &Env, options: &KafkaSinkOptions, dial: Arc<dyn Dial>) -> Brokers {
    let asking = BrokersOptions::new(&options.bootstrap, &options.security, options.retry_timeout);
    Brokers::new(env.clone(), dial, asking)
}

impl Shared {
    /// A transaction begins behind one checkpoint and is committed behind the next one.
    fn check_timeout(&self, context: &SinkContext) -> Result<()> {
        let (interval, duration) = (context.checkpoint_interval, context.checkpoint_timeout);
        let timeout = self.options.transaction_timeout;
        if interval.is_zero() {
            tracing::warn!("a job without checkpoints writes one transaction, which must end within {timeout:?}");
            return Ok(());
        }
        if timeout <= interval + duration {
            return Err(Error::config(format!(
                "a transaction may last {timeout:?}, and a checkpoint that is made every {interval:?} may take \
                 {duration:?}: the brokers would give up what a checkpoint counts as written"
            ))
            .code(1368)
            .next("shorten checkpoint.interval or checkpoint.timeout, or raise the sink's transaction time-out"));
        }
        Ok(())
    }
}

impl Sink for KafkaSink {
    fn writer(&self, schema: SchemaRef, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let maker = RecordMaker::new(&schema, &self.0.options)?;
        Ok(match self.0.options.guarantee {
            DeliveryGuarantee::AtLeastOnce => Box::new(AtLeastOnce::new(self.0.clone(), maker)),
            DeliveryGuarantee::ExactlyOnce => Box::new(ExactlyOnce::new(self.0.clone(), maker, context)?),
        })
    }

    fn committer(&self) -> Result<Box<dyn Committer>> {
        Ok(match self.0.options.guarantee {
            DeliveryGuarantee::AtLeastOnce => Box::new(NothingToCommit),
            DeliveryGuarantee::ExactlyOnce => Box::new(TransactionCommitter::new(self.0.clone())),
        })
    }
}

#[cfg(test)]
mod old_brokers_tests;
