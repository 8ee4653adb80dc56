use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use arrow_array::Int64Array;
use arrow_schema::{DataType, Field, Schema};
use millstream_common::{ErrorKind, SubtaskIndex};

use super::*;
use crate::conformance::{self, SinkPlace};

struct Folder(tempfile::TempDir);

impl SinkPlace for Folder {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(FilesSink::new(self.0.path().join("out")))
    }

    fn visible(&self) -> Vec<i64> {
        let names = names(&self.0.path().join("out"));
        let committed = names.iter().filter(|n| is_final(n)).map(|n| self.0.path().join("out").join(n));
        let text: String = committed.map(|p| fs::read_to_string(p).unwrap()).collect();
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["n"].as_i64().unwrap()).collect()
    }

    fn hidden(&self) -> usize {
        names(&self.0.path().join("out")).iter().filter(|n| !is_final(n)).count()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn batch(values: std::ops::Range<i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(values))]).unwrap()
}

fn writer(dir: &Path, subtask: u32) -> Box<dyn SinkWriter> {
    let context = SinkContext::new(SubtaskIndex(subtask), Generation(3), Execution(4), 5);
    FilesSink::new(dir).writer(batch(0..0).schema(), context).unwrap()
}

/// A committable of three rows.
async fn prepared(dir: &Path, epoch: u64) -> Committable {
    let mut writer = writer(dir, 2);
    writer.write(&batch(7..10)).await.unwrap();
    let payload = writer.pre_commit(Epoch(epoch)).await.unwrap().committable.unwrap();
    let (sink_uid, subtask) = ("s".to_owned(), SubtaskIndex(2));
    Committable { sink_uid, epoch: Epoch(epoch), subtask, sequence: 0, payload, rows: 3, kept: Vec::new() }
}

async fn commit(dir: &Path, committable: &Committable) -> Result<()> {
    FilesSink::new(dir).committer().unwrap().commit(committable).await
}

#[tokio::test]
async fn files_pass_the_exam_of_sinks() {
    conformance::check_sink(&Folder(tempfile::tempdir().unwrap())).await;
}

#[tokio::test]
async fn names_and_contents_are_as_promised() {
    let dir = tempfile::tempdir().unwrap();
    let committable = prepared(dir.path(), 17).await;
    assert_eq!(names(dir.path()), [".part-3-4-2-0000000000000005-0"]);
    commit(dir.path(), &committable).await.unwrap();
    assert_eq!(names(dir.path()), ["part-0000000017-2-0.ndjson"]);
    assert_eq!(fs::read(dir.path().join("part-0000000017-2-0.ndjson")).unwrap(), b"{\"n\":7}\n{\"n\":8}\n{\"n\":9}\n");
}

#[tokio::test]
async fn wherever_a_crash_falls_the_commit_ends_the_same() {
    // Before the link; between link and removal; after it; and when a copy of the folder made two files of one.
    for state in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let committable = prepared(dir.path(), 1).await;
        let (from, to) =
            (dir.path().join(".part-3-4-2-0000000000000005-0"), dir.path().join("part-0000000001-2-0.ndjson"));
        match state {
            1 => fs::hard_link(&from, &to).unwrap(),
            2 => fs::rename(&from, &to).unwrap(),
            3 => drop(fs::copy(&from, &to).unwrap()),
            _ => {}
        }
        let inode = fs::metadata(&to).map(|m| m.ino()).ok();
        commit(dir.path(), &committable).await.unwrap();
        assert_eq!(names(dir.path()), ["part-0000000001-2-0.ndjson"], "state {state}");
        assert!(inode.is_none_or(|i| i == fs::metadata(&to).unwrap().ino()), "a name is never replaced");
    }
}

