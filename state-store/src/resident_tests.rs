//! The same store with its state in memory, on the local disk and in the object store: the same answers, other costs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use millstream_cache::{CacheOptions, DiskBudget, LocalFiles};
use millstream_common::{Env, Epoch, KeyGroupRange, KeyGroupRanges, Lane};
use millstream_objects::Store;

use crate::section::SectionOptions;
use crate::testing::*;
use crate::*;

const NOW: ReadTime = ReadTime::START;

fn keys(n: usize) -> Vec<Bytes> {
    (0..n).map(|i| point(POINT, format!("key {i}").as_bytes())).collect()
}

fn options() -> StateStoreOptions {
    let section =
        SectionOptions { block_bytes: 1 << 10, keep_blocks_bytes: 0, part_bytes: 64 << 10, ..Default::default() };
    StateStoreOptions { section, gap_bytes: 0, request_bytes: 1 << 20, ..StateStoreOptions::default() }
}

/// A store whose caches hold next to nothing, and so much pinned.
async fn states(store: &Store, env: &Env, residency: Residency, pinned_bytes: u64) -> StateStore {
    let caches = CacheOptions { memory_bytes: 1 << 10, metadata_bytes: 1 << 10, pinned_bytes, disk: None };
    let caches = Caches::new(&caches, env).await.unwrap();
    StateStore::resident(store.clone(), caches, options(), env.clone(), MergeOperators::default(), residency)
}

async fn flush(states: &StateStore, keys: &[Bytes], epoch: u8) -> Arc<Run> {
    let mut writer = SectionWriter::new(TASK);
    keys.iter().for_each(|k| writer.put(k, &[epoch; 100], Expiry::Never));
    let section = states.section_options(0);
    let interval = Interval::of(Epoch(epoch.into()), 0);
    let section = writer.encode(&section, &layouts(), KeyGroupRanges::all(), interval).unwrap();
    Arc::new(states.write_bundle(WRITER, vec![section]).await.unwrap().remove(0))
}

fn view(states: &StateStore, runs: &[Arc<Run>]) -> View {
    states.view(runs.to_vec(), KeyGroupRanges::all(), layouts())
}

async fn read(states: &StateStore, runs: &[Arc<Run>], keys: &[Bytes]) -> Vec<Option<Vec<u8>>> {
    let (values, _) = view(states, runs).multi_get(keys, &NOW).await.unwrap();
    values.iter().map(|v| v.map(<[u8]>::to_vec)).collect()
}

fn gets(store: &Store) -> u64 {
    store.meter().snapshot().get
}

fn local(dir: &std::path::Path, env: &Env) -> Residency {
    Residency::Local(LocalFiles::open(dir, &DiskBudget::new(u64::MAX), env).unwrap())
}

/// Once nothing is on its way to the local disk, and nothing waits to be deleted there.
async fn settled(states: &StateStore) {
    while states.behind_bytes() > 0 || states.local().unwrap().stats().deleting > 0 {
        tokio::task::yield_now().await;
    }
}

/// What another process wrote, and the answers of remote state.
async fn inherited(store: &Store, env: &Env, all: &[Bytes]) -> (Vec<Arc<Run>>, Vec<Option<Vec<u8>>>) {
    let elsewhere = states(store, env, Residency::Remote, 0).await;
    let runs = vec![flush(&elsewhere, &all[..2000], 2).await, flush(&elsewhere, all, 1).await];
    let expected = read(&elsewhere, &runs, all).await;
    (runs, expected)
}

