//! The chain of version records of a job: `version/{number, 20 digits}` below the job's prefix, each created once and
//! never changed. The record with the greatest number says what is live.
//!
//! A commit is one create-if-absent. Once it was sent, it ends only when its number is taken: an answer that was lost
//! says nothing, and a 404 on reading back says nothing either, since a delayed request may still land. So the same
//! PUT (same bytes, same nonce) is repeated until the number is taken, and reading back tells by the nonce by whom.
//!
//! Records are stored in groups ([`delta`]): a snapshot and what changed from one to the next. Who reads a record gets a
//! whole one. Old records are given up by drawing a boundary ([`boundary`]), kept by pins ([`pins`]); what then may be
//! deleted is decided in [`garbage`].
//!
//! What this module never does: give up a commit by itself, overwrite or delete a record, or pick the next number
//! after a lost one; that is for the caller, who must stop when it was fenced.

pub mod boundary;
mod decide;
pub mod delta;
pub mod garbage;
pub mod pins;
mod record;
mod sealed;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, Generation, Result, VersionNumber};
use millstream_objects::{Created, Purpose, Store};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Kind;

use boundary::BoundaryLog;
use decide::{Next, ReadBack, Sent, after_create, after_read_back};
use delta::group_of;
use pins::Pins;
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

/// Records that are read at the same time.
const READ_AHEAD: usize = 32;

/// The version records of one job. Clones share what is known of the boundary.
#[derive(Clone)]
pub struct VersionLog {
    store: Store,
    env: Env,
    boundaries: BoundaryLog,
}

