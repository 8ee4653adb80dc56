//! The input side of a subtask: merges its channels, aligns barriers, merges watermarks.
//!
//! Order of events on each channel is kept. A channel that has delivered a barrier is not read until all have. At a
//! rescale barrier the set of channels changes: those from subtasks that leave, or go on on another worker, go; those
//! opened for the new assignment come; and every channel must announce its watermark anew, since its sender may have
//! gained a split whose watermark is older.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use futures::future::poll_fn;
use millstream_common::planted::bug_is_planted;
use millstream_common::{AssignmentId, Error, Result};
use tokio::sync::{mpsc, oneshot};

use crate::element::{Barrier, BarrierKind, StreamElement, TimestampMs, WATERMARK_MAX, WATERMARK_MIN};

/// The receiving end of a channel, perhaps not connected yet.
pub enum ChannelEnd {
    /// The sender has not connected.
    Waiting(oneshot::Receiver<mpsc::Receiver<StreamElement>>),
    /// Connected.
    Open(mpsc::Receiver<StreamElement>),
}

/// Where the rows of a channel come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A subtask that reads splits of the source task of this index: when it is idle, it alone does not hold the time.
    Source(usize),
    /// A subtask of a keyed task that these source tasks feed.
    Keyed(Arc<BTreeSet<usize>>),
}

/// One channel into a subtask.
pub struct InputChannel {
    /// Which input of the head operator it feeds.
    pub input: usize,
    /// Index of the edge.
    pub edge: usize,
    /// The sending subtask.
    pub from: u32,
    /// Where elements come from.
    pub end: ChannelEnd,
    origin: Origin,
    blocked: bool,
    watermark: TimestampMs,
    idle: bool,
}

impl InputChannel {
    /// A channel that has announced nothing yet: it holds the watermark.
    #[must_use]
    pub fn new(input: usize, edge: usize, from: u32, origin: Origin, end: ChannelEnd) -> Self {
        Self { input, edge, from, end, origin, blocked: false, watermark: WATERMARK_MIN, idle: false }
    }

    /// Whether this one wakes, or has woken, because `other` is awake. Its rows from before may still be on their way.
    fn wakes_with(&self, other: &Self) -> bool {
        match (&self.origin, &other.origin) {
            // One subtask may come by several edges.
            (Origin::Source(mine), Origin::Source(its)) => mine == its && self.from == other.from,
            (Origin::Source(_), Origin::Keyed(_)) => false,
            // Every subtask of a keyed task hears of everyone who wakes before it.
            (Origin::Keyed(mine), Origin::Source(its)) => mine.contains(its),
            (Origin::Keyed(mine), Origin::Keyed(its)) => its.is_subset(mine),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<StreamElement>> {
        if let ChannelEnd::Waiting(connected) = &mut self.end {
            match Pin::new(connected).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(rx)) => self.end = ChannelEnd::Open(rx),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(self.lost())),
            }
        }
        match &mut self.end {
            ChannelEnd::Open(rx) => rx.poll_recv(cx).map(|e| e.ok_or_else(|| self.lost())),
            ChannelEnd::Waiting(_) => Poll::Pending,
        }
    }

    fn lost(&self) -> Error {
        Error::unavailable(format!("the channel from subtask {} of edge {} closed", self.from, self.edge)).code(2110)
    }
}

/// What a gate hands out, in order.
#[derive(Debug)]
pub enum GateEvent {
    /// Rows for an input of the head operator.
    Batch {
        /// Which input.
        input: usize,
        /// The rows.
        records: RecordBatch,
    },
    /// The merged watermark rose.
    Watermark(TimestampMs),
    /// Every channel is idle.
    Idle,
    /// All channels have delivered this barrier.
    Barrier(Barrier),
}

/// How the channels change at the barrier of an assignment.
struct Upcoming {
    assignment: AssignmentId,
    moved: BTreeSet<u32>,
    added: Vec<InputChannel>,
}

/// The channels of a subtask; see the module.
pub struct InputGate {
    channels: Vec<InputChannel>,
    next: usize,
    upcoming: Option<Upcoming>,
    barrier: Option<Barrier>,
    watermark: TimestampMs,
    idle_announced: bool,
}

impl InputGate {
    /// A gate whose merged watermark has reached `watermark`.
    #[must_use]
    pub fn new(channels: Vec<InputChannel>, watermark: TimestampMs) -> Self {
        Self { channels, next: 0, upcoming: None, barrier: None, watermark, idle_announced: false }
    }

