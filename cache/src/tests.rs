use std::time::Duration;

use bytes::Bytes;
use millstream_common::Env;

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
    CacheOptions { memory_bytes: 1 << 10, metadata_bytes: 0, disk: Some(disk) }
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
        match caches.disk_block(&key(n)).await {
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
        assert_eq!(caches.disk_block(&key(n)).await, None);
    }
    assert_eq!(caches.stats().disk_hits, 0);

    // The folder goes away while it is used: what is read is right or missing, nothing fails.
    std::fs::remove_dir_all(dir.path()).unwrap();
    for n in 100..150 {
        caches.insert_block(key(n), body(n, 15_000));
        if let Some(block) = caches.disk_block(&key(n)).await {
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
        let look = async {
            if n % 2 == 0 {
                env.sleep(Duration::from_secs(60)).await;
            }
            Err("broken".to_owned())
        };
        assert_eq!(caches.judge(&env, look).await, None);
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
    assert_eq!(caches.judge(&env, async { Ok(Some(body(2, 3))) }).await, Some(body(2, 3)));
    caches.close().await;
}

#[tokio::test]
async fn what_comes_faster_than_the_disk_takes_it_is_counted() {
    let env = Env::test(1);
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    // Several times what the engine's buffer holds, at once.
    for n in 0..8000 {
        caches.insert_on_disk(key(n), body(n, 15_000));
    }
    assert_eq!(caches.stats().memory_bytes, 0, "none of it is in memory");
    caches.close().await;
    let stats = caches.stats();
    assert!(stats.disk_dropped > 100 && stats.disk_dropped < 8000, "{stats:?}");
    drop(caches);
    let caches = Caches::<Bytes>::new(&disk_options(dir.path()), &env).await.unwrap();
    let mut there = 0;
    for n in 0..8000 {
        if let Some(block) = caches.disk_block(&key(n)).await {
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
