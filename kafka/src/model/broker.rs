//! The state of the broker, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use millstream_common::env::Lane;
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;

use crate::client::{Described, TransactionState};
use crate::sink::Transaction;

/// A record of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None`: a tombstone.
    pub value: Option<Vec<u8>>,
}

/// What ends a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Its commit.
    Commit,
    /// Somebody who wanted it aborted, or a new producer of its id.
    Abort,
    /// Its age.
    Timeout,
}

/// A transaction that has come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its id.
    pub id: String,
    /// The producer that wrote it.
    pub producer_id: i64,
    /// Its epoch when it wrote.
    pub producer_epoch: i16,
    /// When its first record came, milliseconds.
    pub started_ms: i64,
    /// What ended it.
    pub by: By,
    /// How many records it had.
    pub records: usize,
}

impl Ended {
    fn transaction(&self) -> Transaction {
        let (producer_id, producer_epoch) = (self.producer_id, self.producer_epoch);
        Transaction { id: self.id.clone(), producer_id, producer_epoch, started_ms: self.started_ms }
    }

    /// What the version keeps of it.
    #[must_use]
    pub fn committable(&self) -> Vec<u8> {
        self.transaction().encode()
    }

    /// The id under which it is written again.
    #[must_use]
    pub fn again(&self) -> String {
        self.transaction().again()
    }
}

/// What goes wrong with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// In 100 requests: so many fail, a third each before they take effect, after it, and before they take effect all the same, later.
    pub percent: u64,
    /// The latest a request takes effect that was given up.
    pub late: Duration,
}

/// A broker. Clones share it.
#[derive(Clone)]
pub struct ModelBroker(Arc<Inner>);

struct Inner {
    env: Env,
    state: Mutex<State>,
    /// Hears of each transaction that ends with records.
    ended: Box<dyn Fn(&Ended) + Send + Sync>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    is_old: bool,
    ids: BTreeMap<String, Transactional>,
    plain: BTreeMap<i64, i64>,
    next_producer: i64,
    topics: BTreeMap<String, Vec<Entry>>,
    /// What groups have committed: by group, topic and partition.
    offsets: BTreeMap<GroupPlace, i64>,
    /// Of transactions, over all ids.
    begun: u64,
}

/// A group, a topic and a partition.
type GroupPlace = (String, String, i32);

/// A record in the log.
struct Entry {
    record: Written,
    /// The transaction that it belongs to; `None`: none.
    of: Option<u64>,
    /// Whether it is visible to readers of committed records; `None` while that is open.
    committed: Option<bool>,
}

/// A transactional id.
struct Transactional {
    producer_id: i64,
    epoch: i16,
    state: TransactionState,
    started_ms: i64,
    timeout_ms: i64,
    /// The transaction, while one is open.
    open: Option<u64>,
    records: usize,
    /// Its last one was ended by the newest version of the request, which raises the epoch.
    ended_by_v5: bool,
    /// The epoch was raised because a transaction took too long.
    timed_out: bool,
    /// Offsets that become the groups' with the commit.
    pending: BTreeMap<GroupPlace, i64>,
    /// The number of the next record of this producer and epoch: one that comes again is passed over.
    next_sequence: i64,
}

impl ModelBroker {
    /// A broker without topics: one that is written to is there. `ended` hears of each transaction that ends with records.
    pub fn new(env: Env, ended: impl Fn(&Ended) + Send + Sync + 'static) -> Self {
        let state = State { next_producer: 1_000, ..State::default() };
        Self(Arc::new(Inner { env, state: Mutex::new(state), ended: Box::new(ended) }))
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.state.lock().faults = faults;
    }

    /// Whether it knows no more than brokers before Apache Kafka 3.0.
    pub fn set_old(&self, is_old: bool) {
        self.0.state.lock().is_old = is_old;
    }

    pub(super) fn is_old(&self) -> bool {
        self.0.state.lock().is_old
    }

    /// What readers of committed records see of a topic: up to the first record of a transaction that is open.
    #[must_use]
    pub fn committed(&self, topic: &str) -> Vec<Written> {
        self.with(|state, _, _| {
            let entries = state.topics.get(topic).into_iter().flatten();
            let stable = entries.take_while(|e| e.committed.is_some());
            stable.filter(|e| e.committed == Some(true)).map(|e| e.record.clone()).collect()
        })
    }

    /// All committed records of a topic, whatever is open before them.
    #[must_use]
    pub fn decided(&self, topic: &str) -> Vec<Written> {
        let state = self.0.state.lock();
        let entries = state.topics.get(topic).into_iter().flatten();
        entries.filter(|e| e.committed == Some(true)).map(|e| e.record.clone()).collect()
    }

    fn now(&self) -> i64 {
        self.0.env.wall_ms()
    }

    fn tell(&self, ended: Vec<Ended>) {
        ended.iter().filter(|e| e.records > 0).for_each(|e| (self.0.ended)(e));
    }