    /// Channels that come with the barrier of `assignment`; those from the present instances of `moved` subtasks go.
    pub fn prepare(&mut self, assignment: AssignmentId, moved: BTreeSet<u32>, added: Vec<InputChannel>) {
        self.upcoming = Some(Upcoming { assignment, moved, added });
    }

    /// The merged watermark may be announced again from here on: the subtask gained key groups that have fired less.
    pub fn reset_watermark(&mut self, to: TimestampMs) {
        self.watermark = to;
    }

    /// Whether some channel has delivered a barrier that others have not.
    #[must_use]
    pub fn is_aligning(&self) -> bool {
        self.barrier.is_some()
    }

    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> Result<GateEvent> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<GateEvent>> {
        loop {
            let mut progressed = false;
            let count = self.channels.len();
            for step in 0..count {
                let i = (self.next + step) % count;
                if self.channels[i].blocked {
                    continue;
                }
                let element = match self.channels[i].poll(cx) {
                    Poll::Pending => continue,
                    Poll::Ready(element) => element?,
                };
                progressed = true;
                if let Some(event) = self.take(i, element)? {
                    self.next = (i + 1) % self.channels.len().max(1);
                    return Poll::Ready(Ok(event));
                }
            }
            if !progressed {
                return Poll::Pending;
            }
        }
    }

    fn take(&mut self, i: usize, element: StreamElement) -> Result<Option<GateEvent>> {
        let channel = &mut self.channels[i];
        match element {
            StreamElement::Batch(records) => Ok(Some(GateEvent::Batch { input: channel.input, records })),
            StreamElement::Watermark(w) => {
                // It may go back: behind a rescale barrier only, where it starts at the minimum.
                channel.watermark = channel.watermark.max(w);
                channel.idle = false;
                Ok(self.merged())
            }
            StreamElement::Idle => {
                channel.idle = true;
                Ok(self.merged())
            }
            StreamElement::Barrier(barrier) => {
                channel.blocked = true;
                self.align(barrier)
            }
        }
    }

    fn align(&mut self, barrier: Barrier) -> Result<Option<GateEvent>> {
        match &self.barrier {
            Some(b) if b.epoch != barrier.epoch => {
                return Err(Error::internal(format!(
                    "barriers of epochs {} and {} meet in one alignment",
                    b.epoch, barrier.epoch
                )));
            }
            _ => self.barrier = Some(barrier),
        }
        if !self.channels.iter().all(|c| c.blocked) {
            return Ok(None);
        }
        for c in &mut self.channels {
            c.blocked = false;
        }
        let barrier = self.barrier.take();
        if let Some(Barrier { kind: BarrierKind::Rescale(assignment), .. }) = &barrier {
            self.change_channels(assignment.id, assignment.parallelism())?;
        }
        Ok(barrier.map(GateEvent::Barrier))
    }

    fn change_channels(&mut self, id: AssignmentId, parallelism: u32) -> Result<()> {
        match self.upcoming.take() {
            Some(upcoming) if upcoming.assignment == id => {
                self.channels.retain(|c| c.from < parallelism && !upcoming.moved.contains(&c.from));
                self.channels.extend(upcoming.added);
            }
            other => {
                let prepared = other.map_or_else(|| "none".to_owned(), |o| o.assignment.to_string());
                return Err(Error::internal(format!(
                    "the barrier carries assignment {id}, the channels are prepared for {prepared}"
                )));
            }
        }
        self.channels.sort_by_key(|c| (c.edge, c.from));
        self.next = 0;
        if bug_is_planted(10) {
            // Planted: channels keep what they announced under the old assignment, and new ones do not hold.
            for c in &mut self.channels {
                c.idle |= c.watermark == WATERMARK_MIN;
            }
            return Ok(());
        }
        for c in &mut self.channels {
            c.watermark = WATERMARK_MIN;
            c.idle = false;
        }
        self.idle_announced = false;
        Ok(())
    }

