//! What topics a cluster has, and who leads their partitions.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use millstream_common::{Error, Result};

use super::{Brokers, refused};

/// A cluster at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// `HOST:PORT` by broker id.
    pub brokers: BTreeMap<i32, String>,
    /// By name; those that were asked for or, when all were, all but the internal ones.
    pub topics: BTreeMap<String, Topic>,
}

/// A topic at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// By number.
    pub partitions: BTreeMap<i32, Partition>,
}

/// A partition at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The broker that leads it; `None` while there is none.
    pub leader: Option<i32>,
}

impl Brokers {
    /// The topics of these names, all of which must be there, or all topics. One that is not there is waited for as long as is
    /// tried; then its absence is final.
    pub async fn cluster(&self, names: Option<&[String]>) -> Result<Cluster> {
        self.insist(|| self.cluster_once(names)).await.map_err(|e| match e.number() {
            // Whoever insisted has waited for it.
            2405 => Error::config(e.what())
                .code(1348)
                .at(e.place())
                .next("create it, or correct its name: topics are not created by reading"),
            _ => e,
        })
    }

    async fn cluster_once(&self, names: Option<&[String]>) -> Result<Cluster> {
        let topics = names.map(|names| {
            let topic = |n: &String| MetadataRequestTopic::default().with_name(Some(topic_name(n)));
            names.iter().map(topic).collect()
        });
        let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
        let (broker, response) = self.call_any(&request, 4..=9).await?;
        let mut cluster = Cluster::default();
        for b in response.brokers {
            cluster.brokers.insert(b.node_id.0, format!("{}:{}", b.host.as_str(), b.port));
        }
        self.0.known.lock().are(cluster.brokers.values());
        for topic in response.topics {
            let name = topic.name.map(|n| n.0.as_str().to_owned()).unwrap_or_default();
            match ResponseError::try_from_code(topic.error_code) {
                None => {}
                // Also while a topic is being made, and at a broker that does not hear of it: another one is asked next.
                Some(ResponseError::UnknownTopicOrPartition) if names.is_some() => {
                    self.0.known.lock().is_asked(&broker);
                    return Err(Error::unavailable(format!("there is no topic '{name}'")).code(2405).at(broker));
                }
                Some(error) => return Err(refused(&broker, &format!("to show topic '{name}'"), error)),
            }
            if topic.is_internal && names.is_none() {
                continue;
            }
            let partitions = topic.partitions.iter().map(|p| {
                let leader = (p.leader_id.0 >= 0).then_some(p.leader_id.0);
                (p.partition_index, Partition { leader })
            });
            cluster.topics.insert(name, Topic { partitions: partitions.collect() });
        }
        Ok(cluster)
    }
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