    fn with<T>(&self, effect: impl FnOnce(&mut State, i64, &mut Vec<Ended>) -> T) -> T {
        let (mut state, now) = (self.0.state.lock(), self.now());
        let mut ended = state.expire(now);
        let answer = effect(&mut state, now, &mut ended);
        drop(state);
        self.tell(ended);
        answer
    }

    /// A request: goes there, takes effect unless it is lost, comes back unless its answer is lost. It may take effect long after the
    /// sender has given it up.
    pub(super) async fn perform<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&ModelBroker) -> T + Send + 'static,
    ) -> Result<T> {
        let env = &self.0.env;
        let faults = self.0.state.lock().faults;
        let wait = Duration::from_micros(200 + env.random_below(4_000));
        let fails = env.random_below(100) < faults.percent;
        let how = env.random_below(3);
        let lost = |what: &str| Error::unavailable(format!("the broker's {what} was lost")).code(2402);
        if fails && how == 0 {
            env.sleep(wait).await;
            return Err(lost("request"));
        }
        let late = if fails && how == 1 {
            Duration::from_millis(env.random_below(faults.late.as_millis().max(1) as u64))
        } else {
            Duration::ZERO
        };
        let (this, clock) = (self.clone(), env.clone());
        let (tx, rx) = tokio::sync::oneshot::channel();
        // The sender may be gone by then.
        env.spawn(Lane::Io, "request to the broker", async move {
            clock.sleep(wait + late).await;
            let _ = tx.send(effect(&this));
        });
        if fails && how == 1 {
            env.sleep(wait).await;
            return Err(lost("answer"));
        }
        let answer = rx.await.map_err(|_| Error::canceled("the broker is gone"))?;
        env.sleep(wait).await;
        if fails { Err(lost("answer").maybe_applied()) } else { Ok(answer) }
    }

    /// A producer without transactions.
    pub(super) fn plain(&self) -> i64 {
        self.with(|state, _, _| {
            state.next_producer += 1;
            state.plain.insert(state.next_producer, 0);
            state.next_producer
        })
    }

    /// The one producer of an id from now on. What was open is aborted.
    pub(crate) fn init(&self, id: &str, timeout: Duration) -> (i64, i16) {
        self.with(|state, _, ended| {
            ended.extend(state.end(id, By::Abort));
            state.next_producer += 1;
            let producer_id = state.next_producer;
            let t = state.ids.entry(id.to_owned()).or_insert_with(|| Transactional {
                producer_id,
                epoch: -1,
                state: TransactionState::Empty,
                started_ms: -1,
                timeout_ms: 0,
                open: None,
                records: 0,
                ended_by_v5: false,
                timed_out: false,
                pending: BTreeMap::new(),
                next_sequence: 0,
            });
            t.epoch += 1;
            t.state = TransactionState::Empty;
            t.timeout_ms = timeout.as_millis() as i64;
            (t.ended_by_v5, t.timed_out, t.next_sequence) = (false, false, 0);
            (t.producer_id, t.epoch)
        })
    }

    /// Appends a record of a transactional producer; its first one begins the transaction.
    pub(super) fn produce(
        &self,
        id: &str,
        producer: (i64, i16),
        sequence: i64,
        topic: &str,
        record: Written,
    ) -> std::result::Result<(), ResponseError> {
        self.with(|state, now, _| {
            let begun = state.begun;
            let t = state.of(id, producer, ResponseError::InvalidProducerEpoch)?;
            if sequence < t.next_sequence {
                return Ok(());
            }
            t.next_sequence = sequence + 1;
            let open = t.begin(begun + 1, now);
            t.records += 1;
            state.begun = begun.max(open);
            let entry = Entry { record, of: Some(open), committed: None };
            state.topics.entry(topic.to_owned()).or_default().push(entry);
            Ok(())
        })
    }

    /// Appends a record of a producer without transactions.
    pub(super) fn append(&self, producer: i64, sequence: i64, topic: &str, record: Written) {
        self.with(|state, _, _| {
            let next = state.plain.entry(producer).or_default();
            if sequence < *next {
                return;
            }
            *next = sequence + 1;
            let entry = Entry { record, of: None, committed: Some(true) };
            state.topics.entry(topic.to_owned()).or_default().push(entry);
        });
    }

    pub(super) fn describe(&self, id: &str) -> Option<Described> {
        self.with(|state, _, _| {
            state.ids.get(id).map(|t| Described {
                state: t.state.clone(),
                producer_id: t.producer_id,
                producer_epoch: t.epoch,
                started_ms: t.started_ms,
                timeout_ms: t.timeout_ms as i32,
            })
        })
    }

    /// The ids and producers of open transactions.
    pub(super) fn ongoing(&self) -> Vec<(String, i64)> {
        self.with(|state, _, _| {
            let open = state.ids.iter().filter(|(_, t)| t.open.is_some());
            open.map(|(id, t)| (id.clone(), t.producer_id)).collect()
        })
    }

    /// A group in a transaction of a producer, which begins with that.
    pub(super) fn add_group(&self, id: &str, producer: (i64, i16)) -> std::result::Result<(), ResponseError> {
        self.with(|state, now, _| {
            let begun = state.begun;
            let open = state.of(id, producer, ResponseError::ProducerFenced)?.begin(begun + 1, now);
            state.begun = begun.max(open);
            Ok(())
        })
    }

    /// An offset that the open transaction of a producer commits for a group.
    pub(super) fn add_offset(
        &self,
        id: &str,
        producer: (i64, i16),
        place: GroupPlace,
        offset: i64,
    ) -> std::result::Result<(), ResponseError> {
        self.with(|state, _, _| {
            let t = state.of(id, producer, ResponseError::InvalidProducerEpoch)?;
            if t.open.is_none() {
                return Err(ResponseError::InvalidTxnState);
            }
            t.pending.insert(place, offset);
            Ok(())
        })
    }

    /// What a group has committed of a partition, once nothing is pending there.
    pub(super) fn offset(&self, place: &GroupPlace) -> std::result::Result<Option<i64>, ResponseError> {
        self.with(|state, _, _| {
            if state.ids.values().any(|t| t.pending.contains_key(place)) {
                return Err(ResponseError::UnstableOffsetCommit);
            }
            Ok(state.offsets.get(place).copied())
        })
    }

    /// Ends a transaction by this version of the request.
    pub(super) fn end(
        &self,
        id: &str,
        producer: (i64, i16),
        commit: bool,
        version: i16,
    ) -> std::result::Result<(), ResponseError> {
        self.with(|state, _, ended| {
            let newest = version >= 5;
            let Some(t) = state.ids.get_mut(id).filter(|t| t.producer_id == producer.0) else {
                return Err(ResponseError::InvalidProducerIdMapping);
            };
            // By the newest version a repeated request has the epoch from before.
            let again = newest && t.ended_by_v5 && producer.1 == t.epoch - 1;
            if producer.1 != t.epoch && !again {
                let timed_out = newest && t.timed_out && producer.1 < t.epoch;
                return Err(if timed_out { ResponseError::InvalidTxnState } else { ResponseError::ProducerFenced });
            }
            match (&t.state, commit) {
                (TransactionState::Ongoing, _) => {
                    ended.extend(state.end(id, if commit { By::Commit } else { By::Abort }));
                    if newest && let Some(t) = state.ids.get_mut(id) {
                        t.epoch += 1;
                        (t.ended_by_v5, t.next_sequence) = (true, 0);
                    }
                    Ok(())
                }
                (TransactionState::CompleteCommit, true) | (TransactionState::CompleteAbort, false)
                    if newest == t.ended_by_v5 =>
                {
                    Ok(())
                }
                _ => Err(ResponseError::InvalidTxnState),
            }
        })
    }
}