/// What any residency but remote must do: answer the same, and ask the store for nothing once it is loaded.
async fn reads_nothing_from_the_store(store: &Store, env: &Env, states: &StateStore) {
    let all = keys(20_000);
    let (mut runs, mut expected) = inherited(store, env, &all).await;
    let before = gets(store);
    view(states, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    let loaded = gets(store);
    assert!((2..40).contains(&(loaded - before)), "in large GETs: {}", loaded - before);
    assert!(runs.iter().all(|run| states.is_resident(run, &KeyGroupRanges::all())));
    assert_eq!(read(states, &runs, &all).await, expected);
    // What it writes itself, and what it merges, scans included.
    runs.insert(0, flush(states, &all[1000..5000], 3).await);
    expected[1000..5000].fill(Some(vec![3; 100]));
    assert_eq!(read(states, &runs, &all).await, expected);
    let outputs = states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    runs.iter().for_each(|run| states.release(run));
    let outputs: Vec<_> = outputs.into_iter().map(Arc::new).collect();
    assert_eq!(read(states, &outputs, &all).await, expected);
    let piece = view(states, &outputs).scan(&[], &[0xff], usize::MAX, &NOW).await.unwrap();
    assert_eq!((piece.entries.len(), gets(store)), (all.len(), loaded), "nothing was read from the store");
    assert!(!states.is_resident(&runs[0], &KeyGroupRanges::all()));
}

#[tokio::test]
async fn state_in_memory_is_read_without_a_get_whatever_the_cache_holds() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    reads_nothing_from_the_store(&store, &env, &states).await;
    let stats = states.caches().stats();
    // One copy of 20,000 entries, and what the blocks of the merged runs took has been given back.
    assert!((2 << 20..4 << 20).contains(&stats.pinned_bytes) && stats.pins_refused == 0, "{stats:?}");
}

#[tokio::test]
async fn state_on_the_local_disk_is_read_without_a_get() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let states = states(&store, &env, local(dir.path(), &env), 0).await;
    reads_nothing_from_the_store(&store, &env, &states).await;
    settled(&states).await;
    let stats = states.local().unwrap().stats();
    assert!(stats.files == 1 && stats.refused + stats.failed == 0 && stats.reads > 1000, "{stats:?}");
    // The lock, and the one section that is live.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn what_does_not_fit_into_memory_is_paged_in_and_reported() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 1 << 20).await;
    view(&states, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    assert!(states.is_resident(&runs[0], &KeyGroupRanges::all()), "the newest one fits");
    assert!(!states.is_resident(&runs[1], &KeyGroupRanges::all()));
    assert_eq!(read(&states, &runs, &all).await, expected);
    let stats = states.caches().stats();
    assert!(stats.pinned_bytes <= 1 << 20 && stats.pinned_bytes > 1 << 19 && stats.pins_refused > 0, "{stats:?}");
    states.release_all();
    assert_eq!(states.caches().stats().pinned_bytes, 0);
}

#[tokio::test]
async fn a_deployment_that_ends_leaves_what_the_next_one_has_taken_over() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let old = states(&store, &env, Residency::Memory, 64 << 20).await;
    view(&old, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    let caches = old.caches().clone();
    let merge = MergeOperators::default;
    let new = StateStore::resident(store.clone(), caches, options(), env.clone(), merge(), Residency::Memory);
    let asked = gets(&store);
    view(&new, &runs[..1]).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    // It ends late: amid the loading of its successor.
    old.release_all();
    assert_eq!(read(&new, &runs[..1], &all[..2000]).await, expected[..2000]);
    assert_eq!(gets(&store), asked, "it was there, and is yet");
    view(&new, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    let loaded = gets(&store);
    assert!(loaded > asked, "the other run had gone with it");
    assert_eq!((read(&new, &runs, &all).await, gets(&store)), (expected, loaded));
    new.release_all();
    assert_eq!(new.caches().stats().pinned_bytes, 0);
}

#[tokio::test]
async fn only_the_blocks_of_owned_key_groups_stay_in_memory() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, _) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    let whole = states.caches().stats().pinned_bytes;
    let quarter = KeyGroupRanges::from(KeyGroupRange::new(0, 16_384));
    runs.iter().for_each(|run| states.release_outside(run, &quarter));
    let left = states.caches().stats().pinned_bytes;
    // The indexes stay whole.
    assert!(left < whole / 2 && left > whole / 5, "{left} of {whole}");
    assert!(states.is_resident(&runs[1], &quarter) && !states.is_resident(&runs[1], &KeyGroupRanges::all()));
    // What comes back is loaded again, the rest alone.
    let loaded = view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    assert!(loaded.misses > 0 && states.caches().stats().pinned_bytes == whole, "{loaded:?}");
    runs.iter().for_each(|run| states.release_outside(run, &KeyGroupRanges::empty()));
    assert_eq!(states.caches().stats().pinned_bytes, 0);
}

