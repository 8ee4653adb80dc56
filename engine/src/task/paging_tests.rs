//! The maps that a read brings, from a store in memory with some latency.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Env, Epoch, Execution, Generation, KeyGroup, KeyGroupRanges, StateId, TaskId};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Faults, FaultyStore, Store, StoreOptions};
use millstream_state_store::key::{map_key, map_prefix};
use millstream_state_store::section::{Interval, SectionOptions, SectionWriter};
use millstream_state_store::{
    Caches, Expiry, Layout, Layouts, MergeOperators, ReadTime, StateStore, StateStoreOptions, WriterName,
};

use super::{MAPS_PER_SCAN, of_prefix, scan_maps};

const STATE: StateId = StateId(3);

fn prefix_of(n: usize) -> Bytes {
    let (key, mut out) = (n.to_be_bytes(), Vec::new());
    map_prefix(STATE, KeyGroup::of_hash(stable_hash(&key)), &key, &mut out);
    out.into()
}

#[tokio::test(start_paused = true)]
async fn thousands_of_maps_come_in_order_by_several_scans_at_once() {
    const MAPS: usize = 5 * MAPS_PER_SCAN;
    const ENTRIES: u8 = 3;
    let env = Env::test(1);
    let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, Faults::none());
    let store = Store::from_backend(Arc::new(backend.clone()), "memory://", &StoreOptions::default(), &env);
    let section = SectionOptions { keep_blocks_bytes: 0, ..SectionOptions::default() };
    let options = StateStoreOptions { section, read_ahead_bytes: 64 << 10, ..StateStoreOptions::default() };
    let open = || {
        let caches = Caches::in_memory(1 << 20, 1 << 20);
        StateStore::new(store.clone(), caches, options.clone(), env.clone(), MergeOperators::default())
    };
    let layouts = Layouts::plain([(STATE, Layout::Map)]);
    let (mut writer, mut key) = (SectionWriter::new(TaskId(0)), Vec::new());
    for n in 0..MAPS {
        for entry in 0..ENTRIES {
            let of = n.to_be_bytes();
            map_key(STATE, KeyGroup::of_hash(stable_hash(&of)), &of, &[entry], &mut key);
            writer.put(&key, &[entry; 200], Expiry::Never);
        }
    }
    let interval = Interval::of(Epoch(1), 0);
    let section = writer.encode(&options.section, &layouts, KeyGroupRanges::all(), interval).unwrap();
    let name = WriterName { generation: Generation(1), execution: Execution(1) };
    let runs: Vec<_> = open().write_bundle(name, vec![section]).await.unwrap().into_iter().map(Arc::new).collect();
    let latency = Duration::from_millis(30);
    backend.set(Faults { latency_p50: latency, latency_p99: latency, ..Faults::none() });
    let view = open().view(runs, KeyGroupRanges::all(), layouts);
    // In any order, some twice, some that nobody has.
    let mut prefixes: Vec<Bytes> = (0..MAPS + 100).rev().map(prefix_of).collect();
    prefixes.extend((0..10).map(prefix_of));
    let started = env.now();
    let (entries, report) = scan_maps(&view, &prefixes, &ReadTime::START).await.unwrap();
    let took = env.now().since(started);
    assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(entries.len(), MAPS * usize::from(ENTRIES));
    for n in 0..MAPS {
        let of_map = of_prefix(&entries, &prefix_of(n));
        assert!(of_map.iter().map(|(_, value)| value[0]).eq(0..ENTRIES), "{n}");
    }
    assert!((MAPS..MAPS + 100).all(|n| of_prefix(&entries, &prefix_of(n)).is_empty()));
    // A scan makes one GET after the other; by virtual time several scans do that at once.
    let one_by_one = latency * u32::try_from(report.gets).unwrap();
    assert!(report.gets > 20 && took < one_by_one / 2, "{took:?} for {} GETs", report.gets);
}
