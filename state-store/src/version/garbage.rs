//! What of a job's state may be deleted. Pure: facts about the chain come in, names of objects go out.
//!
//! Live is what a version at or above the bound or a pinned one refers to, and what the group of such a version is read
//! from. What was live and is not any more can never come back: object names are never used again, and whoever goes back
//! to an older version pins it first. docs/garbage.md has the whole argument.

use millstream_common::planted::bug_is_planted;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_proto::version::version_record::Kind;
use millstream_proto::version::{KeptObject, VersionRecord};

use super::delta::group_of;

/// Which versions a job keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest checkpoints.
    pub checkpoints: u32,
    /// And all that are younger than the newest record by at most this, milliseconds. 0: none for their age.
    pub age_ms: i64,
}

/// A record of the chain, as far as collecting goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    group: u64,
    is_checkpoint: bool,
    is_take_over: bool,
    committed_ms: i64,
}

/// The records that stand, and which of them was the last to refer to each object. Names are those below the job's own
/// `data/`; objects of other jobs are counted by their job's name.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    links: BTreeMap<u64, Link>,
    /// And the size of the object.
    last: BTreeMap<Arc<str>, (u64, u64)>,
    /// By job: the last version that refers to an object of it.
    origins: BTreeMap<String, u64>,
}

/// What stands of a job, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Version records.
    pub records: u64,
    /// Those of them that are checkpoints.
    pub checkpoints: u64,
    /// State objects of the job's own.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Chain {
    /// What stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            records: self.links.len() as u64,
            checkpoints: self.links.values().filter(|l| l.is_checkpoint).count() as u64,
            objects: self.last.len() as u64,
            bytes: self.last.values().map(|(_, bytes)| bytes).sum(),
        }
    }

    /// Adds a whole record. Records come in any order; each once.
    pub fn add(&mut self, record: &VersionRecord) {
        let link = Link {
            group: group_of(record),
            is_checkpoint: record.kind() == Kind::Checkpoint,
            is_take_over: record.kind() == Kind::TakeOver,
            committed_ms: record.committed_ms,
        };
        self.links.insert(record.number, link);
        for run in record.tree.iter().flat_map(|t| &t.runs) {
            if !run.origin.is_empty() {
                let last = self.origins.entry(run.origin.clone()).or_default();
                *last = record.number.max(*last);
                continue;
            }
            match self.last.get_mut(run.object.as_str()) {
                Some((last, _)) => *last = record.number.max(*last),
                None => drop(self.last.insert(run.object.as_str().into(), (record.number, run.object_bytes))),
            }
        }
        // A planted bug: what sinks have left to commit keeps nothing alive.
        for kept in kept_of(record).filter(|_| !bug_is_planted(15)) {
            let (last, _) = self.last.entry(kept.object.as_str().into()).or_insert((0, kept.bytes));
            *last = record.number.max(*last);
        }
    }

    /// A record that cannot be read: it keeps nothing alive, but stays, since it may have been a take-over.
    pub fn add_unreadable(&mut self, number: u64) {
        self.links.insert(number, Link { group: number, is_checkpoint: false, is_take_over: true, committed_ms: 0 });
    }

    /// Forgets a record that was deleted.
    pub fn remove_record(&mut self, number: u64) {
        self.links.remove(&number);
    }

    /// Forgets an object that was deleted.
    pub fn remove_object(&mut self, object: &str) {
        self.last.remove(object);
    }

    /// The newest record.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.links.last_key_value().map_or(0, |(n, _)| *n)
    }

    /// Whether a record stands, as far as is known.
    #[must_use]
    pub fn holds(&self, number: u64) -> bool {
        self.links.contains_key(&number)
    }

    /// The least version that is to be kept. `in_use`: the oldest version that some worker may read.
    #[must_use]
    pub fn bound(&self, retention: Retention, in_use: Option<u64>) -> u64 {
        let mut checkpoints = self.links.iter().rev().filter(|(_, l)| l.is_checkpoint);
        let newest_ms = self.links.last_key_value().map_or(0, |(_, l)| l.committed_ms);
        // Fewer than are to be kept: all are.
        let kept = retention.checkpoints.max(1) as usize;
        let by_count = checkpoints.nth(kept - 1).map_or(0, |(n, _)| *n);
        let young = |l: &Link| retention.age_ms > 0 && newest_ms - l.committed_ms <= retention.age_ms;
        let by_age = self.links.iter().find(|(_, l)| l.is_checkpoint && young(l)).map_or(u64::MAX, |(n, _)| *n);
        by_count.min(by_age).min(in_use.unwrap_or(u64::MAX)).min(self.newest())
    }

    /// The records from which the versions from `bound` on are read.
    fn group_start(&self, number: u64) -> u64 {
        self.links.range(number..).next().map_or(number, |(n, l)| if *n == number { l.group } else { number })
    }

    /// The records that may go: those below the bound that no kept version is read from, but no take-over: it stands in the
    /// way of the leader that it has deposed, whenever that wakes up. Oldest first. `pinned`: versions.
    #[must_use]
    pub fn dead_records(&self, bound: u64, pinned: &BTreeSet<u64>) -> Vec<u64> {
        let first = self.group_start(bound);
        let kept: Vec<(u64, u64)> = pinned.iter().map(|p| (self.group_start(*p), *p)).collect();
        let needed = |n: u64| kept.iter().any(|(from, to)| (*from..=*to).contains(&n));
        // A planted bug: a take-over is a record like any other.
        let stays = |link: &Link| link.is_take_over && !bug_is_planted(1);
        let dead = |(n, link): &(&u64, &Link)| !stays(link) && !needed(**n);
        self.links.range(..first).filter(dead).map(|(n, _)| *n).collect()
    }

    /// The objects that may go: no version from `bound` on refers to them. `pinned`: what pinned versions refer to.
    /// With their sizes.
    #[must_use]
    pub fn dead_objects(&self, bound: u64, pinned: &BTreeSet<String>) -> Vec<(Arc<str>, u64)> {
        let dead = |(object, (last, _)): &(&Arc<str>, &(u64, u64))| *last < bound && !pinned.contains(&***object);
        self.last.iter().filter(dead).map(|(o, (_, bytes))| (o.clone(), *bytes)).collect()
    }

    /// Whether any version that is known refers to an object.
    #[must_use]
    pub fn knows(&self, object: &str) -> bool {
        self.last.contains_key(object)
    }

    /// The jobs whose objects a version from `bound` on refers to.
    #[must_use]
    pub fn origins(&self, bound: u64) -> BTreeSet<String> {
        self.origins.iter().filter(|(_, last)| **last >= bound).map(|(job, _)| job.clone()).collect()
    }
}