/// Files of sections in a folder, by size.
fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "section"));
    files.sort_by_key(|f| std::fs::metadata(f).unwrap().len());
    files
}

#[tokio::test]
async fn files_are_taken_over_after_a_restart_and_damaged_ones_are_read_from_the_store() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let dead = {
        let states = states(&store, &env, local(dir.path(), &env), 0).await;
        view(&states, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
        let dead = flush(&states, &all[..10], 9).await;
        settled(&states).await;
        dead
    };
    assert_eq!(files(dir.path()).len(), 3);
    let restart = || async {
        let states = states(&store, &env, local(dir.path(), &env), 0).await;
        states.release_others(runs.iter().map(AsRef::as_ref));
        let before = gets(&store);
        view(&states, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
        assert_eq!(read(&states, &runs, &all).await, expected);
        settled(&states).await;
        (gets(&store) - before, states.local().unwrap().stats())
    };
    let (asked, stats) = restart().await;
    assert_eq!((asked, stats.adopted, stats.failed), (0, 2, 0));
    assert!(dead.length > 0 && files(dir.path()).len() == 2, "what no version lists is gone");

    // A block, in the middle of the larger file: it is found when it is read.
    let flip = |file: &std::path::Path, at: usize| {
        let mut bytes = std::fs::read(file).unwrap();
        let at = bytes.len() * at / 100;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    flip(&files(dir.path())[1], 50);
    let (asked, stats) = restart().await;
    assert!(asked > 0 && stats.adopted == 2 && stats.failed > 0, "{asked} {stats:?}");
    // It was discarded; the next start has it again from the store.
    assert_eq!(files(dir.path()).len(), 1);
    let (asked, _) = restart().await;
    assert!(asked > 0 && files(dir.path()).len() == 2);
    // The index, and a file that was cut: found before anything is read.
    flip(&files(dir.path())[1], 99);
    std::fs::write(&files(dir.path())[0], b"cut").unwrap();
    let (_, stats) = restart().await;
    assert_eq!((stats.adopted, stats.failed, stats.files), (0, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_only_slows_reads_down_and_is_tried_again() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let files = LocalFiles::open(dir.path(), &DiskBudget::new(runs[0].length + 1000), &env).unwrap();
    let states = states(&store, &env, Residency::Local(files), 0).await;
    let load = async || view(&states, &runs).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    load().await;
    assert!(states.is_resident(&runs[0], &KeyGroupRanges::all()), "the newest one fits");
    assert!(!states.is_resident(&runs[1], &KeyGroupRanges::all()));
    assert_eq!(read(&states, &runs, &all).await, expected);
    let own = flush(&states, &all[..2000], 3).await;
    settled(&states).await;
    assert!(!states.is_resident(&own, &KeyGroupRanges::all()));
    // While it is full nothing is fetched for it.
    let (refused, asked) = (states.local().unwrap().stats().refused, gets(&store));
    assert!(refused >= 2);
    load().await;
    assert_eq!(gets(&store), asked);
    // Room again: it is tried after a pause.
    states.release(&runs[0]);
    env.sleep(Duration::from_secs(601)).await;
    let newest = [own, runs[0].clone(), runs[1].clone()];
    view(&states, &newest[..1]).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    assert!(states.is_resident(&newest[0], &KeyGroupRanges::all()));
    // The folder goes away: all is read from the store.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let values = read(&states, &newest, &all[..3000]).await;
    assert!(
        values[..2000].iter().all(|v| v.as_deref() == Some(&[3; 100][..])) && values[2000..] == expected[2000..3000]
    );
    assert!(flush(&states, &all[..10], 4).await.length > 0);
}

/// Something in the place of a file that hangs whoever opens it, until [`let_go`].
fn hang(path: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn let_go(path: &std::path::Path) {
    drop(std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_a_disk_that_hangs_and_is_read_meanwhile() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(1000);
    let states = states(&store, &env, local(dir.path(), &env), 0).await;
    // The name of its object comes of the seed, and so does that of a twin's.
    let name = {
        let (env, dir) = (Env::test(1), tempfile::tempdir().unwrap());
        let store = memory_store(&env);
        let twin = super::resident_tests::states(&store, &env, local(dir.path(), &env), 0).await;
        let run = flush(&twin, &all, 1).await;
        settled(&twin).await;
        assert!(twin.is_resident(&run, &KeyGroupRanges::all()));
        files(dir.path())[0].file_name().unwrap().to_str().unwrap().replace(".section", ".part")
    };
    let blocked = dir.path().join(name);
    hang(&blocked);
    let run = flush(&states, &all, 1).await;
    assert!(states.behind_bytes() == run.length && states.is_resident(&run, &KeyGroupRanges::all()));
    let asked = gets(&store);
    assert!(read(&states, std::slice::from_ref(&run), &all).await.iter().all(|v| v.as_deref() == Some(&[1; 100][..])));
    assert_eq!((gets(&store), states.local().unwrap().stats().files), (asked, 0));
    // It is given up in the end, and read from the store.
    while states.behind_bytes() > 0 {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(!states.is_resident(&run, &KeyGroupRanges::all()) && states.local().unwrap().stats().refused == 1);
    assert!(read(&states, std::slice::from_ref(&run), &all).await.iter().all(Option::is_some));
    assert!(gets(&store) > asked);
    let_go(&blocked);
    settled(&states).await;
}

#[tokio::test]
async fn files_of_an_earlier_deployment_that_no_version_lists_are_deleted() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(1000);
    let old = states(&store, &env, local(dir.path(), &env), 0).await;
    let (dead, listed) = (flush(&old, &all, 1).await, flush(&old, &all, 2).await);
    settled(&old).await;
    old.release_all();
    assert_eq!(files(dir.path()).len(), 2, "for the next deployment to say");
    let residency = Residency::Local(old.local().unwrap().clone());
    let new = states(&store, &env, residency, 0).await;
    new.release_others([&*listed]);
    settled(&new).await;
    let everywhere = KeyGroupRanges::all();
    assert!(
        files(dir.path()).len() == 1 && new.is_resident(&listed, &everywhere) && !new.is_resident(&dead, &everywhere)
    );
    // What the old one would keep yet is refused.
    flush(&old, &all, 3).await;
    assert!(old.behind_bytes() == 0 && files(dir.path()).len() == 1);
}

#[tokio::test]
async fn a_deployment_that_ends_amid_work_leaves_nothing_pinned() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, _) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    view(&states, &runs[..1]).make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    // A flush that nobody was told of, and outputs of a compaction that nobody lists.
    let unheard = flush(&states, &all[..100], 3).await;
    states.compact(&runs, &KeyGroupRanges::all(), &layouts(), WRITER, true, NOW).await.unwrap();
    assert!(states.caches().stats().pinned_bytes > 3 << 20);
    // A load that is under way: it asks between its runs whether it is still wanted, and here the deployment ends.
    let end = |run: &Run| {
        if run.identity() == runs[1].identity() {
            states.release_all();
        }
        true
    };
    view(&states, &runs).make_resident(WarmUp::BEHIND, end).await.unwrap();
    assert_eq!(states.caches().stats().pinned_bytes, 0);
    flush(&states, &all, 4).await;
    assert!(states.caches().stats().pinned_bytes == 0 && !states.is_resident(&unheard, &KeyGroupRanges::all()));
}

#[tokio::test]
async fn a_run_that_is_let_go_while_it_is_loaded_leaves_nothing_pinned() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, _) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    let pace = WarmUp { runs: 1, bytes: 64 << 10 };
    let one = view(&states, &runs[1..]);
    let mut loading = std::pin::pin!(one.make_resident(pace, |_| true));
    // Polled by hand: it is let go as soon as anything of it is there.
    let done = std::future::poll_fn(|cx| {
        let polled = loading.as_mut().poll(cx);
        if states.caches().stats().pinned_bytes > 0 {
            states.release(&runs[1]);
        }
        polled
    });
    done.await.unwrap();
    states.release(&runs[1]);
    assert_eq!(states.caches().stats().pinned_bytes, 0);
}

#[tokio::test]
async fn blocks_of_a_run_that_did_not_fit_whole_are_let_go_too() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, _) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 1 << 20).await;
    view(&states, &runs[1..]).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    let held = states.caches().stats().pinned_bytes;
    assert!(held > 1 << 19 && !states.is_resident(&runs[1], &KeyGroupRanges::all()));
    // It was loaded from its first key groups on.
    let last = KeyGroupRanges::from(KeyGroupRange::new(57_344, 65_536));
    states.release_outside(&runs[1], &last);
    assert!(states.caches().stats().pinned_bytes < held / 2, "{} of {held}", states.caches().stats().pinned_bytes);
    // Now what is left fits.
    let view = states.view(runs[1..].to_vec(), last.clone(), layouts());
    view.make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    assert!(states.is_resident(&runs[1], &last));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_now_is_taken_over_later() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(2000);
    let run = {
        let states = states(&store, &env, local(dir.path(), &env), 0).await;
        let run = flush(&states, &all, 1).await;
        settled(&states).await;
        run
    };
    let states = states(&store, &env, local(dir.path(), &env), 0).await;
    let (file, aside) = (files(dir.path())[0].clone(), dir.path().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    hang(&file);
    let asked = gets(&store);
    let load = async |states: StateStore, run: Arc<Run>| {
        let view = states.view(vec![run], KeyGroupRanges::all(), layouts());
        view.make_resident(WarmUp::BEHIND, |_| true).await.unwrap();
    };
    let mut loading = env.run(Lane::Io, "what may hang", load(states.clone(), run.clone()));
    while (&mut loading).now_or_never().is_none() {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!(!states.is_resident(&run, &KeyGroupRanges::all()) && file.exists() && gets(&store) == asked);
    let_go(&file);
    std::fs::rename(&aside, &file).unwrap();
    load(states.clone(), run.clone()).await;
    assert!(states.is_resident(&run, &KeyGroupRanges::all()) && gets(&store) == asked);
    assert_eq!(states.local().unwrap().stats().adopted, 1);
}

#[tokio::test]
async fn a_damaged_section_is_fetched_once() {
    let env = Env::test(1);
    let (store, dir) = (memory_store(&env), tempfile::tempdir().unwrap());
    let all = keys(2000);
    let (runs, _) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, local(dir.path(), &env), 0).await;
    let damaged = Arc::new(Run { checksum: runs[0].checksum ^ 1, ..Run::clone(&runs[0]) });
    let load = async || view(&states, std::slice::from_ref(&damaged)).make_resident(WarmUp::BEHIND, |_| true).await;
    assert!(load().await.unwrap().gets > 0 && states.local().unwrap().stats().files == 0);
    let everywhere = KeyGroupRanges::all();
    assert!(!states.is_resident(&damaged, &everywhere) && !states.lacks(&damaged, &everywhere));
    assert_eq!(load().await.unwrap().gets, 0);
    assert!(states.lacks(&runs[1], &everywhere));
}

