//! A fork: a second job that begins with a version of another one and shares its objects. Nothing is copied.
//!
//! Order of events: the version is pinned in the parent; the fork's first record, which lists the parent's objects as such,
//! is created below the fork's own name. The pin stays until no version of the fork that is kept refers to the parent's
//! objects (see [`super::collector`]). Then the fork is opened as any job is.
//!
//! Positions, watermarks and timers go along. What the version lists as pre-committed does not: the parent commits it. So
//! the output of the fork goes on behind that version, at a place of its own.

use std::collections::BTreeSet;

use millstream_common::{Env, Error, Result, VersionNumber};
use millstream_objects::Store;
use millstream_proto::version::version_record::{Kind, Status};
use millstream_proto::version::{Argument, ForkOrigin, JobIdentity, Pin, VersionRecord, pin};
use millstream_state_store::version::delta::{settle, stored};
use millstream_state_store::version::{CommitOutcome, VersionLog};

use crate::dataflow::{JobContext, JobRegistry};

/// The argument that a fork may have another value of, besides those that any job may that goes on.
const OUTPUT: &str = "output";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct ForkOrder {
    /// The parent's name.
    pub parent: String,
    /// The version; `None`: the newest.
    pub at: Option<u64>,
    /// The fork's name.
    pub name: String,
    /// Arguments of the job, relative paths made absolute: what stands here replaces the parent's.
    pub args: Vec<String>,
    /// The arguments that the parent was submitted with; `None`: those that its version tells.
    pub parent_args: Option<Vec<String>>,
}

/// A fork that can be opened.
#[derive(Clone, Debug)]
pub struct Forked {
    /// The job in the binary.
    pub job: String,
    /// All its arguments.
    pub args: Vec<String>,
    /// The parallelism of its first version.
    pub parallelism: u32,
    /// The version of the parent.
    pub version: u64,
}

/// The pin in the parent that keeps what a fork shares.
#[must_use]
pub fn pin_id(fork: &str) -> String {
    format!("fork-{fork}")
}

/// Makes the first version of a fork. `parent`: the place of the parent's state; the fork's lies beside it.
pub async fn fork(registry: &JobRegistry, parent: &Store, order: &ForkOrder, env: &Env) -> Result<Forked> {
    let child = VersionLog::new(parent.sibling(&order.name), env.clone());
    if child.newest().await?.is_some() {
        return Err(Error::config(format!("there is a job '{}' already", order.name))
            .code(1512)
            .at(parent.sibling(&order.name).url())
            .next("give the fork another --name"));
    }
    let log = VersionLog::new(parent.clone(), env.clone());
    let newest =
        log.newest().await?.ok_or_else(|| absent(parent, &format!("there is no version of '{}'", order.parent)))?;
    log.boundaries().learn(newest.boundary, newest.bound);
    let version = order.at.unwrap_or(newest.number);
    if version == 0 || version > newest.number {
        return Err(absent(parent, &format!("there is no version {version}")));
    }
    let pin = Pin {
        id: pin_id(&order.name),
        version,
        kind: pin::Kind::Fork.into(),
        who: order.name.clone(),
        created_ms: env.wall_ms(),
        until: 0,
    };
    let pinned = log.pins().pin(&pin, log.boundaries()).await?;
    let made = async {
        let read = log.read(VersionNumber(version)).await?;
        let of = read.ok_or_else(|| absent(parent, &format!("there is no version {version}")))?;
        let (mut record, forked) = first_version(registry, &of, order, env)?;
        settle(None, &mut record);
        match child.commit(&stored(None, &record)).await? {
            CommitOutcome::Committed => Ok(forked),
            CommitOutcome::Lost { .. } => {
                // The record may have stood before the answer came, and others may have gone on from it since: then the pin
                // is needed.
                let newest = child.newest().await.map_err(Error::maybe_applied)?;
                let origin = newest.and_then(|n| n.fork);
                if origin == Some(ForkOrigin { job: order.parent.clone(), version }) {
                    return Ok(forked);
                }
                Err(Error::config(format!("there is a job '{}' already", order.name)).code(1512))
            }
        }
    };
    match made.await {
        Ok(forked) => Ok(forked),
        // Its first record may come to stand: then it needs the pin.
        Err(e) if e.applied() == millstream_common::Applied::Maybe => Err(e),
        Err(e) => {
            if let Err(left) = log.pins().release(&pinned).await {
                tracing::warn!("pin '{}' is left over in {}: {left}", pinned.pin.id, parent.url());
            }
            Err(e)
        }
    }
}

