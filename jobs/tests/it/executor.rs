//! A job graph run by plain calls in one thread: splits in turn, chains, hash exchanges between P subtasks a task,
//! watermarks. No checkpoint, no store: state is complete from the start and stays in memory. It is the reference that
//! says what a graph means.

use std::task::{Context, Poll, Waker};

use arrow_array::{RecordBatch, UInt32Array};
use millstream_common::{KEY_GROUPS, KeyGroupRange, KeyGroupRanges, StateId};
use millstream_engine::element::{WATERMARK_MAX, WATERMARK_MIN};
use millstream_engine::graph::{EdgePlan, Head, JobGraph, SourcePlan, Target};
use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress, SubtaskTime};
use millstream_engine::source::{Read, SplitReader};
use millstream_state_store::key::{KeyBuffer, encode_keys};

/// What came out.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the sinks were given, in order.
    pub rows: Vec<RecordBatch>,
    pub late_rows: u64,
    /// Rows that went over exchanges.
    pub exchanged_rows: usize,
}

/// Runs `graph` to its end.
pub fn execute(graph: &JobGraph, parallelism: u32, batch_rows: usize) -> Outcome {
    let mut executor = Executor::new(graph, parallelism);
    for (task, plan) in graph.tasks.iter().enumerate() {
        if let Head::Source(source) = &plan.head {
            executor.read(task, source, batch_rows);
        }
    }
    executor.finish()
}

struct Node {
    operator: Box<dyn Operator>,
    out: Collector,
}

/// One subtask of one task.
struct Subtask {
    nodes: Vec<Node>,
    /// Greatest watermark of each input: by edge and sending subtask.
    inputs: Vec<Vec<i64>>,
    fired: i64,
}

struct Executor<'a> {
    graph: &'a JobGraph,
    parallelism: u32,
    /// By task and index.
    subtasks: Vec<Vec<Subtask>>,
    outcome: Outcome,
}

fn ranges(subtask: u32, parallelism: u32) -> KeyGroupRanges {
    let bound = |i: u32| KEY_GROUPS * i / parallelism;
    KeyGroupRange::new(bound(subtask), bound(subtask + 1)).into()
}

impl<'a> Executor<'a> {
    fn new(graph: &'a JobGraph, parallelism: u32) -> Self {
        let mut state = 0;
        let subtasks = graph.tasks.iter().enumerate().map(|(task, plan)| {
            let edges = graph.edges.iter().filter(|e| e.to == task).count();
            let make = |index| {
                let nodes = plan.nodes.iter().map(|n| {
                    let mut operator = (n.make)().unwrap();
                    for s in operator.states() {
                        state += 1;
                        s.open(StateId(state), ranges(index, parallelism), true);
                    }
                    Node { operator, out: Collector::default() }
                });
                Subtask {
                    nodes: nodes.collect(),
                    inputs: vec![vec![WATERMARK_MIN; parallelism as usize]; edges],
                    fired: WATERMARK_MIN,
                }
            };
            (0..parallelism).map(make).collect()
        });
        let subtasks = subtasks.collect();
        Self { graph, parallelism, subtasks, outcome: Outcome::default() }
    }

    /// Reads all splits of a source in turn, a batch each. Split `i` belongs to subtask `i % P`.
    fn read(&mut self, task: usize, source: &SourcePlan, batch_rows: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut enumerator = source.source.enumerator().unwrap();
        let Poll::Ready(found) = enumerator.discover(&[]).as_mut().poll(&mut cx) else { panic!("discovery waits") };
        let found = found.unwrap();
        assert!(found.complete);
        let open = |s| Some(source.source.reader(s, None).unwrap());
        let mut readers: Vec<Option<Box<dyn SplitReader>>> = found.new.iter().map(open).collect();
        let mut watermarks = vec![WATERMARK_MIN; readers.len()];
        // Subtasks without a split have nothing to say about time.
        for subtask in readers.len()..self.parallelism as usize {
            self.advance(task, subtask, WATERMARK_MAX);
        }
        while readers.iter().any(Option::is_some) {
            for split in 0..readers.len() {
                let Some(reader) = &mut readers[split] else { continue };
                let subtask = split % self.parallelism as usize;
                match reader.poll_next(&mut cx, batch_rows) {
                    Poll::Pending => panic!("a reader waits"),
                    Poll::Ready(read) => match read.unwrap() {
                        Read::End => {
                            readers[split] = None;
                            watermarks[split] = WATERMARK_MAX;
                        }
                        Read::Batch(batch) => {
                            assert!((1..=batch_rows).contains(&batch.num_rows()));
                            let times = (source.watermarks.event_time)(&batch).unwrap();
                            let time = times.iter().flatten().max();
                            self.deliver(task, subtask, &source.targets, batch);
                            let watermark = time.map_or(WATERMARK_MIN, |t| t - source.watermarks.delay_ms);
                            watermarks[split] = watermarks[split].max(watermark);
                        }
                    },
                }
                let of_subtask = watermarks.iter().skip(subtask).step_by(self.parallelism as usize);
                self.advance(task, subtask, *of_subtask.min().unwrap());
            }
        }
    }

