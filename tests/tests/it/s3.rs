//! Object storage on a real S3 server, alone and behind a proxy that loses and delays.
//!
//! The server is named by MILLSTREAM_TEST_S3 (its endpoint, with a bucket "millstream"): `scripts/minio.sh run
//! cargo test -p millstream-tests --features s3`. Without a server these tests fail; without the feature they are not
//! built.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::env::Runtimes;
use millstream_common::{Applied, Env, Error, ErrorKind};
use millstream_objects::{Created, Purpose, Store, StoreEnvironment, StoreOptions, conformance};
use millstream_tests::proxy::{Fault, Proxy, Rule};

const P: Purpose = Purpose::Version;

#[allow(clippy::disallowed_methods)] // the tests' runner names the server; no production code reads this
fn variable(name: &str, default: Option<&str>) -> String {
    std::env::var(name).ok().or(default.map(str::to_owned)).unwrap_or_else(|| {
        panic!("{name} is not set: run `scripts/minio.sh run cargo test -p millstream-tests --features s3`")
    })
}

fn endpoint() -> String {
    variable("MILLSTREAM_TEST_S3", None)
}

fn variables(endpoint: &str) -> StoreEnvironment {
    [
        ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ("AWS_ACCESS_KEY_ID", variable("AWS_ACCESS_KEY_ID", Some("millstream"))),
        ("AWS_SECRET_ACCESS_KEY", variable("AWS_SECRET_ACCESS_KEY", Some("millstream-secret"))),
        ("AWS_REGION", variable("AWS_REGION", Some("us-east-1"))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn options() -> StoreOptions {
    StoreOptions {
        retry_timeout: Duration::from_secs(20),
        request_timeout: Duration::from_secs(10),
        ..StoreOptions::default()
    }
}

fn open(endpoint: &str, options: &StoreOptions, env: &Env) -> Store {
    Store::open("s3://millstream/it", options, &variables(endpoint), env).unwrap()
}

fn on_threads<T, F: Future<Output = T>>(test: impl FnOnce(Env) -> F) -> T {
    let runtimes = Runtimes::start(2).unwrap();
    runtimes.block_on(test(runtimes.env()))
}

/// A store behind a proxy, and the same place without it.
async fn behind_proxy(env: &Env, options: &StoreOptions) -> (Proxy, Store, Store) {
    let proxy = Proxy::start(&endpoint(), env).await.unwrap();
    let place = env.unique_id();
    let (through, direct) = (open(&proxy.url(), options, env), open(&endpoint(), &self::options(), env));
    (proxy, through.child(&place), direct.child(&place))
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn s3_passes_the_exam() {
    on_threads(async |env| {
        let store = open(&endpoint(), &options(), &env);
        conformance::run(&store, &env).await.unwrap();
        // More than one page of names.
        conformance::many(&store, &env, 1_100).await.unwrap();
    });
}

#[test]
fn one_of_eight_writers_wins_each_of_twenty_races() {
    on_threads(async |env| {
        for round in 0..20 {
            let place = env.unique_id();
            let running: Vec<_> = (0..8_u8)
                .map(|writer| {
                    // Each with a client of its own, as in eight processes.
                    let store = open(&endpoint(), &options(), &env).child(&place);
                    env.run(millstream_common::Lane::Io, "writer", async move {
                        store.create("version/1", Bytes::from(vec![writer; 10_000]), P).await
                    })
                })
                .collect();
            let mut winners = Vec::new();
            for (writer, outcome) in running.into_iter().enumerate() {
                if outcome.await.unwrap().unwrap() == Created::Now {
                    winners.push(writer as u8);
                }
            }
            assert_eq!(winners.len(), 1, "round {round}");
            let store = open(&endpoint(), &options(), &env).child(&place);
            assert_eq!(store.get("version/1", P).await.unwrap().unwrap(), vec![winners[0]; 10_000]);
        }
    });
}

#[test]
fn a_create_whose_reply_is_lost_may_have_happened_and_has() {
    on_threads(async |env| {
        let (proxy, store, direct) = behind_proxy(&env, &options()).await;
        proxy.plan(Rule::put("version/1", 1, Fault::LoseReply));
        let e = store.create("version/1", body("nonce-a"), P).await.unwrap_err();
        assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::Maybe), "{e}");
        assert_eq!(store.meter().snapshot().put, 1, "a conditional write is repeated by its caller alone");
        assert_eq!(direct.get("version/1", P).await.unwrap().unwrap(), "nonce-a");
        // The caller's rule: the same again, then compare what is there.
        assert_eq!(store.create("version/1", body("nonce-a"), P).await.unwrap(), Created::AlreadyExists);
        assert_eq!(store.get("version/1", P).await.unwrap().unwrap(), "nonce-a");
    });
}

#[test]
fn a_create_whose_reply_is_late_is_given_up_and_has_happened() {
    on_threads(async |env| {
        let impatient = StoreOptions { request_timeout: Duration::from_millis(500), ..options() };
        let (proxy, store, direct) = behind_proxy(&env, &impatient).await;
        proxy.plan(Rule::put("version/1", 1, Fault::DelayReply(Duration::from_secs(3))));
        let start = env.now();
        let e = store.create("version/1", body("nonce-a"), P).await.unwrap_err();
        assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::Maybe), "{e}");
        assert!(env.now().since(start) < Duration::from_secs(2));
        assert_eq!(direct.create("version/1", body("nonce-b"), P).await.unwrap(), Created::AlreadyExists);
        assert_eq!(direct.get("version/1", P).await.unwrap().unwrap(), "nonce-a");
    });
}

