//! A source subtask: reads its splits in turn, paces them, tracks a watermark per split, sends barriers when told.
//!
//! A split holds the subtask's watermark from the moment it is assigned until it has ended or is idle. When all splits
//! of the subtask have ended it says idle, not the end of time: a rescale may still bring it a split. The end of time
//! is sent when the coordinator says that all splits of all sources have ended.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use arrow_array::RecordBatch;
use futures::FutureExt;
use millstream_common::env::Moment;
use millstream_common::planted::bug_is_planted;
use millstream_common::{AssignmentId, Env, Error, Result};
use millstream_proto::version::SplitState;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::chain::Chain;
use super::keyed::Start;
use super::output::{LINGER, TimeSignal};
use super::pace::Portion;
use super::{
    EpochClosed, OwnedSplit, PUBLISH_INTERVAL, Preparation, SplitMetrics, SubtaskId, TaskControl, TaskEvent,
    TaskMetrics, VersionView,
};
use crate::element::{Barrier, BarrierKind, TimestampMs, WATERMARK_MAX};
use crate::graph::SourcePlan;
use crate::lateness::SplitProgress;
use crate::source::{Position, Read, SplitGauges, SplitReader};

/// How often a paced split hands out rows, at least.
const PACE: Duration = Duration::from_millis(10);

/// Rows that are read together, however slow those are who process them.
const READ_ROWS_MIN: usize = 128;

/// What a source subtask is made from.
pub(crate) struct SourceTaskParts {
    pub(crate) env: Env,
    pub(crate) id: SubtaskId,
    pub(crate) plan: SourcePlan,
    pub(crate) chain: Chain,
    pub(crate) splits: Vec<OwnedSplit>,
    pub(crate) live_splits: u64,
    pub(crate) control: mpsc::Receiver<TaskControl>,
    pub(crate) events: mpsc::Sender<TaskEvent>,
    pub(crate) metrics: Arc<TaskMetrics>,
    pub(crate) start: Start,
}

struct SplitRun {
    split: crate::source::Split,
    reader: Option<Box<dyn SplitReader>>,
    position: Option<Position>,
    watermark: Option<TimestampMs>,
    idle: bool,
    /// It is too far ahead of others to be read.
    ahead: bool,
    finished: bool,
    last_row: Moment,
    paced_from: Moment,
    paced_rows: u64,
    index: u32,
    progress: Arc<Mutex<SplitProgress>>,
    /// Its reader's, also when that has come to the end.
    gauges: Option<Arc<dyn SplitGauges>>,
}

pub(crate) struct SourceTask {
    env: Env,
    id: SubtaskId,
    plan: SourcePlan,
    chain: Chain,
    splits: Vec<SplitRun>,
    next: usize,
    live_splits: u64,
    control: mpsc::Receiver<TaskControl>,
    events: mpsc::Sender<TaskEvent>,
    metrics: Arc<TaskMetrics>,
    upcoming: Option<(AssignmentId, Vec<OwnedSplit>)>,
    assigned: Vec<OwnedSplit>,
    waiting: Option<AssignmentId>,
    /// This instance leaves with the barrier of the next assignment.
    leaves: bool,
    waiting_since: Option<Moment>,
    /// What it starts from, until it has begun.
    begins_with: Option<Arc<VersionView>>,
    /// The least watermark of all splits that keep together, as the coordinator knows it.
    least: Option<TimestampMs>,
    end_of_input: bool,
    ended: bool,
    said: Option<TimeSignal>,
    published: Moment,
    /// Rows to read together at most.
    read: Portion,
}

/// Runs the subtask until its control queue closes or it fails.
pub(crate) async fn run(parts: SourceTaskParts) {
    let (events, subtask) = (parts.events.clone(), parts.id);
    let mut task = SourceTask::new(parts);
    if let Err(error) = task.run().await {
        // A worker that is gone wants no event.
        let _ = events.send(TaskEvent::Failed { subtask, error }).await;
    }
}

impl SourceTask {
    fn new(p: SourceTaskParts) -> Self {
        p.metrics.is_source.store(true, Ordering::Relaxed);
        let mut task = Self {
            env: p.env,
            id: p.id,
            plan: p.plan,
            chain: p.chain,
            splits: Vec::new(),
            next: 0,
            live_splits: p.live_splits,
            control: p.control,
            events: p.events,
            metrics: p.metrics,
            upcoming: None,
            assigned: p.splits,
            waiting: None,
            leaves: false,
            waiting_since: None,
            begins_with: None,
            least: None,
            end_of_input: false,
            ended: false,
            said: None,
            published: Moment::default(),
            read: Portion::new(READ_ROWS_MIN),
        };
        match p.start {
            Start::When(id) => task.waiting = Some(id),
            Start::From(version) => {
                task.take_splits(&version);
                task.begins_with = Some(version);
            }
        }
        task
    }

