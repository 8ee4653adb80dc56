//! Writers of a subtask.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use millstream_common::env::{BoxFuture, Lane, Running};
use millstream_common::kill_points::kill_point;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Epoch, Error, Result};
use millstream_engine::sink::{DurableVersion, PreCommit, SinkContext, SinkObjects, SinkWriter, WriterFigures};

use super::Shared;
use super::committable::{Transaction, UNTOLD};
use super::copy::Copy;
use super::ids::WriterIds;
use super::options::LostTransactions;
use super::produce::{Identity, Outgoing, PAUSE, Producer, flush};
use super::records::RecordMaker;
use super::slots::Slots;
use crate::client::{Described, Told, TransactionState};

/// Sends all records of a batch, and waits where there is no room; how many there are, and their bytes. `copy` gets them, too.
async fn send(
    env: &Env,
    producer: &mut dyn Producer,
    maker: &mut RecordMaker,
    batch: &RecordBatch,
    copy: Option<&mut Copy>,
) -> Result<(usize, u64)> {
    maker.prepare().await?;
    let made = maker.make(batch)?;
    if let Some(copy) = copy {
        copy.add(&made)?;
    }
    let (mut sent, mut bytes) = (0, 0);
    loop {
        let send = |record: &Outgoing<'_>| {
            let taken = producer.send(record)?;
            bytes += if taken { record.bytes() } else { 0 };
            Ok(taken)
        };
        let (next, is_full) = made.send_from(sent, send)?;
        sent = next;
        producer.poll()?;
        if !is_full {
            return Ok((sent, bytes));
        }
        env.sleep(PAUSE).await;
    }
}

/// Rows are visible at once.
pub(super) struct AtLeastOnce {
    shared: Arc<Shared>,
    maker: RecordMaker,
    producer: Option<Box<dyn Producer>>,
    rows: u64,
    /// Of all epochs.
    bytes: u64,
}

impl AtLeastOnce {
    pub(super) fn new(shared: Arc<Shared>, maker: RecordMaker) -> Self {
        Self { shared, maker, producer: None, rows: 0, bytes: 0 }
    }
}

impl SinkWriter for AtLeastOnce {
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.producer.is_none() {
                self.producer = Some(self.shared.producers.plain().await?);
            }
            if let Some(producer) = &mut self.producer {
                self.bytes += send(&self.shared.env, &mut **producer, &mut self.maker, batch, None).await?.1;
            }
            self.rows += batch.num_rows() as u64;
            Ok(())
        })
    }

    fn pre_commit(&mut self, _: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        Box::pin(async move {
            if let Some(producer) = &mut self.producer {
                flush(&self.shared.env, &mut **producer).await?;
            }
            Ok(PreCommit { rows: std::mem::take(&mut self.rows), ..PreCommit::default() })
        })
    }

    fn figures(&self) -> WriterFigures {
        WriterFigures { bytes: Some(self.bytes), open_transactions: None }
    }
}

/// Making a producer that takes longer may have been asked for more than once: librdkafka asks again half a second after a
/// request that failed. A request that comes late ends what has been written under the id by then.
const ASKED_ONCE: Duration = Duration::from_secs(1);

/// So many ids are tried until one is made in time; brokers may always be slow.
const IDS_TRIED: u32 = 5;

/// A producer that may begin a transaction, and its slot.
struct Ready {
    slot: u32,
    id: String,
    producer: Box<dyn Producer>,
    /// A request to make another one may be on its way.
    doubtful: bool,
}

/// A transaction of the epoch.
struct Open {
    ready: Ready,
    rows: u64,
    records: usize,
    /// Kept with the version when lost transactions are to be written again.
    copy: Option<Copy>,
}

/// Rows of an epoch go into a transaction, which is committed with the version.
pub(super) struct ExactlyOnce {
    shared: Arc<Shared>,
    maker: RecordMaker,
    context: SinkContext,
    ids: WriterIds,
    slots: Slots,
    /// Where copies of records are kept; `None`: there are none.
    copies: Option<SinkObjects>,
    open: Option<Open>,
    /// The one after it: made ready beside the writing, as that takes a while.
    next: Option<Running<Result<Ready>>>,
    /// Of all epochs.
    bytes: u64,
}

impl ExactlyOnce {
    pub(super) fn new(shared: Arc<Shared>, maker: RecordMaker, context: SinkContext) -> Result<Self> {
        shared.check_timeout(&context)?;
        let ids = WriterIds::new(&shared.options.transactional_id_prefix, &context);
        let copies = match (shared.options.lost_transactions, &context.objects) {
            (LostTransactions::WriteAgain, None) => {
                return Err(Error::internal("the sink has no object store, and is to keep copies of what it writes"));
            }
            (LostTransactions::WriteAgain, objects) => objects.clone(),
            (LostTransactions::Fail | LostTransactions::Skip, _) => None,
        };
        let slots = Slots::default();
        Ok(Self { shared, maker, context, ids, slots, copies, open: None, next: None, bytes: 0 })
    }