    fn deliver(&mut self, task: usize, subtask: usize, targets: &[Target], batch: RecordBatch) {
        for target in targets {
            match *target {
                Target::Sink(_) => self.outcome.rows.push(batch.clone()),
                Target::Node(node) => self.process(task, subtask, node, 0, batch.clone(), KeyBuffer::default()),
                Target::Edge(edge) => self.exchange(edge, &batch),
            }
        }
    }

    fn exchange(&mut self, edge: usize, batch: &RecordBatch) {
        let EdgePlan { to, input, key_columns, schema, .. } = self.graph.edges[edge].clone();
        assert_eq!(batch.schema().fields(), schema.fields());
        self.outcome.exchanged_rows += batch.num_rows();
        let mut keys = KeyBuffer::default();
        let columns: Vec<_> = key_columns.iter().map(|&k| batch.column(k).clone()).collect();
        encode_keys(&columns, &mut keys).unwrap();
        for subtask in 0..self.parallelism {
            let owned = ranges(subtask, self.parallelism);
            let rows: Vec<u32> = (0..keys.len()).filter(|&i| owned.contains(keys.group(i))).map(|i| i as u32).collect();
            if rows.is_empty() {
                continue;
            }
            let mut mine = KeyBuffer::default();
            rows.iter().for_each(|&i| mine.push(keys.key(i as usize)).unwrap());
            let part = arrow_select::take::take_record_batch(batch, &UInt32Array::from(rows)).unwrap();
            self.process(to, subtask as usize, 0, input, part, mine);
        }
    }

    fn process(
        &mut self,
        task: usize,
        subtask: usize,
        node: usize,
        input: usize,
        records: RecordBatch,
        keys: KeyBuffer,
    ) {
        let keyed = !keys.is_empty();
        let batch = KeyedBatch { records, keys };
        let Node { operator, out } = &mut self.subtasks[task][subtask].nodes[node];
        if keyed {
            operator.name_reads(input, &batch).unwrap();
            page_in(operator.as_mut());
        }
        operator.process(input, &batch, out).unwrap();
        if keyed {
            operator.states().into_iter().for_each(|s| s.release_group());
        }
        self.emitted(task, subtask, node);
    }

    fn emitted(&mut self, task: usize, subtask: usize, node: usize) {
        let plan = &self.graph.tasks[task].nodes[node];
        for batch in self.subtasks[task][subtask].nodes[node].out.take() {
            assert_eq!(batch.schema().fields(), plan.schema.fields(), "{}", plan.uid);
            self.deliver(task, subtask, &plan.targets, batch);
        }
    }

    /// The subtask's watermark rises: operators fire, then all who listen are told.
    fn advance(&mut self, task: usize, subtask: usize, watermark: i64) {
        if watermark <= self.subtasks[task][subtask].fired {
            return;
        }
        let keyed = matches!(self.graph.tasks[task].head, Head::Exchange);
        let mut groups = 0;
        for node in 0..self.subtasks[task][subtask].nodes.len() {
            loop {
                let Node { operator, out } = &mut self.subtasks[task][subtask].nodes[node];
                let progress = operator.advance(watermark, out).unwrap();
                if keyed && node == 0 {
                    page_in(operator.as_mut());
                    groups += 1;
                }
                self.emitted(task, subtask, node);
                if progress == Progress::Done {
                    break;
                }
            }
        }
        // Each step was a group of its own; none is needed any more.
        for _ in 0..groups {
            let states = self.subtasks[task][subtask].nodes[0].operator.states();
            states.into_iter().for_each(|s| s.release_group());
        }
        let this = &mut self.subtasks[task][subtask];
        this.fired = watermark;
        this.nodes.iter_mut().for_each(|n| n.out.set_time(SubtaskTime::uniform(watermark)));
        let graph = self.graph;
        for to in 0..graph.tasks.len() {
            let edges = graph.edges.iter().filter(|e| e.to == to).enumerate();
            let mine: Vec<usize> = edges.filter(|(_, e)| e.from == task).map(|(i, _)| i).collect();
            if mine.is_empty() {
                continue;
            }
            for receiver in 0..self.parallelism as usize {
                let inputs = &mut self.subtasks[to][receiver].inputs;
                mine.iter().for_each(|&i| inputs[i][subtask] = watermark);
                let least = inputs.iter().flatten().copied().min().unwrap_or(WATERMARK_MAX);
                self.advance(to, receiver, least);
            }
        }
    }

    fn finish(mut self) -> Outcome {
        for subtask in self.subtasks.iter().flatten() {
            assert_eq!(subtask.fired, WATERMARK_MAX);
            self.outcome.late_rows += subtask.nodes.iter().map(|n| n.out.late_rows()).sum::<u64>();
        }
        self.outcome
    }
}

/// Answers what an operator has named from a store that is empty.
fn page_in(operator: &mut dyn Operator) {
    for state in operator.states() {
        state.end_group();
        let mut missing = Vec::new();
        state.take_missing(&mut missing);
        for key in missing {
            state.install(&key, None).unwrap();
        }
        while state.take_scan().is_some() {
            state.install_scan(&[], true).unwrap();
        }
    }
}
