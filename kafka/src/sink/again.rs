//! Writes a transaction again that was aborted, from its copy.
//!
//! Order of events, by whoever recovers the job, as often as it takes: make a producer under an id of its own, which ends what
//! an earlier try has left open, and fences those who still try; read the mark of the transaction; if it is not there, write
//! the records and the mark in one transaction, and commit that. The mark is an offset of a consumer group of its own, so it
//! is there if, and only if, the records are.
//!
//! Ids and groups are those of the transaction and its producer, never used for another one. Brokers forget both 7 days after
//! their last use (unless set): a try is repeated within seconds.

use millstream_common::{Error, Result};
use millstream_engine::sink::{Committable, SinkObjects};

use super::Shared;
use super::committable::Transaction;
use super::committer::COMMIT_VERSION;
use super::copy::{Copied, Reader, records};
use super::produce::{PAUSE, Producer, flush};

impl Transaction {
    /// The transactional id and the group of what is written again.
    pub(crate) fn again(&self) -> String {
        format!("{}-{}-{}", self.id, self.producer_id, self.producer_epoch)
    }
}

impl Shared {
    pub(super) async fn write_again(
        &self,
        transaction: &Transaction,
        committable: &Committable,
        objects: &SinkObjects,
    ) -> Result<()> {
        let id = transaction.again();
        let mut producer = self.producers.transactional(id.clone()).await?;
        let mut mark = None;
        for (number, kept) in committable.kept.iter().enumerate() {
            let part = records(&objects.get(kept).await?)?;
            let mut reader = Reader::new(&part);
            while let Some(record) = reader.next()? {
                if mark.is_none() {
                    // The topic is there: it was written to.
                    let place = (record.outgoing().topic.to_owned(), 0);
                    let marked = self.brokers.committed(&id, std::slice::from_ref(&place)).await?;
                    if marked.contains_key(&place) {
                        return Ok(());
                    }
                    producer.begin()?;
                    mark = Some(place);
                }
                self.send(&mut *producer, &record).await?;
            }
            tracing::debug!("{id}: part {number} of {} is written", committable.kept.len());
        }
        let empty =
            || Error::corrupt("a copy of records that wait for their commit holds none").code(4332).at(id.clone());
        let place = mark.ok_or_else(empty)?;
        flush(&self.env, &mut *producer).await?;
        let who = producer.identity().ok_or_else(|| Error::internal("a producer without an identity"))?;
        let who = (who.producer_id, who.producer_epoch);
        let epoch = i64::try_from(committable.epoch.0).unwrap_or(i64::MAX);
        self.brokers.add_offset((&id, who), &id, &place, epoch).await?;
        match self.brokers.end_transaction(&id, who, true, COMMIT_VERSION).await? {
            Ok(()) => Ok(()),
            // Somebody else tries, or it took too long.
            Err(refused) => Err(Error::unavailable(format!("what was written again is not committed: {refused}"))
                .code(2447)
                .at(id)
                .next("it is tried again; if this comes again, raise the sink's transaction time-out")),
        }
    }

    async fn send(&self, producer: &mut dyn Producer, record: &Copied<'_>) -> Result<()> {
        while !producer.send(&record.outgoing())? {
            producer.poll()?;
            self.env.sleep(PAUSE).await;
        }
        Ok(())
    }
}
