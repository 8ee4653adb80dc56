use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use millstream_common::{Env, Lane};

use super::*;

fn key(n: u64) -> BlockKey {
    BlockKey { object: ObjectId::of("object"), offset: n }
}

fn body(n: u64, bytes: usize) -> Bytes {
    Bytes::from(vec![n as u8; bytes])
}

#[test]
fn blocks_are_kept_within_the_budget() {
    let caches = Caches::<Bytes>::in_memory(1 << 20, 0);
    assert_eq!(caches.block(&key(1)), None);
    caches.insert_block(key(1), body(1, 100));
    assert_eq!(caches.block(&key(1)), Some(body(1, 100)));
    assert_eq!(caches.block(&BlockKey { object: ObjectId::of("other"), offset: 1 }), None);
    for n in 0..1000 {
        caches.insert_block(key(n), body(n, 10_000));
    }
    let stats = caches.stats();
    assert!(stats.memory_bytes <= 1 << 20 && stats.memory_bytes > 1 << 19, "{stats:?}");
    assert_eq!(stats.memory_hits, 1);
    assert!(!caches.has_disk());
}

#[test]
fn metadata_has_its_type_and_its_budget() {
    let caches = Caches::<Bytes>::in_memory(0, 100_000);
    caches.insert_metadata(key(1), Arc::new("meta".to_owned()), 10);
    assert_eq!(caches.metadata::<String>(&key(1)).as_deref(), Some(&"meta".to_owned()));
    assert_eq!(caches.metadata::<u64>(&key(1)), None, "another type");
    assert_eq!(caches.metadata::<String>(&key(2)), None);
    for n in 0..10_000 {
        caches.insert_metadata(key(n), Arc::new(n), 1000);
    }
    let kept = (0..10_000).filter(|n| caches.metadata::<u64>(&key(*n)).is_some()).count();
    assert!(kept < 1000, "{kept}");
}

#[tokio::test(start_paused = true)]
async fn one_fetches_and_the_others_wait() {
    let caches = Caches::<Bytes>::in_memory(1 << 20, 0);
    let Flight::Lead(lead) = caches.begin(key(1)) else { panic!("nobody fetches it yet") };
    let Flight::Wait(wait) = caches.begin(key(1)) else { panic!("somebody fetches it") };
    let Flight::Wait(other) = caches.begin(key(1)) else { panic!("somebody fetches it") };
    caches.insert_block(key(1), body(1, 10));
    lead.finish(body(1, 10));
    assert_eq!(wait.result().await, Some(body(1, 10)));
    assert_eq!(other.result().await, Some(body(1, 10)), "also when it comes late");
    assert!(matches!(caches.begin(key(1)), Flight::Ready(b) if b == body(1, 10)));

    let Flight::Lead(lead) = caches.begin(key(2)) else { panic!("nobody fetches it yet") };
    let Flight::Wait(wait) = caches.begin(key(2)) else { panic!("somebody fetches it") };
    drop(lead);
    assert_eq!(wait.result().await, None);
    let Flight::Lead(lead) = caches.begin(key(2)) else { panic!("the first one gave up") };
    lead.finish(body(2, 10));
    assert_eq!(caches.block(&key(2)), None);
}

fn disk_options(dir: &std::path::Path) -> CacheOptions {
    // Next to nothing in memory: what is found was on disk.
    let disk = DiskOptions { dir: dir.to_owned(), bytes: 64 << 20 };
    CacheOptions { memory_bytes: 1 << 10, metadata_bytes: 0, pinned_bytes: 0, disk: Some(disk) }
}

