//! A job graph in words: for the version record, which tells what wrote its state, and for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use millstream_common::{Error, Result};

use super::{EdgePlan, Head, JobGraph, NodePlan, Target, TaskPlan};

impl JobGraph {
    /// One line per task: its id, where its rows come from with the key columns, its operators with their ids,
    /// parameters and states, its sinks. It does not depend on parallelism, rates or batch sizes.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        (0..self.tasks.len()).map(|task| self.describe_task(task)).collect()
    }

    /// The states of all operators: the operator's id and the state's name.
    pub fn states(&self) -> Result<BTreeSet<(String, String)>> {
        let nodes = self.tasks.iter().flat_map(|t| &t.nodes);
        let of_node = |n: &NodePlan| {
            let mut operator = (n.make)()?;
            let names = operator.states().iter().map(|s| (n.uid.clone(), s.descriptor().name.clone())).collect();
            Ok::<Vec<_>, Error>(names)
        };
        Ok(nodes.map(of_node).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// What gives states their meaning beside their schemas ([`Operator::parameters`]), below the operator's id.
    ///
    /// [`Operator::parameters`]: crate::operator::Operator::parameters
    pub fn parameters(&self) -> Result<BTreeMap<String, String>> {
        let nodes = self.tasks.iter().flat_map(|t| &t.nodes);
        let of_node = |n: &NodePlan| {
            let all = (n.make)()?.parameters();
            Ok::<Vec<_>, Error>(all.into_iter().map(|(name, value)| (format!("{}: {name}", n.uid), value)).collect())
        };
        let mut all: BTreeMap<String, String> =
            nodes.map(of_node).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        // Schemas know the types of key columns alone.
        for edge in &self.edges {
            let names: Vec<&str> = edge.key_columns.iter().map(|&k| edge.schema.field(k).name().as_str()).collect();
            all.insert(format!("{}: key of input {}", self.tasks[edge.to].uid, edge.input), names.join(", "));
        }
        Ok(all)
    }

    fn describe_task(&self, index: usize) -> String {
        let task = &self.tasks[index];
        let mut parts = vec![format!("task {}", task.uid)];
        parts.push(match &task.head {
            Head::Source(source) => format!("source {}{}", source.uid, self.arrows(index, &source.targets)),
            Head::Exchange => self.inputs(index).collect::<Vec<_>>().join(", "),
        });
        for node in &task.nodes {
            let states = states(node).map(|s| format!(" {{{s}}}")).unwrap_or_default();
            let uid = within(task, &node.uid);
            parts.push(format!("{uid} ({}){states}{}", node.detail, self.arrows(index, &node.targets)));
        }
        parts.extend(task.sinks.iter().map(|s| format!("sink {}", within(task, &s.uid))));
        parts.join("; ")
    }

    /// The exchanges into a task, by input.
    fn inputs(&self, task: usize) -> impl Iterator<Item = String> {
        let mut edges: Vec<&EdgePlan> = self.edges.iter().filter(|e| e.to == task).collect();
        edges.sort_by_key(|e| e.input);
        edges.into_iter().map(|e| {
            let keys = e.key_columns.iter().map(|&k| e.schema.field(k));
            let keys: Vec<String> = keys.map(|f| format!("{} {}", f.name(), f.data_type())).collect();
            format!("input {} from {} by ({})", e.input, self.tasks[e.from].uid, keys.join(", "))
        })
    }

    fn arrows(&self, task: usize, targets: &[Target]) -> String {
        let task = &self.tasks[task];
        let names = targets.iter().map(|t| match *t {
            Target::Node(i) => within(task, &task.nodes[i].uid),
            Target::Sink(i) => within(task, &task.sinks[i].uid),
            Target::Edge(i) => format!("{}#{}", self.tasks[self.edges[i].to].uid, self.edges[i].input),
        });
        let names: Vec<String> = names.collect();
        if names.is_empty() { String::new() } else { format!(" -> {}", names.join(", ")) }
    }

    fn write_targets(&self, f: &mut fmt::Formatter<'_>, task: usize, targets: &[Target], depth: usize) -> fmt::Result {
        for target in targets {
            let indent = "  ".repeat(depth);
            match *target {
                Target::Node(i) => {
                    let node = &self.tasks[task].nodes[i];
                    write_node(f, node, &indent)?;
                    self.write_targets(f, task, &node.targets, depth + 1)?;
                }
                Target::Sink(i) => writeln!(f, "{indent}sink {}", self.tasks[task].sinks[i].name)?,
                Target::Edge(i) => {
                    let edge = &self.edges[i];
                    let keys: Vec<&str> =
                        edge.key_columns.iter().map(|&k| edge.schema.field(k).name().as_str()).collect();
                    writeln!(f, "{indent}exchange by {} to {}", keys.join(", "), self.tasks[edge.to].name)?;
                }
            }
        }
        Ok(())
    }
}

/// An id inside its task: below the task's own it is written from there.
fn within(task: &TaskPlan, uid: &str) -> String {
    match uid.strip_prefix(&task.uid) {
        Some("") => ".".into(),
        Some(below) if below.starts_with('/') => format!(".{below}"),
        _ => uid.to_owned(),
    }
}

/// The names of a node's states.
fn states(node: &NodePlan) -> Option<String> {
    // Building the graph made each operator once: it does not fail here for a plan that exists.
    let mut operator = (node.make)().ok()?;
    let states = operator.states();
    let names: Vec<&str> = states.iter().map(|s| s.descriptor().name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn write_node(f: &mut fmt::Formatter<'_>, node: &NodePlan, indent: &str) -> fmt::Result {
    writeln!(f, "{indent}{} ({})", node.name, node.detail)
}

/// The tasks with their chains as trees, for people.
impl fmt::Display for JobGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, task) in self.tasks.iter().enumerate() {
            writeln!(f, "task {}: {}", index + 1, task.name)?;
            match &task.head {
                Head::Source(source) => {
                    writeln!(f, "  source {}", source.name)?;
                    self.write_targets(f, index, &source.targets, 2)?;
                }
                Head::Exchange => self.write_targets(f, index, &first_node(task), 1)?,
            }
        }
        Ok(())
    }
}

fn first_node(task: &TaskPlan) -> Vec<Target> {
    if task.nodes.is_empty() { Vec::new() } else { vec![Target::Node(0)] }
}
