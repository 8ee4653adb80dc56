//! How records reach a broker: a seam, so that a simulation can be the broker.

use std::time::Duration;

use millstream_common::env::BoxFuture;
use millstream_common::{Env, Result};

/// A record to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// Where it goes.
    pub topic: &'a str,
    /// `None`: the key decides, or chance.
    pub partition: Option<i32>,
    /// `None`: it has none.
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// Milliseconds since 1970; `None`: when it is written.
    pub timestamp: Option<i64>,
    /// Names and values, in order.
    pub headers: &'a [(&'a str, Option<&'a [u8]>)],
}

impl Outgoing<'_> {
    /// Bytes of key and value.
    pub(crate) fn bytes(&self) -> u64 {
        (self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len)) as u64
    }
}

/// The producer id and epoch under which a broker knows a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The same for all producers of a transactional id.
    pub producer_id: i64,
    /// Rises from one of them to the next.
    pub producer_epoch: i16,
}

/// Between two looks at what became of records.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// Makes producers.
pub trait Producers: Send + Sync {
    /// One without transactions.
    fn plain(&self) -> BoxFuture<'static, Result<Box<dyn Producer>>>;
    /// The one producer of a transactional id: every other one is fenced, and what it left open is aborted.
    fn transactional(&self, id: String) -> BoxFuture<'static, Result<Box<dyn Producer>>>;
}

/// Writes records, in order a partition.
pub trait Producer: Send {
    /// Of a transactional one.
    fn identity(&self) -> Option<Identity>;
    /// Begins the one transaction of a transactional producer. Whoever ends it does so without this producer.
    fn begin(&mut self) -> Result<()>;
    /// Takes a copy of a record; `false` when there is no room now.
    fn send(&mut self, record: &Outgoing<'_>) -> Result<bool>;
    /// Looks at what became of records; an error when one did not come through.
    fn poll(&mut self) -> Result<()>;
    /// Records that were taken and of which nothing is known yet.
    fn in_flight(&self) -> usize;
    /// Sends what waits for company.
    fn hurry(&mut self);
}

/// Waits until all records have come through; an error when one has not, at any time since the last call.
pub(crate) async fn flush(env: &Env, producer: &mut dyn Producer) -> Result<()> {
    producer.hurry();
    loop {
        producer.poll()?;
        if producer.in_flight() == 0 {
            // What the last of them came to.
            return producer.poll();
        }
        env.sleep(PAUSE).await;
    }
}