#[tokio::test]
async fn blocks_come_back_from_disk_also_after_a_restart() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let options = disk_options(dir.path());
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    assert!(caches.has_disk());
    for n in 0..50 {
        caches.insert_block(key(n), body(n, 15_000));
        // It drops what comes faster than it writes.
        env.sleep(Duration::from_millis(1)).await;
    }
    caches.close().await;
    drop(caches);
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    let mut found = 0;
    for n in 0..60 {
        match caches.disk_block(&key(n), None).await {
            Some(block) => {
                assert_eq!(block, body(n, 15_000));
                found += 1;
            }
            None => {
                caches.count_misses(1);
                assert!(n > 0);
            }
        }
    }
    let stats = caches.stats();
    assert!(found >= 25, "{found}");
    assert_eq!((stats.disk_hits, stats.misses), (found, 60 - found));
}

#[tokio::test]
async fn a_damaged_or_lost_cache_on_disk_is_a_miss() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let options = disk_options(dir.path());
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    for n in 0..50 {
        caches.insert_block(key(n), body(n, 15_000));
        env.sleep(Duration::from_millis(1)).await;
    }
    caches.close().await;
    drop(caches);
    // Every other byte of the files is another one now.
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.iter_mut().step_by(2).for_each(|b| *b ^= 0x55);
        std::fs::write(&file, &bytes).unwrap();
    }
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    for n in 0..50 {
        assert_eq!(caches.disk_block(&key(n), None).await, None);
    }
    assert_eq!(caches.stats().disk_hits, 0);

    // The folder goes away while it is used: what is read is right or missing, nothing fails.
    std::fs::remove_dir_all(dir.path()).unwrap();
    for n in 100..150 {
        caches.insert_block(key(n), body(n, 15_000));
        if let Some(block) = caches.disk_block(&key(n), None).await {
            assert_eq!(block, body(n, 15_000));
        }
    }
    caches.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_slow_or_fails_is_left_alone_for_a_while() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    let started = env.now();
    for n in 0..20 {
        // What is not there is known without the disk, and says nothing of it.
        for _ in 0..100 {
            assert_eq!(caches.judge(&env, None, async { Ok(None) }).await, None);
        }
        let look = async {
            if n % 2 == 0 {
                env.sleep(Duration::from_secs(60)).await;
            }
            Err("broken".to_owned())
        };
        assert_eq!(caches.judge(&env, None, look).await, None);
        if !caches.has_disk() {
            break;
        }
    }
    let stats = caches.stats();
    assert!(stats.disk_rests && stats.disk_slow == 8 && stats.disk_errors == 8, "{stats:?}");
    // Nobody waited for long, and blocks go into memory alone meanwhile.
    assert!(env.now().since(started) < Duration::from_secs(2));
    caches.insert_block(key(1), body(1, 100));
    assert_eq!(caches.stats().disk_dropped, 1);
    env.sleep(Duration::from_secs(11)).await;
    assert!(caches.has_disk());
    assert_eq!(caches.judge(&env, None, async { Ok(Some(body(2, 3))) }).await, Some(body(2, 3)));
    // It has as long as GETs take, but not for ever.
    for (gets_take_ms, look_takes_ms, comes) in
        [(100, 140, true), (100, 400, false), (500, 400, true), (90_000, 2_100, false)]
    {
        let look = async {
            env.sleep(Duration::from_millis(look_takes_ms)).await;
            Ok(Some(body(2, 3)))
        };
        let found = caches.judge(&env, Some(Duration::from_millis(gets_take_ms)), look).await;
        assert_eq!(found.is_some(), comes, "{gets_take_ms} {look_takes_ms}");
    }
    caches.close().await;
}

#[tokio::test]
async fn what_comes_faster_than_the_disk_takes_it_is_counted() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    // Several times what the engine's buffer holds, at once: not in the rounds of `admit`, which waits for the disk.
    for n in 0..8000 {
        caches.0.blocks.insert_on_disk(key(n), body(n, 15_000));
    }
    assert_eq!(caches.stats().memory_bytes, 0, "none of it is in memory");
    caches.close().await;
    let stats = caches.stats();
    assert!(stats.disk_dropped > 100 && stats.disk_dropped < 8000, "{stats:?}");
    drop(caches);
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    let mut there = 0;
    for n in 0..8000 {
        if let Some(block) = caches.disk_block(&key(n), None).await {
            assert_eq!(block, body(n, 15_000));
            there += 1;
        }
    }
    assert!(there > 100, "{there}");
}