    /// Makes the producer of a free slot ready.
    fn prepare(&mut self) -> Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        let slot = self.slots.take()?;
        let (id, shared) = (self.ids.id(slot), self.shared.clone());
        self.next = Some(self.shared.env.run(Lane::Io, "make a producer ready", async move {
            let begun = shared.env.now();
            let producer = shared.producers.transactional(id.clone()).await?;
            // A planted bug: whatever was asked for before has come through.
            let doubtful = shared.env.now().since(begun) >= ASKED_ONCE && !bug_is_planted(37);
            Ok(Ready { slot, id, producer, doubtful })
        }));
        Ok(())
    }

    /// Begins a transaction.
    async fn begin(&mut self) -> Result<Open> {
        for tried in 1.. {
            self.prepare()?;
            let Some(next) = &mut self.next else { break };
            let ready = next.await;
            self.next = None;
            let mut ready = ready??;
            if ready.doubtful && tried < IDS_TRIED {
                self.slots.spend(ready.slot);
                continue;
            }
            ready.producer.begin()?;
            self.prepare()?;
            let copy = self.copies.clone().map(Copy::new);
            return Ok(Open { ready, rows: 0, records: 0, copy });
        }
        Err(Error::internal("no producer is made"))
    }
}

/// What the broker says of the transaction that was written: it must be open, and the one of this producer. Brokers that
/// do not say it took all of its records; should it end before its commit, the commit says so.
async fn written(shared: Arc<Shared>, id: String, identity: Option<Identity>) -> Result<Transaction> {
    let described = shared.brokers.describe_transaction(&id).await?;
    let is_own = |d: &Described| {
        identity == Some(Identity { producer_id: d.producer_id, producer_epoch: d.producer_epoch })
            && d.state == TransactionState::Ongoing
    };
    match (described, identity) {
        (Told::Newest(d), _) if is_own(&d) => {
            let (producer_id, producer_epoch, started_ms) = (d.producer_id, d.producer_epoch, d.started_ms);
            Ok(Transaction { id, producer_id, producer_epoch, started_ms })
        }
        (Told::Nothing, Some(Identity { producer_id, producer_epoch })) => {
            Ok(Transaction { id, producer_id, producer_epoch, started_ms: UNTOLD })
        }
        (other, _) => Err(Error::unavailable(format!(
            "the broker does not have the transaction of this epoch open: {other:?}, written by {identity:?}"
        ))
        .code(2444)
        .at(id)
        .next("if this comes again: raise the transaction time-out, and see that no two sinks have one prefix")),
    }
}

impl SinkWriter for ExactlyOnce {
    fn on_version<'a>(&'a mut self, version: DurableVersion<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut listed = Vec::new();
            for c in version.committables.iter().filter(|c| c.subtask == self.context.subtask) {
                listed.extend(self.ids.slot(&Transaction::decode(&c.payload)?.id));
            }
            self.slots.on_version(version.epoch, &listed);
            if self.open.is_none() {
                self.prepare()?;
            }
            Ok(())
        })
    }

    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if batch.num_rows() == 0 {
                return Ok(());
            }
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.begin().await?,
            };
            let (producer, copy) = (&mut *open.ready.producer, open.copy.as_mut());
            let sent = send(&self.shared.env, producer, &mut self.maker, batch, copy).await?;
            open.records += sent.0;
            self.bytes += sent.1;
            open.rows += batch.num_rows() as u64;
            if let Some(copy) = &mut open.copy {
                copy.write_full().await?;
            }
            self.open = Some(open);
            Ok(())
        })
    }

    fn pre_commit(&mut self, epoch: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        Box::pin(async move {
            // A transaction without records is none to the broker; it goes on with the next epoch.
            let Some(mut open) = self.open.take_if(|open| open.records > 0) else {
                let rows = self.open.as_mut().map_or(0, |open| std::mem::take(&mut open.rows));
                return Ok(PreCommit { rows, ..PreCommit::default() });
            };
            let copy = open.copy.take();
            let copied = async {
                match copy {
                    Some(copy) => copy.finish().await,
                    None => Ok(Vec::new()),
                }
            };
            let flushed = flush(&self.shared.env, &mut *open.ready.producer);
            let ((), kept) = futures::try_join!(flushed, copied)?;
            kill_point("sink-flushed");
            let identity = open.ready.producer.identity();
            let transaction = written(self.shared.clone(), open.ready.id.clone(), identity).await?;
            kill_point("sink-described");
            self.slots.pre_commit(open.ready.slot, epoch);
            // A planted bug: a sink that says nothing of what it wrote.
            let committable = (!bug_is_planted(19)).then(|| transaction.encode());
            Ok(PreCommit { rows: open.rows, committable, kept })
        })
    }

    fn figures(&self) -> WriterFigures {
        let open = self.slots.waiting() + u64::from(self.open.is_some());
        WriterFigures { bytes: Some(self.bytes), open_transactions: Some(open) }
    }
}
