//! The exam of sinks: nothing is visible before its commit, everything is visible once after it, whoever commits, how
//! often, and whatever happened to the writer meanwhile.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Epoch, Execution, Generation, SubtaskIndex};
use millstream_engine::sink::{Committable, DurableVersion, PreCommit, Sink, SinkContext, SinkWriter};

use super::must;

/// The place that an exam writes to.
pub trait SinkPlace {
    /// A sink for the place, as another process would make it.
    fn sink(&self) -> Box<dyn Sink>;
    /// The values of column `n`, an Int64, of all rows that are visible, in any order.
    fn visible(&self) -> Vec<i64>;
    /// How many things are there that are not visible: files in progress and the like.
    fn hidden(&self) -> usize;
    /// Whether the place is a log: what is not committed yet hides what was written behind it, and names are used again, so
    /// that commits come in the order of their epochs, and cleaning up before the writers of a deployment. So it is in a job.
    fn is_a_log(&self) -> bool {
        false
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

fn rows(values: std::ops::Range<i64>) -> RecordBatch {
    let column = Arc::new(Int64Array::from_iter_values(values));
    match RecordBatch::try_new(schema(), vec![column]) {
        Ok(batch) => batch,
        Err(e) => panic!("a batch for the exam: {e}"),
    }
}

/// Examines a sink that commits exactly once. The place is empty at first.
pub async fn check_sink(place: &dyn SinkPlace) {
    let mut exam = Exam { place, expected: Vec::new(), writers: 0 };
    exam.sees("at first");
    must("a fresh place", place.sink().check_fresh());
    exam.normal_epochs().await;
    // Whoever likes appends to a log.
    assert!(place.is_a_log() || place.sink().check_fresh().is_err(), "a place with output is not fresh");
    exam.commits_that_come_late().await;
    exam.two_subtasks().await;
    exam.writer_that_died().await;
    exam.epoch_done_twice().await;
    assert_eq!(place.hidden(), 0, "nothing is left behind");
}

struct Exam<'a> {
    place: &'a dyn SinkPlace,
    expected: Vec<i64>,
    writers: u64,
}

impl Exam<'_> {
    async fn writer(&mut self, subtask: u32, generation: u64, execution: u64) -> Box<dyn SinkWriter> {
        self.writers += 1;
        let (subtask, unique) = (SubtaskIndex(subtask), self.writers);
        let context = SinkContext::new(subtask, Generation(generation), Execution(execution), unique);
        let mut writer = must("a writer", self.place.sink().writer(schema(), context));
        let version = DurableVersion { epoch: Epoch(0), committables: &[] };
        must("the first version", writer.on_version(version).await);
        writer
    }

