//! What the version keeps of a transaction, and what its commit is to do by what the broker says of it.

use kafka_protocol::ResponseError;
use millstream_common::{Error, ErrorKind, Result};

use crate::client::{Told, TransactionState};

/// A transaction that waits for its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    /// The transactional id.
    pub(crate) id: String,
    /// The producer that wrote it.
    pub(crate) producer_id: i64,
    /// Its epoch. A producer that is not of this sink may write several transactions under one.
    pub(crate) producer_epoch: i16,
    /// When its first record came, by the broker's clock: tells it from later ones of the same producer and epoch.
    /// [`UNTOLD`]: the broker did not say.
    pub(crate) started_ms: i64,
}

/// The start of a transaction of a broker that does not describe them. Its producer has written no other one.
pub(crate) const UNTOLD: i64 = -1;

/// The form of the bytes below.
const FORMAT: u8 = 1;

/// What a commit has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It is open: to be committed.
    Open,
    /// Only its commit can tell: the broker does not describe transactions.
    Untold,
    /// The broker is giving it up, and has not written that down yet.
    Ending,
    /// It is committed.
    Done,
    /// It cannot be committed any more.
    Lost(Lost),
}

/// Of a transaction that cannot be committed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Why.
    pub(crate) why: String,
    /// It was aborted, and surely not committed before that.
    pub(crate) aborted: bool,
}

impl Transaction {
    /// Format (1 byte), producer id (8, little-endian), epoch (2), start (8), the id up to the end.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.producer_id.to_le_bytes());
        out.extend_from_slice(&self.producer_epoch.to_le_bytes());
        out.extend_from_slice(&self.started_ms.to_le_bytes());
        out.extend_from_slice(self.id.as_bytes());
        out
    }

    /// The reverse.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, 4330, "a committable of the Kafka sink cannot be read")
                .next("it may come from a newer release: go on with that")
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        let (producer_id, rest) = rest.split_first_chunk()?;
        let (producer_epoch, rest) = rest.split_first_chunk()?;
        let (started_ms, id) = rest.split_first_chunk()?;
        (*format == FORMAT && !id.is_empty()).then_some(Self {
            id: String::from_utf8(id.to_vec()).ok()?,
            producer_id: i64::from_le_bytes(*producer_id),
            producer_epoch: i16::from_le_bytes(*producer_epoch),
            started_ms: i64::from_le_bytes(*started_ms),
        })
    }

    /// What is to be done, when the broker says this of the newest transaction of the id.
    pub(crate) fn judge(&self, told: &Told) -> Judged {
        let lost = |why: String| Judged::Lost(Lost { why, aborted: false });
        let now = match told {
            Told::Newest(now) => now,
            // One that is open is given up, which the broker remembers, long before it forgets the id.
            Told::NoSuchId => return lost(FORGOTTEN.to_owned()),
            Told::Nothing => return Judged::Untold,
        };
        if now.producer_id != self.producer_id {
            return lost(format!(
                "it was written by producer {}, and the id belongs to producer {} now",
                self.producer_id, now.producer_id
            ));
        }
        // A broker that gives a transaction up raises the epoch.
        let is_aborted = now.state.is_aborted();
        if now.producer_epoch != self.producer_epoch {
            let why = format!(
                "its producer has epoch {} now and had {}: the transaction took longer than its time-out, or another \
                 writer uses the same transactional id",
                now.producer_epoch, self.producer_epoch
            );
            let is_this = now.producer_epoch > self.producer_epoch && now.started_ms == self.started_ms;
            if is_this && now.state == TransactionState::Ongoing {
                return Judged::Ending;
            }
            return Judged::Lost(Lost { why, aborted: is_aborted && is_this });
        }
        if self.started_ms != UNTOLD && now.started_ms != self.started_ms {
            return lost(format!(
                "a later transaction of the same producer has begun (at {}, it began at {})",
                now.started_ms, self.started_ms
            ));
        }
        match &now.state {
            TransactionState::Ongoing => Judged::Open,
            committed if committed.is_committed() => Judged::Done,
            other => {
                let why = format!("the broker has given it up (its state is {other:?})");
                Judged::Lost(Lost { why, aborted: is_aborted })
            }
        }
    }

    /// Why it is lost, when a broker that describes nothing refuses its commit so; `None`: that does not say that it is.
    pub(crate) fn judge_refusal(refused: ResponseError) -> Option<String> {
        use ResponseError::{
            InvalidProducerEpoch, InvalidProducerIdMapping, InvalidTxnState, ProducerFenced, TransactionalIdNotFound,
        };
        Some(match refused {
            ProducerFenced | InvalidProducerEpoch => {
                "its producer has another epoch now: the transaction took longer than its time-out, or another writer uses \
                 the same transactional id"
                    .to_owned()
            }
            InvalidProducerIdMapping | TransactionalIdNotFound => FORGOTTEN.to_owned(),
            InvalidTxnState => "the broker has given it up".to_owned(),
            _ => return None,
        })
    }
}