fn absent(parent: &Store, what: &str) -> Error {
    Error::config(what).code(1504).at(parent.url()).next("see `millstream versions`")
}

/// The first record of a fork, and how to open it.
fn first_version(
    registry: &JobRegistry,
    of: &VersionRecord,
    order: &ForkOrder,
    env: &Env,
) -> Result<(VersionRecord, Forked)> {
    let there = of.job.clone().unwrap_or_default();
    let told = || there.args.iter().map(|a| format!("--{}={}", a.name, a.value)).collect();
    let args = merge(order.parent_args.clone().unwrap_or_else(told), &order.args);
    let job = registry.build(&there.job, &args, &JobContext::new(env.clone(), &order.name))?;
    let mut here = job.identity_args.clone();
    here.sort();
    check_arguments(&there, &here, &order.parent)?;
    let same_output = |name: &str| {
        let mut values = there.args.iter().filter(|a| a.name == name).map(|a| &a.value);
        here.iter().filter(|a| a.0 == name).all(|a| values.next() == Some(&a.1))
    };
    let sinks = || job.graph.tasks.iter().flat_map(|t| &t.sinks);
    if same_output(OUTPUT) && sinks().any(|s| s.sink.is_a_place()) {
        return Err(Error::config(format!("the fork would write to the output of '{}'", order.parent))
            .code(1513)
            .next("give it one of its own behind `--`, as --output files:DIR"));
    }
    for sink in sinks() {
        sink.sink.check_fresh()?;
    }
    let identity =
        JobIdentity { args: here.into_iter().map(|(name, value)| Argument { name, value }).collect(), ..there.clone() };
    let forked = Forked { job: there.job.clone(), args, parallelism: there.parallelism.max(1), version: of.number };
    Ok((shared(of, &order.parent, identity, env), forked))
}

/// The record: the version's, with the parent's objects marked as such, and without what the parent commits.
fn shared(of: &VersionRecord, parent: &str, identity: JobIdentity, env: &Env) -> VersionRecord {
    let mut record = VersionRecord {
        number: 1,
        generation: 1,
        nonce: env.unique_id(),
        committed_ms: super::record::committed_ms(Some(of), env.wall_ms()),
        job: Some(identity),
        committables: Vec::new(),
        bytes_written: 0,
        fork: Some(ForkOrigin { job: parent.to_owned(), version: of.number }),
        boundary: 0,
        bound: 0,
        base: 0,
        snapshot: 0,
        ..of.clone()
    };
    record.set_kind(Kind::TakeOver);
    if record.status() == Status::Running {
        record.set_status(Status::Stopped);
    }
    for run in record.tree.iter_mut().flat_map(|t| &mut t.runs) {
        if run.origin.is_empty() {
            run.origin = parent.to_owned();
        }
    }
    record
}

/// `args`, with those of `replaced` (`--name=value` or `--name value`) instead of its own of the same names.
fn merge(args: Vec<String>, replaced: &[String]) -> Vec<String> {
    let name = |a: &String| a.split('=').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = replaced.iter().filter(|a| a.starts_with("--")).map(name).collect();
    let mut merged = Vec::new();
    let mut dropping = false;
    for arg in args {
        if arg.starts_with("--") {
            dropping = names.contains(&name(&arg));
        }
        if !dropping {
            merged.push(arg);
        }
    }
    merged.extend_from_slice(replaced);
    merged
}

