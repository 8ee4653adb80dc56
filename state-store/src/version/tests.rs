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
        origin: String::new(),
        heat: None,
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
            parameters: Vec::new(),
            sinks: Vec::new(),
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
            kept: Vec::new(),
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

mod chain {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::version::boundary::{self, BoundaryLog, Drawn, Known};
    use crate::version::delta::{apply, group_of, settle, stored};
    use crate::version::garbage::{Chain, OpenCompactions, Retention, compaction_of, is_over, objects_of, writer_of};
    use crate::version::pins::{self, Pinned, Pins, encode as encode_pin};

    fn run(object: &str, offset: u64, clip: u32) -> proto::Run {
        proto::Run {
            task_id: 1,
            object: object.to_owned(),
            offset,
            length: 100,
            object_bytes: 1000,
            clip: vec![proto::KeyGroupRange { start: 0, end: clip }],
            ..proto::Run::default()
        }
    }

    /// A record that differs from `old` in a few random ways.
    fn successor(old: &VersionRecord, rng: &mut SmallRng) -> VersionRecord {
        let mut new = VersionRecord { number: old.number + 1, nonce: rng.random::<u64>().to_string(), ..old.clone() };
        new.set_kind(if rng.random_bool(0.5) { Kind::Checkpoint } else { Kind::Compaction });
        new.epoch += rng.random_range(0..2);
        new.bytes_written = rng.random_range(0..100);
        let tree = new.tree.get_or_insert_default();
        tree.runs.retain(|_| rng.random_bool(0.9));
        for run in &mut tree.runs {
            if rng.random_bool(0.1) {
                run.clip = vec![proto::KeyGroupRange { start: 0, end: rng.random_range(1..65_536) }];
            }
        }
        for i in 0..rng.random_range(0..4) {
            let object = format!("{:02x}/{}-1-{:x}", rng.random_range(0..256), new.generation, rng.random::<u64>());
            tree.runs.push(run(&object, i * 100, rng.random_range(1..65_536)));
        }
        if rng.random_bool(0.1) {
            tree.tasks.push(proto::TaskEntry { task_id: tree.next_task_id, uid: rng.random::<u64>().to_string() });
            tree.next_task_id += 1;
        }
        if rng.random_bool(0.2) {
            new.assignment.get_or_insert_default().id += 1;
        }
        if rng.random_bool(0.1) {
            new.job.get_or_insert_default().parallelism += 1;
        }
        for split in &mut new.splits {
            if rng.random_bool(0.5) {
                split.offset += 1;
            }
        }
        if rng.random_bool(0.2) {
            let split_id = rng.random::<u64>().to_string();
            new.splits.push(proto::SplitState { source_uid: "s".into(), split_id, ..proto::SplitState::default() });
        }
        if rng.random_bool(0.05) && !new.splits.is_empty() {
            new.splits.remove(0);
        }
        if rng.random_bool(0.5) {
            let fired_ms = rng.random_range(0..1000);
            new.progress = vec![proto::TaskProgress { task_id: 1, range: None, fired_ms }];
        }
        new.committables.retain(|_| rng.random_bool(0.5));
        for sequence in 0..rng.random_range(0..3) {
            let c = proto::Committable { sink_uid: "sink".into(), epoch: new.epoch, sequence, ..Default::default() };
            new.committables.retain(|x| (x.epoch, x.sequence) != (c.epoch, c.sequence));
            new.committables.push(proto::Committable { rows: rng.random(), ..c });
        }
        new
    }

    fn first(rng: &mut SmallRng) -> VersionRecord {
        let mut record = full_record();
        record.number = 1;
        for i in 0..rng.random_range(0..40) {
            record.tree.as_mut().unwrap().runs.push(run(&format!("00/1-1-{i:x}"), 8, 65_536));
        }
        settle(None, &mut record);
        record
    }

