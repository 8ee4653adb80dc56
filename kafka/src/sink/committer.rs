//! Commits transactions, whoever wrote them, and ends those that nobody will commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::env::BoxFuture;
use millstream_common::kill_points::kill_point;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Epoch, Error, Execution, Generation, Result};
use millstream_engine::sink::{Committable, Committer, SinkObjects, only_by_recovery};

use super::committable::{Judged, Lost, Transaction};
use super::options::{LostTransactions, ToTopic};
use super::{Shared, ids};
use crate::client::NO_RIGHT;

/// Newer versions of the request take a commit that is repeated after one by an older version for an error.
pub(super) const COMMIT_VERSION: i16 = 4;

pub(super) struct TransactionCommitter {
    shared: Arc<Shared>,
    /// The first epoch of which a transaction was written again in this recovery.
    again_from: Option<Epoch>,
}

impl TransactionCommitter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, again_from: None }
    }

    async fn judge(&self, transaction: &Transaction) -> Result<Judged> {
        Ok(transaction.judge(&self.shared.brokers.describe_transaction(&transaction.id).await?))
    }

    /// Ends it, if it is open: `None` when it is committed, else why it is lost.
    async fn end(&self, transaction: &Transaction, commit: bool) -> Result<Option<Lost>> {
        match self.judge(transaction).await? {
            Judged::Open | Judged::Untold => {}
            Judged::Ending => return Err(not_ended(transaction, "it is given up just now")),
            Judged::Done => return Ok(None),
            Judged::Lost(lost) => return Ok(Some(lost)),
        }
        let producer = (transaction.producer_id, transaction.producer_epoch);
        match self.shared.brokers.end_transaction(&transaction.id, producer, commit, COMMIT_VERSION).await? {
            Ok(()) if commit => Ok(None),
            Ok(()) => Ok(Some(Lost { why: "it is to come behind what is written again".to_owned(), aborted: true })),
            Err(refused) => match self.judge(transaction).await? {
                Judged::Open | Judged::Ending => Err(not_ended(transaction, refused)),
                Judged::Untold => match Transaction::judge_refusal(refused) {
                    // It may have been committed before.
                    Some(why) => Ok(Some(Lost { why, aborted: false })),
                    None => Err(not_ended(transaction, refused)),
                },
                Judged::Done => Ok(None),
                Judged::Lost(lost) => Ok(Some(lost)),
            },
        }
    }

    async fn commit(&self, committable: &Committable) -> Result<()> {
        let transaction = Transaction::decode(&committable.payload)?;
        let Some(lost) = self.end(&transaction, true).await? else { return Ok(()) };
        if lost.aborted && self.has_copy(committable) {
            return Err(only_by_recovery(format!("{}: {}", what_is_lost(committable), lost.why)).at(transaction.id));
        }
        self.lost(committable, &transaction, &lost.why)
    }

    /// The same, while nobody writes: what was lost is written again. So is all that follows it: its records lie before those.
    async fn recover(&mut self, committable: &Committable, objects: &SinkObjects) -> Result<()> {
        let transaction = Transaction::decode(&committable.payload)?;
        let has_copy = self.has_copy(committable);
        let follows = has_copy && self.again_from.is_some_and(|first| first < committable.epoch);
        let Some(lost) = self.end(&transaction, !follows).await? else {
            if follows {
                let rows = rows_of(committable);
                tracing::warn!(
                    "{rows} were visible before rows of an earlier epoch, which are written again behind them"
                );
            }
            return Ok(());
        };
        if !(lost.aborted && has_copy) {
            return self.lost(committable, &transaction, &lost.why);
        }
        let (what, why) = (what_is_lost(committable), lost.why);
        tracing::warn!("{what}: {why}; they are written again from their copy ({})", transaction.id);
        self.shared.write_again(&transaction, committable, objects).await?;
        self.again_from.get_or_insert(committable.epoch);
        Ok(())
    }

    /// Whether what is lost can be written again, and is to be.
    fn has_copy(&self, committable: &Committable) -> bool {
        self.shared.options.lost_transactions == LostTransactions::WriteAgain && !committable.kept.is_empty()
    }

    /// The rights that are needed when something is lost are asked for at the start.
    async fn may_write_again(&self) -> Result<()> {
        let options = &self.shared.options;
        let (LostTransactions::WriteAgain, ToTopic::Named(topic)) = (options.lost_transactions, &options.topic) else {
            return Ok(());
        };
        let group = format!("{}-rights", options.transactional_id_prefix);
        let offsets = BTreeMap::from([((topic.clone(), 0), 0)]);
        match self.shared.brokers.commit_once(&group, &offsets).await {
            Err(e) if e.number() == NO_RIGHT => Err(e.next(
                "to write lost transactions again, grant the user Read on the topics that the sink writes to, and on groups that \
                 begin with its prefix of transactional ids",
            )),
            // The topic may come into being with its first record.
            Err(e) => {
                tracing::debug!("whether lost transactions may be written again is not known: {e}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn lost(&self, committable: &Committable, transaction: &Transaction, why: &str) -> Result<()> {
        // A planted bug: what the broker has given up counts as committed.
        if bug_is_planted(14) {
            return Ok(());
        }
        let what = format!("{} are lost: their transaction cannot be committed any more: {why}", rows_of(committable));
        let next = if committable.kept.is_empty() {
            "have the sink skip lost transactions and submit the job again: it goes on without these rows; or go back to a \
             version before that epoch (--from), which writes them and all later ones again"
        } else if self.has_copy(committable) {
            "nobody can tell whether they were committed, so their copy is not written: see whether they are in the topic, and \
             have the sink skip lost transactions and submit the job again, or go back to a version before that epoch (--from)"
        } else {
            "a copy of these rows was kept: have the sink write lost transactions again, and submit the job again"
        };
        match self.shared.options.lost_transactions {
            LostTransactions::Skip => {
                tracing::error!("{what} ({})", transaction.id);
                Ok(())
            }
            LostTransactions::Fail | LostTransactions::WriteAgain => {
                Err(Error::data(what).code(3333).at(transaction.id.clone()).next(next))
            }
        }
    }
}

fn rows_of(c: &Committable) -> String {
    format!("{} rows of epoch {} of subtask {}", c.rows, c.epoch, c.subtask)
}

fn what_is_lost(committable: &Committable) -> String {
    format!("the transaction of {} cannot be committed any more", rows_of(committable))
}

/// The broker refuses, and yet has it open, or does not say: a state in between.
fn not_ended(transaction: &Transaction, refused: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("the broker does not end a transaction that it should have open: {refused}"))
        .code(2440)
        .at(transaction.id.clone())
}

impl Committer for TransactionCommitter {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        Box::pin((*self).commit(committable))
    }

    fn recover<'a>(&'a mut self, committable: &'a Committable, objects: &'a SinkObjects) -> BoxFuture<'a, Result<()>> {
        Box::pin(Self::recover(self, committable, objects))
    }

    fn clean_up(&mut self, generation: Generation, execution: Execution) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.may_write_again().await?;
            let prefix = &self.shared.options.transactional_id_prefix;
            // What the version lists has been committed: whatever older deployments have open is nobody's. Newer ones there
            // are when this one is over, and does not know it.
            let is_nobodys = |id: &str| ids::deployment(prefix, id).is_some_and(|of| of < (generation, execution));
            let ongoing = self.shared.brokers.ongoing_transactions(&ids::of_sink(prefix)).await?;
            if let Some(broker) = ongoing.silent {
                tracing::warn!(
                    "broker {broker} is older than Apache Kafka 3.0 and does not list transactions: what an earlier run of the \
                     job has left open below {prefix} ends by its time-out ({:?}), and holds back readers of committed \
                     records until then",
                    self.shared.options.transaction_timeout
                );
            }
            for (id, _) in ongoing.transactions {
                if is_nobodys(&id) {
                    tracing::info!("the open transaction of {id} belongs to nobody and is aborted");
                    self.shared.brokers.fence(&id, self.shared.options.transaction_timeout).await?;
                    kill_point("recovery-aborted");
                }
            }
            Ok(())
        })
    }
}

/// Commits nothing: rows are visible already.
pub(super) struct NothingToCommit;

impl Committer for NothingToCommit {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            Err(Error::config("the version holds a transaction, and the sink writes at least once")
                .code(1367)
                .at(committable.sink_uid.clone())
                .next("start the job with the guarantee that it had, stop it, and then change it"))
        })
    }
}
