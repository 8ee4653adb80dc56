//! Commits transactions, whoever wrote them, and ends those that nobody will commit.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use millstream_common::env::BoxFuture;
use millstream_common::kill_points::kill_point;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Error, Execution, Generation, Result};
use millstream_engine::sink::{Committable, Committer};

use super::committable::{Judged, Transaction};
use super::options::LostTransactions;
use super::{Shared, ids};

/// Newer versions of the request take a commit that is repeated after one by an older version for an error.
const COMMIT_VERSION: i16 = 4;

pub(super) struct TransactionCommitter {
    shared: Arc<Shared>,
}

impl TransactionCommitter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn judge(&self, transaction: &Transaction) -> Result<Judged> {
        let described = self.shared.brokers.describe_transaction(&transaction.id).await?;
        Ok(transaction.judge(described.as_ref()))
    }

    async fn commit(&self, committable: &Committable) -> Result<()> {
        let transaction = Transaction::decode(&committable.payload)?;
        let why = match self.judge(&transaction).await? {
            Judged::Done => return Ok(()),
            Judged::Lost(why) => why,
            Judged::Open => {
                let producer = (transaction.producer_id, transaction.producer_epoch);
                match self.shared.brokers.end_transaction(&transaction.id, producer, true, COMMIT_VERSION).await? {
                    Ok(()) => return Ok(()),
                    Err(refused) => match self.judge(&transaction).await? {
                        Judged::Done => return Ok(()),
                        Judged::Open => return Err(not_ended(&transaction, refused)),
                        Judged::Lost(why) => why,
                    },
                }
            }
        };
        self.lost(committable, &transaction, &why)
    }

    fn lost(&self, committable: &Committable, transaction: &Transaction, why: &str) -> Result<()> {
        // A planted bug: what the broker has given up counts as committed.
        if bug_is_planted(14) {
            return Ok(());
        }
        let what = format!(
            "{} rows of epoch {} of subtask {} are lost: their transaction cannot be committed any more: {why}",
            committable.rows, committable.epoch, committable.subtask
        );
        match self.shared.options.lost_transactions {
            LostTransactions::Skip => {
                tracing::error!("{what} ({})", transaction.id);
                Ok(())
            }
            LostTransactions::Fail => Err(Error::data(what).code(3333).at(transaction.id.clone()).next(
                "have the sink skip lost transactions and submit the job again: it goes on without these rows; or go back \
                 to a version before that epoch (--from), which writes them and all later ones again",
            )),
        }
    }
}

/// The broker refuses, and yet has it open: a state in between.
fn not_ended(transaction: &Transaction, refused: ResponseError) -> Error {
    Error::unavailable(format!("the broker does not commit a transaction that it has open: {refused}"))
        .code(2440)
        .at(transaction.id.clone())
}

impl Committer for TransactionCommitter {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        Box::pin((*self).commit(committable))
    }

    fn clean_up(&mut self, generation: Generation, execution: Execution) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let prefix = &self.shared.options.transactional_id_prefix;
            // What the version lists has been committed: whatever older deployments have open is nobody's. Newer ones there
            // are when this one is over, and does not know it.
            let is_nobodys = |id: &str| {
                ids::deployment(prefix, id).is_some_and(|of| of < (generation, execution) || bug_is_planted(38))
            };
            for (id, _) in self.shared.brokers.ongoing_transactions(&ids::of_sink(prefix)).await? {
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