impl Transactional {
    /// The open transaction, which begins by now at the latest; `next`: its number then.
    fn begin(&mut self, next: u64, now: i64) -> u64 {
        *self.open.get_or_insert_with(|| {
            (self.state, self.started_ms, self.records) = (TransactionState::Ongoing, now, 0);
            next
        })
    }
}

impl State {
    /// The id of a producer; `fenced`: the answer when that one is not the newest any more.
    fn of(
        &mut self,
        id: &str,
        producer: (i64, i16),
        fenced: ResponseError,
    ) -> std::result::Result<&mut Transactional, ResponseError> {
        let t = self.ids.get_mut(id).filter(|t| t.producer_id == producer.0);
        let t = t.ok_or(ResponseError::InvalidProducerIdMapping)?;
        if t.epoch == producer.1 { Ok(t) } else { Err(fenced) }
    }

    /// Ends what is open under an id.
    fn end(&mut self, id: &str, by: By) -> Option<Ended> {
        let commit = by == By::Commit;
        let t = self.ids.get_mut(id)?;
        let open = t.open.take()?;
        t.state = if commit { TransactionState::CompleteCommit } else { TransactionState::CompleteAbort };
        t.ended_by_v5 = false;
        let pending = std::mem::take(&mut t.pending);
        if commit {
            self.offsets.extend(pending);
        }
        for entry in self.topics.values_mut().flatten().filter(|e| e.of == Some(open)) {
            entry.committed = Some(commit);
        }
        Some(Ended {
            id: id.to_owned(),
            producer_id: t.producer_id,
            producer_epoch: t.epoch,
            started_ms: t.started_ms,
            by,
            records: t.records,
        })
    }

    /// Aborts what has taken too long.
    fn expire(&mut self, now: i64) -> Vec<Ended> {
        let late = |t: &Transactional| t.open.is_some() && now - t.started_ms > t.timeout_ms;
        let ids: Vec<String> = self.ids.iter().filter(|(_, t)| late(t)).map(|(id, _)| id.clone()).collect();
        let mut ended = Vec::new();
        for id in ids {
            ended.extend(self.end(&id, By::Timeout));
            if let Some(t) = self.ids.get_mut(&id) {
                t.epoch += 1;
                (t.timed_out, t.next_sequence) = (true, 0);
            }
        }
        ended
    }
}
