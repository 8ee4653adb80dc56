//! From a URL to a store.
//!
//! Only this module knows the builders of the clients. It applies the variables that its caller hands over (as the
//! clients' own documentation names them), switches the clients' repetition and time-outs off, since ours are above
//! them, and installs the one TLS provider.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use millstream_common::{Env, Error, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::attempt::Backend;
use crate::failure::Scheme;
use crate::local::Folder;
use crate::options::StoreOptions;
use crate::store::Store;

/// The variables of the process that settings of stores are read from: `AWS_*`, `GOOGLE_*` and `AZURE_*`. Others are
/// ignored, so the whole environment may be handed over.
pub type StoreEnvironment = BTreeMap<String, String>;

const SCHEMES: &str = "use memory://, file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";

impl Store {
    /// Opens the place that `url` names. Nothing is sent yet, but a folder is created. Each `memory://` is a new,
    /// empty store: who shares it clones the handle.
    pub fn open(url: &str, options: &StoreOptions, variables: &StoreEnvironment, env: &Env) -> Result<Store> {
        open(url, options, variables, env, create)
    }

    /// As [`Store::open`], for those who only look: no folder is created. One that is absent is an empty place.
    pub fn open_to_read(url: &str, options: &StoreOptions, variables: &StoreEnvironment, env: &Env) -> Result<Store> {
        open(url, options, variables, env, find)
    }
}

fn open(
    url: &str,
    options: &StoreOptions,
    variables: &StoreEnvironment,
    env: &Env,
    local: fn(&FilePath) -> Result<(Folder, PathBuf, String)>,
) -> Result<Store> {
    options.validate()?;
    let parsed = Url::parse(url).map_err(|e| bad_url(url, &e.to_string()))?;
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad_url(url, "what follows a '?' or '#' has no meaning; in a name they are written %3F and %23"));
    }
    let (store, scheme, root, prefix): (Arc<dyn ObjectStore>, _, _, _) = match parsed.scheme() {
        "memory" => (Arc::new(InMemory::new()), Scheme::Memory, "memory://".to_owned(), prefix_of(&parsed, url)?),
        "file" => {
            let (store, root, prefix) = local(&folder_of(&parsed, url)?)?;
            (Arc::new(store), Scheme::File, format!("file://{}", root.display()), prefix)
        }
        "s3" | "s3a" | "gs" | "az" => {
            let prefix = prefix_of(&parsed, url)?;
            let bucket = bucket_of(&parsed, url)?;
            let root = format!("{}://{bucket}", parsed.scheme());
            let (store, scheme) =
                remote(parsed.scheme(), bucket, options, variables).map_err(|e| client_refused(&root, &e))?;
            (store, scheme, root, prefix)
        }
        other => return Err(bad_url(url, &format!("'{other}' is no kind of store"))),
    };
    Ok(Store::new(Backend::new(store, root, scheme, options.clone(), env.clone()), &prefix))
}

fn bad_url(url: &str, why: &str) -> Error {
    Error::config(format!("'{url}' does not name an object store: {why}")).code(1100).next(SCHEMES)
}

fn client_refused(root: &str, e: &object_store::Error) -> Error {
    Error::config(format!("the settings of the store are not usable ({e})"))
        .code(1108)
        .at(root)
        .next("check the AWS_*, GOOGLE_* or AZURE_* variables")
}

fn bucket_of<'a>(parsed: &'a Url, url: &str) -> Result<&'a str> {
    parsed.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad_url(url, "the bucket is missing"))
}

fn prefix_of(parsed: &Url, url: &str) -> Result<String> {
    let path = Path::from_url_path(parsed.path()).map_err(|e| bad_url(url, &e.to_string()))?;
    match (parsed.scheme(), parsed.host_str()) {
        ("memory", Some(host)) if path.as_ref().is_empty() => Ok(host.to_owned()),
        ("memory", Some(host)) => Ok(format!("{host}/{path}")),
        _ => Ok(path.into()),
    }
}

fn folder_of(parsed: &Url, url: &str) -> Result<PathBuf> {
    // `file://relative/x` reads as a folder /x on the machine `relative`, `file:relative/x` as /relative/x.
    let below_root = url.trim().split_once(':').is_some_and(|(_, path)| path.starts_with('/'));
    if !below_root || parsed.host_str().is_some_and(|h| !h.is_empty()) {
        return Err(bad_url(url, "the path must be absolute, with three slashes: file:///folder"));
    }
    let folder = parsed.to_file_path().map_err(|()| bad_url(url, "it holds no path of this machine"))?;
    if folder.parent().is_none() {
        return Err(bad_url(url, "the folder is missing"));
    }
    Ok(folder)
}