#[tokio::test]
async fn options_are_checked() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let mut options = disk_options(dir.path());
    if let Some(disk) = &mut options.disk {
        disk.bytes = 1000;
    }
    let error = Caches::<Bytes>::new(&options, &env).await.err().unwrap();
    assert!(error.to_string().contains("too small"), "{error}");
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let error = Caches::<Bytes>::new(&disk_options(&dir.path().join("file")), &env).await.err().unwrap();
    assert!(error.place().contains("file"), "{error}");
    assert!(Caches::<Bytes>::new(&CacheOptions::default(), &env).await.is_ok());
}

#[test]
fn what_is_pinned_stays_within_its_own_bound_until_it_is_let_go() {
    let caches = Caches::<Bytes>::in_memory(0, 0);
    assert!(caches.pin_block(key(1), body(1, 100)) && caches.pin_metadata(key(2), Arc::new(7_u64), 50));
    assert_eq!((caches.block(&key(1)), caches.metadata::<u64>(&key(2)).as_deref()), (Some(body(1, 100)), Some(&7)));
    assert!(caches.holds_block(&key(1)) && caches.is_pinned(&key(1)) && !caches.is_pinned(&key(3)));
    assert!(matches!(caches.begin(key(1)), Flight::Ready(_)), "nobody fetches it");
    let bytes = caches.stats().pinned_bytes;
    assert!(caches.pin_block(key(1), body(1, 100)), "it is there");
    assert_eq!(caches.stats().pinned_bytes, bytes);
    caches.unpin(ObjectId::of("other"), 0..10, |_| true);
    caches.unpin(ObjectId::of("object"), 0..10, |k| k.offset == 2);
    assert!(caches.block(&key(1)).is_some() && caches.metadata::<u64>(&key(2)).is_none());
    caches.unpin(ObjectId::of("object"), 1..2, |_| true);
    assert_eq!((caches.block(&key(1)), caches.stats().pinned_bytes), (None, 0));
}

#[test]
fn metadata_that_is_pinned_takes_no_second_place() {
    let caches = Caches::<Bytes>::in_memory(0, 100_000);
    assert!(caches.pin_metadata(key(1), Arc::new(7_u64), 50));
    caches.insert_metadata(key(1), Arc::new(8_u64), 50);
    assert_eq!(caches.metadata::<u64>(&key(1)).as_deref(), Some(&7));
    caches.unpin(ObjectId::of("object"), 0..10, |_| true);
    assert_eq!(caches.metadata::<u64>(&key(1)), None, "nothing stood behind it");
    caches.insert_metadata(key(1), Arc::new(8_u64), 50);
    assert_eq!(caches.metadata::<u64>(&key(1)).as_deref(), Some(&8));
}

#[test]
fn a_look_at_metadata_that_reads_nothing_is_not_counted() {
    let caches = Caches::<Bytes>::in_memory(0, 100_000);
    caches.insert_metadata(key(1), Arc::new(7_u64), 50);
    assert!(caches.pin_metadata(key(2), Arc::new(8_u64), 50));
    let peeked = [1, 2, 3].map(|n| caches.peek_metadata::<u64>(&key(n)).map(|value| *value));
    assert_eq!(peeked, [Some(7), Some(8), None]);
    assert_eq!((caches.stats().metadata_hits, caches.stats().metadata_misses), (0, 0));
    let read = [1, 2, 3].map(|n| caches.metadata::<u64>(&key(n)).map(|value| *value));
    assert_eq!(read, peeked);
    assert_eq!((caches.stats().metadata_hits, caches.stats().metadata_misses), (2, 1));
}