#[tokio::test]
async fn what_cannot_be_committed_is_said_aloud() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("part-0000000001-2-0.ndjson");
    // Neither file.
    let committable = prepared(dir.path(), 1).await;
    fs::remove_file(dir.path().join(".part-3-4-2-0000000000000005-0")).unwrap();
    let error = commit(dir.path(), &committable).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("part-0000000001-2-0"), "{error}");
    // Somebody else's file has the name: it stays, and so does ours.
    let committable = prepared(dir.path(), 1).await;
    fs::write(&to, "{\"n\":7}\n{\"n\":8}\n{\"n\":0}\n").unwrap();
    let error = commit(dir.path(), &committable).await.unwrap_err();
    assert_eq!(error.number(), 4311, "{error}");
    assert!(fs::read_to_string(&to).unwrap().ends_with("0}\n"));
    assert_eq!(names(dir.path()).len(), 2);
    // Cut short, before or after the commit.
    for name in ["part-0000000001-2-0.ndjson", ".part-3-4-2-0000000000000005-0"] {
        fs::remove_file(&to).ok();
        fs::write(dir.path().join(name), "{\"n\":7}\n").unwrap();
        if name.starts_with("part") {
            fs::remove_file(dir.path().join(".part-3-4-2-0000000000000005-0")).unwrap();
        }
        let error = commit(dir.path(), &committable).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("8 bytes"), "{error}");
    }
    // Bytes that are no committable, or that point elsewhere.
    for payload in [vec![], vec![9; 40], committable.payload[..20].to_vec(), {
        let mut p = committable.payload.clone();
        let at = p.windows(6).position(|w| w == b".part-").unwrap();
        p[at + 13] = b'/';
        p
    }] {
        let strange = Committable { payload, ..committable.clone() };
        assert_eq!(commit(dir.path(), &strange).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn only_older_deployments_are_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let keep = [".part-3-5-0-0000000000000001-0", ".part-4-1-0-0000000000000001-0", ".hidden", "part-x", "notes.txt"];
    let remove = [".part-3-4-0-0000000000000001-0", ".part-2-9-7-00000000000000ff-12"];
    for name in keep.iter().chain(&remove) {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    let mut committer = FilesSink::new(dir.path()).committer().unwrap();
    committer.clean_up(Generation(3), Execution(5)).await.unwrap();
    let mut expected = keep.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(names(dir.path()), expected);
}

#[test]
fn places_that_cannot_be_are_refused_by_name() {
    let error = FilesSink::new("/proc/nope").check_fresh().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("/proc/nope"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    FilesSink::new(dir.path().join("a/b")).check_fresh().unwrap();
    fs::write(dir.path().join("a/b/.part-1-1-0-0000000000000001-0"), "").unwrap();
    fs::write(dir.path().join("a/b/parts.txt"), "").unwrap();
    FilesSink::new(dir.path().join("a/b")).check_fresh().unwrap();
    fs::write(dir.path().join("a/b/part-0000000001-0-0.ndjson"), "").unwrap();
    let error = FilesSink::new(dir.path().join("a/b")).check_fresh().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("a/b"), "{error}");
}

#[tokio::test]
async fn large_epochs_are_written_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(dir.path(), 0);
    for i in 0..40 {
        writer.write(&batch(i * 1_000..(i + 1) * 1_000)).await.unwrap();
    }
    let written = fs::metadata(dir.path().join(".part-3-4-0-0000000000000005-0")).unwrap().len();
    assert!(written > 0, "text does not pile up in memory");
    let pre = writer.pre_commit(Epoch(2)).await.unwrap();
    assert_eq!(pre.rows, 40_000);
    let pending = Pending::decode(&pre.committable.unwrap()).unwrap();
    let bytes = fs::read(dir.path().join(&pending.in_progress)).unwrap();
    assert_eq!((bytes.len() as u64, crc32c::crc32c(&bytes)), (pending.bytes, pending.checksum));
    assert_eq!(bytes.iter().filter(|b| **b == b'\n').count(), 40_000);
}

#[test]
fn a_job_does_not_go_back_behind_what_it_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let sink = FilesSink::new(dir.path());
    for name in ["part-0000000004-0-0.ndjson", "part-0000000007-1-0.ndjson", ".part-1-1-0-0000000000000009-0"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    sink.check_goes_back(Epoch(7)).unwrap();
    let e = sink.check_goes_back(Epoch(5)).unwrap_err().to_string();
    assert!(e.contains("part-0000000007-1-0.ndjson") && e.contains("start from: 1 from"), "{e}");
    // Where there is no folder, nothing was written.
    FilesSink::new(dir.path().join("none")).check_goes_back(Epoch(5)).unwrap();
}