fn refused(folder: &FilePath, e: &dyn std::fmt::Display) -> Error {
    Error::config(format!("the folder cannot be used ({e})"))
        .code(1101)
        .at(folder.display().to_string())
        .next("choose a folder that can be created and written")
}

/// The folder, created when it is absent, as a store whose writes are on the disk when they are confirmed; its path, and
/// an empty prefix in it.
fn create(folder: &FilePath) -> Result<(Folder, PathBuf, String)> {
    create_folder(folder).map_err(|e| refused(folder, &e))?;
    Ok((local(folder)?, folder.to_owned(), String::new()))
}

/// The folder, or the nearest one above it that is there with the rest of the path as a prefix in it.
fn find(folder: &FilePath) -> Result<(Folder, PathBuf, String)> {
    let there = folder.ancestors().find(|f| f.exists()).unwrap_or(folder);
    if !there.is_dir() {
        return Err(refused(folder, &std::io::Error::from(std::io::ErrorKind::NotADirectory)));
    }
    let rest = folder.strip_prefix(there).unwrap_or(FilePath::new(""));
    Ok((local(there)?, there.to_owned(), rest.to_string_lossy().into_owned()))
}

fn local(folder: &FilePath) -> Result<Folder> {
    let root = folder.canonicalize().map_err(|e| refused(folder, &e))?;
    let inner = LocalFileSystem::new_with_prefix(&root).map_err(|e| refused(folder, &e))?.with_fsync(true);
    Ok(Folder::new(inner, root))
}

/// Creates `folder` with its parents, and syncs each parent in which a name was new.
fn create_folder(folder: &FilePath) -> std::io::Result<()> {
    let new: Vec<&FilePath> = folder.ancestors().take_while(|f| !f.exists()).collect();
    std::fs::create_dir_all(folder)?;
    for parent in new.iter().filter_map(|f| f.parent()) {
        File::open(parent)?.sync_all()?;
    }
    if folder.is_dir() { Ok(()) } else { Err(std::io::ErrorKind::NotADirectory.into()) }
}

type Opened = (Arc<dyn ObjectStore>, Scheme);

fn remote(
    kind: &str,
    bucket: &str,
    options: &StoreOptions,
    variables: &StoreEnvironment,
) -> object_store::Result<Opened> {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Ours is above: once more below it would multiply.
    let once = RetryConfig { max_retries: 0, retry_timeout: options.retry_timeout, backoff: BackoffConfig::default() };
    let client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(options.connect_timeout);
    match kind {
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client).with_retry(once);
            for (key, value) in keys::<GoogleConfigKey>("GOOGLE_", variables) {
                builder = builder.with_config(key, value);
            }
            Ok((Arc::new(builder.with_bucket_name(bucket).build()?), Scheme::Gcs))
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::new().with_client_options(client).with_retry(once);
            for (key, value) in keys::<AzureConfigKey>("AZURE_", variables) {
                builder = builder.with_config(key, value);
            }
            Ok((Arc::new(builder.with_container_name(bucket).build()?), Scheme::Azure))
        }
        _ => {
            let mut builder = AmazonS3Builder::new().with_client_options(client).with_retry(once);
            if endpoint_is_plain(variables) {
                // Said once, in the endpoint. Nobody needs certificates then: a machine without any will do.
                builder = builder
                    .with_allow_http(true)
                    .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::NoSystemCertificates), "true");
            }
            for (key, value) in keys::<AmazonS3ConfigKey>("AWS_", variables) {
                builder = builder.with_config(key, value);
            }
            // Not open to settings: commits rest on the one, the account of requests on the other.
            let builder = builder
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
                .with_bucket_name(bucket);
            Ok((Arc::new(builder.build()?), Scheme::S3))
        }
    }
}

fn endpoint_is_plain(variables: &StoreEnvironment) -> bool {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .iter()
        .find_map(|name| variables.get(*name))
        .is_some_and(|endpoint| endpoint.starts_with("http://"))
}

/// The variables that begin with `start` and that the client knows.
fn keys<K: FromStr>(start: &str, variables: &StoreEnvironment) -> Vec<(K, String)> {
    variables
        .iter()
        .filter(|(name, _)| name.starts_with(start))
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
        .collect()
}
