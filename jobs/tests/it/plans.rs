//! The plans of all jobs, as they stand in version records. A changed line is another plan: state of jobs that were
//! started before no longer goes on under it. So a change here is deliberate, and stands in the change log.

use std::fmt::Write as _;

use millstream_engine::graph::{Head, Target};

use crate::typed;

const PLANS: &str = include_str!("plans.txt");

const JOBS: [&str; 9] = [
    "keyed-count",
    "nexmark-q0",
    "nexmark-q1",
    "nexmark-q2",
    "nexmark-q5",
    "nexmark-q7",
    "nexmark-q8",
    "nexmark-q11",
    "nexmark-q17",
];

#[test]
fn plans_and_ids_are_what_they_were() {
    let mut text = String::new();
    for name in JOBS {
        let job = typed(name, "");
        writeln!(text, "{name}").unwrap();
        for line in job.graph.describe() {
            writeln!(text, "  {line}").unwrap();
        }
    }
    assert!(text == PLANS, "plans have changed; they are now:\n{text}");
}

#[test]
fn a_plan_does_not_depend_on_what_may_differ_when_a_job_goes_on() {
    let plan = |args: &str| typed("nexmark-q5", args).graph.describe();
    assert_eq!(plan("--rate 10"), plan("--rate 0"));
    let rate = |args: &str| match &typed("nexmark-q5", args).graph.tasks[0].head {
        Head::Source(source) => source.rate,
        Head::Exchange => panic!("the first task has no source"),
    };
    assert_eq!((rate("--rate 0.25"), rate("--rate 0")), (Some(0.25), None));
}

#[test]
fn keyed_operators_stand_first_and_every_node_behind_its_input() {
    for name in JOBS {
        let graph = typed(name, "").graph;
        for (t, task) in graph.tasks.iter().enumerate() {
            for (i, node) in task.nodes.iter().enumerate() {
                let stateful = !(node.make)().unwrap().states().is_empty();
                assert!(!stateful || (i == 0 && matches!(task.head, Head::Exchange)), "{name}: {}", node.uid);
                for target in &node.targets {
                    match *target {
                        Target::Node(n) => assert!(n > i, "{name}: {}", node.uid),
                        Target::Edge(e) => assert!(graph.edges[e].from == t && graph.edges[e].to > t, "{name}"),
                        Target::Sink(s) => assert!(s < task.sinks.len(), "{name}"),
                    }
                }
            }
        }
    }
}

#[test]
fn exchanges_carry_only_what_is_read_behind_them() {
    let carried = |name: &str| -> Vec<String> {
        let names = |s: &arrow_schema::SchemaRef| s.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        typed(name, "").graph.edges.iter().map(|e| names(&e.schema).join(",")).collect()
    };
    assert_eq!(carried("nexmark-q5"), ["auction,dateTime", "auction,num,window_end"]);
    assert_eq!(carried("nexmark-q8"), ["id,name,dateTime", "dateTime,seller"]);
    assert_eq!(carried("nexmark-q11"), ["bidder,dateTime"]);
    assert_eq!(carried("nexmark-q17"), ["auction,day,price,rank1,rank2,rank3"]);
    assert_eq!(carried("keyed-count"), ["key", "key,rows"]);
}
