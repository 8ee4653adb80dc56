//! Uploads in parts that meet faults, stores that throttle, stores that do not fence.

#![allow(clippy::unwrap_used)] // tests

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use millstream_common::env::Runtimes;
use millstream_common::{Applied, Env, ErrorKind, Lane};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    Created, Faults, FaultyStore, Fencing, Operation, Purpose, Store, StoreEnvironment, StoreOptions, conformance,
};

const P: Purpose = Purpose::State;

/// Parts of 100 bytes, above 250.
fn small_parts() -> StoreOptions {
    StoreOptions { multipart_threshold_bytes: 250, multipart_part_bytes: 100, ..StoreOptions::default() }
}

fn faulty(env: &Env, faults: Faults) -> (Store, FaultyStore) {
    let backend = FaultyStore::with_uploads(Arc::new(InMemory::new()), env, faults);
    (Store::from_backend_with_uploads(Arc::new(backend.clone()), "faulty://x", &small_parts(), env), backend)
}

fn body(seed: u64, bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i as u64 * 31 + seed) as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn a_big_body_goes_in_parts_and_each_is_a_request() {
    let env = Env::test(1);
    let (store, _) = faulty(&env, Faults::none());
    store.put("small", vec![body(1, 250)], P).await.unwrap();
    assert_eq!(store.meter().snapshot().put, 1);
    store.put("big", vec![body(2, 120), body(3, 331)], P).await.unwrap();
    let m = store.meter().snapshot();
    assert_eq!((m.put, m.bytes_written, m.retries), (1 + 7, 250 + 451, 0), "begin, five parts, end");
    assert_eq!(store.get("big", P).await.unwrap().unwrap(), [body(2, 120), body(3, 331)].concat());
}

#[tokio::test(start_paused = true)]
async fn an_upload_ends_whole_whatever_happens_to_its_parts() {
    let mut torn = 0;
    for seed in 0..30 {
        let env = Env::test(seed);
        let (store, backend) = faulty(&env, Faults::bad_day(0.1));
        for i in 0..10 {
            let (name, content) = (format!("u{i}"), body(seed, 300 + i * 100));
            store.put(&name, vec![content.clone()], P).await.unwrap();
            assert_eq!(store.get(&name, P).await.unwrap().unwrap(), content, "seed {seed}");
        }
        torn += backend.injected().torn_uploads;
        // Whatever was on its way lands, and changes nothing.
        env.sleep(Duration::from_secs(120)).await;
        backend.set(Faults::none());
        for i in 0..10 {
            assert_eq!(store.get(&format!("u{i}"), P).await.unwrap().unwrap(), body(seed, 300 + i * 100));
        }
    }
    assert!(torn > 10, "{torn}");
}

