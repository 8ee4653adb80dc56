//! Writes a transaction again that was aborted, from its copy.
//!
//! Order of events, by whoever recovers the job, as often as it takes: ask whether an earlier try was committed; make a producer
//! under an id of its own, which ends what an earlier try has left open, and fences those who still try; read the mark of the
//! transaction; if it is not there, write the records and the mark in one transaction, and commit that. The mark is an offset of
//! a consumer group of its own, so it is there if, and only if, the records are.
//!
//! Ids and groups are those of the transaction and its producer, never used for another one. Brokers may forget a group soon, and
//! an id not before that of the transaction itself, which was used earlier: without that one nothing is written again. Only
//! a new producer makes them forget what became of the id's last transaction, and then the mark was needed moments before.
//!
//! Two who try fence each other. So whoever meets that, or takes too long, gives up, and the job restarts.

use millstream_common::kill_points::kill_point;
use millstream_common::{Error, Result};
use millstream_engine::sink::{Committable, SinkObjects, only_by_recovery};

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
        let told = self.brokers.describe_transaction(&id).await?.newest();
        if told.is_some_and(|d| d.state.is_committed()) {
            return Ok(());
        }
        let mut producer = self.producers.transactional(id.clone()).await?;
        match self.write_once(&mut *producer, &id, committable, objects).await {
            Err(e) if !e.is_final() => {
                Err(only_by_recovery("what was lost could not be written again").at(id).source(e))
            }
            done => done,
        }
    }

    async fn write_once(
        &self,
        producer: &mut dyn Producer,
        id: &str,
        committable: &Committable,
        objects: &SinkObjects,
    ) -> Result<()> {
        let mut mark = None;
        for (number, kept) in committable.kept.iter().enumerate() {
            let part = records(&objects.get(kept).await?)?;
            let mut reader = Reader::new(&part);
            while let Some(record) = reader.next()? {
                if mark.is_none() {
                    // The topic is there: it was written to.
                    let place = (record.outgoing().topic.to_owned(), 0);
                    let marked = self.brokers.committed(id, std::slice::from_ref(&place)).await?;
                    if marked.contains_key(&place) {
                        return Ok(());
                    }
                    producer.begin()?;
                    mark = Some(place);
                }
                self.send(producer, &record).await?;
            }
            tracing::debug!("{id}: part {number} of {} is written", committable.kept.len());
        }
        let empty = || Error::corrupt("a copy of records that wait for their commit holds none").code(4332).at(id);
        let place = mark.ok_or_else(empty)?;
        flush(&self.env, producer).await?;
        kill_point("again-written");
        let who = producer.identity().ok_or_else(|| Error::internal("a producer without an identity"))?;
        let who = (who.producer_id, who.producer_epoch);
        let epoch = i64::try_from(committable.epoch.0).unwrap_or(i64::MAX);
        let mut answer = self.brokers.add_offset((id, who), id, &place, epoch).await?;
        if answer.is_ok() {
            answer = self.brokers.end_transaction(id, who, true, COMMIT_VERSION).await?;
        }
        match answer {
            Ok(()) => {
                kill_point("again-committed");
                Ok(())
            }
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
