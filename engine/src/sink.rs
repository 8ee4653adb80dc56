//! Sinks: writers that pre-commit at each barrier, committables that live in the version, committers that make them
//! visible once the version is durable.
//!
//! Order of events: `write`* -> `pre_commit(epoch)` at the barrier -> the version with the committable is durable ->
//! `commit`, repeated after every recovery until it was confirmed. Committables of a failed epoch travel with the next.
//!
//! A sink that cannot rely on the place that it writes to may keep bytes of its own with the version ([`SinkObjects`]) until
//! the commit is confirmed, and make its rows visible from them when the job recovers.

mod objects;

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::{Epoch, Error, Execution, Generation, Result, SubtaskIndex, env::BoxFuture};

pub use objects::{KeptObject, SinkObjects};

/// What a writer is told when it is made.
#[derive(Clone, Debug)]
pub struct SinkContext {
    /// Which subtask writes.
    pub subtask: SubtaskIndex,
    /// The leader that deployed it.
    pub generation: Generation,
    /// The deployment that it belongs to: names of uncommitted things carry generation and execution.
    pub execution: Execution,
    /// A number that no other writer of this job has or had.
    pub unique: u64,
    /// From the start of one checkpoint to the next; zero: there is none but the last.
    pub checkpoint_interval: Duration,
    /// A checkpoint that takes longer has failed.
    pub checkpoint_timeout: Duration,
    /// Where it may keep bytes with the version; `None`: nowhere.
    pub objects: Option<SinkObjects>,
}

impl SinkContext {
    /// A writer of a job that makes a checkpoint every 10 s, each of which may take 10 min.
    #[must_use]
    pub fn new(subtask: SubtaskIndex, generation: Generation, execution: Execution, unique: u64) -> Self {
        let (checkpoint_interval, checkpoint_timeout) = (Duration::from_secs(10), Duration::from_secs(600));
        Self { subtask, generation, execution, unique, checkpoint_interval, checkpoint_timeout, objects: None }
    }
}

/// What a writer learns of a version that is durable.
#[derive(Clone, Copy, Debug)]
pub struct DurableVersion<'a> {
    /// The last epoch in it.
    pub epoch: Epoch,
    /// What it lists of the sink: committables of all subtasks whose commit had not been confirmed when it was written.
    /// What an older version listed, and this one does not, is committed for good.
    pub committables: &'a [Committable],
}

/// What a writer leaves at a barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreCommit {
    /// Rows (lines) written in the epoch.
    pub rows: u64,
    /// What `commit` needs; `None` when there is nothing to commit (no row, or the sink commits nothing).
    pub committable: Option<Vec<u8>>,
    /// What the version is to keep with the committable.
    pub kept: Vec<KeptObject>,
}

/// One committable with its identity, as the version lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Committable {
    /// The sink's stable id.
    pub sink_uid: String,
    /// The epoch whose rows it holds.
    pub epoch: Epoch,
    /// The subtask that made it; it may be gone by now.
    pub subtask: SubtaskIndex,
    /// Tells several of one subtask and epoch apart.
    pub sequence: u32,
    /// The writer's bytes.
    pub payload: Vec<u8>,
    /// Rows that the commit makes visible.
    pub rows: u64,
    /// What is kept with it. It may be gone once the commit is confirmed.
    pub kept: Vec<KeptObject>,
}

/// A place that rows go to. Shared by its writers; holds settings, no position.
pub trait Sink: Send + Sync {
    /// Refuses, before a job's first version, a place that already holds another job's output.
    fn check_fresh(&self) -> Result<()> {
        Ok(())
    }
    /// Refuses, when a job goes back to an older version, a place that holds output of epochs above `epoch`: it would be
    /// written a second time beside the first.
    fn check_goes_back(&self, _epoch: Epoch) -> Result<()> {
        Ok(())
    }
    /// Whether rows stay where they are written, so that two jobs must not write to the same place.
    fn is_a_place(&self) -> bool {
        false
    }
    /// A writer for one subtask. `schema` is that of all batches.
    fn writer(&self, schema: SchemaRef, context: SinkContext) -> Result<Box<dyn SinkWriter>>;
    /// A committer. Any worker may have one.
    fn committer(&self) -> Result<Box<dyn Committer>>;
}

/// Writes the rows of one subtask.
pub trait SinkWriter: Send {
    /// A version is durable: the one that the subtask starts from, told before its first row, and each one after it. Not to
    /// wait for anything that takes long: rows wait, too.
    fn on_version<'a>(&'a mut self, _version: DurableVersion<'a>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    /// Takes a batch. Nothing of it may be visible before `commit`, unless the sink promises less than exactly once.
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>>;
    /// Ends the epoch: what was written is durable when this returns, but not visible.
    fn pre_commit(&mut self, epoch: Epoch) -> BoxFuture<'_, Result<PreCommit>>;
    /// What this writer has counted. Asked whenever its subtask is about to wait: no more than a look at numbers.
    fn figures(&self) -> WriterFigures {
        WriterFigures::default()
    }
}

/// What is known of a writer besides its rows. `None`: the sink does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterFigures {
    /// Bytes that were written, since the writer was made.
    pub bytes: Option<u64>,
    /// Transactions that were begun, or wait until it is known that they were committed.
    pub open_transactions: Option<u64>,
}

/// Makes committables visible.
pub trait Committer: Send {
    /// Makes one committable visible. Idempotent: repeated after any crash, also by another process.
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>>;
    /// The same while the job has no subtasks: between two deployments all that the version lists is committed in the order of
    /// epochs, subtasks and sequence numbers, by one committer. What was confirmed since is left out.
    fn recover<'a>(&'a mut self, committable: &'a Committable, _objects: &'a SinkObjects) -> BoxFuture<'a, Result<()>> {
        self.commit(committable)
    }
    /// Removes what writers of older generations and executions left and nobody can commit any more. Called once per
    /// deployment, after all of `commit` for the version's committables.
    fn clean_up(&mut self, _generation: Generation, _execution: Execution) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What a commit that comes to it says: only [`Committer::recover`] can make these rows visible. The job restarts.
#[must_use]
pub fn only_by_recovery(what: impl Into<String>) -> Error {
    Error::unavailable(what).code(ONLY_BY_RECOVERY)
}

/// Whether it is an error of [`only_by_recovery`].
pub(crate) fn is_only_by_recovery(error: &Error) -> bool {
    error.number() == ONLY_BY_RECOVERY
}

const ONLY_BY_RECOVERY: u16 = 2446;
