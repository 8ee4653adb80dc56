//! A folder as an object store whose objects appear whole or not at all.
//!
//! Reads and lists are object_store's [`LocalFileSystem`]; writes are ours: into a file without a name (`O_TMPFILE`),
//! synced, then linked to its name. So create-if-absent is one atomic link, a crash leaves nothing behind, and whoever
//! looks at the folder sees finished objects only. Where the file system has no such files (not Linux, some network
//! mounts), object_store's own way is taken: a staging file beside the object, renamed.

use std::fmt;
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Folder {
    inner: LocalFileSystem,
    root: PathBuf,
}

impl Folder {
    pub(crate) fn new(inner: LocalFileSystem, root: PathBuf) -> Self {
        Self { inner, root }
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// What became of a write.
enum Written {
    Done,
    /// The name is taken.
    Taken,
    /// This file system has no files without a name.
    Unsupported,
}

#[cfg(target_os = "linux")]
fn write(target: &FilePath, payload: &PutPayload) -> std::io::Result<Written> {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    use rustix::io::Errno;

    let Some(parent) = target.parent() else { return Ok(Written::Unsupported) };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let open = || rustix::fs::open(parent, flags, Mode::from_raw_mode(0o644));
    let fd = match open() {
        Err(Errno::NOENT) => {
            make_folders(parent)?;
            open()
        }
        other => other,
    };
    let fd = match fd {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => return Ok(Written::Unsupported),
        other => other?,
    };
    let mut file = std::fs::File::from(fd);
    for part in payload {
        file.write_all(part)?;
    }
    file.sync_all()?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, unnamed.as_str(), CWD, target, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::EXIST) => return Ok(Written::Taken),
        Err(Errno::NOENT) => return Ok(Written::Unsupported),
        other => other?,
    }
    std::fs::File::open(parent)?.sync_all()?;
    Ok(Written::Done)
}

#[cfg(not(target_os = "linux"))]
fn write(_: &FilePath, _: &PutPayload) -> std::io::Result<Written> {
    Ok(Written::Unsupported)
}

/// Creates folders and syncs each parent in which a name is new.
#[cfg(target_os = "linux")]
fn make_folders(folder: &FilePath) -> std::io::Result<()> {
    let new: Vec<&FilePath> = folder.ancestors().take_while(|f| !f.exists()).collect();
    std::fs::create_dir_all(folder)?;
    for parent in new.iter().filter_map(|f| f.parent()) {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[async_trait]
impl ObjectStore for Folder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) {
            return self.inner.put_opts(location, payload, options).await;
        }
        let target = self.root.join(location.as_ref());
        let body = payload.clone();
        // The disk blocks; as in object_store itself, it does so on threads that are there for it. No simulation writes
        // to a folder.
        #[allow(clippy::disallowed_methods)]
        let written = tokio::task::spawn_blocking(move || write(&target, &body)).await;
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "folder", source };
        match written.map_err(|e| failed(Box::new(e)))?.map_err(|e| failed(Box::new(e)))? {
            Written::Done => Ok(PutResult { e_tag: None, version: None, extensions: Default::default() }),
            Written::Taken if options.mode == PutMode::Create => Err(object_store::Error::AlreadyExists {
                path: location.to_string(),
                source: "the name is taken".into(),
            }),
            Written::Taken | Written::Unsupported => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    #[tokio::test]
    async fn an_object_appears_whole_and_a_name_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let inner = LocalFileSystem::new_with_prefix(dir.path()).unwrap().with_fsync(true);
        let store = Folder::new(inner, dir.path().to_owned());
        let path = Path::from("a/b/c");
        let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        store.put_opts(&path, PutPayload::from("one"), create()).await.unwrap();
        let again = store.put_opts(&path, PutPayload::from("two"), create()).await;
        assert!(matches!(again, Err(object_store::Error::AlreadyExists { .. })));
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "one");
        store.put(&path, PutPayload::from("three")).await.unwrap();
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "three");
        let names: Vec<_> =
            std::fs::read_dir(dir.path().join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["c"], "nothing but the object is left");
    }
}