    async fn run(&mut self) -> Result<()> {
        if let Some(version) = self.begins_with.take() {
            self.chain.on_version(&version).await?;
        }
        self.open_readers()?;
        self.say_time();
        loop {
            while let Ok(control) = self.control.try_recv() {
                self.on_control(control).await?;
            }
            if self.may_read()
                && let Some(read) = poll_fn(|cx| self.poll_read(cx)).now_or_never()
            {
                self.take(read?).await?;
                continue;
            }
            self.chain.flush().await?;
            self.publish();
            if !self.wait().await? {
                return Ok(());
            }
        }
    }

    fn may_read(&self) -> bool {
        !self.ended && self.waiting.is_none()
    }

    async fn wait(&mut self) -> Result<bool> {
        let may_read = self.may_read();
        let timer = self.next_timer();
        let env = self.env.clone();
        let mut control = None;
        let mut read = None;
        millstream_common::select! {
            c = recv(&mut self.control) => match c {
                Some(c) => control = Some(c),
                None => return Ok(false),
            },
            r = poll_fn(|cx| Self::poll_splits(&env, &self.plan, self.read.rows(), &mut self.splits, &mut self.next, self.live_splits, cx)),
                if may_read => read = Some(r),
            () = env.sleep(timer.unwrap_or(Duration::from_secs(3600))), if timer.is_some() => {}
        }
        if let Some(c) = control {
            self.on_control(c).await?;
        }
        match read {
            Some(r) => self.take(r?).await?,
            None => self.check_idle(),
        }
        Ok(true)
    }

    /// When something is due although no row comes: the pace of a split, or its idle time-out.
    fn next_timer(&self) -> Option<Duration> {
        if !self.may_read() {
            return None;
        }
        let now = self.env.now();
        let live = || self.splits.iter().filter(|s| !s.finished);
        let pace = self.plan.rate.and_then(|rate| {
            live()
                .filter(|s| !s.ahead)
                .map(|s| until_next_row(s, rate / self.live_splits.max(1) as f64, self.live_splits, now))
                .min()
                .map(|d| d.max(Duration::from_millis(1)))
        });
        let idle = self.plan.watermarks.idle_timeout.and_then(|timeout| {
            live()
                .filter(|s| !s.idle && !s.ahead)
                .map(|s| timeout.saturating_sub(now.since(s.last_row)).max(LINGER))
                .min()
        });
        [pace, idle].into_iter().flatten().min()
    }

    // ---- reading