#[tokio::test]
async fn what_finds_no_room_among_the_pins_is_refused_and_counted() {
    let options = CacheOptions { pinned_bytes: 1000, ..CacheOptions::default() };
    let caches = Caches::<Bytes>::new(&options, &Env::test(1)).await.unwrap();
    let pinned = (0..20).filter(|n| caches.pin_block(key(*n), body(*n, 100))).count();
    let stats = caches.stats();
    assert!(pinned == 5 && stats.pins_refused == 15 && stats.pinned_bytes <= 1000, "{pinned} {stats:?}");
}

#[tokio::test]
async fn a_walk_takes_blocks_from_the_ssd_and_leaves_memory_alone() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions { memory_bytes: 1 << 20, ..disk_options(dir.path()) };
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    let given = caches.admit((0..100).map(|n| (key(n), body(n, 15_000)))).await;
    assert_eq!((given, caches.stats().memory_bytes), (100, 0));
    for n in 0..100 {
        assert_eq!(caches.disk_block_aside(&key(n), None).await, Some(body(n, 15_000)));
    }
    assert_eq!((caches.stats().memory_bytes, caches.stats().disk_hits), (0, 100));
    assert_eq!(caches.disk_block(&key(5), None).await, Some(body(5, 15_000)));
    assert!(caches.stats().memory_bytes > 0);
    caches.close().await;
}

#[tokio::test]
async fn many_blocks_reach_the_ssd_without_a_drop_when_they_are_admitted() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let options = CacheOptions {
        disk: Some(DiskOptions { dir: dir.path().to_owned(), bytes: 256 << 20 }),
        ..disk_options(dir.path())
    };
    let caches = Caches::<Bytes>::new(&options, &env).await.unwrap();
    // As many as are dropped in part when they are handed over at once.
    caches.admit((0..8000).map(|n| (key(n), body(n, 15_000)))).await;
    assert_eq!(caches.stats().disk_dropped, 0);
    assert!((0..8000).all(|n| caches.may_be_on_disk(&key(n))));
    caches.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_rests_is_given_nothing() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    for _ in 0..16 {
        caches.judge(&env, None, async { Err("broken".to_owned()) }).await;
    }
    assert!(caches.stats().disk_rests);
    assert_eq!(caches.admit((0..100).map(|n| (key(n), body(n, 15_000)))).await, 0);
    assert_eq!(caches.stats().disk_dropped, 100);
    caches.close().await;
}

fn no_bound() -> DiskBudget {
    DiskBudget::new(u64::MAX)
}

/// Once nothing waits to be deleted.
async fn deleted(files: &LocalFiles) {
    while files.stats().deleting > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_takes_no_files_for_a_while() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let files = LocalFiles::open(dir.path(), &no_bound(), &env).unwrap();
    // A device that is always full in the place of the file.
    let full = dir.path().join(format!("{:032x}-1.0.part", key(1).object.0));
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    assert!(!files.write(key(1), vec![body(1, 100)]).await);
    deleted(&files).await;
    assert!(!full.is_symlink(), "nothing is left of it");
    // Others are not tried either, and then they are.
    assert!(!files.write(key(2), vec![body(2, 100)]).await);
    assert_eq!((files.stats().refused, files.stats().bytes), (2, 0));
    env.sleep(Duration::from_secs(11)).await;
    assert!(files.write(key(2), vec![body(2, 100), body(3, 50)]).await);
    assert!(files.holds(&key(2)) && !files.holds(&key(1)));
    let range = |section, start, length| FileRange { section, start, length };
    let wanted = [range(key(2), 100, 50), range(key(1), 0, 1), range(key(2), 0, 100), range(key(2), 99, 2)];
    let read = files.read(&wanted).await;
    assert_eq!(read[..3], [Some(body(3, 50)), None, Some(body(2, 100))]);
    assert_eq!(read[3].as_deref(), Some(&[2, 3][..]));
    files.remove(&key(2));
    deleted(&files).await;
    assert_eq!((files.stats().files, std::fs::read_dir(dir.path()).unwrap().count()), (0, 1), "the lock alone");
}

