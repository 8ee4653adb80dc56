use std::sync::Arc;

use millstream_common::{Applied, ErrorKind};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Faults, FaultyStore, StoreOptions};
use millstream_proto::version::{self as proto, version_record::Kind, version_record::Status};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::golden::Golden;
use crate::testing::memory_store;

fn record(number: u64, generation: u64, nonce: &str) -> VersionRecord {
    VersionRecord {
        number,
        kind: Kind::Checkpoint.into(),
        generation,
        nonce: nonce.to_owned(),
        epoch: 4,
        hash_id: 1,
        key_codec_id: 1,
        status: Status::Running.into(),
        ..VersionRecord::default()
    }
}

/// A record with something in every field.
fn full_record() -> VersionRecord {
    let range = proto::KeyGroupRange { start: 0, end: 65_536 };
    let run = proto::Run {
        task_id: 1,
        object: "4f/1-2-0123456789abcdef".to_owned(),
        offset: 8,
        length: 1000,
        meta_offset: 900,
        meta_length: 108,
        checksum: 0xdead_beef,
        clip: vec![range],
        epoch_min: 1,
        flush_min: 0,
        epoch_max: 3,
        flush_max: 2,
        entries: 77,
        states: vec![proto::RunState { state_id: 1, time_min: -5, time_max: 5, entries: 77 }],
        object_bytes: 2000,
        directory_length: 0,
    };
    let state = proto::StateEntry {
        state_id: 1,
        task_id: 1,
        operator_uid: "window".to_owned(),
        name: "counts".to_owned(),
        layout: proto::state_entry::Layout::TimeOrdered.into(),
        merge_operator: "add-i64".to_owned(),
        value_schema: "i64 count".to_owned(),
        schemas: Vec::new(),
    };
    VersionRecord {
        committed_ms: 1_767_225_600_000,
        job: Some(proto::JobIdentity {
            job: "keyed-count".to_owned(),
            args: vec![proto::Argument { name: "keys".to_owned(), value: "10".to_owned() }],
            plan: vec!["source -> count".to_owned()],
            parallelism: 2,
        }),
        tree: Some(proto::Tree {
            tasks: vec![proto::TaskEntry { task_id: 1, uid: "count".to_owned() }],
            states: vec![state],
            runs: vec![run],
            next_task_id: 2,
            next_state_id: 2,
        }),
        assignment: Some(proto::Assignment { id: 3, subtasks: vec![proto::SubtaskRanges { ranges: vec![range] }] }),
        splits: vec![proto::SplitState {
            source_uid: "source".to_owned(),
            split_id: "0".to_owned(),
            payload: b"payload".to_vec(),
            offset: 10,
            detail: b"detail".to_vec(),
            watermark_ms: Some(-1),
            finished: true,
        }],
        progress: vec![proto::TaskProgress { task_id: 1, range: Some(range), fired_ms: -9 }],
        committables: vec![proto::Committable {
            sink_uid: "sink".to_owned(),
            epoch: 4,
            subtask: 1,
            sequence: 2,
            payload: b"file".to_vec(),
            rows: 6,
        }],
        bytes_written: 1008,
        ..record(7, 2, "0123456789abcdef0123456789abcdef")
    }
}

#[test]
fn records_are_as_released() {
    let mut golden = Golden::default();
    golden.bytes("full", &encode_record(&full_record()));
    golden.bytes("take-over", &encode_record(&VersionRecord { kind: Kind::TakeOver.into(), ..record(1, 1, "n") }));
    let later = VersionRecord { retained_checkpoints: 10, ..record(8, 2, "n") };
    golden.bytes("retained checkpoints", &encode_record(&later));
    golden.compare("version-record-1.txt");
    assert_eq!(decode_record(&Golden::read("version-record-1.txt", "full")).unwrap(), full_record());
}

