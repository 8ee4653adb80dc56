//! Requests of our own, on a real broker.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::ResponseError;
use millstream_common::{Env, ErrorKind};
use millstream_kafka::client::{At, Brokers, Isolation, Told, TransactionState};

use super::support::{Record, begin, bootstrap, brokers, create_topic, run, unique, write};
use super::versions::tells_of_transactions;

fn records(partition: i32, values: &[&str], first_ms: i64) -> Vec<Record> {
    let of = |(i, v): (usize, &&str)| Record {
        partition,
        value: Some((*v).to_owned()),
        timestamp: first_ms + i as i64 * 1_000,
        ..Record::default()
    };
    values.iter().enumerate().map(of).collect()
}

#[test]
fn topics_show_their_partitions_and_leaders() {
    run(|env| async move {
        let brokers = brokers(&env, &bootstrap());
        let (a, b) = (unique("a"), unique("b"));
        create_topic(&a, 3).await;
        create_topic(&b, 1).await;
        let both = brokers.cluster(Some(&[a.clone(), b.clone()])).await.unwrap();
        assert_eq!(both.topics[&a].partitions.len(), 3);
        assert_eq!(both.topics[&b].partitions.len(), 1);
        let leader = both.topics[&a].partitions[&2].leader.unwrap();
        assert_eq!(both.brokers[&leader], bootstrap());
        let all = brokers.cluster(None).await.unwrap();
        assert!(all.topics.contains_key(&a) && all.topics.contains_key(&b));
        assert!(all.topics.keys().all(|t| !t.starts_with("__")), "{:?}", all.topics.keys());
    });
}

#[test]
fn a_topic_that_is_not_there_is_named() {
    run(|env| async move {
        let error = brokers(&env, &bootstrap()).cluster(Some(&[unique("nowhere")])).await.unwrap_err();
        assert_eq!((error.number(), error.kind()), (1348, ErrorKind::Config));
        assert!(error.what().contains("there is no topic 'nowhere-"), "{error}");
        assert!(error.advice().contains("create it"), "{error}");
    });
}

#[test]
fn a_broker_that_is_not_there_is_named_after_the_time_for_tries() {
    run(|env| async move {
        let start = env.now();
        let error = brokers(&env, "127.0.0.1:1").cluster(None).await.unwrap_err();
        assert_eq!(error.number(), 2401);
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        assert!(env.now().since(start) >= Duration::from_secs(10));
    });
}

#[test]
fn offsets_of_all_kinds_of_places() {
    run(|env| async move {
        let brokers = brokers(&env, &bootstrap());
        let topic = unique("offsets");
        create_topic(&topic, 2).await;
        write(&topic, &records(0, &["a", "b", "c"], 1_000_000), None);
        // An open end: aborted records and their marker lie behind what is committed.
        write(&topic, &records(1, &["x"], 1_000_000), Some(true));
        write(&topic, &records(1, &["y", "z"], 2_000_000), Some(false));
        let offset = async |partition, at, isolation| {
            let place = (topic.clone(), partition);
            let found = brokers.offsets(&[(place.clone(), at)], isolation).await.unwrap();
            assert_eq!(found.len(), 1);
            found[&place]
        };
        let all = Isolation::ReadUncommitted;
        assert_eq!(offset(0, At::Earliest, all).await, 0);
        assert_eq!(offset(0, At::Latest, all).await, 3);
        assert_eq!(offset(0, At::Time(1_000_500), all).await, 1);
        assert_eq!(offset(0, At::Time(9_000_000), all).await, 3, "no record is as late: the end");
        assert_eq!(offset(1, At::Latest, Isolation::ReadCommitted).await, 5, "x, its marker, y, z, their marker");
        let none = brokers.offsets(&[((topic.clone(), 7), At::Latest)], all).await.unwrap_err();
        assert_eq!(none.number(), 2407);
    });
}

#[test]
fn a_group_has_what_was_committed_and_nothing_else() {
    run(|env| async move {
        let brokers = brokers(&env, &bootstrap());
        let (topic, group) = (unique("group"), unique("g"));
        create_topic(&topic, 3).await;
        let places: Vec<_> = (0..3).map(|p| (topic.clone(), p)).collect();
        assert_eq!(brokers.committed(&group, &places).await.unwrap(), BTreeMap::new());
        let offsets: BTreeMap<_, _> = [(places[0].clone(), 7), (places[2].clone(), 0)].into();
        brokers.commit(&group, &offsets).await.unwrap();
        assert_eq!(brokers.committed(&group, &places).await.unwrap(), offsets);
    });
}

