//! The names of the file sink's files, what a committable says, and how a file becomes visible.
//!
//! A file in progress has a name that begins with a dot and says who writes it. To commit is to give the finished file
//! a second name, its final one, and to take the first away. Giving a name fails when it is taken, so nothing is ever
//! replaced; wherever a crash falls, doing it all again ends in the same place.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use millstream_common::{Epoch, Error, ErrorKind, Execution, Generation, Result, SubtaskIndex};

/// What names of files in progress begin with.
const IN_PROGRESS: &str = ".part-";

/// The name of a file in progress: who writes it, and the how manieth of its writer it is.
pub(super) fn name_in_progress(g: Generation, e: Execution, subtask: SubtaskIndex, unique: u64, file: u64) -> String {
    format!("{IN_PROGRESS}{g}-{e}-{subtask}-{unique:016x}-{file}")
}

/// The deployment that a file in progress belongs to; `None` for other names.
pub(super) fn deployment_of(name: &str) -> Option<(Generation, Execution)> {
    let mut parts = name.strip_prefix(IN_PROGRESS)?.split('-');
    let (generation, execution) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (parts.count() == 3).then_some((Generation(generation), Execution(execution)))
}

/// The name that readers know.
pub(super) fn final_name(epoch: Epoch, subtask: SubtaskIndex, n: u32) -> String {
    format!("part-{:010}-{subtask}-{n}.ndjson", epoch.0)
}

/// Whether `name` is one of a committed file.
pub(super) fn is_final(name: &str) -> bool {
    let parts = name.strip_prefix("part-").and_then(|n| n.strip_suffix(".ndjson")).map(|n| n.split('-'));
    parts.is_some_and(|p| {
        p.clone().count() == 3 && p.into_iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// The epoch of a committed file.
pub(super) fn epoch_of(name: &str) -> Option<Epoch> {
    is_final(name).then(|| name["part-".len()..].split('-').next()?.parse().ok().map(Epoch))?
}

/// A file that waits for its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    /// Its name now.
    pub(super) in_progress: String,
    /// Its name then.
    pub(super) committed: String,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// CRC-32C of its bytes.
    pub(super) checksum: u32,
}

/// The form of the bytes below.
const FORMAT: u8 = 1;

impl Pending {
    /// The committable: format (1 byte), length (8, little-endian), checksum (4), both names, each with its length (2)
    /// before it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        for name in [&self.in_progress, &self.committed] {
            // Names are made above, far shorter than 64 KiB.
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, 4310, "a committable of the file sink cannot be read")
                .next("it may come from a newer release: go on with that")
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (checksum, mut rest) = rest.split_first_chunk()?;
        let mut name = || {
            let (len, text) = rest.split_first_chunk()?;
            let (text, tail) = text.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            rest = tail;
            String::from_utf8(text.to_vec()).ok()
        };
        let (in_progress, committed) = (name()?, name()?);
        // Nothing outside the folder can be named.
        let sound =
            *format == FORMAT && rest.is_empty() && deployment_of(&in_progress).is_some() && is_final(&committed);
        (sound && !in_progress.contains('/')).then_some(Self {
            in_progress,
            committed,
            bytes: u64::from_le_bytes(*length),
            checksum: u32::from_le_bytes(*checksum),
        })
    }

    /// Makes the file visible; nothing happens when it is already.
    pub(super) fn publish(&self, dir: &Path) -> Result<()> {
        let (from, to) = (dir.join(&self.in_progress), dir.join(&self.committed));
        match fs::metadata(&from) {
            Ok(meta) if meta.len() == self.bytes => {}
            Ok(meta) => {
                return Err(self.lost(&from, format!("it has {} bytes and not {}", meta.len(), self.bytes)));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.already_published(&to),
            Err(e) => return Err(io_failed("cannot look at a finished file", &from, e)),
        }
        match fs::hard_link(&from, &to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // Gone by now: somebody else has just committed the same file.
                if !from.exists() {
                    return self.already_published(&to);
                }
                if !self.is_same(&from, &to)? {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        4311,
                        "another file has the name of one to be committed",
                    )
                    .at(to.display().to_string())
                    .next("give each job a folder of its own; move the strange file away to go on"));
                }
            }
            // Somebody else commits the same file at this moment.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.already_published(&to),
            Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                return Err(Error::config("cannot give a finished file its name")
                    .code(1322)
                    .at(to.display().to_string())
                    .source(e)
                    .next("the folder must be writable and on a file system with hard links"));
            }
            Err(e) => return Err(io_failed("cannot give a finished file its name", &to, e)),
        }
        // The new name is durable before the old one goes: after a power cut there is one of them at least.
        sync_folder(dir)?;
        match fs::remove_file(&from) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_failed("cannot remove a file", &from, e)),
            _ => Ok(()),
        }
    }

    /// The file in progress is gone: then it must stand under its final name.
    fn already_published(&self, to: &Path) -> Result<()> {
        match fs::metadata(to) {
            Ok(meta) if meta.len() == self.bytes => Ok(()),
            Ok(meta) => Err(self.lost(to, format!("it has {} bytes and not {}", meta.len(), self.bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(self.lost(to, format!("neither it nor '{}' is there", self.in_progress)))
            }
            Err(e) => Err(io_failed("cannot look at a committed file", to, e)),
        }
    }

    fn lost(&self, path: &Path, why: String) -> Error {
        Error::new(ErrorKind::Corrupt, 4312, format!("a finished file that was to be committed is lost: {why}"))
            .at(path.display().to_string())
            .next("was the output folder changed or emptied? restore it, or start the job anew with another one")
    }

    /// Two names of one file, or (when a backup tool made two files of it) of the same bytes.
    fn is_same(&self, from: &Path, to: &Path) -> Result<bool> {
        let look = |p: &Path| fs::metadata(p).map_err(|e| io_failed("cannot look at a file", p, e));
        let (a, b) = (look(from)?, look(to)?);
        if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
            return Ok(true);
        }
        Ok(b.len() == self.bytes
            && checksum_of(to).map_err(|e| io_failed("cannot read a committed file", to, e))? == self.checksum)
    }
}

fn checksum_of(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; 256 << 10];
    let mut checksum = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(checksum),
            n => checksum = crc32c::crc32c_append(checksum, &chunk[..n]),
        }
    }
}

/// Makes the names of a folder durable.
pub(super) fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).map_err(|e| io_failed("cannot make names durable in the folder", dir, e))
}

/// What the operating system refuses may work later, on a restart.
pub(super) fn io_failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::unavailable(what).code(2410).at(path.display().to_string()).source(error)
}