    fn poll_read(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(usize, Read)>> {
        Self::poll_splits(
            &self.env,
            &self.plan,
            self.read.rows(),
            &mut self.splits,
            &mut self.next,
            self.live_splits,
            cx,
        )
    }

    fn poll_splits(
        env: &Env,
        plan: &SourcePlan,
        read_rows: usize,
        splits: &mut [SplitRun],
        next: &mut usize,
        live: u64,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<(usize, Read)>> {
        let now = plan.rate.map(|rate| (rate / live.max(1) as f64, env.now()));
        for step in 0..splits.len() {
            let i = (*next + step) % splits.len();
            let split = &mut splits[i];
            if split.ahead {
                continue;
            }
            let phase = split.phase(live);
            let Some(reader) = &mut split.reader else { continue };
            let mut rows = plan.batch_rows.min(read_rows);
            if let Some((rate, now)) = now {
                rows = rows.min(allowed_rows(split.paced_rows, rate, phase, now.since(split.paced_from)));
                if rows == 0 {
                    continue;
                }
            }
            match reader.poll_next(cx, rows) {
                Poll::Pending => {}
                Poll::Ready(read) => {
                    *next = (i + 1) % splits.len();
                    return Poll::Ready(read.map(|r| (i, r)));
                }
            }
        }
        Poll::Pending
    }

    async fn take(&mut self, (i, read): (usize, Read)) -> Result<()> {
        match read {
            Read::Batch(batch) => self.take_batch(i, batch).await,
            Read::End => {
                let split = &mut self.splits[i];
                split.position = split.reader.as_ref().map(|r| r.position());
                split.reader = None;
                split.finished = true;
                let id = split.split.id.clone();
                self.align();
                self.say_time();
                self.send(TaskEvent::SplitsFinished(vec![(self.plan.uid.clone(), id)])).await
            }
        }
    }

    async fn take_batch(&mut self, i: usize, batch: RecordBatch) -> Result<()> {
        let start = self.env.now();
        let rows = batch.num_rows() as u64;
        let times = (self.plan.watermarks.event_time)(&batch)?;
        let delay_ms = self.plan.watermarks.delay_ms;
        let split = &mut self.splits[i];
        let latest = split.progress.lock().note(rows, &times, delay_ms);
        drop(times);
        split.position = split.reader.as_ref().map(|r| r.position());
        split.paced_rows += rows;
        split.last_row = start;
        split.idle = false;
        TaskMetrics::add(&self.metrics.rows_in, rows);
        let waited_before = self.chain.back_pressured_ns;
        let targets = std::mem::take(&mut self.plan.targets);
        let pushed = self.chain.push(&targets, batch).await;
        self.plan.targets = targets;
        pushed?;
        if let Some(latest) = latest {
            let watermark = latest.saturating_sub(delay_ms);
            let split = &mut self.splits[i];
            split.watermark = Some(split.watermark.map_or(watermark, |w| w.max(watermark)));
            self.align();
        }
        self.say_time();
        self.chain.flush_due().await?;
        if start.since(self.published) >= PUBLISH_INTERVAL {
            self.published = start;
            self.publish();
        }
        let waited = self.chain.back_pressured_ns - waited_before;
        let end = self.env.now();
        self.read.learn(rows as usize, (start, end), Duration::from_nanos(waited), 1);
        let total = end.since(start).as_nanos() as u64;
        TaskMetrics::add(&self.metrics.busy_ns, total.saturating_sub(waited));
        TaskMetrics::add(&self.metrics.back_pressured_ns, waited);
        Ok(())
    }

    // ---- time

    fn check_idle(&mut self) {
        let Some(timeout) = self.plan.watermarks.idle_timeout else { return };
        let now = self.env.now();
        // Of one that is not read nobody knows.
        for s in self.splits.iter_mut().filter(|s| !s.finished && !s.idle && !s.ahead) {
            s.idle = now.since(s.last_row) >= timeout;
        }
        self.align();
        self.say_time();
    }

    /// Who is too far ahead waits, who was goes on.
    fn align(&mut self) {
        let Some(alignment) = &self.plan.watermarks.alignment else { return };
        let holding = self.splits.iter().filter(|s| !s.finished && !s.idle);
        let Some(least) = holding.filter_map(|s| s.watermark).chain(self.least).min() else { return };
        let (bound, now) = (alignment.bound(least), self.env.now());
        for s in self.splits.iter_mut().filter(|s| !s.finished) {
            let ahead = s.watermark.is_some_and(|w| w > bound);
            if s.ahead && !ahead {
                s.last_row = now;
            }
            s.ahead = ahead;
        }
    }

    /// Says what the splits say together. Nothing while a gained split has not begun.
    fn say_time(&mut self) {
        if self.waiting.is_some() {
            return;
        }
        let time = if self.end_of_input {
            Some(TimeSignal::Watermark(WATERMARK_MAX))
        } else {
            let holding = || self.splits.iter().filter(|s| !s.finished && !s.idle);
            if holding().next().is_none() {
                Some(TimeSignal::Idle)
            } else if holding().all(|s| s.watermark.is_some()) {
                holding().filter_map(|s| s.watermark).min().map(TimeSignal::Watermark)
            } else {
                None
            }
        };
        let Some(time) = time else { return };
        if self.said != Some(time) {
            self.said = Some(time);
            self.chain.set_time(time);
            if let TimeSignal::Watermark(w) = time {
                self.metrics.watermark.store(w, Ordering::Relaxed);
            }
        }
    }

    // ---- control

    async fn on_control(&mut self, control: TaskControl) -> Result<()> {
        match control {
            TaskControl::Barrier { epoch, kind } => self.on_barrier(Barrier { epoch, kind }).await,
            TaskControl::Version(version) => self.on_version(&version).await,
            TaskControl::Prepare(p) => {
                self.prepare(p);
                Ok(())
            }
            TaskControl::Align(least) => {
                self.least = Some(least);
                self.align();
                Ok(())
            }
            TaskControl::AddSplits(splits) => self.add_splits(splits),
            TaskControl::LiveSplits(n) => {
                self.set_live_splits(n);
                Ok(())
            }
            TaskControl::EndOfInput => {
                self.end_of_input = true;
                self.say_time();
                Ok(())
            }
            TaskControl::Flushed(_) => Ok(()),
        }
    }

    fn set_live_splits(&mut self, n: u64) {
        if n != self.live_splits {
            // The share of each split changes from now on.
            self.live_splits = n;
            let now = self.env.now();
            for s in self.splits.iter_mut().filter(|s| s.paced_rows > 0) {
                s.paced_from = now;
                s.paced_rows = 0;
            }
        }
    }

    fn prepare(&mut self, p: Preparation) {
        let splits = p.splits.into_iter().filter(|s| s.source_uid == self.plan.uid).collect();
        self.upcoming = Some((p.assignment, splits));
        self.leaves = p.leaves;
        for (edge, channels) in p.outputs {
            for e in self.chain.edges.iter_mut().filter(|e| e.edge() == edge) {
                e.prepare(p.assignment, channels.clone());
            }
        }
    }

    async fn on_barrier(&mut self, barrier: Barrier) -> Result<()> {
        if self.waiting.is_some() || self.ended {
            return Err(Error::internal(format!(
                "a barrier of epoch {} for a source that does not run",
                barrier.epoch
            )));
        }
        let start = self.env.now();
        self.chain.flush().await?;
        let pre = self.chain.pre_commit(barrier.epoch).await?;
        // The worker's report of this epoch has its rows.
        self.publish();
        let closed = EpochClosed {
            subtask: self.id,
            epoch: barrier.epoch,
            section: None,
            splits: self.positions(),
            fired: Vec::new(),
            committables: pre.committables,
            rows_out: pre.rows_out,
            stopped: None,
        };
        self.chain.barrier(&barrier).await?;
        self.send(TaskEvent::Closed(Box::new(closed))).await?;
        match barrier.kind {
            BarrierKind::Checkpoint => Ok(()),
            BarrierKind::Last => {
                self.ended = true;
                Ok(())
            }
            BarrierKind::Rescale(assignment) => {
                self.change_splits(assignment.id, assignment.parallelism(), start).await
            }
        }
    }

    async fn change_splits(&mut self, id: AssignmentId, parallelism: u32, start: Moment) -> Result<()> {
        self.said = None;
        if self.leaves || self.id.index >= parallelism {
            self.ended = true;
            return Ok(());
        }
        let owned = match self.upcoming.take() {
            Some((prepared, owned)) if prepared == id => owned,
            _ => return Err(Error::internal(format!("a source is not prepared for assignment {id}"))),
        };
        self.splits.retain(|s| owned.iter().any(|o| o.split.id == s.split.id));
        self.next = 0;
        let gained = owned.iter().any(|o| !self.splits.iter().any(|s| s.split.id == o.split.id));
        self.assigned = owned;
        if gained {
            self.waiting = Some(id);
            self.waiting_since = Some(start);
            return Ok(());
        }
        self.say_time();
        self.serving(id, start).await
    }

    async fn on_version(&mut self, version: &Arc<VersionView>) -> Result<()> {
        match self.waiting {
            Some(id) if id == version.assignment.id => {
                self.waiting = None;
                self.chain.on_version(version).await?;
                self.take_splits(version);
                self.open_readers()?;
                self.say_time();
                let start = self.waiting_since.take().unwrap_or_else(|| self.env.now());
                self.serving(id, start).await
            }
            // The one that is waited for tells of this one, too.
            Some(_) => Ok(()),
            None => {
                self.tell_readers(version);
                self.chain.on_version(version).await
            }
        }
    }

    fn tell_readers(&mut self, version: &VersionView) {
        for s in &mut self.splits {
            let Some(reader) = &mut s.reader else { continue };
            if let Some(stored) = version.splits.get(&(self.plan.uid.clone(), s.split.id.clone())) {
                reader.on_durable(&Position { offset: stored.offset, detail: stored.detail.clone() });
            }
        }
    }

    async fn serving(&mut self, assignment: AssignmentId, start: Moment) -> Result<()> {
        let pause_ms = self.env.now().since(start).as_millis() as u64;
        self.send(TaskEvent::Serving { subtask: self.id, assignment, pause_ms, open_ms: 0 }).await
    }

    /// Takes the assigned splits that it has not got yet, at their positions in the version.
    fn take_splits(&mut self, version: &VersionView) {
        for owned in self.assigned.clone() {
            let stored = version.splits.get(&(owned.source_uid.clone(), owned.split.id.clone()));
            self.take_split(owned, stored);
        }
    }

    /// `stored`: what the version has of it; without it the split is read from its start.
    fn take_split(&mut self, owned: OwnedSplit, stored: Option<&SplitState>) {
        let is_here = self.splits.iter().any(|s| s.split.id == owned.split.id);
        if is_here || owned.source_uid != self.plan.uid {
            return;
        }
        let now = self.env.now();
        // A planted bug: whoever takes a split up reads its last row again.
        let again = u64::from(bug_is_planted(17));
        let watermark = stored.and_then(|s| s.watermark_ms);
        // What it had shown before.
        let greatest = watermark.map(|w| w.saturating_add(self.plan.watermarks.delay_ms));
        self.splits.push(SplitRun {
            split: owned.split,
            reader: None,
            position: stored.map(|s| Position { offset: s.offset.saturating_sub(again), detail: s.detail.clone() }),
            watermark,
            idle: false,
            ahead: false,
            finished: stored.is_some_and(|s| s.finished),
            last_row: now,
            paced_from: now,
            paced_rows: 0,
            index: owned.index,
            progress: Arc::new(Mutex::new(SplitProgress::new(greatest))),
            gauges: None,
        });
    }

    /// Splits that came while the job runs: no version knows them.
    fn add_splits(&mut self, added: Vec<OwnedSplit>) -> Result<()> {
        self.assigned.extend(added.iter().cloned());
        // Who waits takes them with the version that it waits for.
        if self.waiting.is_none() && !self.ended {
            added.into_iter().for_each(|owned| self.take_split(owned, None));
            self.open_readers()?;
            self.say_time();
        }
        Ok(())
    }

    fn open_readers(&mut self) -> Result<()> {
        for s in self.splits.iter_mut().filter(|s| s.reader.is_none() && !s.finished) {
            let reader = self.plan.source.reader(&s.split, s.position.as_ref())?;
            s.gauges = reader.gauges();
            s.reader = Some(reader);
        }
        Ok(())
    }

    fn positions(&self) -> Vec<SplitState> {
        self.splits
            .iter()
            .map(|s| {
                // A reader may have passed over what gives no row.
                let position =
                    s.reader.as_ref().map(|r| r.position()).or_else(|| s.position.clone()).unwrap_or_default();
                SplitState {
                    source_uid: self.plan.uid.clone(),
                    split_id: s.split.id.clone(),
                    payload: s.split.payload.clone(),
                    offset: position.offset,
                    detail: position.detail,
                    watermark_ms: s.watermark,
                    finished: s.finished,
                }
            })
            .collect()
    }

    fn send(&self, event: TaskEvent) -> impl Future<Output = Result<()>> + Send + use<> {
        let events = self.events.clone();
        async move { events.send(event).await.map_err(|_| Error::canceled("the worker has let go of this subtask")) }
    }

    fn publish(&self) {
        self.metrics.rows_out.store(self.chain.rows_out, Ordering::Relaxed);
        self.metrics.late_rows.store(self.chain.late_rows(), Ordering::Relaxed);
        self.chain.publish_sinks(&self.metrics.sinks);
        *self.metrics.splits.lock() = self
            .splits
            .iter()
            .map(|s| SplitMetrics {
                source_uid: self.plan.uid.clone(),
                split: s.split.id.clone(),
                position: s.position.as_ref().map_or(0, |p| p.offset),
                watermark: s.watermark,
                idle: s.idle,
                finished: s.finished,
                progress: s.progress.clone(),
                gauges: s.gauges.clone(),
            })
            .collect();
    }
}

async fn recv(control: &mut mpsc::Receiver<TaskControl>) -> Option<TaskControl> {
    control.recv().await
}

/// Rows that a paced split hands out together: what is due in [`PACE`], at least one.
fn quantum(rate: f64) -> u64 {
    ((rate * PACE.as_secs_f64()) as u64).max(1)
}

impl SplitRun {
    /// The share of a turn by which it comes later than the first split, so that paced splits take turns.
    fn phase(&self, live: u64) -> f64 {
        (u64::from(self.index) % live.max(1)) as f64 / live.max(1) as f64
    }
}

/// How many rows a split may hand out now, when it handed out `rows` in `elapsed`: the first once its phase has passed
/// (at once for phase 0), then as many as are due, but not fewer than a quantum.
fn allowed_rows(rows: u64, rate: f64, phase: f64, elapsed: Duration) -> usize {
    let due = ((elapsed.as_secs_f64() * rate - phase).floor() + 1.0).max(0.0) as u64;
    let due = due.saturating_sub(rows);
    if due >= quantum(rate) || (rows == 0 && due > 0) { due as usize } else { 0 }
}

fn until_next_row(split: &SplitRun, rate: f64, live: u64, now: Moment) -> Duration {
    let rows = if split.paced_rows == 0 { 0 } else { split.paced_rows + quantum(rate) - 1 };
    let due = (rows as f64 + split.phase(live)) / rate.max(1e-9);
    let due = Duration::try_from_secs_f64(due).unwrap_or(Duration::from_secs(3600)).min(Duration::from_secs(3600));
    due.saturating_sub(now.since(split.paced_from))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
