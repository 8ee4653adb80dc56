#![allow(clippy::unwrap_used)] // tests

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::env::Runtimes;
use millstream_common::{Applied, Env, ErrorKind};
use object_store::memory::InMemory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Created, Faults, FaultyStore, Purpose, Store, StoreEnvironment, StoreOptions, conformance};

const P: Purpose = Purpose::State;

fn quick() -> StoreOptions {
    StoreOptions { retry_timeout: Duration::from_secs(2), ..StoreOptions::default() }
}

fn memory(env: &Env) -> Store {
    Store::open("memory://", &StoreOptions::default(), &StoreEnvironment::new(), env).unwrap()
}

fn faulty(env: &Env, faults: Faults) -> (Store, FaultyStore) {
    let backend = FaultyStore::new(Arc::new(InMemory::new()), env, faults);
    (Store::from_backend(Arc::new(backend.clone()), "faulty://", &StoreOptions::default(), env), backend)
}

#[tokio::test(start_paused = true)]
async fn memory_passes_the_exam_under_a_paused_clock() {
    let env = Env::test(1);
    let store = memory(&env);
    conformance::run(&store, &env).await.unwrap();
    conformance::many(&store, &env, 2_500).await.unwrap();
    conformance::run(&store.child("a/prefix"), &env).await.unwrap();
    assert_eq!(env.now(), Default::default());
    assert_eq!(store.meter().snapshot().tally(crate::Operation::List, Purpose::Check).requests, 2 * 11 + 3 + 4);
}