#[test]
fn an_absent_object_after_a_time_out_is_no_proof_that_the_create_failed() {
    on_threads(async |env| {
        let impatient = StoreOptions { request_timeout: Duration::from_millis(500), ..options() };
        let (proxy, store, direct) = behind_proxy(&env, &impatient).await;
        proxy.plan(Rule::put("version/1", 1, Fault::DelayRequest(Duration::from_secs(2))));
        let e = store.create("version/1", body("nonce-a"), P).await.unwrap_err();
        assert_eq!((e.kind(), e.applied()), (ErrorKind::Unavailable, Applied::Maybe), "{e}");
        assert_eq!(direct.get("version/1", P).await.unwrap(), None);
        for _ in 0..100 {
            if direct.get("version/1", P).await.unwrap().is_some() {
                break;
            }
            env.sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(direct.get("version/1", P).await.unwrap().unwrap(), "nonce-a");
        assert_eq!(direct.create("version/1", body("abort"), P).await.unwrap(), Created::AlreadyExists);
    });
}

#[test]
fn a_create_that_wins_over_its_own_delayed_attempt_stays() {
    on_threads(async |env| {
        let impatient = StoreOptions { request_timeout: Duration::from_millis(500), ..options() };
        let (proxy, store, direct) = behind_proxy(&env, &impatient).await;
        proxy.plan(Rule::put("version/1", 1, Fault::DelayRequest(Duration::from_secs(2))));
        store.create("version/1", body("nonce-a"), P).await.unwrap_err();
        // The number is taken by an abort before the delayed write arrives: it must bounce.
        assert_eq!(direct.create("version/1", body("abort"), P).await.unwrap(), Created::Now);
        for _ in 0..100 {
            if proxy.seen().iter().any(|s| s.status == 412) {
                break;
            }
            env.sleep(Duration::from_millis(100)).await;
        }
        assert!(proxy.seen().iter().any(|s| s.status == 412), "{:?}", proxy.seen());
        assert_eq!(direct.get("version/1", P).await.unwrap().unwrap(), "abort");
    });
}

#[test]
fn a_put_is_repeated_until_it_is_confirmed() {
    on_threads(async |env| {
        let (proxy, store, direct) = behind_proxy(&env, &options()).await;
        proxy.plan(Rule::put("bundle", 1, Fault::LoseReply));
        proxy.plan(Rule::put("bundle", 2, Fault::CutRequest));
        let content: Vec<Bytes> = (0..5_u8).map(|i| Bytes::from(vec![i; 1 << 20])).collect();
        store.put("bundle-1", content.clone(), P).await.unwrap();
        let m = store.meter().snapshot();
        assert_eq!((m.put, m.retries, m.bytes_written), (3, 2, 15 << 20));
        let statuses: Vec<u16> = proxy.seen().iter().map(|s| s.status).collect();
        assert_eq!(statuses, [200, 0, 200]);
        assert_eq!(direct.get("bundle-1", P).await.unwrap().unwrap(), content.concat());
    });
}

/// The errors of every operation on `store`.
async fn every_error(store: &Store) -> Vec<(&'static str, Error)> {
    vec![
        ("put", store.put("x", vec![body("x")], P).await.unwrap_err()),
        ("create", store.create("x", body("x"), P).await.unwrap_err()),
        ("get", store.get("x", P).await.unwrap_err()),
        ("get_range", store.get_range("x", 0..1, P).await.unwrap_err()),
        ("list", store.list("", P).await.unwrap_err()),
    ]
}

#[test]
fn wrong_credentials_are_final_and_say_so() {
    on_threads(async |env| {
        for wrong in ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"] {
            let mut variables = variables(&endpoint());
            variables.insert(wrong.to_owned(), "wrong-one".to_owned());
            let store = Store::open("s3://millstream/it", &options(), &variables, &env).unwrap();
            for (operation, e) in every_error(&store).await {
                assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1103), "{operation} with a wrong {wrong}: {e}");
                assert!(e.to_string().contains("credentials") && e.place().starts_with("s3://millstream"), "{e}");
            }
            assert_eq!(store.meter().snapshot().retries, 0);
        }
    });
}

