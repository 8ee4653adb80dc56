//! The chain of version records of a job: `version/{number, 20 digits}` below the job's prefix, each created once and
//! never changed. The record with the greatest number says what is live.
//!
//! A commit is one create-if-absent. Once it was sent, it ends only when its number is taken: an answer that was lost
//! says nothing, and a 404 on reading back says nothing either, since a delayed request may still land. So the same
//! PUT (same bytes, same nonce) is repeated until the number is taken, and reading back tells by the nonce by whom.
//!
//! What this module never does: give up a commit by itself, overwrite or delete a record, or pick the next number
//! after a lost one; that is for the caller, who must stop when it was fenced.

mod decide;
mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use millstream_common::{Env, Error, Generation, Result, VersionNumber};
use millstream_objects::{Created, Purpose, Store};
use millstream_proto::version::VersionRecord;

use decide::{Next, ReadBack, Sent, after_create, after_read_back};
pub use record::{check_compatible, decode_record, encode_record};

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The record stands.
    Committed,
    /// Somebody else's record has the number.
    Lost {
        /// The generation of its writer.
        winner: Generation,
        /// The number.
        number: VersionNumber,
    },
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The version records of one job.
#[derive(Clone)]
pub struct VersionLog {
    store: Store,
    env: Env,
}

impl VersionLog {
    /// The log below `store`, the job's prefix.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        Self { store, env }
    }

    /// The path of a record below the job's prefix.
    #[must_use]
    pub fn path(number: VersionNumber) -> String {
        format!("version/{:020}", number.0)
    }

    /// The numbers of all records, rising.
    pub async fn list(&self) -> Result<Vec<VersionNumber>> {
        let listed = self.store.list("version/", Purpose::Version).await?;
        let mut numbers: Vec<_> = listed.iter().filter_map(|l| number_of(&l.path)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The record with the greatest number; `None` when there is none. Looks behind the end of the listing, which may
    /// lag in some stores.
    pub async fn newest(&self) -> Result<Option<VersionRecord>> {
        let Some(mut number) = self.list().await?.last().copied() else { return Ok(None) };
        let mut newest = self.read(number).await?;
        while let Some(record) = self.read(number.next()).await? {
            number = number.next();
            newest = Some(record);
        }
        Ok(newest)
    }

    /// The record with a number; `None` when there is none. One that is damaged, or that was written with another
    /// hash or key codec, is an error that names it.
    pub async fn read(&self, number: VersionNumber) -> Result<Option<VersionRecord>> {
        let path = Self::path(number);
        let Some(bytes) = self.store.get(&path, Purpose::Version).await? else { return Ok(None) };
        let record = record::decode_numbered(&bytes, number)
            .and_then(|record| check_compatible(&record).map(|()| record))
            .map_err(|e| e.at(self.store.url_of(&path)))?;
        Ok(Some(record))
    }

    /// Writes a record under its number. Ends when the number is taken, by this record or by another; on an error
    /// that no repetition can mend it ends, too, and the error says whether the record may stand all the same.
    /// Dropping the future leaves the same doubt.
    pub async fn commit(&self, record: &VersionRecord) -> Result<CommitOutcome> {
        let number = VersionNumber(record.number);
        let path = Self::path(number);
        let bytes = Bytes::from(encode_record(record));
        let mut in_doubt = false;
        let mut pause = FIRST_PAUSE;
        loop {
            let sent = match self.store.create(&path, bytes.clone(), Purpose::Version).await {
                Ok(Created::Now) => Sent::Created,
                Ok(Created::AlreadyExists) => Sent::Exists,
                Err(e) => Sent::Failed(e),
            };
            in_doubt |= sent.is_doubtful();
            let mut next = after_create(sent, in_doubt);
            if matches!(next, Next::ReadBack) {
                next = after_read_back(self.read_back(number, &record.nonce).await);
            }
            match next {
                Next::Committed => return Ok(CommitOutcome::Committed),
                Next::Lost { winner } => return Ok(CommitOutcome::Lost { winner, number }),
                Next::Fail(e) => return Err(e),
                Next::Repeat(reason) => {
                    tracing::warn!(%number, reason, "the commit of a version is not decided yet: repeating it");
                }
                // Only after a create.
                Next::ReadBack => {}
            }
            let jitter = self.env.random_below(pause.as_millis() as u64 / 2 + 1);
            self.env.sleep(pause + Duration::from_millis(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn read_back(&self, number: VersionNumber, nonce: &str) -> ReadBack {
        let path = Self::path(number);
        let bytes = match self.store.get(&path, Purpose::Version).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return ReadBack::Absent,
            Err(e) => return ReadBack::Failed(e),
        };
        match record::decode_numbered(&bytes, number) {
            Ok(found) if found.nonce == nonce => ReadBack::Ours,
            Ok(found) => ReadBack::Theirs { generation: Generation(found.generation) },
            Err(e) => ReadBack::Failed(e.at(self.store.url_of(&path))),
        }
    }
}

/// The number that a path below the job's prefix names.
pub(crate) fn number_of(path: &str) -> Option<VersionNumber> {
    let digits = path.strip_prefix("version/")?;
    let right = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| right).map(VersionNumber)
}

/// For a planted bug: what its caller is told.
fn declared_dead() -> Error {
    Error::unavailable("the commit of a version did not happen").code(2010)
}
