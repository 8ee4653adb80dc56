//! Partitions as splits: which there are, where each begins and ends.
//!
//! What a rule like "at the latest record" came to is part of a split from the beginning, so that a job that fails before its
//! first checkpoint does not begin elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use millstream_common::env::BoxFuture;
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::source::{Discovery, Split, SplitEnumerator};
use serde::{Deserialize, Serialize};

use super::options::{KafkaSourceOptions, StartAt, StopAt, Topics};
use crate::client::{At, Brokers};

/// What a split says to who opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionSplit {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// The offset of its first record, or below it.
    pub(super) start: i64,
    /// The first offset that is not read.
    pub(super) stop: Option<i64>,
}

impl PartitionSplit {
    pub(super) fn id(&self) -> String {
        split_id(&self.topic, self.partition)
    }

    /// A record, as errors name it.
    pub(super) fn place(&self, offset: i64) -> String {
        format!("topic {}, partition {}, offset {offset}", self.topic, self.partition)
    }

    pub(super) fn from_payload(payload: &[u8]) -> Result<Self> {
        serde_json::from_slice(payload)
            .map_err(|e| Error::new(ErrorKind::Corrupt, 4320, "the payload of a split is none").source(e))
    }
}

/// As users see it. No topic has a slash in its name.
pub(super) fn split_id(topic: &str, partition: i32) -> String {
    format!("{topic}/{partition}")
}

pub(super) struct PartitionEnumerator {
    pub(super) brokers: Brokers,
    pub(super) options: KafkaSourceOptions,
    /// It has found partitions before, or found that there are none.
    pub(super) asked: bool,
}

impl SplitEnumerator for PartitionEnumerator {
    fn discover<'a>(&'a mut self, known: &'a [String]) -> BoxFuture<'a, Result<Discovery>> {
        Box::pin(async move {
            let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
            let partitions = self.partitions().await?;
            // What appears while others are known already was made since: nothing of it may be missed.
            let first = known.is_empty() && !self.asked;
            let new: Vec<(String, i32)> =
                partitions.into_iter().filter(|(t, p)| !known.contains(split_id(t, *p).as_str())).collect();
            let starts = self.starts(&new, first).await?;
            let stops = self.stops(&new).await?;
            self.asked = true;
            let mut splits = Vec::with_capacity(new.len());
            for (topic, partition) in new {
                let place = (topic.clone(), partition);
                let split = PartitionSplit {
                    topic,
                    partition,
                    start: starts.get(&place).copied().unwrap_or(0),
                    stop: stops.get(&place).copied(),
                };
                let payload =
                    serde_json::to_vec(&split).map_err(|e| Error::internal("a split has no JSON").source(e))?;
                splits.push(Split { id: split.id(), payload });
            }
            Ok(Discovery { new: splits, complete: self.options.stop.is_some() })
        })
    }
}

impl PartitionEnumerator {
    async fn partitions(&self) -> Result<Vec<(String, i32)>> {
        let cluster = match &self.options.topics {
            Topics::Named(names) => self.brokers.cluster(Some(names)).await?,
            Topics::Matching(pattern) => {
                let whole = Topics::whole(pattern)?;
                let mut cluster = self.brokers.cluster(None).await?;
                cluster.topics.retain(|name, _| whole.is_match(name));
                if cluster.topics.is_empty() {
                    tracing::warn!("no topic matches '{pattern}' yet");
                }
                cluster
            }
        };
        let topics = cluster.topics.into_iter();
        Ok(topics.flat_map(|(name, t)| t.partitions.into_keys().map(move |p| (name.clone(), p))).collect())
    }

    async fn starts(&self, new: &[(String, i32)], first: bool) -> Result<BTreeMap<(String, i32), i64>> {
        let rule = if first { &self.options.start } else { &StartAt::Earliest };
        let (mut known, rule) = match rule {
            StartAt::Group(other) => {
                let group = self.options.group.as_deref().unwrap_or_default();
                (self.brokers.committed(group, new).await?, &**other)
            }
            rule => (BTreeMap::new(), rule),
        };
        if let StartAt::Offsets(offsets) = rule {
            offsets.iter().for_each(|(p, o)| {
                known.entry(p.clone()).or_insert(*o);
            });
        }
        let at = match rule {
            StartAt::Latest => At::Latest,
            StartAt::Time(ms) => At::Time(*ms),
            StartAt::Earliest | StartAt::Offsets(_) | StartAt::Group(_) => At::Earliest,
        };
        let unknown: Vec<_> = new.iter().filter(|p| !known.contains_key(p)).map(|p| (p.clone(), at)).collect();
        known.extend(self.brokers.offsets(&unknown, self.options.isolation).await?);
        Ok(known)
    }

    async fn stops(&self, new: &[(String, i32)]) -> Result<BTreeMap<(String, i32), i64>> {
        let given = match &self.options.stop {
            None => return Ok(BTreeMap::new()),
            Some(StopAt::Latest) => BTreeMap::new(),
            Some(StopAt::Offsets(offsets)) => offsets.clone(),
        };
        let ends: Vec<_> = new.iter().map(|p| (p.clone(), At::Latest)).collect();
        let ends = self.brokers.offsets(&ends, self.options.isolation).await?;
        let mut stops = BTreeMap::new();
        for (place, end) in ends {
            let stop = given.get(&place).copied().unwrap_or(end);
            if stop > end {
                return Err(Error::config(format!(
                    "topic '{}' is to be read up to offset {stop} of partition {}, and ends at {end}",
                    place.0, place.1
                ))
                .code(1345)
                .next("give an offset that is there, or read without an end"));
            }
            stops.insert(place, stop);
        }
        Ok(stops)
    }
}