#[tokio::test]
async fn what_a_run_no_longer_shows_is_let_go() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    let whole = states.caches().stats().pinned_bytes;
    let (low, high) = (KeyGroupRange::new(0, 32_768), KeyGroupRange::new(32_768, 65_536));
    let (low, high) = (KeyGroupRanges::from(low), KeyGroupRanges::from(high));
    let outputs = states.compact(&runs, &low, &layouts(), WRITER, true, NOW).await.unwrap();
    let merged = states.caches().stats().pinned_bytes;
    assert!(merged > whole, "the outputs are there beside what they were made of");
    let shrunk: Vec<Arc<Run>> = runs.iter().map(|run| Arc::new(run.with_clip(run.clip.intersect(&high)))).collect();
    for run in &shrunk {
        states.forget_outside(run, &run.clip);
        states.release_outside(run, &KeyGroupRanges::all());
    }
    let left = states.caches().stats().pinned_bytes;
    assert!(left < merged - whole / 3, "{left} of {merged}");
    let live: Vec<Arc<Run>> = shrunk.into_iter().chain(outputs.into_iter().map(Arc::new)).collect();
    let asked = gets(&store);
    assert_eq!((read(&states, &live, &all).await, gets(&store)), (expected, asked));
}

#[tokio::test]
async fn a_job_pins_its_share_and_gets_room_back() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let all = keys(20_000);
    let (runs, expected) = inherited(&store, &env, &all).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    states.share_pins(1 << 20);
    view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    let held = states.caches().stats().pinned_bytes;
    // Indexes are not counted.
    assert!(held > 1 << 19 && held < 3 << 19, "{held}");
    assert!(!states.is_resident(&runs[1], &KeyGroupRanges::all()));
    assert_eq!(read(&states, &runs, &all).await, expected);
    // All of it goes, in part first; then there is as much room as before.
    let quarter = KeyGroupRanges::from(KeyGroupRange::new(0, 16_384));
    runs.iter().for_each(|run| states.release_outside(run, &quarter));
    runs.iter().for_each(|run| states.release(run));
    assert_eq!(states.caches().stats().pinned_bytes, 0);
    view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    // Which block was the first without room may differ.
    assert!(states.caches().stats().pinned_bytes.abs_diff(held) < 4 << 10);
    // The share grows: it is used.
    states.share_pins(2 << 20);
    view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
    let grown = states.caches().stats().pinned_bytes;
    assert!(grown > held + (1 << 19) && grown < held + (3 << 19), "{grown} after {held}");
    assert_eq!(read(&states, &runs, &all).await, expected);
}

