//! From the logical plan to the job graph: ids, tasks, exchanges.
//!
//! Order of events: ids are given and checked; every source and every keyed operator begins a task, all else joins the
//! task of its input; exchanges become edges; each operator is made once, so that one that cannot be fails here.

use std::collections::BTreeMap;

use millstream_common::{Error, Result};

use super::plan::{Body, Node, Plan, SourceBody, code, place};
use crate::graph::{EdgePlan, Head, JobGraph, NodePlan, SinkPlan, SourcePlan, Target, TaskPlan};
use crate::source::{WatermarkStrategy, no_event_time};

/// Where a logical node came to stand.
#[derive(Clone, Copy)]
enum Stand {
    Source { task: usize },
    Node { task: usize, node: usize },
    Sink,
}

pub(super) fn build(plan: &Plan) -> Result<JobGraph> {
    check_ends(plan)?;
    let uids = uids(plan)?;
    let mut builder = Builder { graph: JobGraph { tasks: Vec::new(), edges: Vec::new() }, stands: Vec::new() };
    for (node, uid) in std::iter::zip(&plan.nodes, uids) {
        let stand = builder.place(plan, node, uid)?;
        builder.stands.push(stand);
    }
    for node in builder.graph.tasks.iter().flat_map(|t| &t.nodes) {
        (node.make)()?;
    }
    Ok(builder.graph)
}

/// Every stream must lead somewhere, or its rows were read for nothing.
fn check_ends(plan: &Plan) -> Result<()> {
    if plan.nodes.is_empty() {
        return Err(Error::config("the dataflow is empty").code(code::LOOSE_END).next("add a source and a sink"));
    }
    let mut used = vec![false; plan.nodes.len()];
    for input in plan.nodes.iter().flat_map(|n| &n.inputs) {
        used[input.node] = true;
    }
    let loose = std::iter::zip(&plan.nodes, used).find(|(n, used)| !used && !matches!(n.body, Body::Sink(_)));
    match loose {
        None => Ok(()),
        Some((n, _)) => Err(Error::config("nobody takes its rows")
            .code(code::LOOSE_END)
            .at(place(n.kind, &n.name))
            .next("end the stream in a sink, or remove it")),
    }
}

/// The stable id of each node.
fn uids(plan: &Plan) -> Result<Vec<String>> {
    let mut ids = Ids::default();
    for (i, node) in plan.nodes.iter().enumerate() {
        // The task that it belongs to or, when it begins one, the one that feeds it.
        let task = node.inputs.first().map(|input| ids.tasks[input.node].clone());
        let begins_task = node.inputs.iter().all(|input| input.keys.is_some());
        let durable = begins_task || matches!(node.body, Body::Sink(_));
        let uid = match (&node.uid, &task) {
            (Some(uid), _) => uid.clone(),
            (None, None) => node.name.clone(),
            (None, Some(task)) => ids.derive(format!("{task}/{}:{}", node.kind, node.name), durable),
        };
        ids.take(plan, i, &uid)?;
        ids.tasks.push(if begins_task { uid.clone() } else { task.unwrap_or_default() });
        ids.uids.push(uid);
    }
    Ok(ids.uids)
}

#[derive(Default)]
struct Ids {
    uids: Vec<String>,
    /// By node: the id of its task.
    tasks: Vec<String>,
    owners: BTreeMap<String, usize>,
}

impl Ids {
    /// What leaves nothing durable behind may be numbered when the same id was derived before.
    fn derive(&self, uid: String, durable: bool) -> String {
        if durable || !self.owners.contains_key(&uid) {
            return uid;
        }
        let numbered = (2u32..).map(|n| format!("{uid}#{n}"));
        numbered.into_iter().find(|u| !self.owners.contains_key(u)).unwrap_or(uid)
    }

    fn take(&mut self, plan: &Plan, node: usize, uid: &str) -> Result<()> {
        let this = &plan.nodes[node];
        if uid.is_empty() {
            let what = "its name, from which its stable id comes, is empty";
            return Err(Error::config(what).code(code::BAD_SETTING).at(place(this.kind, &this.name)));
        }
        let Some(first) = self.owners.insert(uid.to_owned(), node) else { return Ok(()) };
        let other = &plan.nodes[first];
        let (first, second) = (place(other.kind, &other.name), place(this.kind, &this.name));
        Err(Error::config(format!("two nodes have the id {uid:?}: {first} and {second}"))
            .code(code::DUPLICATE_UID)
            .next("give one of them another name, or an id by `.uid(\"...\")`"))
    }
}

