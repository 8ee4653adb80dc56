//! From a URL to a store.
//!
//! It owns the forms of URLs and the one TLS provider; `clients` and `bridge` make what answers. Nothing is sent here.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use millstream_common::{Env, Error, Result};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use url::Url;

use crate::attempt::Backend;
use crate::bridge;
use crate::clients::{self, AzurePlace, Client};
use crate::failure::Scheme;
use crate::local::Folder;
use crate::options::StoreOptions;
use crate::store::Store;

/// The variables of the process that settings of stores are read from: `AWS_*`, `GOOGLE_*`, `AZURE_*` and those that
/// docs/object-stores.md lists for each store. Others are ignored, so the whole environment may be handed over.
pub type StoreEnvironment = BTreeMap<String, String>;

const SCHEMES: &str = "use memory://, file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, \
    abfss://container@account.dfs.core.windows.net/prefix, oss://, cos://, obs://, tos:// or b2://bucket/prefix, \
    swift://container/prefix, webdav(s)://host/prefix or (s)webhdfs://host:port/prefix; docs/object-stores.md tells more";

/// What answers, and what is known of it.
struct Opened {
    store: Arc<dyn ObjectStore>,
    uploads: Option<Arc<dyn MultipartStore>>,
    creates_if_absent: bool,
    scheme: Scheme,
    /// The URL of the bucket, container or folder.
    root: String,
    prefix: String,
}

/// A folder, its path, and a prefix in it.
type Local = (Folder, PathBuf, String);

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
    local: fn(&FilePath) -> Result<Local>,
) -> Result<Store> {
    options.validate()?;
    let parsed = Url::parse(url).map_err(|e| bad_url(url, &e.to_string()))?;
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(bad_url(url, "what follows a '?' or '#' has no meaning; in a name they are written %3F and %23"));
    }
    let opened = match parsed.scheme() {
        "memory" => {
            let store = Arc::new(InMemory::new());
            let prefix = prefix_of(&parsed, url)?;
            Opened {
                store: store.clone(),
                uploads: Some(store),
                creates_if_absent: true,
                scheme: Scheme::Memory,
                root: "memory://".to_owned(),
                prefix,
            }
        }
        "file" => {
            let (store, root, prefix) = local(&folder_of(&parsed, url)?)?;
            let root = format!("file://{}", root.display());
            // A file is written in one go whatever its size: nothing is gained by parts.
            let (scheme, store) = (Scheme::File, Arc::new(store));
            Opened { store, uploads: None, creates_if_absent: true, scheme, root, prefix }
        }
        _ => remote(&parsed, url, options, variables)?,
    };
    let mut backend = Backend::new(opened.store, opened.root, opened.scheme, options.clone(), env.clone());
    backend.uploads = opened.uploads;
    backend.creates_if_absent = opened.creates_if_absent;
    Ok(Store::new(backend, &opened.prefix))
}

fn remote(parsed: &Url, url: &str, options: &StoreOptions, variables: &StoreEnvironment) -> Result<Opened> {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kind = parsed.scheme();
    let (bucket, prefix) = (bucket_of(parsed, url), prefix_of(parsed, url)?);
    let own = |root: String, client: object_store::Result<Client>| {
        let Client { store, uploads, scheme } = client.map_err(|e| client_refused(&root, &e))?;
        Ok(Opened { store, uploads: Some(uploads), creates_if_absent: true, scheme, root, prefix: prefix.clone() })
    };
    match kind {
        "s3" | "s3a" => {
            let bucket = bucket?;
            own(format!("{kind}://{bucket}"), clients::s3(bucket, options, variables))
        }
        "gs" => {
            let bucket = bucket?;
            own(format!("gs://{bucket}"), clients::google(bucket, options, variables))
        }
        "az" | "azure" | "abfs" | "abfss" if parsed.username().is_empty() => {
            let container = bucket?;
            let client = clients::azure(AzurePlace::Container(container), options, variables);
            own(format!("{kind}://{container}"), client)
        }
        "abfs" | "abfss" => {
            let root = format!("{kind}://{}@{}", parsed.username(), bucket?);
            let client = clients::azure(AzurePlace::Url(&root), options, variables);
            own(root, client)
        }
        _ => {
            let Some(kind) = bridge::Kind::of(kind) else {
                return Err(bad_url(url, &format!("'{kind}' is no kind of store that is known here")));
            };
            let host = bucket?;
            if !parsed.username().is_empty() || parsed.password().is_some() {
                // Not shown: it may hold a secret.
                return Err(bad_url(
                    &format!("{}://…@{host}", parsed.scheme()),
                    "credentials in it would stand in logs and error messages; hand them over as variables",
                ));
            }
            let place = match parsed.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            };
            let root = format!("{}://{place}", parsed.scheme());
            let bridged =
                bridge::open(kind, &place, options, variables).map_err(|e| bridge::refused(kind, &root, &e))?;
            Ok(Opened {
                creates_if_absent: bridged.creates_if_absent(),
                store: Arc::new(bridged),
                uploads: None,
                scheme: Scheme::Bridged(kind.scheme()),
                root,
                prefix,
            })
        }
    }
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
fn create(folder: &FilePath) -> Result<Local> {
    create_folder(folder).map_err(|e| refused(folder, &e))?;
    Ok((local(folder)?, folder.to_owned(), String::new()))
}

/// The folder, or the nearest one above it that is there with the rest of the path as a prefix in it.
fn find(folder: &FilePath) -> Result<Local> {
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