    #[test]
    fn a_delta_applied_is_the_record_it_was_made_from() {
        let mut deltas = 0;
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut old = first(&mut rng);
            for _ in 0..40 {
                let mut new = successor(&old, &mut rng);
                settle(Some(&old), &mut new);
                assert!(new.number - group_of(&new) < delta::GROUP_RECORDS);
                // What stands in the store, as bytes.
                let there = decode_record(&encode_record(&stored(Some(&old), &new))).unwrap();
                assert_eq!(there.delta.is_some(), group_of(&new) != new.number, "seed {seed}");
                if there.delta.is_some() {
                    deltas += 1;
                    assert_eq!(apply(&old, &there).unwrap(), new, "seed {seed}");
                } else {
                    assert_eq!(there, new, "seed {seed}");
                }
                old = new;
            }
        }
        assert!(deltas > 3_000, "{deltas} deltas");
    }

    #[test]
    fn a_delta_that_does_not_fit_is_an_error() {
        let mut rng = SmallRng::seed_from_u64(1);
        let old = first(&mut rng);
        let mut new = VersionRecord { number: 2, ..old.clone() };
        new.tree.as_mut().unwrap().runs.remove(0);
        settle(Some(&old), &mut new);
        let there = stored(Some(&old), &new);
        assert_eq!(apply(&old, &there).unwrap(), new);
        for wrong in [
            VersionRecord { number: 3, ..old.clone() },
            VersionRecord { number: 1, snapshot: 0, ..new.clone() },
            VersionRecord { generation: 2, snapshot: 4, ..old.clone() },
        ] {
            assert_eq!(apply(&wrong, &there).unwrap_err().number(), 4007);
        }
    }

    #[test]
    fn deltas_boundaries_and_pins_are_as_released() {
        let mut old = full_record();
        settle(None, &mut old);
        for i in 0..30 {
            old.tree.as_mut().unwrap().runs.push(run(&format!("00/2-1-{i:02}"), 8, 65_536));
        }
        let mut new = VersionRecord { number: 8, boundary: 3, bound: 2, ..old.clone() };
        let tree = new.tree.as_mut().unwrap();
        tree.runs.remove(3);
        tree.runs[4].clip[0].end = 9;
        tree.runs.push(proto::Run { origin: "parent".into(), ..run("7a/2-1-ff", 8, 65_536) });
        new.splits[0].offset = 11;
        new.committables.clear();
        settle(Some(&old), &mut new);
        let mut golden = Golden::default();
        golden.bytes("delta", &encode_record(&stored(Some(&old), &new)));
        let fork = Some(proto::ForkOrigin { job: "parent".into(), version: 7 });
        golden.bytes("fork", &encode_record(&VersionRecord { fork, ..record(1, 1, "n") }));
        let boundary = proto::Boundary {
            number: 2,
            bound: 77,
            generation: 3,
            nonce: "0".repeat(32),
            created_ms: 1_767_225_600_000,
        };
        golden.bytes("boundary", &boundary::encode(&boundary));
        golden.bytes("pin", &pins::encode(&pin("fork-x", 7, proto::pin::Kind::Fork)));
        golden.compare("version-chain-1.txt");
        let there = decode_record(&Golden::read("version-chain-1.txt", "delta")).unwrap();
        assert_eq!(apply(&old, &there).unwrap(), new);
        for (name, code) in [("boundary", 4008), ("pin", 4009)] {
            let bytes = Golden::read("version-chain-1.txt", name);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                let error = match name {
                    "pin" => pins::decode(&damaged).unwrap_err(),
                    _ => boundary::decode(&damaged).unwrap_err(),
                };
                assert_eq!(error.number(), code, "{name} byte {at}");
            }
        }
    }

    fn pin(id: &str, version: u64, kind: proto::pin::Kind) -> proto::Pin {
        proto::Pin {
            id: id.to_owned(),
            version,
            kind: kind.into(),
            who: "somebody".to_owned(),
            created_ms: 1_767_225_600_000,
            until: 0,
        }
    }

    #[tokio::test]
    async fn whole_records_are_read_from_groups() {
        let env = Env::test(1);
        let log = VersionLog::new(memory_store(&env), env.clone());
        let mut rng = SmallRng::seed_from_u64(4);
        let mut all = vec![first(&mut rng)];
        log.commit(&stored(None, &all[0])).await.unwrap();
        for _ in 0..50 {
            let old = all.last().unwrap().clone();
            let mut new = successor(&old, &mut rng);
            settle(Some(&old), &mut new);
            log.commit(&stored(Some(&old), &new)).await.unwrap();
            all.push(new);
        }
        for record in &all {
            assert_eq!(log.read(VersionNumber(record.number)).await.unwrap().as_ref(), Some(record));
        }
        assert_eq!(log.newest().await.unwrap().as_ref(), all.last());
        // Each object once, whether the list begins with a snapshot or not.
        for from in 0..all.len() {
            let mut seen = Vec::new();
            let numbers: Vec<_> = all[from..].iter().map(|r| VersionNumber(r.number)).collect();
            log.read_each(&numbers, |_, r| {
                seen.push(r.unwrap().unwrap());
                Ok(())
            })
            .await
            .unwrap();
            assert_eq!(seen, all[from..]);
        }
        // Without what it builds on a record cannot be read, and says so.
        let lost = all.iter().find(|r| group_of(r) != r.number).unwrap();
        let group = VersionNumber(group_of(lost));
        log.store.delete(&VersionLog::path(group), Purpose::Version).await.unwrap();
        let error = log.read(VersionNumber(lost.number)).await.unwrap_err();
        assert!(error.number() == 4007 && error.to_string().contains("builds on version"), "{error}");
    }

    fn take_over(number: u64, generation: u64, nonce: &str) -> VersionRecord {
        VersionRecord { kind: Kind::TakeOver.into(), ..record(number, generation, nonce) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_number_below_the_boundary_is_lost() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let (log, rival) = (VersionLog::new(store.clone(), env.clone()), VersionLog::new(store, env));
        for n in 1..=5 {
            log.commit(&record(n, 1, &n.to_string())).await.unwrap();
        }
        let drawn = rival.boundaries().draw(Known::default(), 4, Generation(2)).await.unwrap();
        let known = Known { number: 1, bound: 4, generation: Generation(2) };
        assert_eq!(drawn, Drawn::Ours(known));
        // Collected, and created again by somebody who has slept.
        log.store.delete(&VersionLog::path(VersionNumber(3)), Purpose::Version).await.unwrap();
        let lost = log.commit(&take_over(3, 1, "late")).await.unwrap();
        assert_eq!(lost, CommitOutcome::Lost { winner: Generation(2), number: VersionNumber(3) });
        // At the bound and above it counts.
        assert_eq!(log.commit(&take_over(6, 1, "6")).await.unwrap(), CommitOutcome::Committed);
        assert_eq!(log.boundaries().known(), known);
    }

    /// Somebody who opens the job creates a number while its leader collects it, at any moment.
    #[tokio::test(start_paused = true)]
    async fn whoever_sleeps_through_a_collection_learns_of_it() {
        let mut created = 0;
        for wait_ms in (0..600).step_by(7) {
            let env = Env::test(wait_ms);
            let inner: Arc<InMemory> = Arc::default();
            let slow = Faults {
                latency_p50: Duration::from_millis(90),
                latency_p99: Duration::from_millis(110),
                ..Faults::none()
            };
            let store = |backend: Arc<dyn millstream_objects::object_store::ObjectStore>| {
                Store::from_backend(backend, "memory://", &StoreOptions::default(), &env)
            };
            let sleeper = VersionLog::new(store(Arc::new(FaultyStore::new(inner.clone(), &env, slow))), env.clone());
            let other = VersionLog::new(store(inner.clone()), env.clone());
            for n in 1..=5 {
                other.commit(&record(n, 2, &n.to_string())).await.unwrap();
            }
            let collect = async {
                env.sleep(Duration::from_millis(wait_ms)).await;
                other.boundaries().draw(Known::default(), 5, Generation(2)).await.unwrap();
                for n in 1..=4 {
                    other.store.delete(&VersionLog::path(VersionNumber(n)), Purpose::Version).await.unwrap();
                }
            };
            let late = take_over(4, 1, "late");
            let (outcome, ()) = futures::join!(sleeper.commit(&late), collect);
            assert!(matches!(outcome.unwrap(), CommitOutcome::Lost { .. }), "{wait_ms} ms");
            created += u64::from(other.read(VersionNumber(4)).await.unwrap().is_some());
        }
        assert!(created > 3, "it got the number {created} times");
    }

    /// A leader whose newest version is 4, and a successor that took over behind it, went on and collected.
    #[tokio::test]
    async fn a_leader_that_sleeps_finds_its_successor() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let (sleeper, other) = (VersionLog::new(store.clone(), env.clone()), VersionLog::new(store, env));
        let mut chain = Chain::default();
        for n in 1..=12 {
            let next = match n {
                1..=4 => record(n, 1, &n.to_string()),
                5 => take_over(n, 2, "5"),
                _ => record(n, 2, &n.to_string()),
            };
            other.commit(&next).await.unwrap();
            chain.add(&next);
        }
        other.boundaries().draw(Known::default(), 10, Generation(2)).await.unwrap();
        for n in chain.dead_records(10, &BTreeSet::new()) {
            other.store.delete(&VersionLog::path(VersionNumber(n)), Purpose::Version).await.unwrap();
        }
        assert_eq!(other.list().await.unwrap(), [5, 10, 11, 12].map(VersionNumber));
        let lost = sleeper.commit(&record(5, 1, "late")).await.unwrap();
        assert_eq!(lost, CommitOutcome::Lost { winner: Generation(2), number: VersionNumber(5) });
        // One of its own that had stood is nothing new.
        assert_eq!(sleeper.commit(&record(4, 1, "4")).await.unwrap(), CommitOutcome::Committed);
    }

    #[tokio::test(start_paused = true)]
    async fn boundaries_never_go_back_and_leave_no_holes() {
        for seed in 0..40 {
            let env = Env::test(seed);
            let backend = FaultyStore::new(Arc::new(InMemory::new()), &env, Faults::bad_day(0.05));
            let store =
                Store::from_backend(Arc::new(backend.clone()), "memory://faulty", &StoreOptions::default(), &env);
            let (a, b) = (BoundaryLog::new(store.clone(), env.clone()), BoundaryLog::new(store.clone(), env.clone()));
            let draws = |log: BoundaryLog, generation: u64| async move {
                for turn in 0..8 {
                    let after = log.known();
                    drop(log.draw(after, (turn * 7 * generation) % 31, Generation(generation)).await);
                }
            };
            futures::join!(draws(a.clone(), 3), draws(b.clone(), 5));
            env.sleep(Duration::from_secs(300)).await;
            backend.set(Faults::none());
            let fresh = BoundaryLog::new(store.clone(), env.clone());
            let end = fresh.find().await.unwrap();
            assert_eq!(end, BoundaryLog::new(store.clone(), env.clone()).newest().await.unwrap());
            let mut bounds = Vec::new();
            for n in 1..=end.number {
                let bytes = store.get(&BoundaryLog::path(n), Purpose::Check).await.unwrap().unwrap();
                bounds.push(boundary::decode(&bytes).unwrap().bound);
            }
            assert!(bounds.is_sorted() && bounds.len() >= 8, "seed {seed}: {bounds:?}");
        }
    }

    #[tokio::test]
    async fn a_pin_below_the_boundary_is_none() {
        let env = Env::test(1);
        let store = memory_store(&env);
        let (pins, log) = (Pins::new(store.clone(), env.clone()), BoundaryLog::new(store.clone(), env));
        let kind = proto::pin::Kind::Reader;
        let a = pins.pin(&pin("a", 3, kind), &log).await.unwrap();
        assert_eq!(pins.pin(&pin("a", 4, kind), &log).await.unwrap_err().number(), 1510);
        assert_eq!(pins.pin(&pin("../a", 4, kind), &log).await.unwrap_err().number(), 1508);
        log.draw(Known::default(), 5, Generation(1)).await.unwrap();
        assert_eq!(pins.pin(&pin("b", 4, kind), &log).await.unwrap_err().number(), 1509);
        pins.pin(&pin("c", 5, kind), &log).await.unwrap();
        // A version below the boundary can be pinned as long as another pin keeps it.
        let again = pins.pin(&pin("again", 3, kind), &log).await.unwrap();
        pins.release(&again).await.unwrap();
        let ids = |pins: &[Pinned]| pins.iter().map(|p| p.pin.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&pins.list().await.unwrap()), ["a", "c"]);
        pins.release(&a).await.unwrap();
        assert_eq!(ids(&pins.list().await.unwrap()), ["c"]);
        // One that was given up and came to be all the same keeps nothing for others.
        let late = encode_pin(&pin("late", 3, kind));
        store.put("pins/late/1.pin", vec![late.into()], Purpose::Version).await.unwrap();
        assert!(pins.list().await.unwrap().iter().any(|p| p.pin.id == "late" && !p.confirmed));
        assert_eq!(pins.pin(&pin("d", 3, kind), &log).await.unwrap_err().number(), 1509);
        // That of a start holds until its number is taken.
        let start = Pinned { pin: proto::Pin { until: 9, ..pin("s", 1, proto::pin::Kind::Start) }, ..a };
        assert!(start.holds(8) && !start.holds(9));
    }

    /// Version, group, is it a checkpoint, committed at, objects.
    type Line = (u64, u64, bool, i64, &'static [&'static str]);

    fn chain(lines: &[Line]) -> Chain {
        let mut chain = Chain::default();
        for (number, group, checkpoint, committed_ms, objects) in lines {
            let mut r = VersionRecord { snapshot: *group, committed_ms: *committed_ms, ..record(*number, 1, "n") };
            r.set_kind(if *checkpoint { Kind::Checkpoint } else { Kind::Compaction });
            r.tree.get_or_insert_default().runs = objects.iter().map(|o| run(o, 8, 1)).collect();
            chain.add(&r);
        }
        chain
    }

    #[test]
    fn the_bound_keeps_what_the_settings_say() {
        let lines: Vec<Line> = (1..=10).map(|n| (n, n, n % 2 == 1, n as i64 * 10, &[][..])).collect();
        let chain = chain(&lines);
        let bound = |checkpoints, age_ms, in_use| chain.bound(Retention { checkpoints, age_ms }, in_use);
        assert_eq!(bound(1, 0, None), 9);
        assert_eq!(bound(3, 0, None), 5);
        assert_eq!(bound(0, 0, None), 9);
        // Fewer than are to be kept.
        assert_eq!(bound(9, 0, None), 0);
        // By age: from 100 back to 30.
        assert_eq!(bound(1, 70, None), 3);
        assert_eq!(bound(1, 1_000, None), 1);
        // What a worker reads.
        assert_eq!(bound(1, 0, Some(4)), 4);
        assert_eq!(bound(3, 0, Some(8)), 5);
    }

    #[test]
    fn what_stands_is_counted_once() {
        let mut chain = chain(&[(1, 1, true, 0, &["a", "b"]), (2, 1, false, 0, &["a", "c"]), (3, 3, true, 0, &["c"])]);
        let all = chain.standing();
        assert_eq!((all.records, all.checkpoints, all.objects), (3, 2, 3));
        assert!(all.bytes > 0);
        chain.remove_object("b");
        chain.remove_record(1);
        let left = chain.standing();
        assert_eq!((left.records, left.checkpoints, left.objects, left.bytes * 3), (2, 1, 2, all.bytes * 2));
    }

    #[test]
    fn the_dead_are_never_live() {
        let chain = chain(&[
            (1, 1, true, 0, &["a", "b"]),
            (2, 1, true, 0, &["a", "c"]),
            (3, 3, true, 0, &["c", "d"]),
            (4, 3, true, 0, &["d", "e"]),
            (5, 3, true, 0, &["e"]),
            (6, 6, true, 0, &["e", "f"]),
        ]);
        let dead = |bound, pinned: &[&str]| -> Vec<String> {
            let pinned = pinned.iter().map(|p| (*p).to_owned()).collect();
            chain.dead_objects(bound, &pinned).iter().map(|o| o.0.to_string()).collect()
        };
        assert_eq!(dead(1, &[]), [""; 0]);
        assert_eq!(dead(4, &[]), ["a", "b", "c"]);
        assert_eq!(dead(4, &["a", "c"]), ["b"]);
        assert_eq!(dead(6, &[]), ["a", "b", "c", "d"]);
        // Version 5 is read from 3 and 4.
        assert_eq!(chain.dead_records(5, &BTreeSet::new()), [1, 2]);
        assert_eq!(chain.dead_records(6, &BTreeSet::new()), [1, 2, 3, 4, 5]);
        assert_eq!(chain.dead_records(6, &BTreeSet::from([4])), [1, 2, 5]);
        assert_eq!(chain.dead_records(6, &BTreeSet::from([2])), [3, 4, 5]);
        // What stands in the way of a deposed leader stays.
        let mut succeeded = chain.clone();
        succeeded.add(&VersionRecord { number: 4, kind: Kind::TakeOver.into(), ..VersionRecord::default() });
        assert_eq!(succeeded.dead_records(6, &BTreeSet::new()), [1, 2, 3, 5]);
        // So does what nobody can read.
        succeeded.add_unreadable(5);
        assert_eq!(succeeded.dead_records(6, &BTreeSet::new()), [1, 2, 3]);
    }

    /// However the chain grew, whatever is pinned: nothing that a kept version needs is among the dead.
    #[test]
    fn random_chains_keep_what_is_needed() {
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut records = BTreeMap::from([(1, first(&mut rng))]);
            for n in 1..60u64 {
                let mut new = successor(&records[&n], &mut rng);
                settle(Some(&records[&n]), &mut new);
                records.insert(n + 1, new);
            }
            let mut chain = Chain::default();
            records.values().for_each(|r| chain.add(r));
            let retention = Retention { checkpoints: rng.random_range(1..12), age_ms: 0 };
            let in_use = rng.random_bool(0.3).then(|| rng.random_range(1..=60));
            let bound = chain.bound(retention, in_use);
            let pinned: BTreeSet<u64> = (0..rng.random_range(0..4)).map(|_| rng.random_range(1..=60)).collect();
            let of_pins: BTreeSet<String> = pinned.iter().flat_map(|p| objects_of(&records[p])).collect();
            let objects: BTreeSet<String> =
                chain.dead_objects(bound, &of_pins).iter().map(|o| o.0.to_string()).collect();
            let gone: BTreeSet<u64> = chain.dead_records(bound, &pinned).into_iter().collect();
            for (n, record) in records.iter().filter(|(n, _)| **n >= bound || pinned.contains(n)) {
                assert!(objects_of(record).is_disjoint(&objects), "seed {seed}: version {n}");
                for m in group_of(record)..=*n {
                    assert!(!gone.contains(&m), "seed {seed}: version {n} is read from {m}");
                }
            }
        }
    }

    #[test]
    fn only_what_is_over_is_an_orphan() {
        assert_eq!(writer_of("4f/3-12-0123"), Some((3, 12)));
        for odd in ["4f", "4f/3-12", "3-12-1", "4f/x-1-2", ""] {
            assert_eq!(writer_of(odd), None);
            assert!(!is_over(odd, (9, 9), &OpenCompactions::default()));
        }
        let none = OpenCompactions::default();
        let is_over_now = |object, current| is_over(object, current, &none);
        assert!(is_over_now("4f/3-12-0", (3, 13)) && is_over_now("4f/3-12-0", (4, 0)));
        assert!(!is_over_now("4f/3-12-0", (3, 12)) && !is_over_now("4f/4-1-0", (3, 12)));
    }

    #[test]
    fn an_output_of_a_compaction_is_an_orphan_once_nobody_may_report_it() {
        assert_eq!(compaction_of("4f/3-12-c7-0123"), Some(7));
        for other in ["4f/3-12-0123", "4f/3-12-c7", "4f/3-12-cx-1", "4f/3-12-7-1", "4f"] {
            assert_eq!(compaction_of(other), None, "{other}");
        }
        let compactions = OpenCompactions { open: BTreeSet::from([7]), next: 9 };
        let is_over_now = |object| is_over(object, (3, 12), &compactions);
        assert!(is_over_now("4f/3-12-c6-0") && is_over_now("4f/3-12-c8-0"));
        assert!(!is_over_now("4f/3-12-c7-0"), "its runner may still report it");
        assert!(!is_over_now("4f/3-12-c9-0"), "it may begin in a moment");
        assert!(!is_over_now("4f/3-12-0123"), "a bundle says nothing of itself");
        assert!(is_over_now("4f/3-11-c7-0") && !is_over_now("4f/3-13-c1-0") && !is_over_now("4f/4-12-c6-0"));
    }
}