    #[track_caller]
    fn sees(&self, when: &str) {
        let (mut seen, mut expected) = (self.place.visible(), self.expected.clone());
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected, "visible rows {when}");
    }

    async fn write(&self, writer: &mut dyn SinkWriter, values: std::ops::Range<i64>) {
        must("write", writer.write(&rows(values)).await);
        self.sees("after a write that is not committed");
    }

    async fn pre_commit(&self, writer: &mut dyn SinkWriter, epoch: u64, subtask: u32, rows: u64) -> Committable {
        let PreCommit { rows: counted, committable, kept } = must("pre-commit", writer.pre_commit(Epoch(epoch)).await);
        assert_eq!(counted, rows, "rows of epoch {epoch}");
        self.sees("after a pre-commit");
        let Some(payload) = committable else { panic!("epoch {epoch} has {rows} rows and no committable") };
        Committable {
            sink_uid: "exam".into(),
            epoch: Epoch(epoch),
            subtask: SubtaskIndex(subtask),
            sequence: 0,
            payload,
            rows,
            kept,
        }
    }

    /// Commits twice with one committer and once more with that of another process.
    async fn commit(&mut self, committable: &Committable, values: std::ops::Range<i64>) {
        self.expected.extend(values);
        let mut committer = must("a committer", self.place.sink().committer());
        for when in ["after a commit", "after the same commit again"] {
            must(when, committer.commit(committable).await);
            self.sees(when);
        }
        let mut other = must("a second committer", self.place.sink().committer());
        must("commit by another process", other.commit(committable).await);
        self.sees("after a commit by another process");
    }

    async fn clean_up(&self, generation: u64, execution: u64) {
        let mut committer = must("a committer", self.place.sink().committer());
        must("clean up", committer.clean_up(Generation(generation), Execution(execution)).await);
        self.sees("after cleaning up");
    }

    async fn normal_epochs(&mut self) {
        let mut writer = self.writer(0, 1, 1).await;
        self.write(&mut *writer, 0..10).await;
        self.write(&mut *writer, 10..10).await;
        self.write(&mut *writer, 10..30).await;
        let one = self.pre_commit(&mut *writer, 1, 0, 30).await;
        self.commit(&one, 0..30).await;
        let nothing = must("an epoch without rows", writer.pre_commit(Epoch(2)).await);
        assert_eq!(nothing, PreCommit::default(), "an epoch without rows leaves nothing to commit");
        self.write(&mut *writer, 30..40).await;
        let three = self.pre_commit(&mut *writer, 3, 0, 10).await;
        drop(writer);
        self.commit(&three, 30..40).await;
        must("the first commit once more", must("a committer", self.place.sink().committer()).commit(&one).await);
        self.sees("after an old commit was repeated");
    }

    /// Checkpoints failed: the committables of their epochs come with a later version, in any order.
    async fn commits_that_come_late(&mut self) {
        let mut writer = self.writer(0, 1, 1).await;
        self.write(&mut *writer, 40..50).await;
        let four = self.pre_commit(&mut *writer, 4, 0, 10).await;
        self.write(&mut *writer, 50..60).await;
        let five = self.pre_commit(&mut *writer, 5, 0, 10).await;
        self.write(&mut *writer, 60..70).await;
        let six = self.pre_commit(&mut *writer, 6, 0, 10).await;
        // Cleaning up for the present deployment, or by one that is over and does not know it, leaves what it wrote.
        self.clean_up(1, 1).await;
        self.clean_up(1, 0).await;
        if self.place.is_a_log() {
            self.commit(&four, 40..50).await;
            self.commit(&five, 50..60).await;
            return self.commit(&six, 60..70).await;
        }
        self.commit(&six, 60..70).await;
        self.commit(&four, 40..50).await;
        self.commit(&five, 50..60).await;
    }

    async fn two_subtasks(&mut self) {
        let (mut a, mut b) = (self.writer(0, 1, 1).await, self.writer(1, 1, 1).await);
        self.write(&mut *a, 100..110).await;
        self.write(&mut *b, 110..120).await;
        let (of_a, of_b) = (self.pre_commit(&mut *a, 7, 0, 10).await, self.pre_commit(&mut *b, 7, 1, 10).await);
        if self.place.is_a_log() {
            self.commit(&of_a, 100..110).await;
            return self.commit(&of_b, 110..120).await;
        }
        self.commit(&of_b, 110..120).await;
        self.commit(&of_a, 100..110).await;
    }

    /// A process is killed: its destructors do not run. What it had not committed is never seen.
    async fn writer_that_died(&mut self) {
        let mut dead = ManuallyDrop::new(self.writer(0, 1, 1).await);
        self.write(&mut **dead, 900..910).await;
        let lost = self.pre_commit(&mut **dead, 8, 0, 10).await;
        self.write(&mut **dead, 910..920).await;
        let dropped = self.writer(1, 1, 1).await;
        drop(dropped);
        self.clean_up(1, 2).await;
        let mut committer = must("a committer", self.place.sink().committer());
        assert!(committer.commit(&lost).await.is_err(), "a commit of rows that are gone says so");
        self.sees("after a commit that could not be");
        assert_eq!(self.place.hidden(), 0, "cleaning up removes what older deployments left");
    }

    /// An epoch was pre-committed, its deployment died before the version, and the next one does it again.
    async fn epoch_done_twice(&mut self) {
        let mut first = ManuallyDrop::new(self.writer(0, 1, 2).await);
        self.write(&mut **first, 930..940).await;
        let _lost = self.pre_commit(&mut **first, 9, 0, 10).await;
        let mut second = self.writer(0, 2, 3).await;
        self.write(&mut *second, 120..130).await;
        self.clean_up(2, 3).await;
        self.write(&mut *second, 130..140).await;
        let again = self.pre_commit(&mut *second, 9, 0, 20).await;
        self.commit(&again, 120..140).await;
    }
}

/// Examines a sink that commits nothing: it counts the rows of each epoch, and leaves no committable.
pub async fn check_uncommitted_sink(sink: &dyn Sink) {
    must("a fresh place", sink.check_fresh());
    let context = SinkContext::new(SubtaskIndex(0), Generation(1), Execution(1), 1);
    let mut writer = must("a writer", sink.writer(schema(), context));
    for (epoch, sizes) in [(1, vec![3, 4]), (2, vec![]), (3, vec![1])] {
        for size in &sizes {
            must("write", writer.write(&rows(0..*size)).await);
        }
        let expected = PreCommit { rows: sizes.iter().sum::<i64>() as u64, ..PreCommit::default() };
        assert_eq!(must("pre-commit", writer.pre_commit(Epoch(epoch)).await), expected);
    }
    let mut committer = must("a committer", sink.committer());
    must("clean up", committer.clean_up(Generation(2), Execution(2)).await);
}
