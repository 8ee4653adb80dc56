//! What a user says about a source.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_common::{Error, Result};

use crate::client::{Isolation, check_connection};
use crate::security::Security;

/// Which topics are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topics {
    /// These, all of which must be there.
    Named(Vec<String>),
    /// Those whose whole name matches a regular expression; internal ones never do.
    Matching(String),
}

/// Where a partition begins that no version has a position of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At the first record that is still there.
    #[default]
    Earliest,
    /// Behind the last record.
    Latest,
    /// At the first record with this time stamp (milliseconds since 1970) or a later one.
    Time(i64),
    /// At these offsets; other partitions at the earliest.
    Offsets(BTreeMap<(String, i32), i64>),
    /// Where the consumer group has committed; elsewhere at the other place, which is none of a group.
    Group(Box<StartAt>),
}

/// Where a partition ends, so that the input is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopAt {
    /// Behind what is there when the job starts.
    Latest,
    /// At these offsets (the first that is not read); other partitions behind what is there.
    Offsets(BTreeMap<(String, i32), i64>),
}

/// What becomes of a record that the format cannot read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BadRecords {
    /// The job fails and names topic, partition and offset.
    #[default]
    Fail,
    /// It is passed over and counted.
    Drop,
    /// It goes to another topic of the same cluster, with headers that tell where it stood and what is wrong with it, and is
    /// counted. No version lies behind it before the brokers have it for good; after a restart some of them come a second time.
    /// When it cannot be written there the job fails.
    DeadLetter {
        /// That topic; none of those that are read.
        topic: String,
    },
}

/// What of a record, besides its value, becomes a column behind those of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// The name of the topic, a string.
    Topic,
    /// The number of the partition, an integer of 32 bits.
    Partition,
    /// The offset, an integer of 64 bits.
    Offset,
    /// The record's time stamp (milliseconds, UTC); null when it has none.
    Timestamp,
    /// The key as bytes; null when it has none.
    Key,
    /// The headers: a map of names to bytes, in their order.
    Headers,
}

/// A source's settings.
#[derive(Clone, Debug)]
pub struct KafkaSourceOptions {
    /// Brokers to ask first, `HOST:PORT` each.
    pub bootstrap: Vec<String>,
    /// TLS and SASL; by default neither.
    pub security: Security,
    /// Which topics.
    pub topics: Topics,
    /// The consumer group whose offsets [`StartAt::Group`] means, and to which the offsets of each durable version are committed,
    /// so that its lag can be watched. Nobody joins it, and a job goes on from its version, whatever the group says.
    pub group: Option<String>,
    /// Where to begin.
    pub start: StartAt,
    /// Where to end; `None`: never.
    pub stop: Option<StopAt>,
    /// How often is looked for new partitions and topics while the job runs; `None`: never. They are read from their first record. A
    /// source with an end does not look for any.
    pub discovery_interval: Option<Duration>,
    /// Which records.
    pub isolation: Isolation,
    /// Columns besides those of the format, with their names.
    pub metadata: Vec<(String, Metadata)>,
    /// What to do with those that cannot be read.
    pub bad_records: BadRecords,
    /// How long brokers may not answer before the job fails (and starts again).
    pub retry_timeout: Duration,
    /// Settings of librdkafka's consumer, beyond those that follow from the above.
    pub properties: BTreeMap<String, String>,
}

/// What our own settings say; a property must not contradict them.
const OURS: [&str; 10] = [
    // A follower may end before its leader does.
    "client.rack",
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "isolation.level",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.partition.eof",
    "partition.assignment.strategy",
];

impl Topics {
    /// The regular expression of whole names.
    pub(super) fn whole(pattern: &str) -> Result<regex_lite::Regex> {
        regex_lite::Regex::new(&format!("^(?:{pattern})$"))
            .map_err(|e| Error::config(format!("'{pattern}' is no pattern of topics")).code(1344).source(e))
    }

    /// Whether a topic of this name is read. A pattern that is none matches nothing: who looks for topics says so.
    fn include(&self, topic: &str) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| name == topic),
            Self::Matching(pattern) => Self::whole(pattern).is_ok_and(|whole| whole.is_match(topic)),
        }
    }
}

impl KafkaSourceOptions {
    /// All that `topics` hold, from the earliest record on, committed records only.
    #[must_use]
    pub fn new(bootstrap: Vec<String>, topics: Topics) -> Self {
        Self {
            bootstrap,
            security: Security::default(),
            topics,
            group: None,
            start: StartAt::default(),
            stop: None,
            discovery_interval: Some(Duration::from_secs(300)),
            isolation: Isolation::default(),
            metadata: Vec::new(),
            bad_records: BadRecords::default(),
            retry_timeout: Duration::from_secs(60),
            properties: BTreeMap::new(),
        }
    }

    /// What cannot be, by itself.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::config(what).code(1344));
        check_connection(&self.bootstrap, &self.security, &self.properties, &OURS, ("source", 1344))?;
        if matches!(&self.topics, Topics::Named(names) if names.is_empty()) {
            return wrong("no topic is named".into());
        }
        if self.discovery_interval.is_some_and(|interval| interval.is_zero()) {
            return wrong("new partitions cannot be looked for all the time".into());
        }
        match &self.start {
            StartAt::Group(_) if self.group.is_none() => {
                return wrong("to start where a group has committed, name the group".into());
            }
            StartAt::Group(other) if matches!(**other, StartAt::Group(_)) => {
                return wrong("where a group has committed nothing, another place to start is wanted".into());
            }
            _ => {}
        }
        let given = |places: &BTreeMap<(String, i32), i64>| places.values().any(|offset| *offset < 0);
        let start = match &self.start {
            StartAt::Group(other) => other,
            start => start,
        };
        if matches!(start, StartAt::Offsets(o) if given(o))
            || matches!(&self.stop, Some(StopAt::Offsets(o)) if given(o))
        {
            return wrong("an offset is never below 0".into());
        }
        if let BadRecords::DeadLetter { topic } = &self.bad_records {
            if topic.is_empty() {
                return wrong("the topic for bad records has no name".into());
            }
            if self.topics.include(topic) {
                return wrong(format!(
                    "bad records are to go to '{topic}', which is read: they would come back for ever"
                ));
            }
        }
        Ok(())
    }
}
