//! Somebody who looks at a version of the job while it runs: pins it, reads all of its state twice, slowly, and lets go. What
//! is read must not change and nothing of it may be missing, whatever is collected meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_cache::Caches;
use millstream_common::{Env, ErrorKind, KeyGroupRanges, Result, VersionNumber};
use millstream_objects::Store;
use millstream_proto::version::{Pin, VersionRecord, pin};
use millstream_state_store::entry::MergeOperators;
use millstream_state_store::key::{state_end, state_start};
use millstream_state_store::tree::Tree;
use millstream_state_store::version::VersionLog;
use millstream_state_store::version::pins::Pinned;
use millstream_state_store::{ReadTime, StateStore, StateStoreOptions};

use super::cluster::Cluster;
use super::dice::Dice;
use super::run::NAME;

/// One reader, from its pin to its release.
pub async fn read(cluster: Arc<Cluster>, store: Store, number: u64, seed: u64) {
    let mut dice = Dice::new(seed, &format!("reader {number}"));
    let (env, job) = (cluster.env.clone(), store.child(NAME));
    let log = VersionLog::new(job.clone(), env.clone());
    // Ids are used again and again.
    let id = format!("reader-{}", dice.within(0..2));
    let Ok(Some((version, pinned))) = pin(&log, &id, &mut dice, &env).await else { return };
    cluster.ledger.hold(NAME, version);
    cluster.trace.event("pinned", "reader", &format!("{id}: version {version}"));
    let brisk = cluster.has_brisk_readers();
    match look(&log, &job, version, brisk, &mut dice, &env).await {
        Ok(Some((first, second))) if first != second => {
            let (a, b) = (first.len(), second.len());
            cluster.trace.violation(format!("version {version} changes while it is pinned: {a} and {b} entries"));
        }
        Ok(Some((first, _))) => {
            cluster.trace.event("read", "reader", &format!("version {version}: {} entries", first.len()));
        }
        Ok(None) => cluster.trace.violation(format!("version {version} is pinned and gone")),
        // The store is out of order.
        Err(e) if e.kind() == ErrorKind::Unavailable => {}
        Err(e) => cluster.trace.violation(format!("version {version} is pinned and cannot be read: {e}")),
    }
    cluster.ledger.let_go(NAME, version);
    cluster.trace.event("release", "reader", &id);
    while log.pins().release(&pinned).await.is_err() {
        env.sleep(Duration::from_millis(300)).await;
    }
}

/// Pins some version that is listed.
async fn pin(log: &VersionLog, id: &str, dice: &mut Dice, env: &Env) -> Result<Option<(u64, Pinned)>> {
    let mut numbers = log.list().await?;
    let bound = log.boundaries().find().await?.bound;
    numbers.retain(|n| n.0 >= bound);
    let Some(last) = numbers.last() else { return Ok(None) };
    // Old ones above all: they are about to go.
    let version = if dice.chance(60) { numbers[0].0 } else { numbers[dice.within(0..numbers.len() as u64) as usize].0 };
    env.sleep(dice.millis(0..200)).await;
    let pin = Pin {
        id: id.to_owned(),
        version: version.min(last.0),
        kind: pin::Kind::Reader.into(),
        who: "the simulation".to_owned(),
        created_ms: env.wall_ms(),
        until: 0,
    };
    let pinned = log.pins().pin(&pin, log.boundaries()).await?;
    // It may have been a record that nobody tells of any more.
    Ok(Some((pin.version, pinned)))
}

type Entries = BTreeSet<(u16, Bytes, Bytes)>;

async fn look(
    log: &VersionLog,
    job: &Store,
    version: u64,
    brisk: bool,
    dice: &mut Dice,
    env: &Env,
) -> Result<Option<(Entries, Entries)>> {
    env.sleep(dice.millis(0..if brisk { 100 } else { 1_500 })).await;
    let Some(record) = log.read(VersionNumber(version)).await? else { return Ok(None) };
    let first = entries(job, &record, dice, env).await?;
    env.sleep(dice.millis(0..if brisk { 400 } else { 4_000 })).await;
    let second = entries(job, &record, dice, env).await?;
    // The record itself is there until the end, too.
    Ok(log.read(VersionNumber(version)).await?.map(|_| (first, second)))
}

/// All entries of a version, through caches of its own.
async fn entries(job: &Store, record: &VersionRecord, dice: &mut Dice, env: &Env) -> Result<Entries> {
    let state = StateStore::new(
        job.clone(),
        Caches::in_memory(1 << 10, 1 << 20),
        StateStoreOptions::default(),
        env.clone(),
        MergeOperators::default(),
    );
    let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    let time = ReadTime { event_time_ms: i64::MIN, processing_time_ms: 0 };
    let mut out = BTreeSet::new();
    for s in tree.states() {
        let view = state.view(tree.runs_of(s.task, &KeyGroupRanges::all()), KeyGroupRanges::all(), tree.layouts());
        let (mut from, to) = (Bytes::from(state_start(s.id)), state_end(s.id));
        loop {
            let piece = view.scan(&from, &to, 2_000, &time).await?;
            out.extend(piece.entries.into_iter().map(|(k, v)| (s.id.0, k, v)));
            match piece.next {
                Some(next) => from = next,
                None => break,
            }
            env.sleep(dice.millis(0..100)).await;
        }
    }
    Ok(out)
}
