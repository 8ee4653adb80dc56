//! A look into a map state, as the state store wrote it.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, StringArray};
use arrow_schema::DataType;
use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Env, Epoch, Execution, Generation, KeyGroup, KeyGroupRanges, StateId, TaskId};
use millstream_objects::{Store, StoreEnvironment, StoreOptions};
use millstream_proto::version::{VersionRecord, version_record};
use millstream_state_store::key::{KeyBuffer, encode_keys, map_key};
use millstream_state_store::schema::{Form, KeyColumn, Schema, put_i64};
use millstream_state_store::section::{Interval, SectionWriter};
use millstream_state_store::version::VersionLog;
use millstream_state_store::{
    Caches, Expiry, Layout, MergeOperators, Run, StateLayout, StateStore, StateStoreOptions, Tree, WriterName,
};

use super::diff::StateDiff;
use super::key;
use super::reader::{BAD_LOOK, NO_SCHEMA, StateReader};
use super::version::{OpenVersion, open_version};

fn encoded(column: ArrayRef) -> Vec<u8> {
    let mut keys = KeyBuffer::default();
    encode_keys(&[column], &mut keys).unwrap();
    keys.key(0).to_vec()
}

fn number(n: i64) -> Vec<u8> {
    encoded(Arc::new(Int64Array::from(vec![n])))
}

fn text(t: &str) -> Vec<u8> {
    encoded(Arc::new(StringArray::from(vec![t])))
}

/// A tree with one map state: by auction and bidder, the number of bids; and without `described`, nothing is known of it.
fn tree(described: bool) -> (Tree, StateId) {
    let mut tree = Tree::default();
    let task = tree.add_task("bids").unwrap();
    let column = |name: &str, ty| KeyColumn { name: name.into(), ty, nullable: false };
    let schema = Schema {
        key: vec![column("auction", DataType::Int64)],
        map_key: if described { vec![column("bidder", DataType::Utf8)] } else { Vec::new() },
        value: Form::Integer,
        ttl: None,
    };
    let layout = StateLayout { layout: Layout::Map, merge_operator: String::new() };
    let id = tree.add_described_state(task, "bids", "by bidder", layout, ("i64 bids", Some(schema))).unwrap();
    (tree, id)
}

type Entry<'a> = (i64, &'a str, Option<i64>);

/// A flush of entries of (auction, bidder, bids); no bids: removed.
async fn flush(store: &Store, env: &Env, tree: &Tree, epoch: u64, entries: &[Entry<'_>]) -> Arc<Run> {
    let (caches, options) = (Caches::in_memory(1 << 20, 1 << 20), StateStoreOptions::default());
    let states = StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default());
    let mut writer = SectionWriter::new(TaskId(0));
    for (auction, bidder, bids) in entries {
        let (auction, mut key, mut value) = (number(*auction), Vec::new(), Vec::new());
        map_key(tree.states()[0].id, KeyGroup::of_hash(stable_hash(&auction)), &auction, &text(bidder), &mut key);
        match bids {
            Some(bids) => {
                put_i64(*bids, &mut value);
                writer.put(&key, &value, Expiry::Never);
            }
            None => writer.delete(&key),
        }
    }
    let interval = Interval::of(Epoch(epoch), 0);
    let section = &states.options().section;
    let section = writer.encode(section, &tree.layouts(), KeyGroupRanges::all(), interval).unwrap();
    let writer = WriterName { generation: Generation(1), execution: Execution(1) };
    Arc::new(states.write_bundle(writer, vec![section]).await.unwrap().remove(0))
}

async fn commit(store: &Store, env: &Env, number: u64, tree: &Tree) {
    let record = VersionRecord {
        number,
        kind: version_record::Kind::Checkpoint.into(),
        generation: 1,
        nonce: format!("{number:032x}"),
        epoch: number,
        hash_id: 1,
        key_codec_id: 1,
        tree: Some(tree.to_proto()),
        ..VersionRecord::default()
    };
    VersionLog::new(store.clone(), env.clone()).commit(&record).await.unwrap();
}

fn reader(version: &OpenVersion, raw: bool) -> millstream_common::Result<StateReader> {
    StateReader::new(version, version, version.state("bids/by bidder")?, &KeyGroupRanges::all(), raw)
}

fn place(reader: &StateReader, key: &str, map_key: Option<&str>) -> Bytes {
    let key = key::parse(key, reader.key_columns()).unwrap();
    let map_key = map_key.map(|m| key::parse(m, reader.map_key_columns()).unwrap());
    reader.store_key(key.hash(0), key.key(0), None, map_key.as_ref().map(|m| m.key(0))).unwrap()
}