/// What a producer that is gone has written and flushed is committed by somebody else.
#[test]
fn a_transaction_is_ended_from_outside() {
    run(|env| async move {
        let brokers = brokers(&env, &bootstrap());
        let topic = unique("txn");
        create_topic(&topic, 1).await;
        if !tells_of_transactions().await {
            // Who wrote it is then not told; how it ends is asked in `transactions`.
            return is_told_nothing(&brokers, &topic).await;
        }
        assert_eq!(brokers.describe_transaction(&unique("nobody")).await.unwrap(), Told::NoSuchId);
        let (end, all) = (At::Latest, Isolation::ReadUncommitted);
        let place = (topic.clone(), 0);
        for commit in [true, false] {
            let id = unique("id");
            let producer = begin(&topic, &records(0, &["a", "b"], 1_000_000), &id);
            let open = brokers.describe_transaction(&id).await.unwrap().newest().unwrap();
            assert_eq!(open.state, TransactionState::Ongoing);
            assert!(open.started_ms > 1_700_000_000_000 && open.timeout_ms == 60_000, "{open:?}");
            assert_eq!(brokers.ongoing_transactions(&id).await.unwrap().transactions, [(id.clone(), open.producer_id)]);
            let before = brokers.offsets(&[(place.clone(), end)], Isolation::ReadCommitted).await.unwrap()[&place];
            drop(producer);

            let who = (open.producer_id, open.producer_epoch);
            // Version 4 for a commit; version 5 raises the epoch, which fences whoever still has the old one.
            let version = if commit { 4 } else { 5 };
            assert_eq!(end_transaction(&env, &brokers, &id, who, commit, version).await, Ok(()));
            if commit {
                let again = end_transaction(&env, &brokers, &id, who, true, 4).await;
                assert_eq!(again, Ok(()), "it is done");
            }
            let (complete, prepared) = match commit {
                true => (TransactionState::CompleteCommit, TransactionState::PrepareCommit),
                false => (TransactionState::CompleteAbort, TransactionState::PrepareAbort),
            };
            let described = async || brokers.describe_transaction(&id).await.unwrap().newest().unwrap();
            let mut ended = described().await;
            // Its marker is on its way.
            while ended.state == prepared {
                env.sleep(Duration::from_millis(20)).await;
                ended = described().await;
            }
            assert_eq!(ended.state, complete);
            assert_eq!(ended.producer_id, open.producer_id);
            assert!(brokers.ongoing_transactions(&id).await.unwrap().transactions.is_empty());
            let behind = brokers.offsets(&[(place.clone(), end)], all).await.unwrap()[&place];
            assert_eq!(behind, before + 3, "two records and the marker");
            let wrong = end_transaction(&env, &brokers, &id, (open.producer_id + 1_000, 0), true, 4).await;
            assert!(wrong.is_err(), "another producer's");
        }
    });
}

/// A broker before Apache Kafka 3.0 says nothing of a transaction that is open.
async fn is_told_nothing(brokers: &Brokers, topic: &str) {
    let id = unique("id");
    let producer = begin(topic, &records(0, &["a", "b"], 1_000_000), &id);
    assert_eq!(brokers.describe_transaction(&id).await.unwrap(), Told::Nothing);
    let ongoing = brokers.ongoing_transactions(&id).await.unwrap();
    assert_eq!((ongoing.transactions, ongoing.silent), (vec![], Some(bootstrap())));
    drop(producer);
    brokers.fence(&id, Duration::from_secs(60)).await.unwrap();
}

/// Asks until it is answered: a marker may still be on its way.
async fn end_transaction(
    env: &Env,
    brokers: &Brokers,
    id: &str,
    producer: (i64, i16),
    commit: bool,
    version: i16,
) -> Result<(), ResponseError> {
    loop {
        match brokers.end_transaction(id, producer, commit, version).await {
            Ok(answer) => return answer,
            Err(e) if e.is_final() => panic!("{e}"),
            Err(_) => env.sleep(Duration::from_millis(50)).await,
        }
    }
}
