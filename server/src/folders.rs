//! Folders on the local disk that one process has at a time.
//!
//! A process that is killed leaves its folder behind: a named one is taken up by its successor, with what is in it, a
//! temporary one is removed by the next process that makes one. Whether a folder is free says a lock on a file in it, which
//! ends with the process that holds it, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use millstream_cache::DiskOptions;
use millstream_common::{Error, Result};

/// The file that is locked.
const OWNER: &str = "owner.lock";

/// What the names of temporary folders begin with.
const TEMPORARY: &str = "millstream-cache-";

/// The names of the folders of the SSD tier below a named one begin so. Processes that share the named one have one each.
const SSD: &str = "ssd-";

/// Processes that may share a named folder.
const SHARED_BY: u32 = 64;

/// A folder that this process has. A temporary one is removed with it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    // Let go before the folder is removed: another process may do that, too.
    _owner: File,
    temporary: Option<tempfile::TempDir>,
}

impl Folder {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes with the process.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// A temporary one. Those that processes left that are not there any more are removed.
    pub fn temporary() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(TEMPORARY).tempdir().map_err(no_temporary)?;
        let path = folder.path().to_owned();
        let owner = own_fresh(&path).map_err(no_temporary)?;
        if let Some(beside) = path.parent() {
            remove_left_over(beside);
        }
        Ok(Self { path, _owner: owner, temporary: Some(folder) })
    }

    /// The first folder of an SSD tier below `dir` that no other process has.
    pub fn of_ssd_tier(dir: &Path) -> Result<Self> {
        let unusable = |e| DiskOptions::unusable(dir, e);
        for n in 0..SHARED_BY {
            let path = dir.join(format!("{SSD}{n}"));
            std::fs::create_dir_all(&path).map_err(unusable)?;
            if let Some(owner) = own(&path).map_err(unusable)? {
                return Ok(Self { path, _owner: owner, temporary: None });
            }
        }
        Err(Error::unavailable(format!("{SHARED_BY} processes have their cache on disk in the same folder"))
            .code(1214)
            .at(dir.display().to_string())
            .next("give some of them a --cache-dir of their own"))
    }
}

/// Takes a folder; `None` when another process has it.
fn own(folder: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(OWNER))?;
    locked(file)
}

/// Takes a folder that was just made. The file has its name once it is locked: whoever looks for left-overs meanwhile finds none.
fn own_fresh(folder: &Path) -> io::Result<File> {
    let unnamed = folder.join("owner");
    let file = locked(File::create(&unnamed)?)?.ok_or(io::ErrorKind::ResourceBusy)?;
    std::fs::rename(&unnamed, folder.join(OWNER))?;
    Ok(file)
}

fn locked(file: File) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Removes temporary folders whose processes have ended. One that cannot be removed stays.
fn remove_left_over(beside: &Path) {
    let entries = std::fs::read_dir(beside).into_iter().flatten().flatten();
    for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with(TEMPORARY)) {
        let path = entry.path();
        // One that is being made has no such file yet.
        let Ok(file) = OpenOptions::new().write(true).open(path.join(OWNER)) else { continue };
        if let Ok(Some(_owner)) = locked(file)
            && let Err(e) = std::fs::remove_dir_all(&path)
        {
            tracing::debug!("{} is left over: {e}", path.display());
        }
    }
}

fn no_temporary(e: io::Error) -> Error {
    Error::config("no temporary folder can be made for the SSD tier or local state")
        .code(1423)
        .next("name one by --cache-dir, or give --cache-disk 0 and --residency remote")
        .source(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_share_a_folder_have_one_each_and_their_successors_take_them_up() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Folder::of_ssd_tier(dir.path()).unwrap(), Folder::of_ssd_tier(dir.path()).unwrap());
        assert_eq!((first.path(), second.path()), (&*dir.path().join("ssd-0"), &*dir.path().join("ssd-1")));
        std::fs::write(first.path().join("blocks"), "kept").unwrap();
        drop(first);
        let third = Folder::of_ssd_tier(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(third.path().join("blocks")).unwrap(), "kept");
        assert!(!third.is_temporary() && third.path().ends_with("ssd-0"));
        let nowhere = second.path().join(OWNER).join("below a file");
        assert_eq!(Folder::of_ssd_tier(&nowhere).unwrap_err().number(), 1211);
    }

    #[test]
    fn what_the_killed_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, owner: bool| {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            if owner {
                std::fs::write(path.join(OWNER), "").unwrap();
            }
            path
        };
        let killed = made("millstream-cache-a", true);
        let alive = made("millstream-cache-b", true);
        let being_made = made("millstream-cache-c", false);
        let of_others = made("something-else", true);
        let _owner = own(&alive).unwrap().unwrap();
        remove_left_over(dir.path());
        assert_eq!([&killed, &alive, &being_made, &of_others].map(|p| p.is_dir()), [false, true, true, true]);
        let path = {
            let temporary = Folder::temporary().unwrap();
            assert!(temporary.is_temporary() && own(temporary.path()).unwrap().is_none(), "it is locked");
            temporary.path().to_owned()
        };
        assert!(!path.exists());
    }
}
