//! What a user says about a sink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::{Error, Result};
use millstream_formats::EncodingFormat;

use crate::client::check_connection;
use crate::security::Security;

/// Where a row goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToTopic {
    /// To this topic.
    Named(String),
    /// To the topic that a string column names, row by row.
    Column(String),
}

/// What the sink promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeliveryGuarantee {
    /// Rows are visible at once; after a failure some of them come a second time.
    AtLeastOnce,
    /// Rows of an epoch are visible together, once its version is durable, to readers of committed records: never twice, and
    /// none is missing.
    #[default]
    ExactlyOnce,
}

/// What becomes of rows whose transaction the broker has given up before it could be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LostTransactions {
    /// The job fails and says what is missing.
    #[default]
    Fail,
    /// They are named in the log, and the job goes on without them.
    Skip,
    /// The sink keeps a copy of each epoch's records in the job's object store, as long as a version is kept that lists them as
    /// not committed, and writes a transaction that was given up, and all that follow it, again from there: no row is lost or
    /// doubled, and no key's rows change places. The job restarts for that. Costs one PUT a subtask and epoch, or one every
    /// 4 MiB of records, and Read on the topics and on groups whose names begin with the prefix of the transactional ids.
    /// Brokers before Apache Kafka 3.0 do not say whether a transaction was given up: there it is as `Fail`.
    WriteAgain,
}

/// What of a row, besides its value, a record gets from columns; these columns are not part of the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromColumns {
    /// The partition (an integer of 32 bits); without one the key decides, or chance.
    pub partition: Option<String>,
    /// The time stamp (milliseconds, UTC); without one the time at which it is written.
    pub timestamp: Option<String>,
    /// The headers: a map of strings to bytes, as the source gives them.
    pub headers: Option<String>,
}

/// How keys are made.
#[derive(Clone)]
pub struct Key {
    /// The columns, in this order. They stay part of the value.
    pub columns: Vec<String>,
    /// Their form.
    pub format: Arc<dyn EncodingFormat>,
}

/// A sink's settings.
#[derive(Clone)]
pub struct KafkaSinkOptions {
    /// Brokers to ask first, `HOST:PORT` each.
    pub bootstrap: Vec<String>,
    /// How connections to them are secured.
    pub security: Security,
    /// Where rows go.
    pub topic: ToTopic,
    /// The form of values. A changelog is written as it is by a format that knows changes (Debezium); every other one gets the
    /// rows after a change, and deletions become tombstones, for which a key is needed.
    pub value: Arc<dyn EncodingFormat>,
    /// Whether `value` has a form for changes itself.
    pub value_knows_changes: bool,
    /// The keys; `None`: records without.
    pub key: Option<Key>,
    /// Partition, time stamp, headers.
    pub columns: FromColumns,
    /// What it promises.
    pub guarantee: DeliveryGuarantee,
    /// What transactional ids begin with: no other sink of the cluster, in this job or another, may have the same. The name of
    /// the job is a good beginning: a fork has its own.
    pub transactional_id_prefix: String,
    /// The broker gives up a transaction that is older than this: it must exceed the time from one checkpoint to the next, that
    /// of a checkpoint, and that of a restart; brokers refuse more than their `transaction.max.timeout.ms` (15 minutes, unless set).
    pub transaction_timeout: Duration,
    /// What becomes of transactions that the broker has given up.
    pub lost_transactions: LostTransactions,
    /// How long brokers may not answer before the job fails (and starts again).
    pub retry_timeout: Duration,
    /// Settings of librdkafka's producer, beyond those that follow from the above.
    pub properties: BTreeMap<String, String>,
}

/// What our own settings say; a property must not contradict them.
const OURS: [&str; 9] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "transactional.id",
    "transaction.timeout.ms",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "delivery.report.only.error",
    "enable.gapless.guarantee",
];

impl KafkaSinkOptions {
    /// Exactly once to a topic, without keys. `transactional_id_prefix`: see there.
    pub fn new(
        bootstrap: Vec<String>,
        topic: ToTopic,
        value: Arc<dyn EncodingFormat>,
        transactional_id_prefix: impl Into<String>,
    ) -> Self {
        Self {
            bootstrap,
            security: Security::default(),
            topic,
            value,
            value_knows_changes: false,
            key: None,
            columns: FromColumns::default(),
            guarantee: DeliveryGuarantee::default(),
            transactional_id_prefix: transactional_id_prefix.into(),
            transaction_timeout: Duration::from_secs(15 * 60),
            lost_transactions: LostTransactions::default(),
            retry_timeout: Duration::from_secs(60),
            properties: BTreeMap::new(),
        }
    }

    /// What cannot be, by itself.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::config(what).code(1360));
        check_connection(&self.bootstrap, &self.security, &self.properties, &OURS, ("sink", 1360))?;
        if matches!(&self.topic, ToTopic::Named(name) | ToTopic::Column(name) if name.is_empty()) {
            return wrong("no topic is named".into());
        }
        if self.key.as_ref().is_some_and(|key| key.columns.is_empty()) {
            return wrong("a key has no column".into());
        }
        if self.guarantee == DeliveryGuarantee::ExactlyOnce && self.transactional_id_prefix.is_empty() {
            return wrong("exactly once needs a prefix of transactional ids".into());
        }
        if self.transaction_timeout.is_zero() || self.transaction_timeout.as_millis() > i32::MAX as u128 {
            return wrong(format!("a transaction cannot last {:?}", self.transaction_timeout));
        }
        Ok(())
    }
}