/// Refuses arguments that make another job of it; another output does not.
fn check_arguments(there: &JobIdentity, here: &[(String, String)], parent: &str) -> Result<()> {
    let values = |name: &str| -> (Vec<&str>, Vec<&str>) {
        let old = there.args.iter().filter(|a| a.name == name).map(|a| a.value.as_str());
        let new = here.iter().filter(|a| a.0 == name).map(|a| a.1.as_str());
        (old.collect(), new.collect())
    };
    let names: BTreeSet<&str> =
        there.args.iter().map(|a| a.name.as_str()).chain(here.iter().map(|a| a.0.as_str())).collect();
    let differs: Vec<String> = names
        .into_iter()
        .filter(|n| *n != OUTPUT)
        .filter_map(|n| {
            let (mut old, mut new) = values(n);
            old.sort_unstable();
            new.sort_unstable();
            let shown = |v: &[&str]| if v.is_empty() { "none".to_owned() } else { v.join(", ") };
            (old != new).then(|| format!("--{n} differs: {} there, {} here", shown(&old), shown(&new)))
        })
        .collect();
    if differs.is_empty() {
        return Ok(());
    }
    Err(Error::config(format!("a fork of '{parent}' goes on as the same job: {}", differs.join("; ")))
        .code(1514)
        .next("only --output and arguments that do not make the job (--rate) may differ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn given_arguments_replace_the_parents() {
        let args = words("--events=10 --input a b --output=files:/a --rate 3");
        assert_eq!(merge(args.clone(), &[]), args);
        let merged = merge(args.clone(), &words("--output files:/b --rate=0"));
        assert_eq!(merged, words("--events=10 --input a b --output files:/b --rate=0"));
        assert_eq!(merge(args, &words("--input=c")), words("--events=10 --output=files:/a --rate 3 --input=c"));
    }

    #[test]
    fn another_output_makes_no_other_job() {
        let pairs = |text: &str| -> Vec<(String, String)> {
            words(text).iter().filter_map(|w| w.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
        };
        let there = JobIdentity {
            args: pairs("events=10 input=a input=b output=print")
                .into_iter()
                .map(|(name, value)| Argument { name, value })
                .collect(),
            ..JobIdentity::default()
        };
        check_arguments(&there, &pairs("events=10 input=b input=a output=files:/b"), "p").unwrap();
        for other in ["events=11 input=a input=b", "events=10 input=a", "events=10 input=a input=b keys=1"] {
            let error = check_arguments(&there, &pairs(other), "p").unwrap_err();
            assert!(error.number() == 1514 && error.to_string().contains("differs"), "{error}");
        }
    }

    #[test]
    fn a_fork_shares_everything_and_commits_nothing_of_its_parent() {
        let run = |object: &str, origin: &str| millstream_proto::version::Run {
            object: object.to_owned(),
            origin: origin.to_owned(),
            ..Default::default()
        };
        let of = VersionRecord {
            number: 7,
            generation: 3,
            epoch: 9,
            boundary: 2,
            bound: 4,
            committables: vec![Default::default()],
            tree: Some(millstream_proto::version::Tree {
                runs: vec![run("a", ""), run("b", "grandparent")],
                ..Default::default()
            }),
            ..VersionRecord::default()
        };
        let record = shared(&of, "parent", JobIdentity::default(), &Env::test(1));
        let origins: Vec<_> = record.tree.iter().flat_map(|t| &t.runs).map(|r| r.origin.as_str()).collect();
        assert_eq!(origins, ["parent", "grandparent"]);
        assert_eq!((record.number, record.generation, record.epoch, record.boundary), (1, 1, 9, 0));
        assert!(record.committables.is_empty());
        assert_eq!(record.fork, Some(ForkOrigin { job: "parent".to_owned(), version: 7 }));
    }
}