impl VersionLog {
    /// The log below `store`, the job's prefix.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        let boundaries = BoundaryLog::new(store.clone(), env.clone());
        Self { store, env, boundaries }
    }

    /// The path of a record below the job's prefix.
    #[must_use]
    pub fn path(number: VersionNumber) -> String {
        format!("version/{:020}", number.0)
    }

    /// The boundaries of the job.
    #[must_use]
    pub fn boundaries(&self) -> &BoundaryLog {
        &self.boundaries
    }

    /// The pins of the job.
    #[must_use]
    pub fn pins(&self) -> Pins {
        Pins::new(self.store.clone(), self.env.clone())
    }

    /// The numbers of all records, rising. Some of them may be below the boundary: take-overs, which stay, and what is about to
    /// go.
    pub async fn list(&self) -> Result<Vec<VersionNumber>> {
        let listed = self.store.list("version/", Purpose::Version).await?;
        let mut numbers: Vec<_> = listed.iter().filter_map(|l| number_of(&l.path)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The record with the greatest number; `None` when there is none. Looks behind the end of the listing, which may
    /// lag in some stores.
    pub async fn newest(&self) -> Result<Option<VersionRecord>> {
        loop {
            let Some(last) = self.list().await?.last().copied() else { return Ok(None) };
            let found = self.newest_from(last).await;
            let missed = found.as_ref().map_or_else(Error::is_final, Option::is_none);
            // A leader may have gone on and collected what was listed since.
            if !missed || self.boundaries.find().await?.bound <= last.0 {
                return found;
            }
            self.env.sleep(FIRST_PAUSE).await;
        }
    }

    async fn newest_from(&self, mut number: VersionNumber) -> Result<Option<VersionRecord>> {
        let mut newest = self.read(number).await?;
        while let Some(stored) = self.stored(number.next()).await? {
            number = number.next();
            newest = Some(match &newest {
                Some(before) if stored.delta.is_some() => self.applied(before, &stored)?,
                _ => self.whole(stored).await?,
            });
        }
        Ok(newest)
    }

    /// The whole record with a number; `None` when there is none. One that is damaged, or that was written with another
    /// hash or key codec, is an error that names it.
    pub async fn read(&self, number: VersionNumber) -> Result<Option<VersionRecord>> {
        match self.stored(number).await? {
            Some(stored) => self.whole(stored).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads records, each object once: `take` gets them in the order of `numbers` (rising), whole; `None` for one that
    /// has gone; what is wrong with one that cannot be used. Ends early with errors that a repetition may mend.
    pub async fn read_each(
        &self,
        numbers: &[VersionNumber],
        mut take: impl FnMut(VersionNumber, Result<Option<VersionRecord>>) -> Result<()>,
    ) -> Result<()> {
        let mut before: Option<VersionRecord> = None;
        for chunk in numbers.chunks(READ_AHEAD) {
            let read = futures::future::join_all(chunk.iter().map(|n| self.stored(*n))).await;
            for (&number, stored) in chunk.iter().zip(read) {
                let whole = match (stored, &before) {
                    (Ok(Some(s)), Some(b)) if s.delta.is_some() && b.number + 1 == number.0 => self.applied(b, &s),
                    (Ok(Some(s)), _) => self.whole(s).await,
                    (Ok(None), _) => {
                        take(number, Ok(None))?;
                        continue;
                    }
                    (Err(e), _) => Err(e),
                };
                match whole {
                    Ok(record) => {
                        take(number, Ok(Some(record.clone())))?;
                        before = Some(record);
                    }
                    Err(e) if e.is_final() => take(number, Err(e))?,
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// A record as it is stored.
    async fn stored(&self, number: VersionNumber) -> Result<Option<VersionRecord>> {
        let path = Self::path(number);
        let Some(bytes) = self.store.get(&path, Purpose::Version).await? else { return Ok(None) };
        let record = record::decode_numbered(&bytes, number)
            .and_then(|record| check_compatible(&record).map(|()| record))
            .map_err(|e| e.at(self.store.url_of(&path)))?;
        Ok(Some(record))
    }

    fn applied(&self, before: &VersionRecord, stored: &VersionRecord) -> Result<VersionRecord> {
        let path = Self::path(VersionNumber(stored.number));
        delta::apply(before, stored).map_err(|e| e.at(self.store.url_of(&path)))
    }

    /// The whole record that a stored one stands for: reads the others of its group, all at once.
    async fn whole(&self, stored: VersionRecord) -> Result<VersionRecord> {
        if stored.delta.is_none() {
            return Ok(stored);
        }
        let place = self.store.url_of(&Self::path(VersionNumber(stored.number)));
        let absent = |n: u64| {
            Error::corrupt(format!("version {} builds on version {n}, which is not there", stored.number))
                .code(4007)
                .at(place.clone())
                .next("`millstream fsck` shows what else is missing; start from an older version")
        };
        let group = group_of(&stored);
        if group >= stored.number || stored.number - group > delta::GROUP_RECORDS {
            return Err(absent(group));
        }
        let others = try_join_all((group..stored.number).map(|n| self.stored(VersionNumber(n)))).await?;
        let mut whole: Option<VersionRecord> = None;
        for (n, other) in (group..).zip(others) {
            let other = other.ok_or_else(|| absent(n))?;
            whole = Some(match &whole {
                Some(before) => self.applied(before, &other)?,
                None if other.delta.is_none() => other,
                None => return Err(absent(n)),
            });
        }
        self.applied(&whole.ok_or_else(|| absent(group))?, &stored)
    }

    /// Writes a record, in its stored form, under its number. Ends when the number is taken, by this record or by another;
    /// on an error that no repetition can mend it ends, too, and the error says whether the record may stand all the same.
    /// Dropping the future leaves the same doubt.
    ///
    /// A take-over below the boundary is lost, although its number could be taken: the record there had been collected, and
    /// the chain has gone on elsewhere. Other records need no such look: the number behind a leader's newest one is its
    /// successor's take-over, which is never deleted, or one of its own that had stood already (docs/garbage.md).
    pub async fn commit(&self, record: &VersionRecord) -> Result<CommitOutcome> {
        let outcome = self.take_number(record).await?;
        // A planted bug: whoever opens a job believes that the record that it created counts.
        let looks = record.kind() == Kind::TakeOver && !bug_is_planted(3);
        if outcome != CommitOutcome::Committed || !looks {
            return Ok(outcome);
        }
        let known = self.boundaries.newest().await.map_err(Error::maybe_applied)?;
        if known.bound > record.number {
            let number = VersionNumber(record.number);
            return Ok(CommitOutcome::Lost { winner: known.generation, number });
        }
        Ok(outcome)
    }

    async fn take_number(&self, record: &VersionRecord) -> Result<CommitOutcome> {
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

    /// Whether somebody else has taken the job over from the writer of `generation`, whose newest record is `newest`: its
    /// generation. A successor's record may have been collected by now; its boundary stands.
    pub async fn successor(&self, newest: u64, generation: Generation) -> Result<Option<Generation>> {
        let mut number = VersionNumber(newest).next();
        while let Some(record) = self.stored(number).await? {
            if record.generation != generation.0 {
                return Ok(Some(Generation(record.generation)));
            }
            number = number.next();
        }
        let known = self.boundaries.newest().await?;
        Ok((known.generation > generation).then_some(known.generation))
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
