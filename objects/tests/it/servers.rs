//! See `main.rs`.

use std::future::Future;
use std::time::Duration;

use millstream_common::Env;
use millstream_common::env::Runtimes;
use millstream_objects::{Store, StoreEnvironment, StoreOptions, conformance};

#[allow(clippy::disallowed_methods)] // the tests' runner names the server; no production code reads this
fn variable(name: &str, script: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `scripts/{script}.sh run cargo test ...`"))
}

fn on_threads<T, F: Future<Output = T>>(test: impl FnOnce(Env) -> F) -> T {
    let runtimes = Runtimes::start(2).unwrap();
    runtimes.block_on(test(runtimes.env()))
}

fn open(url: &str, variables: &[(&str, &str)], env: &Env) -> Store {
    let variables: StoreEnvironment = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = StoreOptions { retry_timeout: Duration::from_secs(20), ..StoreOptions::default() };
    Store::open(url, &options, &variables, env).unwrap()
}

#[cfg(feature = "seaweedfs")]
#[test]
fn seaweedfs_passes_the_exam() {
    let endpoint = variable("MILLSTREAM_TEST_SEAWEEDFS", "seaweedfs");
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "millstream"),
        ("AWS_SECRET_ACCESS_KEY", "millstream-secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    on_threads(async |env| {
        let store = open("s3://millstream/it", &variables, &env);
        conformance::run(&store, &env).await.unwrap();
        // More than one page of names.
        conformance::many(&store, &env, 1_100).await.unwrap();
    });
}

#[cfg(feature = "seaweedfs")]
#[test]
fn webdav_passes_the_exam_for_a_single_process_and_serves_no_cluster() {
    let url = variable("MILLSTREAM_TEST_WEBDAV", "seaweedfs");
    on_threads(async |env| {
        let store = open(&format!("{url}/buckets/webdav/it"), &[], &env);
        assert_eq!(store.check_serves_cluster().unwrap_err().number(), 1110);
        let alone = store.for_one_process();
        conformance::without_create(&alone, &env).await.unwrap();
        conformance::many(&alone, &env, 100).await.unwrap();
    });
}

#[cfg(feature = "azurite")]
#[test]
fn azurite_passes_the_exam() {
    let endpoint = variable("MILLSTREAM_TEST_AZURITE", "azurite");
    let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let connection = format!("AccountName=devstoreaccount1;AccountKey={key};BlobEndpoint={endpoint};");
    on_threads(async |env| {
        let variables =
            [("AZURE_STORAGE_ACCOUNT", "devstoreaccount1"), ("AZURE_STORAGE_KEY", key), ("AZURE_ENDPOINT", &endpoint)];
        let store = open("az://millstream/it", &variables, &env);
        conformance::run(&store, &env).await.unwrap();
        conformance::many(&store, &env, 1_100).await.unwrap();
        // The other ways to name the same place.
        let store = open("abfss://millstream/it", &[("AZURE_STORAGE_CONNECTION_STRING", &connection)], &env);
        conformance::big(&store.child("big"), 100_000).await.unwrap();
    });
}