const FORGOTTEN: &str = "the brokers have forgotten its transactional id, as they do 7 days after its last use \
     (transactional.id.expiration.ms, unless set): by then it was committed or given up, and which of both nobody can tell; \
     see whether its rows are in the topic, and have the sink skip lost transactions either way";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Described;

    fn transaction() -> Transaction {
        Transaction { id: "job-0-2".into(), producer_id: 7_001, producer_epoch: 3, started_ms: 1_700_000_000_123 }
    }

    fn judge(t: &Transaction, d: &Described) -> Judged {
        t.judge(&Told::Newest(d.clone()))
    }

    fn described(state: TransactionState) -> Described {
        Described { state, producer_id: 7_001, producer_epoch: 3, started_ms: 1_700_000_000_123, timeout_ms: 60_000 }
    }

    #[test]
    fn it_reads_what_it_wrote_and_nothing_else() {
        let bytes = transaction().encode();
        assert_eq!(Transaction::decode(&bytes).unwrap(), transaction());
        for end in 0..=19 {
            assert_eq!(Transaction::decode(&bytes[..end]).unwrap_err().number(), 4330);
        }
        assert!(Transaction::decode(&[&[9], &bytes[1..]].concat()).is_err());
    }

    #[test]
    fn only_the_very_transaction_is_committed() {
        let t = transaction();
        assert_eq!(judge(&t, &described(TransactionState::Ongoing)), Judged::Open);
        for done in [TransactionState::PrepareCommit, TransactionState::CompleteCommit] {
            assert_eq!(judge(&t, &described(done)), Judged::Done);
        }
        let lost = |d: &Described| matches!(judge(&t, d), Judged::Lost(Lost { aborted: false, .. }));
        assert!(lost(&described(TransactionState::Empty)));
        for state in [TransactionState::Ongoing, TransactionState::CompleteCommit] {
            let d = described(state);
            assert!(lost(&Described { producer_id: 7_002, ..d.clone() }));
            assert!(lost(&Described { producer_epoch: 4, started_ms: d.started_ms + 1, ..d.clone() }));
            assert!(lost(&Described { producer_epoch: 2, ..d.clone() }));
            assert!(lost(&Described { started_ms: d.started_ms + 1, ..d }));
        }
    }

    /// What was aborted, by itself or by a broker that raised the epoch, was not committed; of anything else nobody knows.
    #[test]
    fn what_was_aborted_is_told_apart_from_what_is_not_known() {
        let t = transaction();
        let aborted = |d: &Described| matches!(judge(&t, d), Judged::Lost(Lost { aborted: true, .. }));
        for state in [TransactionState::PrepareAbort, TransactionState::CompleteAbort] {
            let d = described(state);
            assert!(aborted(&d) && aborted(&Described { producer_epoch: 4, ..d.clone() }));
            assert!(!aborted(&Described { producer_epoch: 2, ..d.clone() }));
            let ending = Described { producer_epoch: 4, ..described(TransactionState::Ongoing) };
            assert_eq!(judge(&t, &ending), Judged::Ending, "nor is it committed any more");
            assert!(!aborted(&Described { producer_id: 7_002, ..d.clone() }));
            assert!(!aborted(&Described { started_ms: d.started_ms + 1, producer_epoch: 4, ..d }));
        }
    }

    /// It may have been committed; that it was not cannot be ruled out, so it counts as lost.
    #[test]
    fn a_transaction_that_the_brokers_have_forgotten_is_lost_in_words_of_its_own() {
        let Judged::Lost(Lost { why, aborted: false }) = transaction().judge(&Told::NoSuchId) else {
            panic!("nothing says that it was committed")
        };
        for part in ["7 days", "transactional.id.expiration.ms", "committed or given up", "skip lost transactions"] {
            assert!(why.contains(part), "{part} in {why}");
        }
        let given_up = judge(&transaction(), &described(TransactionState::CompleteAbort));
        assert!(matches!(given_up, Judged::Lost(Lost { why, .. }) if !why.contains("7 days")));
    }

    /// A job may go on where brokers are newer than those that it was written to.
    #[test]
    fn a_start_that_was_not_told_is_not_compared() {
        let t = Transaction { started_ms: UNTOLD, ..transaction() };
        assert_eq!(judge(&t, &described(TransactionState::Ongoing)), Judged::Open);
        assert_eq!(judge(&t, &described(TransactionState::CompleteCommit)), Judged::Done);
        let later = Described { producer_epoch: 4, ..described(TransactionState::CompleteAbort) };
        assert!(matches!(judge(&t, &later), Judged::Lost(Lost { aborted: false, .. })));
    }

    #[test]
    fn where_nothing_is_told_the_refusal_of_a_commit_tells() {
        assert_eq!(transaction().judge(&Told::Nothing), Judged::Untold);
        let why = |code| Transaction::judge_refusal(ResponseError::try_from_code(code).unwrap());
        for (code, part) in
            [(90, "longer than its time-out"), (47, "another epoch"), (48, "given it up"), (49, "7 days")]
        {
            assert!(why(code).is_some_and(|why| why.contains(part)), "{code}");
        }
        assert_eq!((why(35), why(53)), (None, None));
    }
}
