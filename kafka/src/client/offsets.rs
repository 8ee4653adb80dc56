//! Where partitions begin and end, and what a consumer group has committed.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    BrokerId, GroupId, ListOffsetsRequest, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;
use millstream_common::{Error, Result};

use super::topics::topic_name;
use super::{Brokers, Coordinates, refused};

/// A topic's name and the number of a partition.
pub(crate) type TopicPartition = (String, i32);

/// A place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The first record that is still there.
    Earliest,
    /// Behind the last record; with [`Isolation::ReadCommitted`] behind the last that is decided.
    Latest,
    /// The first record whose time stamp is this (milliseconds since 1970) or later; behind the last when there is none.
    Time(i64),
}

/// Which records a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All, those of open and of aborted transactions included.
    ReadUncommitted,
    /// Only what is committed.
    #[default]
    ReadCommitted,
}

impl Brokers {
    /// The offsets of these places.
    pub async fn offsets(
        &self,
        partitions: &[(TopicPartition, At)],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let mut found = BTreeMap::new();
        self.list(partitions, isolation, &mut found).await?;
        // No record is as late as that: where the next one goes.
        let behind: Vec<_> = partitions
            .iter()
            .filter(|(p, at)| matches!(at, At::Time(_)) && found.get(p).is_some_and(|o| *o < 0))
            .map(|(p, _)| (p.clone(), At::Latest))
            .collect();
        self.list(&behind, isolation, &mut found).await?;
        Ok(found)
    }

    async fn list(
        &self,
        partitions: &[(TopicPartition, At)],
        isolation: Isolation,
        found: &mut BTreeMap<TopicPartition, i64>,
    ) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        let some = self.insist(|| self.list_once(partitions, isolation)).await?;
        found.extend(some);
        Ok(())
    }

    async fn list_once(
        &self,
        partitions: &[(TopicPartition, At)],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, i64>> {
        let mut names: Vec<String> = partitions.iter().map(|((topic, _), _)| topic.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let cluster = self.cluster(Some(&names)).await?;
        let mut by_broker: BTreeMap<&str, BTreeMap<&str, Vec<ListOffsetsPartition>>> = BTreeMap::new();
        for ((topic, partition), at) in partitions {
            let there = cluster.topics.get(topic).and_then(|t| t.partitions.get(partition)).ok_or_else(|| {
                Error::unavailable(format!("topic '{topic}' has no partition {partition}")).code(2407)
            })?;
            let broker = there.leader.and_then(|leader| cluster.brokers.get(&leader)).ok_or_else(|| {
                Error::unavailable("the partition has no leader").code(2406).at(format!("{topic}/{partition}"))
            })?;
            let timestamp = match at {
                At::Latest => -1,
                At::Earliest => -2,
                // Below 0 stand other places than times.
                At::Time(ms) => (*ms).max(0),
            };
            let asked = ListOffsetsPartition::default()
                .with_partition_index(*partition)
                .with_current_leader_epoch(-1)
                .with_timestamp(timestamp);
            by_broker.entry(broker).or_default().entry(topic).or_default().push(asked);
        }
        let mut found = BTreeMap::new();
        for (broker, topics) in by_broker {
            let topics = topics
                .into_iter()
                .map(|(name, parts)| ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(parts));
            let request = ListOffsetsRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_isolation_level(i8::from(isolation == Isolation::ReadCommitted))
                .with_topics(topics.collect());
            let response = self.call(broker, &request, 2..=6).await?;
            for topic in response.topics {
                for p in topic.partitions {
                    let key = (topic.name.0.as_str().to_owned(), p.partition_index);
                    if let Some(error) = ResponseError::try_from_code(p.error_code) {
                        return Err(refused(broker, &format!("to say offsets of {}/{}", key.0, key.1), error));
                    }
                    found.insert(key, p.offset);
                }
            }
        }
        Ok(found)
    }

    /// What the group has committed of these partitions; those without a commit are not in the answer.
    pub async fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>> {
        self.insist(|| async {
            let topics = by_topic(partitions.iter().map(|(t, p)| (t, *p))).into_iter().map(|(name, indexes)| {
                OffsetFetchRequestTopic::default().with_name(topic_name(name)).with_partition_indexes(indexes)
            });
            let request = OffsetFetchRequest::default()
                .with_group_id(group_id(group))
                .with_topics(Some(topics.collect()))
                .with_require_stable(true);
            let of = (Coordinates::Group, group);
            let (broker, response) = self.call_coordinator(of, &request, 7..=7, |r| r.error_code).await?;
            let what = format!("to say what group '{group}' has committed");
            if let Some(error) = ResponseError::try_from_code(response.error_code) {
                return Err(refused(&broker, &what, error));
            }
            let mut found = BTreeMap::new();
            for topic in response.topics {
                for p in topic.partitions {
                    if let Some(error) = ResponseError::try_from_code(p.error_code) {
                        return Err(refused(&broker, &what, error));
                    }
                    if p.committed_offset >= 0 {
                        found.insert((topic.name.0.as_str().to_owned(), p.partition_index), p.committed_offset);
                    }
                }
            }
            Ok(found)
        })
        .await
    }

    /// Commits offsets for a group without members: for those who watch its lag.
    pub async fn commit(&self, group: &str, offsets: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        self.insist(|| self.commit_once(group, offsets)).await
    }

    /// The same, without another try.
    pub async fn commit_once(&self, group: &str, offsets: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        let partitions = offsets.iter().map(|((topic, partition), offset)| {
            let p = OffsetCommitRequestPartition::default()
                .with_partition_index(*partition)
                .with_committed_offset(*offset)
                .with_committed_leader_epoch(-1);
            (topic, p)
        });
        let topics = by_topic(partitions)
            .into_iter()
            .map(|(name, ps)| OffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(ps));
        let request = OffsetCommitRequest::default()
            .with_group_id(group_id(group))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(topics.collect());
        let code = |r: &OffsetCommitResponse| {
            let codes = r.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code);
            codes.into_iter().find(|code| *code != 0).unwrap_or(0)
        };
        let of = (Coordinates::Group, group);
        let (broker, response) = self.call_coordinator(of, &request, 8..=8, code).await?;
        match ResponseError::try_from_code(code(&response)) {
            Some(error) => Err(refused(&broker, &format!("offsets of group '{group}'"), error)),
            None => Ok(()),
        }
    }
}

pub(super) fn group_id(group: &str) -> GroupId {
    GroupId(StrBytes::from_string(group.to_owned()))
}

fn by_topic<'a, T>(items: impl Iterator<Item = (&'a String, T)>) -> BTreeMap<&'a str, Vec<T>> {
    let mut topics: BTreeMap<&str, Vec<T>> = BTreeMap::new();
    for (topic, item) in items {
        topics.entry(topic).or_default().push(item);
    }
    topics
}