#[test]
fn a_folder_passes_the_exam_on_production_threads() {
    let runtimes = Runtimes::start(2).unwrap();
    let env = runtimes.env();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/with space/new", folder.path().display());
    let store = Store::open(&url, &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
    runtimes.block_on(async {
        conformance::run(&store, &env).await.unwrap();
        conformance::many(&store, &env, 100).await.unwrap();
        store.put("x/y", vec![Bytes::from_static(b"z")], P).await.unwrap();
    });
    assert_eq!(std::fs::read(folder.path().join("with space/new/x/y")).unwrap(), b"z");
    let again = Store::open(&url, &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
    assert_eq!(runtimes.block_on(again.get("x/y", P)).unwrap().as_deref(), Some(b"z".as_slice()));
}

#[tokio::test]
async fn the_root_of_a_store_can_be_listed() {
    let env = Env::test(1);
    let folder = tempfile::tempdir().unwrap();
    for url in ["memory://".to_owned(), format!("file://{}", folder.path().display())] {
        let store = Store::open(&url, &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap();
        store.child("job").put("a/b", vec![Bytes::from_static(b"1")], P).await.unwrap();
        let listed = store.list("", P).await.unwrap();
        assert_eq!(listed.iter().map(|l| l.path.as_str()).collect::<Vec<_>>(), ["job/a/b"], "{url}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_exam_is_passed_through_faults_that_repetition_hides() {
    for seed in 0..20 {
        let env = Env::test(seed);
        let faults = Faults {
            throttle: 0.1,
            slow_stream: 0.2,
            stream_pause: Duration::from_secs(3),
            cut_stream: 0.1,
            only_paths_with: "big".into(),
            ..Faults::s3_latency()
        };
        let (store, backend) = faulty(&env, faults);
        for _ in 0..10 {
            conformance::big(&store.child("big"), 100_000).await.unwrap();
        }
        let n = backend.injected();
        assert!(n.throttled > 0 && n.slow_streams > 0, "seed {seed}: {n:?}");
        assert_eq!(store.meter().snapshot().retries, n.throttled + n.cut_streams, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_exam_catches_a_store_that_lets_two_win() {
    // The reply to a create that took effect is lost, and its writer takes the next answer for a loss: nobody won.
    let env = Env::test(3);
    let (store, _) = faulty(&env, Faults { error_after: 0.5, ..Faults::s3_latency() });
    let e = conformance::races(&store, &env, 5).await.unwrap_err();
    assert!(e.to_string().contains("one wins"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_leaves_open_whether_a_create_happened() {
    let env = Env::test(4);
    let (store, backend) = faulty(&env, Faults { error_after: 1.0, ..Faults::none() });
    let e = store.create("v", Bytes::from_static(b"1"), P).await.unwrap_err();
    assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::Maybe));
    backend.set(Faults::none());
    assert_eq!(store.create("v", Bytes::from_static(b"1"), P).await.unwrap(), Created::AlreadyExists);
    assert_eq!(store.get("v", P).await.unwrap().as_deref(), Some(b"1".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_create_is_sent_once_and_a_put_until_it_is_confirmed() {
    let env = Env::test(5);
    let (store, backend) = faulty(&env, Faults { error_before: 0.7, ..Faults::none() });
    store.put("p", vec![Bytes::from_static(b"p")], P).await.unwrap();
    let (puts, failed) = (store.meter().snapshot().put, backend.injected().errors_before);
    assert_eq!(puts, failed + 1);
    backend.set(Faults { error_before: 1.0, ..Faults::none() });
    store.create("c", Bytes::new(), P).await.unwrap_err();
    assert_eq!(store.meter().snapshot().put, puts + 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_create_lands_after_its_sender_saw_an_error() {
    let env = Env::test(6);
    let faults = Faults { late_write: 1.0, late_by: Duration::from_secs(60), ..Faults::none() };
    let (store, backend) = faulty(&env, faults);
    let e = store.create("v", Bytes::from_static(b"late"), P).await.unwrap_err();
    assert_eq!(e.applied(), Applied::Maybe);
    backend.set(Faults::none());
    assert_eq!(store.get("v", P).await.unwrap(), None);
    env.sleep(Duration::from_secs(61)).await;
    assert_eq!(store.get("v", P).await.unwrap().as_deref(), Some(b"late".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn a_write_on_its_way_lands_although_its_sender_was_killed() {
    let env = Env::test(7);
    let (store, _) = faulty(&env, Faults::s3_latency());
    let put = store.put("x", vec![Bytes::from_static(b"x")], P);
    let killed = env.timeout(Duration::from_millis(1), "the put", put).await;
    assert!(killed.is_err());
    env.sleep(Duration::from_secs(1)).await;
    assert!(store.get("x", P).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_409_is_neither_a_win_nor_a_loss() {
    let env = Env::test(8);
    let (store, backend) = faulty(&env, Faults { conflict: 1.0, ..Faults::none() });
    let e = store.create("v", Bytes::new(), P).await.unwrap_err();
    assert_eq!((e.kind(), e.number(), e.applied()), (ErrorKind::Unavailable, 2301, Applied::Maybe));
    backend.set(Faults::none());
    assert_eq!(store.create("v", Bytes::new(), P).await.unwrap(), Created::Now);
}

#[tokio::test(start_paused = true)]
async fn repetition_ends_with_the_retry_timeout_and_says_why() {
    let env = Env::test(9);
    let (store, backend) = faulty(&env, Faults { unreachable: true, ..Faults::none() });
    let start = env.now();
    let e = store.get("some/object", P).await.unwrap_err();
    let took = env.now().since(start);
    assert!(took >= Duration::from_secs(180) && took < Duration::from_secs(181), "{took:?}");
    assert_eq!((e.kind(), e.number(), e.applied()), (ErrorKind::Unavailable, 2300, Applied::No));
    let text = e.to_string();
    assert!(text.contains("connection refused") && text.contains("faulty://some/object"), "{text}");
    let m = store.meter().snapshot();
    assert!(m.get > 15 && m.get < 60, "{}", m.get);
    // A write that surely never arrived, and one that may have.
    assert_eq!(store.put("w", vec![], P).await.unwrap_err().applied(), Applied::No);
    backend.set(Faults { error_before: 1.0, ..Faults::none() });
    assert_eq!(store.put("w", vec![], P).await.unwrap_err().applied(), Applied::Maybe);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_given_up_and_sent_again() {
    let env = Env::test(10);
    let (store, backend) = faulty(&env, Faults { hang: 1.0, ..Faults::none() });
    let wake = backend.clone();
    let clock = env.clone();
    env.spawn(millstream_common::Lane::Io, "wake", async move {
        clock.sleep(Duration::from_secs(45)).await;
        wake.set(Faults::none());
    });
    let start = env.now();
    store.put("x", vec![], P).await.unwrap();
    assert!(env.now().since(start) >= Duration::from_secs(60));
    backend.set(Faults { hang: 1.0, ..Faults::none() });
    let e = store.create("y", Bytes::new(), P).await.unwrap_err();
    assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::Maybe));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_that_moves_on_is_not_given_up() {
    let env = Env::test(11);
    let faults = Faults { slow_stream: 1.0, stream_pause: Duration::from_secs(20), ..Faults::none() };
    let (store, _) = faulty(&env, faults);
    store.put("x", vec![Bytes::from(vec![7; 1_000])], P).await.unwrap();
    let start = env.now();
    assert_eq!(store.get("x", P).await.unwrap().unwrap().len(), 1_000);
    assert_eq!(env.now().since(start), Duration::from_secs(160));
    assert_eq!(store.meter().snapshot().get, 1);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_store_is_left_in_peace_by_all() {
    let env = Env::test(12);
    let (store, backend) = faulty(&env, Faults { throttle: 1.0, only_paths_with: "hot".into(), ..Faults::none() });
    let hot = store.clone();
    let running = env.run(millstream_common::Lane::Io, "hot", async move {
        futures::future::join_all((0..10).map(|_| hot.get("hot", P)))
            .await
            .into_iter()
            .all(|done| done.unwrap().is_none())
    });
    env.yield_now().await;
    let start = env.now();
    store.get("cold", P).await.unwrap();
    assert!(env.now().since(start) >= Duration::from_millis(100), "nobody waited");
    backend.set(Faults::none());
    assert!(running.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn injected_latency_delays_every_request() {
    let env = Env::test(13);
    let options = StoreOptions { inject_latency: Duration::from_millis(30), ..StoreOptions::default() };
    let store = Store::open("memory://", &options, &StoreEnvironment::new(), &env).unwrap();
    let start = env.now();
    for _ in 0..1_000 {
        store.get("x", P).await.unwrap();
    }
    let took = env.now().since(start);
    assert!(took > Duration::from_secs(30) && took < Duration::from_secs(34), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_day() {
    let day = async |seed| {
        let env = Env::test(seed);
        let (store, backend) = faulty(&env, Faults::bad_day(0.1));
        let mut trace = Vec::new();
        for i in 0..100 {
            let created = store.create(&format!("v/{}", i % 70), Bytes::from(vec![i]), P).await;
            trace.push((env.now(), created.ok(), store.get("v/3", P).await.unwrap()));
        }
        (trace, backend.injected(), store.meter().snapshot())
    };
    let first = day(1).await;
    assert_eq!(first, day(1).await);
    assert_ne!(first.0, day(2).await.0);
    let n = first.1;
    assert!(n.late_writes > 0 && n.errors_after > 0 && n.conflicts > 0 && n.cut_streams > 0 && n.hangs > 0, "{n:?}");
}

#[tokio::test]
async fn urls_that_name_no_store_are_refused_with_the_reason() {
    let env = Env::test(1);
    let refused = |url: &str| {
        let e = Store::open(url, &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap_err();
        assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1100), "{e}");
        e.to_string()
    };
    let unknown = refused("ftp://x/y");
    for known in ["'ftp'", "s3://", "gs://", "abfss://", "oss://", "cos://", "obs://", "b2://", "webdav(s)://"] {
        assert!(unknown.contains(known), "{known}: {unknown}");
    }
    for relative in ["file://relative/x", "file:relative/x", "file:x", " FILE:x"] {
        assert!(refused(relative).contains("file:///folder"), "{relative}");
    }
    for nowhere in ["file://", "file:///", "file:/"] {
        assert!(refused(nowhere).contains("the folder is missing"), "{nowhere}");
    }
    assert!(refused("s3://bucket/x?region=eu").contains("%3F"));
    assert!(refused("file:///tmp/x#1").contains("%23"));
    assert!(refused("s3:///prefix").contains("bucket"));
    assert!(refused("/tmp/x").contains("s3://bucket/prefix"));
    let file = tempfile::NamedTempFile::new().unwrap();
    for folder in [file.path().display().to_string(), format!("{}/below", file.path().display()), "/proc/nope".into()] {
        let url = format!("file://{folder}");
        let e = Store::open(&url, &StoreOptions::default(), &StoreEnvironment::new(), &env).unwrap_err();
        assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1101), "{e}");
        assert!(e.to_string().contains(&folder), "{e}");
    }
}

#[tokio::test]
async fn who_only_looks_creates_nothing() {
    let env = Env::test(1);
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &str| {
        let url = format!("file://{}/{path}", folder.path().display());
        Store::open_to_read(&url, &StoreOptions::default(), &StoreEnvironment::new(), &env)
    };
    let absent = open("no/such place").unwrap();
    assert_eq!(absent.url(), format!("file://{}/no/such place", folder.path().display()));
    assert!(absent.list("", P).await.unwrap().is_empty() && absent.get("a/b", P).await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::create_dir_all(folder.path().join("there/a")).unwrap();
    std::fs::write(folder.path().join("there/a/b"), "1").unwrap();
    let there = open("there").unwrap();
    assert_eq!(there.get("a/b", P).await.unwrap().as_deref(), Some(b"1".as_slice()));
    assert_eq!(there.list("", P).await.unwrap()[0].path, "a/b");
    let e = open("there/a/b/c").unwrap_err();
    assert!(e.number() == 1101 && e.place().ends_with("there/a/b/c"), "{e}");
}

#[tokio::test]
async fn places_have_urls() {
    let env = Env::test(1);
    let variables: StoreEnvironment =
        [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AZURE_STORAGE_ACCOUNT_NAME", "x")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
    let open = |url: &str| Store::open(url, &StoreOptions::default(), &variables, &env).unwrap();
    assert_eq!(open("s3://bucket/some/prefix/").child("job").url(), "s3://bucket/some/prefix/job");
    assert_eq!(open("s3://bucket").child("job").url_of("x"), "s3://bucket/job/x");
    assert_eq!(open("gs://bucket/p").url(), "gs://bucket/p");
    assert_eq!(open("az://container/p").url(), "az://container/p");
    assert_eq!(open("abfs://container/p").url(), "abfs://container/p");
    let whole = "abfss://container@account.dfs.core.windows.net/some/p";
    assert_eq!(open(whole).url(), whole);
    assert_eq!(open("memory://").url(), "memory://");
    assert_eq!(open("memory://").child("x").url(), "memory://x");
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    assert_eq!(open(&url).child("job").url(), format!("{url}/job"));
}

#[tokio::test]
async fn other_stores_open_from_their_variables_and_say_what_they_cannot() {
    let env = Env::test(1);
    let open = |url: &str, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Store::open(url, &StoreOptions::default(), &variables, &env)
    };
    let oss = [("OSS_REGION", "cn-hangzhou"), ("OSS_ACCESS_KEY_ID", "a"), ("OSS_ACCESS_KEY_SECRET", "b")];
    let cos = [("TENCENTCLOUD_REGION", "ap-x"), ("TENCENTCLOUD_SECRET_ID", "a"), ("TENCENTCLOUD_SECRET_KEY", "b")];
    let tos = [("TOS_REGION", "cn-x"), ("TOS_ACCESS_KEY", "a"), ("TOS_SECRET_KEY", "b")];
    for (url, variables) in [("oss://b/p", &oss), ("cos://b/p", &cos), ("tos://b/p", &tos)] {
        let store = open(url, variables).unwrap();
        assert_eq!(store.url(), url);
        store.check_serves_cluster().unwrap();
    }
    let obs = [("OBS_REGION", "x"), ("OBS_ACCESS_KEY_ID", "a"), ("OBS_SECRET_ACCESS_KEY", "b")];
    let b2 = [("B2_BUCKET_ID", "i"), ("B2_APPLICATION_KEY_ID", "a"), ("B2_APPLICATION_KEY", "b")];
    let swift = [("OS_STORAGE_URL", "http://x/v1/AUTH_t"), ("OS_AUTH_TOKEN", "t"), ("", "")];
    let none = [("", ""); 3];
    for (url, variables) in [
        ("obs://b/p", &obs),
        ("b2://b/p", &b2),
        ("swift://c/p", &swift),
        ("webdav://host:1/p", &none),
        ("webdavs://host/p", &none),
        ("webhdfs://host:9870/p", &none),
        ("swebhdfs://host:9871/p", &none),
    ] {
        let store = open(url, variables).unwrap();
        assert_eq!(store.url(), url);
        let e = store.check_serves_cluster().unwrap_err();
        assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1110), "{url}: {e}");
        // Refused by itself, too: nothing is sent.
        assert_eq!(store.create("x", Bytes::new(), P).await.unwrap_err().number(), 1110);
        assert_eq!(store.meter().snapshot().requests(), 0);
    }
    let e = open("swift://c/p", &none).unwrap_err();
    assert!(e.number() == 1108 && e.to_string().contains("OS_STORAGE_URL"), "{e}");
}

/// A server that answers each connection with the next of `answers` and closes it; gives the heads of the requests.
async fn server(answers: Vec<&'static str>) -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tx, rx) = tokio::sync::mpsc::channel(100);
    Env::test(0).spawn(millstream_common::Lane::Io, "server", async move {
        for answer in answers {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 8_192];
            let n = connection.read(&mut head).await.unwrap();
            tx.send(String::from_utf8_lossy(&head[..n]).into_owned()).await.unwrap();
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    });
    (url, rx)
}

fn s3(endpoint: &str, env: &Env, options: &StoreOptions) -> Store {
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_CONDITIONAL_PUT", "disabled"),
        ("AWS_PAGER", "less"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    Store::open("s3://bucket/p", options, &variables, env).unwrap()
}

const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 91\r\nConnection: close\r\n\r\n<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message></Error>";
const SLOW_DOWN: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 69\r\nConnection: close\r\n\r\n<Error><Code>SlowDown</Code><Message>Reduce it, please</Message></Error>";
const CONFLICT: &str = "HTTP/1.1 409 Conflict\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const EXISTS: &str = "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const FOUND: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\nhello";
const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"e\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\nhel";
const NO_BUCKET: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 73\r\nConnection: close\r\n\r\n<Error><Code>NoSuchBucket</Code><Message>No such bucket.</Message></Error>";

#[tokio::test]
async fn s3_answers_lead_to_the_right_outcome() {
    let env = Env::test(1);
    let (url, mut asked) = server(vec![SLOW_DOWN, HALF, "", FOUND]).await;
    let store = s3(&url, &env, &StoreOptions::default());
    assert_eq!(store.get("x", P).await.unwrap().as_deref(), Some(b"hello".as_slice()));
    let m = store.meter().snapshot();
    assert_eq!((m.get, m.retries, m.bytes_read), (4, 3, 5));
    assert!(asked.recv().await.unwrap().starts_with("GET /bucket/p/x HTTP/1.1\r\n"));

    let (url, _asked) = server(vec![CONFLICT, EXISTS, SLOW_DOWN]).await;
    let store = s3(&url, &env, &StoreOptions::default());
    let busy = store.create("v", Bytes::new(), P).await.unwrap_err();
    assert_eq!((busy.number(), busy.applied()), (2301, Applied::Maybe), "{busy}");
    assert_eq!(store.create("v", Bytes::new(), P).await.unwrap(), Created::AlreadyExists);
    let slow = store.create("v", Bytes::new(), P).await.unwrap_err();
    assert!(slow.to_string().contains("SlowDown"), "{slow}");

    let (url, _asked) = server(vec![FORBIDDEN, NO_BUCKET]).await;
    let store = s3(&url, &env, &StoreOptions::default());
    let denied = store.put("x", vec![], P).await.unwrap_err();
    assert_eq!((denied.kind(), denied.number()), (ErrorKind::Config, 1103), "{denied}");
    assert!(denied.to_string().contains("SignatureDoesNotMatch") && denied.place() == "s3://bucket/p/x", "{denied}");
    let absent = store.get("x", P).await.unwrap_err();
    assert_eq!((absent.kind(), absent.number()), (ErrorKind::Config, 1104), "{absent}");
    assert_eq!(store.meter().snapshot().retries, 0);
}

#[tokio::test]
async fn a_create_carries_the_condition_of_azure_and_reads_its_refusal() {
    let env = Env::test(1);
    let taken = "HTTP/1.1 409 The specified blob already exists.\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let created = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nETag: \"e\"\r\nConnection: close\r\n\r\n";
    let key = ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5");
    let clouds = [
        (
            "az://bucket/p",
            vec![("AZURE_STORAGE_ACCOUNT_NAME", "a"), key],
            taken,
            "PUT /a/bucket/p/v ",
            "if-none-match: *",
        ),
        ("abfss://bucket@a.dfs.core.windows.net/p", vec![key], taken, "PUT /a/bucket/p/v ", "if-none-match: *"),
    ];
    for (place, mut variables, refusal, line, condition) in clouds {
        let (url, mut asked) = server(vec![created, refusal, refusal]).await;
        let azure = format!("{url}/a");
        variables.push(("AZURE_ENDPOINT", &azure));
        let variables = variables.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let store = Store::open(place, &StoreOptions::default(), &variables, &env).unwrap();
        assert_eq!(store.create("v", Bytes::from_static(b"1"), P).await.unwrap(), Created::Now, "{place}");
        let head = asked.recv().await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with(&line.to_ascii_lowercase()) && head.contains(condition), "{place}: {head}");
        assert_eq!(store.create("v", Bytes::new(), P).await.unwrap(), Created::AlreadyExists, "{place}");
        assert_eq!(store.fencing().await.unwrap(), crate::Fencing::Kept, "{place}");
    }
}

#[tokio::test]
async fn a_server_that_nobody_runs_is_unavailable_and_nothing_was_sent() {
    let env = Env::test(1);
    let store = s3("http://127.0.0.1:1", &env, &quick());
    let e = store.create("v", Bytes::new(), P).await.unwrap_err();
    assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::No), "{e}");
    let e = store.put("x", vec![], P).await.unwrap_err();
    assert_eq!((e.kind(), e.number(), e.applied()), (ErrorKind::Unavailable, 2300, Applied::No), "{e}");
    assert!(e.to_string().contains("cannot connect") && e.to_string().contains("s3://bucket/p/x"), "{e}");
}