/// The objects of the job's own that a version refers to.
#[must_use]
pub fn objects_of(record: &VersionRecord) -> BTreeSet<String> {
    let runs = record.tree.iter().flat_map(|t| &t.runs).filter(|r| r.origin.is_empty()).map(|r| &r.object);
    runs.chain(kept_of(record).map(|k| &k.object)).cloned().collect()
}

/// What sinks keep until their commits are confirmed.
pub fn kept_of(record: &VersionRecord) -> impl Iterator<Item = &KeptObject> {
    record.committables.iter().flat_map(|c| &c.kept)
}

/// The generation and execution in an object's name (`{2 hex}/{generation}-{execution}-{unique}`); `None` for a name of
/// another form, which is nobody's to delete.
#[must_use]
pub fn writer_of(object: &str) -> Option<(u64, u64)> {
    let mut parts = object.split_once('/')?.1.splitn(3, '-');
    let (generation, execution) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().map(|_| (generation, execution))
}

/// The number of the compaction in the name of an object that one wrote (`{generation}-{execution}-c{number}-{unique}`).
#[must_use]
pub fn compaction_of(object: &str) -> Option<u64> {
    object.split_once('/')?.1.splitn(3, '-').nth(2)?.strip_prefix('c')?.split_once('-')?.0.parse().ok()
}

/// The compactions of a deployment that may still be reported, or wait for their record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenCompactions {
    /// Their numbers.
    pub open: BTreeSet<u64>,
    /// The number of the next one: those at or above it may be open in a moment.
    pub next: u64,
}

impl OpenCompactions {
    fn is_closed(&self, number: u64) -> bool {
        number < self.next && !self.open.contains(&number)
    }
}

/// Whether an object that no version refers to may go: nothing that its writer reports can be committed any more, since
/// the deployment `current` has followed its own, or since it is of a compaction of `current` that was given up.
#[must_use]
pub fn is_over(object: &str, current: (u64, u64), compactions: &OpenCompactions) -> bool {
    let Some(writer) = writer_of(object) else { return false };
    let given_up = || writer == current && compaction_of(object).is_some_and(|number| compactions.is_closed(number));
    // A planted bug: what no version refers to is taken for left over, whoever may still report it.
    writer < current || given_up() || bug_is_planted(4)
}