#[tokio::test]
async fn a_folder_of_files_has_one_owner_and_what_was_left_there_is_found() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let files = LocalFiles::open(dir.path(), &no_bound(), &env).unwrap();
    assert_eq!(LocalFiles::open(dir.path(), &no_bound(), &env).err().unwrap().number(), 1213);
    assert!(files.write(key(7), vec![body(7, 300)]).await && files.write(key(8), vec![body(8, 10)]).await);
    let unfinished = files.begin(key(9), 10).await.unwrap();
    assert!(unfinished.put(0, body(9, 5)).await);
    std::fs::write(dir.path().join("something else"), b"").unwrap();
    // As a process that is killed leaves it.
    let other = dir.path().join("moved");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap()).filter(|f| f.path().is_file()) {
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    drop((files, unfinished));
    let files = LocalFiles::open(&other, &no_bound(), &env).unwrap();
    assert_eq!((files.found(&key(7)), files.found(&key(9)), files.holds(&key(7))), (Some(300), None, false));
    files.adopt(&key(7));
    assert!(files.holds(&key(7)));
    files.retain(|section| *section == key(7));
    deleted(&files).await;
    assert_eq!((files.found(&key(8)), files.stats().files, files.stats().adopted), (None, 1, 1));
    // What is left: the section, the lock, and what is not ours.
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 3);
    assert_eq!(LocalFiles::open(&other.join("something else"), &no_bound(), &env).err().unwrap().number(), 1212);
}

#[tokio::test(start_paused = true)]
async fn files_that_cannot_be_read_are_left_to_the_store() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let files = LocalFiles::open(dir.path(), &no_bound(), &env).unwrap();
    for n in 0..40 {
        assert!(files.write(key(n), vec![body(n, 100)]).await);
    }
    // A folder in the place of a file: opening it works, reading it does not.
    for n in 0..40 {
        let path = dir.path().join(format!("{:032x}-{n}.{n}.section", key(n).object.0));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
    }
    let mut asked = 0;
    while files.holds(&key(asked % 40)) {
        let wanted = FileRange { section: key(asked % 40), start: 0, length: 100 };
        assert_eq!(files.read(&[wanted]).await, [None]);
        asked += 1;
    }
    // After so many it rests, and is then tried again.
    assert_eq!((asked, files.stats().failed), (16, 16));
    env.sleep(Duration::from_secs(11)).await;
    assert!(files.holds(&key(0)));
}

#[tokio::test]
async fn one_section_may_be_written_twice_and_what_is_given_up_takes_nothing_with_it() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let files = LocalFiles::open(dir.path(), &no_bound(), &env).unwrap();
    let given_up = files.begin(key(1), 10).await.unwrap();
    let other = files.begin(key(1), 10).await.unwrap();
    assert!(given_up.put(0, body(9, 10)).await && other.put(0, body(1, 10)).await);
    drop(given_up);
    deleted(&files).await;
    assert!(other.finish().await);
    let wanted = FileRange { section: key(1), start: 0, length: 10 };
    assert_eq!(files.read(std::slice::from_ref(&wanted)).await, [Some(body(1, 10))]);
    // A second copy takes the place of the first, and one that is let go does not take the next one with it.
    let third = files.begin(key(1), 10).await.unwrap();
    assert!(third.put(0, body(3, 10)).await && third.finish().await);
    let fourth = files.begin(key(1), 10).await.unwrap();
    assert!(fourth.put(0, body(4, 10)).await);
    files.remove(&key(1));
    assert!(fourth.finish().await);
    deleted(&files).await;
    assert_eq!(files.read(&[wanted]).await, [Some(body(4, 10))]);
    assert_eq!((files.stats().files, files.stats().bytes, std::fs::read_dir(dir.path()).unwrap().count()), (1, 10, 2));
}