#[test]
fn an_absent_bucket_is_final_and_named() {
    on_threads(async |env| {
        let url = "s3://no-such-bucket-here/x";
        let store = Store::open(url, &options(), &variables(&endpoint()), &env).unwrap();
        for (operation, e) in every_error(&store).await {
            assert_eq!((e.kind(), e.number()), (ErrorKind::Config, 1104), "{operation}: {e}");
            assert!(e.to_string().contains("no-such-bucket-here"), "{e}");
        }
        assert_eq!(store.meter().snapshot().retries, 0);
    });
}

#[test]
fn requests_by_task_add_up_to_what_the_server_was_sent() {
    use std::sync::Arc;

    use millstream_common::hash::stable_hash;
    use millstream_common::{Epoch, Execution, Generation, KeyGroup, KeyGroupRanges, TaskId};
    use millstream_state_store::key::point_key;
    use millstream_state_store::{
        Caches, Expiry, Interval, Layout, MergeOperators, ReadTime, Run, SectionWriter, StateLayout, StateStore,
        StateStoreOptions, Tree, WriterName,
    };

    on_threads(async |env| {
        let (proxy, through, _) = behind_proxy(&env, &options()).await;
        let mut tree = Tree::default();
        let tasks: Vec<TaskId> = (0..2).map(|i| tree.add_task(&format!("task {i}")).unwrap()).collect();
        let layout = StateLayout { layout: Layout::Point, merge_operator: String::new() };
        let state = tree.add_state(tasks[0], "operator", "state", layout, "bytes").unwrap();
        let caches = Caches::in_memory(0, 0);
        let states =
            StateStore::new(through, caches, StateStoreOptions::default(), env.clone(), MergeOperators::default());
        let keys: Vec<Bytes> = (0..20_000_u32)
            .map(|i| {
                let (key, mut out) = (i.to_be_bytes(), Vec::new());
                point_key(state, KeyGroup::of_hash(stable_hash(&key)), &key, &mut out);
                out.into()
            })
            .collect();
        let name = WriterName { generation: Generation(1), execution: Execution(1) };
        let mut runs: Vec<Vec<Arc<Run>>> = vec![Vec::new(); tasks.len()];
        for epoch in 1..=4 {
            let section = |task: &TaskId| {
                let mut writer = SectionWriter::new(*task);
                keys.iter().for_each(|k| writer.put(k, &[epoch as u8; 50], Expiry::Never));
                let interval = Interval::of(Epoch(epoch), 0);
                let options = states.section_options(0);
                writer.encode(&options, &tree.layouts(), KeyGroupRanges::all(), interval).unwrap()
            };
            let bundle = states.write_bundle(name, tasks.iter().map(section).collect()).await.unwrap();
            std::iter::zip(&mut runs, bundle).for_each(|(runs, run)| runs.push(Arc::new(run)));
        }
        let view = states.view(runs[0].clone(), KeyGroupRanges::all(), tree.layouts());
        let (values, report) = view.multi_get(&keys[..3_000], &ReadTime::START).await.unwrap();
        assert!(values.iter().all(|v| v == Some(&[4; 50][..])));
        let all = KeyGroupRanges::all();
        states.compact(&runs[1], &all, &tree.layouts(), name, true, ReadTime::START).await.unwrap();

        let used = states.used();
        let (mine, theirs) = (&used.tasks[&tasks[0]].requests, &used.tasks[&tasks[1]].requests);
        let sent = |method: &str| proxy.seen().iter().filter(|s| s.method == method).count() as u64;
        assert_eq!(mine.get, report.gets + used.requests.hedged);
        assert_eq!(mine.get + theirs.get, sent("GET"));
        assert_eq!((used.shared.put, mine.put), (4, 0));
        assert_eq!(used.shared.put + theirs.put, sent("PUT"));
        assert_eq!(
            used.requests.gets.count() + used.requests.compaction_gets.count(),
            sent("GET") - used.requests.hedged
        );
        assert_eq!(proxy.seen().len() as u64, sent("GET") + sent("PUT"));
    });
}
