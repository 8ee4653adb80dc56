//! What became of a state from one version to another.
//!
//! A key's value depends on the entries that runs hold of it. So where nothing expires, only keys of which a run that one
//! version lists and the other does not holds an entry can differ: those are walked, and looked up in both versions.
//! What both list is never read but for them. Where entries expire, time changes what runs alone do not: then both
//! versions are read side by side.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{KeyGroupRanges, Result};
use millstream_state_store::{KeyPiece, Run, View};

use super::reader::{Entry, StateReader};
use super::text::push_label;
use super::version::OpenVersion;

/// Keys that are compared at a time, bytes.
const PIECE_BYTES: usize = 64 << 10;

/// How an entry differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Only the second version has it.
    Added(Entry),
    /// Both have it, with other values.
    Changed(Entry, Entry),
    /// Only the first version has it.
    Removed(Entry),
}

/// Compares one state in two versions, piece by piece.
pub struct StateDiff {
    before: StateReader,
    after: StateReader,
    walk: Walk,
}

enum Walk {
    /// Only these runs, from this key on.
    Touched(View, Option<Bytes>),
    /// Everything: what was read and not compared yet, and where the next page begins.
    All(Side, Side),
}

#[derive(Default)]
struct Side {
    entries: std::collections::VecDeque<Entry>,
    next: Option<Bytes>,
}

impl Side {
    async fn fill(&mut self, reader: &mut StateReader) -> Result<()> {
        while self.entries.is_empty()
            && let Some(from) = self.next.take()
        {
            let page = reader.page(&from).await?;
            self.entries.extend(page.entries);
            self.next = page.next;
        }
        Ok(())
    }
}

impl StateDiff {
    /// Of the state that both readers read, each in its version.
    /// `younger` is the version that knows the states of both.
    #[must_use]
    pub fn new(
        versions: (&OpenVersion, &OpenVersion),
        before: StateReader,
        after: StateReader,
        ranges: &KeyGroupRanges,
        younger: &OpenVersion,
    ) -> Self {
        let start = before.start();
        let walk = if before.expires() || after.expires() {
            let side = || Side { next: Some(start.clone()), ..Side::default() };
            Walk::All(side(), side())
        } else {
            let runs = unshared(versions.0, versions.1, &after, ranges);
            Walk::Touched(younger.view_of(runs, ranges, &younger.tree.layouts()), Some(start))
        };
        Self { before, after, walk }
    }

    /// Some changes, in key order; `None` when there are no more. May be empty.
    pub async fn next(&mut self) -> Result<Option<Vec<Change>>> {
        let Self { before, after, walk } = self;
        match walk {
            Walk::Touched(view, from) => {
                let Some(start) = from.take() else { return Ok(None) };
                let KeyPiece { keys, next } = view.touched_keys(after.entry.id, &start, PIECE_BYTES).await?;
                *from = next;
                let (old, new) = (before.get(&keys).await?, after.get(&keys).await?);
                Ok(Some(std::iter::zip(old, new).filter_map(|(old, new)| change(old, new)).collect()))
            }
            Walk::All(old, new) => {
                let mut changes = Vec::new();
                loop {
                    old.fill(before).await?;
                    new.fill(after).await?;
                    let order = match (old.entries.front(), new.entries.front()) {
                        (None, None) => return Ok(Some(changes).filter(|c| !c.is_empty())),
                        (Some(_), None) => Ordering::Less,
                        (None, Some(_)) => Ordering::Greater,
                        (Some(old), Some(new)) => old.store_key.cmp(&new.store_key),
                    };
                    let old = if order.is_le() { old.entries.pop_front() } else { None };
                    let new = if order.is_ge() { new.entries.pop_front() } else { None };
                    changes.extend(change(old, new));
                    if changes.len() >= 1_024 {
                        return Ok(Some(changes));
                    }
                }
            }
        }
    }

    /// Appends a change as a JSON line.
    pub fn push_line(&self, change: &Change, out: &mut Vec<u8>) -> Result<()> {
        let (word, entry) = match change {
            Change::Added(entry) => ("added", entry),
            Change::Changed(entry, _) => ("changed", entry),
            Change::Removed(entry) => ("removed", entry),
        };
        out.extend_from_slice(format!("{{\"change\":\"{word}\",").as_bytes());
        self.after.push_place(&entry.store_key, out)?;
        if let Change::Removed(old) | Change::Changed(old, _) = change {
            push_label("before", 1, out);
            self.after.push_value(&old.value, out)?;
        }
        if let Change::Added(new) | Change::Changed(_, new) = change {
            push_label("after", 1, out);
            self.after.push_value(&new.value, out)?;
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

/// A value that was written again as it was is no change, though it may expire later.
fn change(old: Option<Entry>, new: Option<Entry>) -> Option<Change> {
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some(Change::Added(new)),
        (Some(old), None) => Some(Change::Removed(old)),
        (Some(old), Some(new)) => (old.value != new.value).then_some(Change::Changed(old, new)),
    }
}

/// The runs that only one of two versions lists, or with other clips.
fn unshared(before: &OpenVersion, after: &OpenVersion, reader: &StateReader, ranges: &KeyGroupRanges) -> Vec<Arc<Run>> {
    let runs = |v: &OpenVersion| -> Vec<Arc<Run>> {
        let mut runs = v.tree.runs_of(reader.entry.task, ranges);
        runs.retain(|r| r.may_hold(reader.entry.id, None));
        runs
    };
    let (old, new) = (runs(before), runs(after));
    let mut seen = BTreeSet::new();
    let only = |these: &[Arc<Run>], those: &[Arc<Run>]| -> Vec<Arc<Run>> {
        these.iter().filter(|r| !those.contains(r)).cloned().collect()
    };
    let mut all = only(&old, &new);
    all.extend(only(&new, &old));
    // One that both list with other clips stands once, with all of it.
    let mut merged: Vec<Arc<Run>> = Vec::new();
    for run in all {
        if seen.insert((run.object.clone(), run.offset)) {
            merged.push(run);
        } else if let Some(first) = merged.iter_mut().find(|r| r.identity() == run.identity()) {
            let clip = KeyGroupRanges::new(first.clip.iter().chain(run.clip.iter()).copied());
            *first = Arc::new(first.with_clip(clip));
        }
    }
    merged
}