#[tokio::test(start_paused = true)]
async fn a_torn_upload_begins_anew() {
    let env = Env::test(2);
    let (store, backend) = faulty(&env, Faults { torn_upload: 1.0, ..Faults::none() });
    let healed = backend.clone();
    let clock = env.clone();
    env.spawn(Lane::Io, "heal", async move {
        clock.sleep(Duration::from_secs(3)).await;
        healed.set(Faults::none());
    });
    store.put("big", vec![body(1, 1_000)], P).await.unwrap();
    assert_eq!(store.get("big", P).await.unwrap().unwrap(), body(1, 1_000));
    let m = store.meter().snapshot();
    assert!(backend.injected().torn_uploads > 2 && m.delete == backend.injected().torn_uploads, "{m:?}");
    backend.set(Faults { torn_upload: 1.0, ..Faults::none() });
    let e = store.put("never", vec![body(1, 1_000)], P).await.unwrap_err();
    assert_eq!((e.kind(), e.number()), (ErrorKind::Unavailable, 2302), "{e}");
    assert!(store.get("never", P).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_reply_is_lost_or_late_is_found_by_its_size() {
    let env = Env::test(3);
    let (store, backend) = faulty(&env, Faults { lost_completion: 1.0, ..Faults::s3_latency() });
    store.put("lost", vec![body(4, 300)], P).await.unwrap();
    assert_eq!(store.get("lost", P).await.unwrap().unwrap(), body(4, 300));
    let m = store.meter().snapshot();
    assert_eq!((m.put, m.head, m.delete), (5, 1, 0), "it was looked at once and not sent again");
    backend.set(Faults { late_completion: 1.0, late_by: Duration::from_secs(20), ..Faults::s3_latency() });
    for i in 0..20 {
        let name = format!("late{i}");
        store.put(&name, vec![body(i, 300)], P).await.unwrap();
        assert_eq!(store.get(&name, P).await.unwrap().unwrap(), body(i, 300));
    }
    let n = backend.injected();
    assert!(n.errors_after == 1 && n.late_writes >= 20, "{n:?}");
    assert_eq!(store.meter().snapshot().delete, 0, "no upload was taken for lost");
    env.sleep(Duration::from_secs(120)).await;
    assert_eq!(store.get("late3", P).await.unwrap().unwrap(), body(3, 300));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_fails_is_aborted_and_says_whether_it_may_be_there() {
    let env = Env::test(4);
    let (store, backend) = faulty(&env, Faults { error_before: 1.0, ..Faults::none() });
    let e = store.put("big", vec![body(1, 1_000)], P).await.unwrap_err();
    assert_eq!((e.kind(), e.number()), (ErrorKind::Unavailable, 2300), "{e}");
    backend.set(Faults::none());
    assert!(store.get("big", P).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_store_with_a_limit_is_met_below_it_and_nothing_fails() {
    let env = Env::test(5);
    let (store, backend) = faulty(&env, Faults { requests_per_s: 100.0, ..Faults::s3_latency() });
    store.put("x", vec![body(1, 10)], P).await.unwrap();
    let read = |requests: usize| {
        let store = store.clone();
        async move {
            let start = store.meter().snapshot();
            futures::stream::iter(0..requests)
                .map(|_| store.get_range("x", 0..5, P))
                .buffer_unordered(64)
                .for_each(|done| async move { assert_eq!(done.unwrap().len(), 5) })
                .await;
            store.meter().snapshot().since(&start)
        }
    };
    let first = read(1_000).await;
    let start = env.now();
    let second = read(3_000).await;
    let took = env.now().since(start).as_secs_f64();
    assert!(first.throttled > 20, "{first:?}");
    // One refusal in twenty is what probing for more costs; without a limit it would be most of them.
    assert!(second.throttled * 20 < 3_000, "{second:?}");
    assert!(took < 3_000.0 / 100.0 * 2.0, "{took} s: the limit is used");
    assert!(second.reads_per_s_max.is_some_and(|l| (30..200).contains(&l)), "{second:?}");
    assert_eq!(second.writes_per_s_max, None);
    assert_eq!(store.child("elsewhere").limits_per_s(), (second.reads_per_s_max, None), "of the whole store");
    assert!(second.limiter_wait_us > 1_000_000);
    assert_eq!(store.meter().snapshot().throttled, backend.injected().throttled);
    // The limit goes when nobody has met it for a minute.
    backend.set(Faults::none());
    for _ in 0..3 {
        env.sleep(Duration::from_secs(40)).await;
        store.get("x", P).await.unwrap();
    }
    store.get("x", P).await.unwrap();
    assert_eq!(store.meter().snapshot().reads_per_s_max, None);
    assert_eq!(store.limits_per_s(), (None, None));
}

#[tokio::test(start_paused = true)]
async fn commits_do_not_stand_behind_bulk_requests_while_the_store_throttles() {
    let env = Env::test(6);
    let (store, backend) = faulty(&env, Faults { requests_per_s: 20.0, ..Faults::s3_latency() });
    let bulk = store.clone();
    let writing = env.run(Lane::Io, "bulk", async move {
        let write = async |i: usize| bulk.put(&format!("b{i}"), vec![body(1, 10)], P).await.unwrap();
        // As many as wait at once, one wave behind the other.
        for wave in 0..10 {
            futures::future::join_all((0..200).map(|i| write(wave * 200 + i))).await;
        }
    });
    env.sleep(Duration::from_secs(10)).await;
    // From here on only the limiter could hold them up.
    backend.set(Faults::s3_latency());
    for n in 0..10 {
        let start = env.now();
        let created = store.create(&format!("version/{n}"), Bytes::from_static(b"v"), Purpose::Version).await.unwrap();
        assert_eq!(created, Created::Now);
        assert!(env.now().since(start) < Duration::from_millis(200));
    }
    let m = store.meter().snapshot();
    assert!(m.writes_per_s_max.is_some_and(|l| l < 40), "the bulk is still limited: {m:?}");
    writing.await.unwrap();
    assert_eq!(store.list("", P).await.unwrap().len(), 2_000 + 10);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_is_not_held_against_a_request() {
    let env = Env::test(7);
    // A thousand requests at two a second: most of them wait longer than the retry time-out.
    let options = StoreOptions { retry_timeout: Duration::from_secs(60), ..StoreOptions::default() };
    let backend =
        FaultyStore::new(Arc::new(InMemory::new()), &env, Faults { requests_per_s: 2.0, ..Faults::s3_latency() });
    let store = Store::from_backend(Arc::new(backend), "slow://x", &options, &env);
    let start = env.now();
    let served = futures::stream::iter(0..600).map(|_| store.get("x", P)).buffer_unordered(600);
    served.for_each(|done| async move { assert_eq!(done.unwrap(), None) }).await;
    assert!(env.now().since(start) > Duration::from_secs(290));
}

/// Memory that accepts the condition of a create and ignores it, as some stores do.
#[derive(Debug)]
struct Careless(InMemory);

impl std::fmt::Display for Careless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "careless")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(&self, to: &Path, body: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.0.put_opts(to, body, PutOptions { mode: PutMode::Overwrite, ..options }).await
    }
    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(to, options).await
    }
    async fn get_opts(&self, from: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(from, options).await
    }
    fn delete_stream(
        &self,
        paths: futures::stream::BoxStream<'static, object_store::Result<Path>>,
    ) -> futures::stream::BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> futures::stream::BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_the_condition_is_found_out_and_serves_one_process() {
    let env = Env::test(9);
    let backend = Arc::new(Careless(InMemory::new()));
    let store = Store::from_backend(backend, "careless://x", &StoreOptions::default(), &env);
    let Fencing::Missing(why) = store.fencing().await.unwrap() else { panic!("it was trusted") };
    assert!(why.contains("ignores"), "{why}");
    let e = store.unfenced(&why);
    assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1110), "{e}");
    let e = conformance::run(&store, &env).await.unwrap_err();
    assert!(e.to_string().contains("fences"), "{e}");
    // Each start finds it out anew, by two requests.
    let asked = store.meter().snapshot().tally(Operation::Put, Purpose::Leader).requests;
    store.fencing().await.unwrap();
    assert_eq!(store.meter().snapshot().tally(Operation::Put, Purpose::Leader).requests, asked + 2);
    let alone = store.for_one_process();
    conformance::without_create(&alone, &env).await.unwrap();
    assert_eq!(alone.child("job").create("v", body(1, 3), P).await.unwrap(), Created::Now);
    assert_eq!(alone.create("job/v", body(2, 3), P).await.unwrap(), Created::AlreadyExists);
    assert_eq!(store.get("job/v", P).await.unwrap().unwrap(), body(1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_start_costs_one_request_once_the_probe_is_there() {
    let env = Env::test(10);
    let (store, backend) = faulty(&env, Faults::none());
    assert_eq!(store.fencing().await.unwrap(), Fencing::Kept);
    assert_eq!(store.meter().snapshot().requests(), 2);
    assert_eq!(store.fencing().await.unwrap(), Fencing::Kept);
    assert_eq!(store.meter().snapshot().requests(), 3);
    // A bad day delays the verdict and does not change it.
    backend.set(Faults { late_by: Duration::from_secs(5), hang: 0.0, ..Faults::bad_day(0.2) });
    for _ in 0..50 {
        assert_eq!(store.fencing().await.unwrap(), Fencing::Kept);
    }
    backend.set(Faults { unreachable: true, ..Faults::none() });
    assert_eq!(store.fencing().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let memory = Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
    assert_eq!((memory.fencing().await.unwrap(), memory.meter().snapshot().requests()), (Fencing::Kept, 0));
}

#[tokio::test(start_paused = true)]
async fn a_create_of_one_process_that_was_lost_on_the_way_may_have_happened() {
    let env = Env::test(11);
    let (store, backend) = faulty(&env, Faults { hang: 1.0, only_paths_with: "v".into(), ..Faults::none() });
    let alone = store.for_one_process();
    let e = alone.create("v", body(1, 3), P).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    backend.set(Faults { error_after: 1.0, ..Faults::none() });
    let e = alone.create("w", body(1, 3), P).await.unwrap_err();
    assert_eq!(e.applied(), Applied::Maybe, "{e}");
    backend.set(Faults::none());
    assert_eq!(alone.create("w", body(1, 3), P).await.unwrap(), Created::AlreadyExists);
    assert_eq!(alone.get("w", P).await.unwrap().unwrap(), body(1, 3));
}

/// What a server that throttles has seen: for each request whether it was served.
type Served = Arc<Mutex<Vec<bool>>>;

/// An S3 server that serves `per_s` requests a second and answers the others with 503 SlowDown.
async fn throttling_server(env: &Env, per_s: f64) -> (String, Served) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = Served::default();
    let (log, clock) = (served.clone(), env.clone());
    env.spawn(Lane::Io, "server", async move {
        let (mut room, mut filled) = (per_s / 10.0, clock.now());
        while let Ok((mut connection, _)) = listener.accept().await {
            let now = clock.now();
            room = (room + now.since(filled).as_secs_f64() * per_s).min(per_s / 10.0);
            filled = now;
            let free = room >= 1.0;
            room -= f64::from(u8::from(free));
            log.lock().push(free);
            clock.spawn(Lane::Io, "request", async move {
                let mut head = vec![0; 8_192];
                // The client sends the head in one piece.
                let _ = connection.read(&mut head).await;
                let answer = if free {
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\nhello"
                } else {
                    "HTTP/1.1 503 Slow Down\r\nContent-Length: 69\r\nConnection: close\r\n\r\n<Error><Code>SlowDown</Code><Message>Reduce it, please</Message></Error>"
                };
                let _ = connection.write_all(answer.as_bytes()).await;
                let _ = connection.shutdown().await;
            });
        }
    });
    (url, served)
}

#[test]
fn an_s3_that_throttles_slows_its_client_down_and_fails_none_of_its_requests() {
    let runtimes = Runtimes::start(1).unwrap();
    let env = runtimes.env();
    runtimes.block_on(async {
        let (url, served) = throttling_server(&env, 200.0).await;
        let variables =
            [("AWS_ENDPOINT_URL", url.as_str()), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into();
        let store = Store::open("s3://bucket/p", &StoreOptions::default(), &variables, &env).unwrap();
        let done = AtomicUsize::new(0);
        futures::stream::iter(0..1_200)
            .map(|_| store.get("x", P))
            .buffer_unordered(100)
            .for_each(|answer| {
                assert_eq!(answer.unwrap().unwrap(), "hello");
                done.fetch_add(1, Ordering::Relaxed);
                std::future::ready(())
            })
            .await;
        assert_eq!(done.load(Ordering::Relaxed), 1_200);
        let served = served.lock().clone();
        let refused = |part: &[bool]| part.iter().filter(|served| !**served).count();
        let (early, late) = (refused(&served[..300]), refused(&served[served.len() - 300..]));
        assert!(early > 30, "the server never throttled: {early} of 300");
        assert!(late * 2 < early, "refused {early} of the first 300 requests, {late} of the last");
        let m = store.meter().snapshot();
        assert_eq!(m.throttled as usize, refused(&served));
        assert!(m.reads_per_s_max.is_some() && m.limiter_wait_us > 0, "{m:?}");
    });
}