    fn merged(&mut self) -> Option<GateEvent> {
        // Those who wake for the same reason do so together, only not at the same moment: one that still seems idle may be
        // about to fire older windows, so it counts as soon as one of them is awake.
        let counts = |c: &&InputChannel| !c.idle || self.channels.iter().any(|d| !d.idle && c.wakes_with(d));
        let least = self.channels.iter().filter(counts).map(|c| c.watermark).min();
        match least {
            // The end of time is said on every channel. One that still seems idle may have woken with its last rows.
            Some(WATERMARK_MAX) if self.channels.iter().any(|c| c.watermark != WATERMARK_MAX) => None,
            Some(w) if w > self.watermark => {
                self.watermark = w;
                self.idle_announced = false;
                Some(GateEvent::Watermark(w))
            }
            // Behind an idle stretch the receivers must know that this subtask holds their time again.
            Some(_) if self.idle_announced => {
                self.idle_announced = false;
                (self.watermark > WATERMARK_MIN).then_some(GateEvent::Watermark(self.watermark))
            }
            Some(_) => None,
            None if !self.idle_announced => {
                self.idle_announced = true;
                Some(GateEvent::Idle)
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use millstream_common::{Epoch, KeyGroupRanges};

    use super::*;
    use crate::element::Assignment;

    fn gate(n: u32) -> (InputGate, Vec<mpsc::Sender<StreamElement>>) {
        let (tx, rx): (Vec<_>, Vec<_>) = (0..n).map(|_| mpsc::channel(16)).unzip();
        let channels = rx
            .into_iter()
            .enumerate()
            .map(|(i, r)| InputChannel::new(0, 0, i as u32, Origin::Source(0), ChannelEnd::Open(r)))
            .collect();
        (InputGate::new(channels, WATERMARK_MIN), tx)
    }

    fn keyed(sources: &[usize]) -> Origin {
        Origin::Keyed(Arc::new(sources.iter().copied().collect()))
    }

    fn now(gate: &mut InputGate) -> Option<GateEvent> {
        gate.next().now_or_never().map(|e| e.expect("open channels"))
    }

    fn barrier(epoch: u64) -> StreamElement {
        StreamElement::Barrier(Barrier { epoch: Epoch(epoch), kind: BarrierKind::Checkpoint })
    }

    #[test]
    fn the_watermark_is_the_least_of_those_that_are_not_idle() {
        let (mut g, tx) = gate(2);
        tx[0].try_send(StreamElement::Watermark(10)).expect("room");
        assert!(now(&mut g).is_none());
        tx[1].try_send(StreamElement::Watermark(5)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(5))));
        tx[1].try_send(StreamElement::Idle).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))));
        tx[0].try_send(StreamElement::Idle).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Idle)));
    }

    #[test]
    fn the_end_of_time_waits_for_a_channel_that_seems_idle() {
        let (mut g, tx) = gate(2);
        tx[0].try_send(StreamElement::Watermark(10)).expect("room");
        tx[1].try_send(StreamElement::Idle).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))));
        tx[0].try_send(StreamElement::Watermark(WATERMARK_MAX)).expect("room");
        assert!(now(&mut g).is_none(), "its last rows may be on their way");
        tx[1].try_send(StreamElement::Watermark(WATERMARK_MAX)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(WATERMARK_MAX))));
    }

    #[test]
    fn an_idle_subtask_of_a_keyed_task_holds_the_time_once_another_wakes() {
        let (mut g, tx) = gate(2);
        for (c, t) in g.channels.iter_mut().zip(&tx) {
            c.origin = keyed(&[0]);
            t.try_send(StreamElement::Watermark(10)).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))));
        for t in &tx {
            t.try_send(StreamElement::Idle).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Idle)));
        tx[0].try_send(StreamElement::Watermark(20)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))), "awake again, and no further");
        tx[1].try_send(StreamElement::Watermark(15)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(15))));
    }

    #[test]
    fn a_source_that_wakes_on_one_edge_holds_the_time_on_the_others() {
        let (mut g, tx) = gate(3);
        // Two edges from subtask 0 of one source, and one from that of another.
        for (c, (edge, source)) in g.channels.iter_mut().zip([(0, 0), (1, 0), (2, 1)]) {
            (c.edge, c.from, c.origin) = (edge, 0, Origin::Source(source));
        }
        for t in &tx {
            t.try_send(StreamElement::Watermark(10)).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))));
        tx[0].try_send(StreamElement::Idle).expect("room");
        tx[1].try_send(StreamElement::Idle).expect("room");
        tx[2].try_send(StreamElement::Watermark(30)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(30))), "an idle source does not hold another");
        for t in &tx[..2] {
            t.try_send(StreamElement::Watermark(30)).expect("room");
        }
        tx[2].try_send(StreamElement::Watermark(50)).expect("room");
        assert!(now(&mut g).is_none());
        tx[0].try_send(StreamElement::Idle).expect("room");
        tx[1].try_send(StreamElement::Idle).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(50))));
        tx[0].try_send(StreamElement::Watermark(60)).expect("room");
        assert!(now(&mut g).is_none(), "no further than before");
        tx[2].try_send(StreamElement::Watermark(70)).expect("room");
        assert!(now(&mut g).is_none(), "rows from before 60 may be on their way on its other edge");
        tx[1].try_send(StreamElement::Watermark(60)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(60))));
    }

    #[test]
    fn a_keyed_task_holds_the_time_once_those_before_it_are_awake() {
        // What is awake, what seems idle, and whether that holds the time: a source beside a task that it feeds, a keyed task that
        // comes by two edges, a task that another source feeds, and two tasks with a source in common.
        let cases = [
            (Origin::Source(0), keyed(&[0]), true),
            (keyed(&[0]), keyed(&[0]), true),
            (keyed(&[0]), keyed(&[0, 1]), true),
            (Origin::Source(1), keyed(&[0]), false),
            (keyed(&[0, 1]), keyed(&[0]), false),
            (keyed(&[0]), Origin::Source(0), false),
        ];
        for (awake, seems_idle, holds) in cases {
            let (mut g, tx) = gate(2);
            (g.channels[0].origin, g.channels[1].origin) = (awake.clone(), seems_idle.clone());
            g.channels[1].edge = 1;
            for t in &tx {
                t.try_send(StreamElement::Watermark(10)).expect("room");
            }
            assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))));
            for t in &tx {
                t.try_send(StreamElement::Idle).expect("room");
            }
            assert!(matches!(now(&mut g), Some(GateEvent::Idle)));
            tx[0].try_send(StreamElement::Watermark(20)).expect("room");
            let expected = if holds { 10 } else { 20 };
            let came = now(&mut g);
            assert!(
                matches!(came, Some(GateEvent::Watermark(w)) if w == expected),
                "{awake:?}, {seems_idle:?}: {came:?}"
            );
        }
    }

    #[test]
    fn a_channel_with_a_barrier_waits_for_the_others() {
        let (mut g, tx) = gate(2);
        tx[0].try_send(barrier(1)).expect("room");
        tx[0].try_send(StreamElement::Watermark(9)).expect("room");
        tx[1].try_send(StreamElement::Watermark(7)).expect("room");
        assert!(now(&mut g).is_none() && g.is_aligning());
        tx[1].try_send(barrier(1)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Barrier(b)) if b.epoch == Epoch(1)));
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(7))));
    }

    #[test]
    fn behind_a_rescale_every_channel_announces_its_watermark_anew() {
        let (mut g, tx) = gate(2);
        for t in &tx {
            t.try_send(StreamElement::Watermark(100)).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(100))));
        let assignment = Assignment { id: AssignmentId(2), ranges: vec![KeyGroupRanges::all(); 3] };
        let (new, rx) = mpsc::channel(16);
        g.prepare(
            AssignmentId(2),
            BTreeSet::new(),
            vec![InputChannel::new(0, 0, 2, Origin::Source(0), ChannelEnd::Open(rx))],
        );
        for t in &tx {
            let kind = BarrierKind::Rescale(Arc::new(assignment.clone()));
            t.try_send(StreamElement::Barrier(Barrier { epoch: Epoch(1), kind })).expect("room");
            t.try_send(StreamElement::Watermark(200)).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Barrier(_))));
        assert!(now(&mut g).is_none(), "the new channel holds the watermark");
        new.try_send(StreamElement::Watermark(150)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(150))));
    }

    #[test]
    fn the_channel_of_a_moved_subtask_gives_way_at_the_barrier_and_not_before() {
        let (mut g, mut tx) = gate(2);
        let (new, rx) = mpsc::channel(16);
        let joins = InputChannel::new(0, 0, 1, Origin::Source(0), ChannelEnd::Open(rx));
        g.prepare(AssignmentId(2), BTreeSet::from([1]), vec![joins]);
        for t in &tx {
            t.try_send(StreamElement::Watermark(10)).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(10))), "the present instance counts");
        let assignment = Assignment { id: AssignmentId(2), ranges: vec![KeyGroupRanges::all(); 2] };
        for t in &tx {
            let kind = BarrierKind::Rescale(Arc::new(assignment.clone()));
            t.try_send(StreamElement::Barrier(Barrier { epoch: Epoch(1), kind })).expect("room");
        }
        assert!(matches!(now(&mut g), Some(GateEvent::Barrier(_))));
        // Its worker ends, and nobody minds.
        drop(tx.pop());
        tx[0].try_send(StreamElement::Watermark(20)).expect("room");
        assert!(now(&mut g).is_none(), "the instance that took over holds the watermark");
        new.try_send(StreamElement::Watermark(15)).expect("room");
        assert!(matches!(now(&mut g), Some(GateEvent::Watermark(15))));
    }
}
