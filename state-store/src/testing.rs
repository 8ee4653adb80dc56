//! What several tests need.

use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::Caches;
use millstream_common::hash::stable_hash;
use millstream_common::{Env, Execution, Generation, KeyGroup, StateId, TaskId};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Store, StoreOptions};

use crate::key::{map_key, map_prefix, map_prefix_end, point_key, timed_key};
use crate::*;

pub(crate) const TASK: TaskId = TaskId(0);
pub(crate) const WRITER: WriterName = WriterName { generation: Generation(1), execution: Execution(2) };
pub(crate) const POINT: StateId = StateId(0);
pub(crate) const TIMED: StateId = StateId(1);
pub(crate) const SUMS: StateId = StateId(2);
pub(crate) const LISTS: StateId = StateId(3);
pub(crate) const MAP: StateId = StateId(4);

pub(crate) fn layouts() -> Layouts {
    tree().layouts()
}

/// A tree with the states above and no runs.
pub(crate) fn tree() -> Tree {
    let mut tree = Tree::default();
    let task = tree.add_task("task").unwrap();
    let mut add = |name: &str, layout, merge: &str| {
        let layout = StateLayout { layout, merge_operator: merge.to_owned() };
        tree.add_state(task, "operator", name, layout, "bytes").unwrap()
    };
    assert_eq!(add("point", Layout::Point, ""), POINT);
    assert_eq!(add("timed", Layout::TimeOrdered, ""), TIMED);
    assert_eq!(add("sums", Layout::Point, "add-i64"), SUMS);
    assert_eq!(add("lists", Layout::Point, "append"), LISTS);
    assert_eq!(add("map", Layout::Map, ""), MAP);
    tree
}

pub(crate) fn group_of(key: &[u8]) -> KeyGroup {
    KeyGroup::of_hash(stable_hash(key))
}

pub(crate) fn point(state: StateId, key: &[u8]) -> Bytes {
    let mut out = Vec::new();
    point_key(state, group_of(key), key, &mut out);
    out.into()
}

pub(crate) fn timed(time_ms: i64, key: &[u8]) -> Bytes {
    let mut out = Vec::new();
    timed_key(TIMED, time_ms, group_of(key), key, &mut out);
    out.into()
}

pub(crate) fn mapped(key: &[u8], entry: &[u8]) -> Bytes {
    let mut out = Vec::new();
    map_key(MAP, group_of(key), key, entry, &mut out);
    out.into()
}

/// All entries of a key of the map state.
pub(crate) fn map_of(key: &[u8]) -> std::ops::Range<Bytes> {
    let mut prefix = Vec::new();
    map_prefix(MAP, group_of(key), key, &mut prefix);
    let end = map_prefix_end(&prefix);
    Bytes::from(prefix)..Bytes::from(end)
}

pub(crate) fn memory_store(env: &Env) -> Store {
    Store::from_backend(Arc::new(InMemory::new()), "memory://", &StoreOptions::default(), env)
}

/// A state store in memory; `cached`: with room in its caches.
pub(crate) fn state_store(store: &Store, env: &Env, cached: bool, options: StateStoreOptions) -> StateStore {
    let caches = if cached { Caches::in_memory(64 << 20, 64 << 20) } else { Caches::in_memory(0, 0) };
    StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default())
}
