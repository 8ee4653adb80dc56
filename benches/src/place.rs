//! Where state goes: fresh folders and fresh prefixes, which go away again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use millstream_common::env::Runtimes;
use millstream_common::{Error, Result};
use millstream_objects::{Purpose, Store, StoreOptions};
use tempfile::TempDir;

use crate::args::Common;
use crate::note;
use crate::outside::{variable, variables};

/// The variable that names the S3 server.
const ENDPOINT: &str = "AWS_ENDPOINT_URL";

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StateKind {
    /// In the memory of the process.
    Memory,
    /// In a folder, every write synced.
    File,
    /// On the S3 server that the `AWS_*` variables name.
    S3,
}

impl StateKind {
    /// Its name on the command line and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::S3 => "s3",
        }
    }
}

/// Makes places.
#[derive(Debug)]
pub struct Places {
    folder: PathBuf,
    s3: String,
    endpoint: Option<String>,
    variables: BTreeMap<String, String>,
}

impl Places {
    /// From the options and the environment.
    pub fn new(common: &Common) -> Result<Self> {
        let folder = common.dir.clone().unwrap_or_else(std::env::temp_dir);
        let folder = folder.canonicalize().map_err(|e| {
            Error::config("the folder for fresh folders is not there")
                .at(folder.display().to_string())
                .next("make it, or name another one by --dir")
                .source(e)
        })?;
        Ok(Self {
            folder,
            s3: common.s3.trim_end_matches('/').to_owned(),
            endpoint: variable(ENDPOINT),
            variables: variables(),
        })
    }

    /// Whether an S3 server was named.
    #[must_use]
    pub fn has_s3(&self) -> bool {
        self.endpoint.is_some()
    }

    /// The address of the S3 server, as `http://127.0.0.1:9000`.
    pub fn endpoint(&self) -> Result<&str> {
        self.endpoint.as_deref().ok_or_else(|| {
            Error::config("state on s3 needs a server, and AWS_ENDPOINT_URL is not set")
                .next("start one around the bench (scripts/minio.sh run COMMAND), or leave s3 out of --state")
        })
    }

    /// The kinds to measure: those `asked` for, or else all of `usual` that can be used here.
    pub fn kinds(&self, asked: Option<&[StateKind]>, usual: &[StateKind]) -> Result<Vec<StateKind>> {
        let Some(asked) = asked else {
            if !self.has_s3() {
                note("state on s3 is left out: AWS_ENDPOINT_URL is not set (scripts/minio.sh run COMMAND sets it)");
            }
            return Ok(usual.iter().copied().filter(|k| *k != StateKind::S3 || self.has_s3()).collect());
        };
        if let Some(kind) = asked.iter().find(|k| !usual.contains(k)) {
            return Err(Error::config(format!("state in {} cannot be measured here", kind.name()))
                .at("--state")
                .next("a cluster's state outlives its processes: give file, s3 or both"));
        }
        if asked.contains(&StateKind::S3) {
            self.endpoint()?;
        }
        Ok(asked.to_vec())
    }

    /// A fresh place.
    pub fn fresh(&self, kind: StateKind) -> Result<Place> {
        let folder = tempfile::Builder::new().prefix("millstream-bench-").tempdir_in(&self.folder).map_err(|e| {
            Error::unavailable("a fresh folder cannot be made")
                .at(self.folder.display().to_string())
                .next("name another one by --dir")
                .source(e)
        })?;
        let name = folder.path().file_name().unwrap_or_default().to_string_lossy();
        let (url, variables) = match kind {
            StateKind::Memory => ("memory://".to_owned(), None),
            StateKind::File => (format!("file://{}/state", folder.path().display()), None),
            StateKind::S3 => {
                self.endpoint()?;
                (format!("{}/{name}", self.s3), Some(self.variables.clone()))
            }
        };
        Ok(Place { url, variables, folder })
    }
}

/// A fresh folder, and where state is. Both are emptied when this ends.
#[derive(Debug)]
pub struct Place {
    url: String,
    /// Of the S3 server, when objects are to be deleted there.
    variables: Option<BTreeMap<String, String>>,
    folder: TempDir,
}

impl Place {
    /// The place of state, for `--state`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A folder for everything else: logs, caches, summaries.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many objects there are below a name (empty: all) and their bytes, as the store lists them.
    pub fn objects(&self, below: &str) -> Result<(u64, u64)> {
        let runtimes = Runtimes::start(1)?;
        let variables = self.variables.clone().unwrap_or_default();
        let store = Store::open(&self.url, &StoreOptions::default(), &variables, &runtimes.env())?;
        let all = runtimes.block_on(store.list(below, Purpose::Check))?;
        Ok((all.len() as u64, all.iter().map(|o| o.bytes).sum()))
    }

    fn delete_objects(&self, variables: &BTreeMap<String, String>) -> Result<()> {
        let runtimes = Runtimes::start(1)?;
        let store = Store::open(&self.url, &StoreOptions::default(), variables, &runtimes.env())?;
        runtimes.block_on(async {
            for object in store.list("", Purpose::Check).await? {
                store.delete(&object.path, Purpose::Check).await?;
            }
            Ok(())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let deleted = self.variables.take().map_or(Ok(()), |v| self.delete_objects(&v));
        if let Err(e) = deleted {
            note(&format!("objects below {} are still there: {e}", self.url));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(endpoint: Option<&str>) -> Places {
        let s3 = "s3://bucket/bench".to_owned();
        let endpoint = endpoint.map(str::to_owned);
        Places { folder: std::env::temp_dir(), s3, endpoint, variables: BTreeMap::new() }
    }

    #[test]
    fn s3_needs_a_server() {
        use StateKind::{File, Memory, S3};
        let (without, with) = (places(None), places(Some("http://127.0.0.1:1")));
        assert_eq!(without.kinds(None, &[Memory, File, S3]).unwrap(), [Memory, File]);
        assert_eq!(with.kinds(None, &[File, S3]).unwrap(), [File, S3]);
        let e = without.kinds(Some(&[S3]), &[File, S3]).unwrap_err().to_string();
        assert!(e.contains("AWS_ENDPOINT_URL") && e.contains("minio.sh"), "{e}");
        assert!(with.kinds(Some(&[Memory]), &[File, S3]).is_err());
        assert!(without.fresh(S3).is_err());
    }

    #[test]
    fn a_place_is_fresh_and_goes_away() {
        let (a, b) = (places(None).fresh(StateKind::File).unwrap(), places(None).fresh(StateKind::File).unwrap());
        assert!(a.url() != b.url() && a.url().starts_with("file:///"));
        let folder = a.folder().to_owned();
        assert!(folder.is_dir());
        drop(a);
        assert!(!folder.exists());
    }
}
