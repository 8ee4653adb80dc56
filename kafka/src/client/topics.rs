//! What topics a cluster has, and who leads their partitions.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse, TopicName};
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
    /// The topics of these names, all of which must be there, or all topics.
    pub async fn cluster(&self, names: Option<&[String]>) -> Result<Cluster> {
        self.insist(|| self.cluster_once(names)).await
    }

    async fn cluster_once(&self, names: Option<&[String]>) -> Result<Cluster> {
        let topics = names.map(|names| {
            let topic = |n: &String| MetadataRequestTopic::default().with_name(Some(topic_name(n)));
            names.iter().map(topic).collect()
        });
        let request = MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
        let (broker, response) = self.of_any(&request).await?;
        let mut cluster = Cluster::default();
        for b in response.brokers {
            cluster.brokers.insert(b.node_id.0, format!("{}:{}", b.host.as_str(), b.port));
        }
        for topic in response.topics {
            let name = topic.name.map(|n| n.0.as_str().to_owned()).unwrap_or_default();
            match ResponseError::try_from_code(topic.error_code) {
                None => {}
                // Also while a topic is being made; whoever insists asks again.
                Some(ResponseError::UnknownTopicOrPartition) if names.is_some() => {
                    return Err(Error::unavailable(format!("there is no topic '{name}'"))
                        .code(2405)
                        .at(broker)
                        .next("create it, or correct its name: topics are not created by reading"));
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

    /// Asks the brokers one after the other until one answers.
    async fn of_any(&self, request: &MetadataRequest) -> Result<(String, MetadataResponse)> {
        let mut last = None;
        for broker in &self.0.options.bootstrap {
            match self.call(broker, request, 4..=9).await {
                Ok(response) => return Ok((broker.clone(), response)),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::config("no broker is named").code(1342)))
    }
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