fn lines(reader: &StateReader, entries: &[super::reader::Entry]) -> Vec<String> {
    let mut out = Vec::new();
    entries.iter().for_each(|e| reader.push_line(e, &mut out).unwrap());
    String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

async fn two_versions(described: bool) -> (Store, Env) {
    let env = Env::test(1);
    let store = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
    let (mut tree, _) = tree(described);
    let first = [(1000, "ann", Some(3)), (1000, "bob", Some(1)), (0, "", Some(7)), (256, "ann", Some(2))];
    tree.add_runs([flush(&store, &env, &tree, 1, &first).await]);
    commit(&store, &env, 1, &tree).await;
    let second = [(1000, "ann", Some(4)), (256, "ann", None), (5, "carl", Some(1))];
    tree.add_runs([flush(&store, &env, &tree, 2, &second).await]);
    commit(&store, &env, 2, &tree).await;
    (store, env)
}

#[tokio::test]
async fn maps_are_shown_with_both_keys_whole_and_entry_by_entry() {
    let (store, env) = two_versions(true).await;
    let version = open_version(&store, &env, "job", None).await.unwrap();
    assert_eq!(version.list()[0]["layout"], "map");
    assert_eq!(version.list()[0]["schema"], "key (auction: int64), map key (bidder: utf8), value integer");
    let mut reader = reader(&version, false).unwrap();
    let page = reader.page(&reader.start()).await.unwrap();
    let mut all = lines(&reader, &page.entries);
    all.sort();
    let expected = [
        r#"{"key":{"auction":0},"map_key":{"bidder":""},"value":7}"#,
        r#"{"key":{"auction":1000},"map_key":{"bidder":"ann"},"value":4}"#,
        r#"{"key":{"auction":1000},"map_key":{"bidder":"bob"},"value":1}"#,
        r#"{"key":{"auction":5},"map_key":{"bidder":"carl"},"value":1}"#,
    ];
    assert_eq!(all, expected);

    let prefix = place(&reader, "1000", None);
    let page = reader.page_of_map(&prefix, &prefix).await.unwrap();
    assert_eq!(
        (lines(&reader, &page.entries), page.next),
        (expected[1..3].iter().map(|l| (*l).into()).collect(), None)
    );
    let prefix = place(&reader, r#"{"auction":256}"#, None);
    assert!(reader.page_of_map(&prefix, &prefix).await.unwrap().entries.is_empty());
    let mut out = Vec::new();
    reader.push_place(&prefix, &mut out).unwrap();
    assert_eq!(out, br#""key":{"auction":256}"#);

    let keys = [place(&reader, "1000", Some("bob")), place(&reader, "1000", Some("nobody"))];
    let found = reader.get(&keys).await.unwrap();
    assert!(found[1].is_none());
    assert_eq!(lines(&reader, &[found[0].clone().unwrap()]), [expected[2]]);
    // From an entry on.
    let page = reader.page(&keys[0]).await.unwrap();
    assert_eq!(lines(&reader, &page.entries)[0], expected[2]);
}

#[tokio::test]
async fn two_versions_of_a_map_differ_by_entries() {
    let (store, env) = two_versions(true).await;
    let open = async |at| open_version(&store, &env, "job", Some(at)).await.unwrap();
    let (before, after) = (open(1).await, open(2).await);
    let all = KeyGroupRanges::all();
    let (old, new) = (reader(&before, false).unwrap(), reader(&after, false).unwrap());
    let mut diff = StateDiff::new((&before, &after), old, new, &all, &after);
    let mut out = Vec::new();
    while let Some(changes) = diff.next().await.unwrap() {
        changes.iter().for_each(|change| diff.push_line(change, &mut out).unwrap());
    }
    let mut lines: Vec<&str> = std::str::from_utf8(&out).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            r#"{"change":"added","key":{"auction":5},"map_key":{"bidder":"carl"},"after":1}"#,
            r#"{"change":"changed","key":{"auction":1000},"map_key":{"bidder":"ann"},"before":3,"after":4}"#,
            r#"{"change":"removed","key":{"auction":256},"map_key":{"bidder":"ann"},"before":2}"#,
        ]
    );
}

#[tokio::test]
async fn without_its_columns_a_map_is_shown_as_bytes_and_what_does_not_fit_is_refused() {
    let (store, env) = two_versions(false).await;
    let version = open_version(&store, &env, "job", None).await.unwrap();
    assert_eq!(reader(&version, false).err().unwrap().number(), NO_SCHEMA);
    let mut raw = reader(&version, true).unwrap();
    let page = raw.page(&place(&raw, "5", None)).await.unwrap();
    assert_eq!(lines(&raw, &page.entries[..1]), [r#"{"key":{"auction":5},"map_key":"016361726c0000","value":"02"}"#]);
    let refused = [raw.store_key(0, b"", Some(5), None).err(), raw.start_at(5).err()];
    assert!(refused.into_iter().all(|e| e.unwrap().number() == BAD_LOOK));
}