#[tokio::test]
async fn a_share_stays_what_it_is_when_key_groups_come_and_go() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let (runs, _) = inherited(&store, &env, &keys(20_000)).await;
    let states = states(&store, &env, Residency::Memory, 64 << 20).await;
    states.share_pins(1 << 20);
    let load = async || {
        view(&states, &runs).make_resident(WarmUp::AWAITED, |_| true).await.unwrap();
        states.caches().stats().pinned_bytes
    };
    let held = load().await;
    let few = KeyGroupRanges::from(KeyGroupRange::new(0, 8192));
    for _ in 0..5 {
        runs.iter().for_each(|run| states.release_outside(run, &few));
        let left = states.caches().stats().pinned_bytes;
        assert!(left < held / 10 * 8, "{left} of {held}");
        // Which block was the first without room may differ.
        let again = load().await;
        assert!(again.abs_diff(held) < 4 << 10, "{again} after {held}");
    }
}

#[tokio::test]
async fn a_run_that_nobody_wants_any_more_and_that_does_not_fit_leaves_nothing_pinned() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let (runs, _) = inherited(&store, &env, &keys(20_000)).await;
    let states = states(&store, &env, Residency::Memory, 1 << 20).await;
    // It is let go before any of it is there, and comes for all that.
    let asked = std::sync::atomic::AtomicU64::new(0);
    let wanted = |run: &Run| {
        let first = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        if first {
            states.release(run);
        }
        first
    };
    view(&states, &runs[1..]).make_resident(WarmUp::AWAITED, wanted).await.unwrap();
    let stats = states.caches().stats();
    assert!(stats.pins_refused > 0 && stats.pinned_bytes == 0, "{stats:?}");
}