struct Builder {
    graph: JobGraph,
    stands: Vec<Stand>,
}

impl Builder {
    fn place(&mut self, plan: &Plan, node: &Node, uid: String) -> Result<Stand> {
        match &node.body {
            Body::Source(source) => Ok(self.place_source(node, source, uid)),
            Body::Sink(sink) => {
                let task = self.task_of(node.inputs[0].node)?;
                let schema = node.schema.clone();
                let sinks = &mut self.graph.tasks[task].sinks;
                sinks.push(SinkPlan { uid, name: node.name.clone(), sink: sink.clone(), schema });
                let target = Target::Sink(sinks.len() - 1);
                self.targets_of(node.inputs[0].node)?.push(target);
                Ok(Stand::Sink)
            }
            Body::Operator(make) => {
                let keyed = node.inputs.iter().any(|i| i.keys.is_some());
                let task = if keyed { self.begin_task(node, &uid) } else { self.task_of(node.inputs[0].node)? };
                let made = NodePlan {
                    uid,
                    name: node.name.clone(),
                    detail: detail(node),
                    make: make.clone(),
                    schema: node.schema.clone(),
                    targets: Vec::new(),
                };
                let nodes = &mut self.graph.tasks[task].nodes;
                nodes.push(made);
                let index = nodes.len() - 1;
                if keyed {
                    self.connect(plan, node, task)?;
                } else {
                    self.targets_of(node.inputs[0].node)?.push(Target::Node(index));
                }
                Ok(Stand::Node { task, node: index })
            }
        }
    }

    fn place_source(&mut self, node: &Node, source: &SourceBody, uid: String) -> Stand {
        // Without a strategy no row says anything about time: it stands still until the input ends.
        let timeless = || WatermarkStrategy::monotonous(no_event_time());
        let head = SourcePlan {
            uid: uid.clone(),
            name: node.name.clone(),
            source: source.source.clone(),
            watermarks: source.watermarks.clone().unwrap_or_else(timeless),
            rate: source.rate,
            batch_rows: source.batch_rows,
            targets: Vec::new(),
        };
        let name = node.name.clone();
        self.graph.tasks.push(TaskPlan { uid, name, head: Head::Source(head), nodes: Vec::new(), sinks: Vec::new() });
        Stand::Source { task: self.graph.tasks.len() - 1 }
    }

    fn begin_task(&mut self, node: &Node, uid: &str) -> usize {
        self.graph.tasks.push(TaskPlan {
            uid: uid.to_owned(),
            name: node.name.clone(),
            head: Head::Exchange,
            nodes: Vec::new(),
            sinks: Vec::new(),
        });
        self.graph.tasks.len() - 1
    }

    /// The exchanges that feed a keyed operator.
    fn connect(&mut self, plan: &Plan, node: &Node, to: usize) -> Result<()> {
        for (input, from) in node.inputs.iter().enumerate() {
            let Some(keys) = &from.keys else {
                return Err(Error::internal("a keyed operator has an input without a key"));
            };
            let edge = EdgePlan {
                from: self.task_of(from.node)?,
                to,
                input,
                schema: plan.nodes[from.node].schema.clone(),
                key_columns: keys.clone(),
            };
            self.graph.edges.push(edge);
            let target = Target::Edge(self.graph.edges.len() - 1);
            self.targets_of(from.node)?.push(target);
        }
        Ok(())
    }

    fn task_of(&self, node: usize) -> Result<usize> {
        match self.stands[node] {
            Stand::Source { task } | Stand::Node { task, .. } => Ok(task),
            Stand::Sink => Err(Error::internal("a sink feeds another node")),
        }
    }

    fn targets_of(&mut self, node: usize) -> Result<&mut Vec<Target>> {
        match self.stands[node] {
            Stand::Node { task, node } => Ok(&mut self.graph.tasks[task].nodes[node].targets),
            Stand::Source { task } => match &mut self.graph.tasks[task].head {
                Head::Source(source) => Ok(&mut source.targets),
                Head::Exchange => Err(Error::internal("a source's task begins with an exchange")),
            },
            Stand::Sink => Err(Error::internal("a sink feeds another node")),
        }
    }
}

fn detail(node: &Node) -> String {
    if node.detail.is_empty() { node.kind.to_owned() } else { format!("{} {}", node.kind, node.detail) }
}