#[tokio::test(start_paused = true)]
async fn the_files_of_all_jobs_share_one_budget() {
    let env = Env::test(1);
    let (dir, budget) = (tempfile::tempdir().unwrap(), DiskBudget::new(250));
    let open = |job: &str| LocalFiles::open(&dir.path().join(job), &budget, &env).unwrap();
    let (one, two) = (open("one"), open("two"));
    assert!(one.write(key(1), vec![body(1, 100)]).await && two.write(key(2), vec![body(2, 100)]).await);
    assert!(!two.write(key(3), vec![body(3, 100)]).await);
    one.remove(&key(1));
    env.sleep(Duration::from_secs(11)).await;
    assert!(two.write(key(3), vec![body(3, 100)]).await);
    // What an earlier process left counts, too.
    drop(two);
    let two = open("two");
    assert!(two.found(&key(3)).is_some() && !one.write(key(1), vec![body(1, 100)]).await);
    two.retain(|_| false);
    env.sleep(Duration::from_secs(11)).await;
    assert!(one.write(key(1), vec![body(1, 100)]).await);
}

#[test]
fn a_read_of_much_goes_in_small_batches() {
    let range = |n: u64, start, length| FileRange { section: key(n), start, length };
    // 512 MiB in blocks of 256 KiB, and very many small ones.
    let mut wanted: Vec<_> = (0..2048).rev().map(|i| range(1, i << 18, 1 << 18)).collect();
    wanted.extend((0..1000).map(|i| range(2, i * 10, 10)));
    let batches = files::batches(&wanted);
    let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..wanted.len()).collect::<Vec<_>>(), "each once");
    for batch in &batches {
        let bytes: u64 = batch.iter().map(|&i| wanted[i].length).sum();
        assert!(bytes <= 2 << 20 && batch.len() <= 128, "{bytes} bytes, {}", batch.len());
        assert!(batch.windows(2).all(|w| wanted[w[0]] < wanted[w[1]] && wanted[w[0]].section == wanted[w[1]].section));
    }
    // One that is larger than a batch comes alone.
    assert_eq!(files::batches(&[range(1, 0, 1 << 30), range(1, 1 << 30, 1)]).len(), 2);
}

/// Something in the place of a file that hangs whoever opens it, until [`let_go`].
fn hang(path: &std::path::Path) {
    drop(std::fs::remove_file(path));
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn let_go(path: &std::path::Path) {
    drop(std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap());
}

/// What comes of `work` while time goes on although a thread hangs.
async fn as_time_goes_on<T: Send + 'static>(env: &Env, work: impl Future<Output = T> + Send + 'static) -> T {
    let mut working = env.run(Lane::Io, "what may hang", work);
    loop {
        if let Some(done) = (&mut working).now_or_never() {
            return done.unwrap();
        }
        tokio::time::advance(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_disk_that_hangs() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let files = LocalFiles::open(dir.path(), &no_bound(), &env).unwrap();
    assert!(files.write(key(0), vec![body(0, 100)]).await);
    let write = dir.path().join(format!("{:032x}-1.1.part", key(1).object.0));
    hang(&write);
    let of = files.clone();
    assert!(!as_time_goes_on(&env, async move { of.write(key(1), vec![body(1, 100)]).await }).await);
    // It counts as a disk that takes nothing.
    assert!(files.begin(key(2), 10).await.is_none());
    assert_eq!((files.stats().refused, files.stats().files), (2, 1));
    let read = dir.path().join(format!("{:032x}-0.0.section", key(0).object.0));
    hang(&read);
    let wanted = FileRange { section: key(0), start: 0, length: 100 };
    let of = files.clone();
    assert_eq!(as_time_goes_on(&env, async move { of.read(&[wanted]).await }).await, [None]);
    assert!(files.stats().failed == 1 && files.has(&key(0)), "it may come back");
    [write, read].iter().for_each(|path| let_go(path));
    // What comes of the write in the end is not kept.
    deleted(&files).await;
    assert_eq!(files.stats().files, 1);
}