#[test]
fn damaged_records_are_errors() {
    let bytes = encode_record(&full_record());
    for cut in 0..bytes.len() {
        assert_eq!(decode_record(&bytes[..cut]).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_eq!(decode_record(&damaged).unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
    }
    // A payload that is damaged and has the right checksum: anything but a panic.
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        let at = rng.random_range(10..bytes.len());
        damaged[at] = rng.random();
        let checksum = crc32c::crc32c(&damaged[10..]);
        damaged[6..10].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(record) = decode_record(&damaged) {
            let _ = crate::Tree::from_proto(&record.tree.unwrap_or_default());
        }
    }
}

#[test]
fn decisions() {
    let maybe = || Error::unavailable("lost").maybe_applied();
    assert!(matches!(after_create(Sent::Created, false), Next::Committed));
    assert!(matches!(after_create(Sent::Exists, false), Next::ReadBack));
    assert!(matches!(after_create(Sent::Failed(Error::unavailable("x")), true), Next::Repeat(_)));
    let Next::Fail(e) = after_create(Sent::Failed(Error::config("x")), false) else { panic!() };
    assert_eq!(e.applied(), Applied::No);
    let Next::Fail(e) = after_create(Sent::Failed(Error::config("x")), true) else { panic!() };
    assert_eq!(e.applied(), Applied::Maybe);
    assert!(Sent::Failed(maybe()).is_doubtful() && !Sent::Exists.is_doubtful());
    assert!(matches!(after_read_back(ReadBack::Ours), Next::Committed));
    let theirs = ReadBack::Theirs { generation: Generation(9) };
    assert!(matches!(after_read_back(theirs), Next::Lost { winner: Generation(9) }));
    assert!(matches!(after_read_back(ReadBack::Failed(maybe())), Next::Repeat(_)));
    let Next::Fail(e) = after_read_back(ReadBack::Failed(Error::corrupt("x"))) else { panic!() };
    assert_eq!(e.applied(), Applied::Maybe);
    assert!(matches!(after_create(Sent::Failed(maybe()), true), Next::ReadBack));
    // A 404 is never a no.
    assert!(matches!(after_read_back(ReadBack::Absent), Next::Repeat(_)));
}

fn faulty(env: &Env, faults: Faults) -> (FaultyStore, VersionLog) {
    let backend = FaultyStore::new(Arc::new(InMemory::new()), env, faults);
    let store = Store::from_backend(Arc::new(backend.clone()), "memory://faulty", &StoreOptions::default(), env);
    (backend, VersionLog::new(store, env.clone()))
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_is_a_commit() {
    for faults in [
        Faults { error_after: 1.0, ..Faults::none() },
        Faults { late_write: 1.0, late_by: Duration::from_secs(20), ..Faults::none() },
        Faults { conflict: 0.8, ..Faults::none() },
        Faults { throttle: 0.8, ..Faults::none() },
        Faults { hang: 0.5, ..Faults::none() },
    ] {
        let env = Env::test(5);
        let (backend, log) = faulty(&env, Faults { only_paths_with: "version/".to_owned(), ..faults.clone() });
        assert_eq!(log.commit(&record(1, 1, "ours")).await.unwrap(), CommitOutcome::Committed, "{faults:?}");
        backend.set(Faults::none());
        assert_eq!(log.newest().await.unwrap().unwrap().nonce, "ours");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_rivals_exactly_one_wins() {
    for seed in 0..60 {
        let env = Env::test(seed);
        let (backend, log) = faulty(&env, Faults::bad_day(0.08));
        let (a, b) = (record(1, 1, "a"), record(1, 2, "b"));
        let (a, b) = futures::join!(log.commit(&a), log.commit(&b));
        let number = VersionNumber(1);
        let winner = match (a.unwrap(), b.unwrap()) {
            (CommitOutcome::Committed, CommitOutcome::Lost { winner: Generation(1), number: n }) if n == number => "a",
            (CommitOutcome::Lost { winner: Generation(2), number: n }, CommitOutcome::Committed) if n == number => "b",
            other => panic!("seed {seed}: {other:?}"),
        };
        // Also after every delayed write has landed.
        env.sleep(Duration::from_secs(300)).await;
        backend.set(Faults::none());
        assert_eq!(log.read(number).await.unwrap().unwrap().nonce, winner);
    }
}

#[tokio::test]
async fn records_are_listed_and_read() {
    let env = Env::test(1);
    let store = memory_store(&env);
    let log = VersionLog::new(store.clone(), env);
    assert_eq!(log.newest().await.unwrap(), None);
    for n in 1..=3 {
        assert_eq!(log.commit(&record(n, 1, &n.to_string())).await.unwrap(), CommitOutcome::Committed);
    }
    assert_eq!(log.list().await.unwrap(), [1, 2, 3].map(VersionNumber));
    assert_eq!(log.newest().await.unwrap().unwrap().number, 3);
    assert_eq!(log.read(VersionNumber(9)).await.unwrap(), None);
    let lost = log.commit(&record(2, 7, "other")).await.unwrap();
    assert_eq!(lost, CommitOutcome::Lost { winner: Generation(1), number: VersionNumber(2) });

    let other = VersionRecord { key_codec_id: 2, ..record(4, 1, "x") };
    store.put(&VersionLog::path(VersionNumber(4)), vec![encode_record(&other).into()], Purpose::Version).await.unwrap();
    let error = log.read(VersionNumber(4)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("key codec 2"), "{error}");

    // A record in another's place, and a damaged one.
    let path = VersionLog::path(VersionNumber(5));
    store.put(&path, vec![encode_record(&record(3, 1, "x")).into()], Purpose::Version).await.unwrap();
    let error = log.read(VersionNumber(5)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.place().contains(&path), "{error}");
    let path = VersionLog::path(VersionNumber(6));
    let mut bytes = encode_record(&record(6, 1, "x"));
    bytes[12] ^= 1;
    store.put(&path, vec![bytes.into()], Purpose::Version).await.unwrap();
    let error = log.read(VersionNumber(6)).await.unwrap_err();
    assert!(error.what().contains("checksum") && error.place().contains(&path), "{error}");
}
