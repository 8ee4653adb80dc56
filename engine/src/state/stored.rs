//! How the values of a state stand in the store, around what the value itself encodes: a tag that says which schema it
//! was written with (nothing for the first one) and, when the state has a TTL, the stamp that says when it expires.
//!
//! The stamp stands in the entry's head as well, where the store goes by it; reads bring the value alone.

use millstream_common::planted::bug_is_planted;
use millstream_common::{KeyGroup, Result};
use millstream_state_store::entry::Expiry;
use millstream_state_store::schema::{
    NEVER_EXPIRES, Newest, Schema, Ttl, TtlClock, UpgradeBuffers, put_i64, put_tag, take_i64,
};

use super::StateValue;
use crate::element::WATERMARK_MIN;
use crate::operator::SubtaskTime;

/// The form of a state's values, and the clock by which they expire.
pub(super) struct Stored {
    ttl: Option<Ttl>,
    newest: Newest,
    buffers: UpgradeBuffers,
    time: SubtaskTime,
    processing_ms: i64,
}

impl Stored {
    pub(super) fn new() -> Self {
        Self {
            ttl: None,
            newest: Newest::default(),
            buffers: UpgradeBuffers::default(),
            time: SubtaskTime::default(),
            processing_ms: i64::MIN,
        }
    }

    pub(super) fn set_ttl(&mut self, ttl: Option<Ttl>) {
        self.ttl = ttl;
    }

    /// The schemas that the state has had, oldest first; the last one is the program's. Without any: it never had
    /// another one.
    pub(super) fn set_history(&mut self, history: &[Schema]) -> Result<()> {
        self.newest = Newest::new(history)?;
        Ok(())
    }

    /// What time it is from now on. The clock of the machine never goes back here.
    pub(super) fn set_clock(&mut self, time: &SubtaskTime, processing_ms: i64) {
        match self.ttl.map(|t| t.clock) {
            None => {}
            Some(TtlClock::EventTime) => self.time.clone_from(time),
            Some(TtlClock::ProcessingTime) => self.processing_ms = self.processing_ms.max(processing_ms),
        }
    }

    /// Whether values expire at all.
    #[inline]
    pub(super) fn has_ttl(&self) -> bool {
        self.ttl.is_some()
    }

    /// Whether a value with this stamp has expired.
    #[inline]
    pub(super) fn has_lapsed(&self, stamp: i64, group: KeyGroup) -> bool {
        stamp != NEVER_EXPIRES && self.now(group).is_some_and(|now| stamp <= now)
    }

    fn now(&self, group: KeyGroup) -> Option<i64> {
        Some(match self.ttl?.clock {
            TtlClock::EventTime => self.time.fired(group),
            TtlClock::ProcessingTime => self.processing_ms,
        })
    }

    /// The stamp of what is written now. Before the first watermark no event time is known: nothing expires then.
    #[inline]
    pub(super) fn stamp(&self, group: KeyGroup) -> i64 {
        match (self.ttl, self.now(group)) {
            (Some(ttl), Some(now)) if now != WATERMARK_MIN => now.saturating_add(ttl.duration_ms),
            _ => NEVER_EXPIRES,
        }
    }

    /// What the entry of a value with this stamp says.
    pub(super) fn expiry(&self, stamp: i64) -> Expiry {
        match self.ttl {
            Some(ttl) if stamp != NEVER_EXPIRES => match ttl.clock {
                TtlClock::EventTime => Expiry::EventTime(stamp),
                TtlClock::ProcessingTime => Expiry::ProcessingTime(stamp),
            },
            _ => Expiry::Never,
        }
    }

    /// Appends a value as the store gets it.
    #[inline]
    pub(super) fn encode<V: StateValue>(&self, value: &V, stamp: i64, into: &mut Vec<u8>) {
        put_tag(self.newest.version(), into);
        if self.ttl.is_some() {
            put_i64(stamp, into);
        }
        value.encode(into);
    }

    /// A value as the store gave it, upgraded when it is of an older schema, with its stamp.
    #[inline]
    pub(super) fn decode<V: StateValue>(&mut self, bytes: &[u8]) -> Result<(V, i64)> {
        let (mut bytes, upgraded) = self.newest.read(bytes, &mut self.buffers)?;
        let mut stamp = if self.ttl.is_some() { take_i64(&mut bytes)? } else { NEVER_EXPIRES };
        // A planted bug: what comes back from the store lives for ever.
        if bug_is_planted(34) {
            stamp = NEVER_EXPIRES;
        }
        let mut value = V::decode(bytes)?;
        if upgraded {
            value.after_upgrade();
        }
        Ok((value, stamp))
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::{DataType, Field as ArrowField};
    use millstream_state_store::schema::{Field, Form};

    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> Schema {
        let fields = fields.iter().map(|(n, t)| Field::column(&ArrowField::new(*n, t.clone(), true))).collect();
        Schema { key: Vec::new(), map_key: Vec::new(), value: Form::Record { kind: "row".into(), fields }, ttl: None }
    }

    #[test]
    fn values_of_every_schema_are_read_as_the_newest() {
        let history = [
            schema(&[("a", DataType::Int32)]),
            schema(&[("a", DataType::Int32), ("b", DataType::Boolean)]),
            schema(&[("b", DataType::Boolean)]),
            schema(&[("b", DataType::Boolean), ("a", DataType::Int64)]),
        ];
        let mut first = [1, 7, 0, 0, 0].to_vec();
        let mut second = vec![0x82, 0, 1, 7, 0, 0, 0, 1, 1];
        let mut stored = Stored::new();
        stored.set_history(&history[..1]).unwrap();
        assert_eq!(stored.decode::<Vec<u8>>(&first).unwrap().0, first);
        stored.set_history(&history).unwrap();
        // What was dropped in between does not come back.
        assert_eq!(stored.decode::<Vec<u8>>(&first).unwrap().0, [0, 0]);
        assert_eq!(stored.decode::<Vec<u8>>(&second).unwrap().0, [1, 1, 0]);
        let mut bytes = Vec::new();
        stored.encode(&vec![1u8, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0], NEVER_EXPIRES, &mut bytes);
        assert_eq!(bytes[..2], [0x84, 0]);
        assert_eq!(stored.decode::<Vec<u8>>(&bytes).unwrap().0, bytes[2..]);
        for bad in [&[0x85, 0, 0, 0][..], &[0x80, 0, 0, 0]] {
            assert_eq!(stored.decode::<Vec<u8>>(bad).unwrap_err().number(), 4010);
        }
        first.pop();
        second.push(0);
        assert!(stored.decode::<Vec<u8>>(&first).is_err() && stored.decode::<Vec<u8>>(&second).is_err());
    }

    #[test]
    fn stamps_follow_their_clock() {
        let group = KeyGroup(9);
        let mut stored = Stored::new();
        stored.set_ttl(Some(Ttl { duration_ms: 10, clock: TtlClock::EventTime }));
        assert_eq!((stored.stamp(group), stored.expiry(NEVER_EXPIRES)), (NEVER_EXPIRES, Expiry::Never));
        stored.set_clock(&SubtaskTime::uniform(100), 5_000);
        assert_eq!((stored.stamp(group), stored.expiry(110)), (110, Expiry::EventTime(110)));
        assert!(stored.has_lapsed(100, group) && !stored.has_lapsed(101, group));
        stored.set_clock(&SubtaskTime::uniform(i64::MAX), 0);
        assert!(!stored.has_lapsed(NEVER_EXPIRES, group) && stored.stamp(group) == NEVER_EXPIRES);
        stored.set_ttl(Some(Ttl { duration_ms: 10, clock: TtlClock::ProcessingTime }));
        stored.set_clock(&SubtaskTime::uniform(7), 50);
        stored.set_clock(&SubtaskTime::uniform(7), 40);
        assert_eq!((stored.stamp(group), stored.expiry(60)), (60, Expiry::ProcessingTime(60)));
        let mut bytes = Vec::new();
        stored.encode(&7i64, 60, &mut bytes);
        assert_eq!(stored.decode::<i64>(&bytes).unwrap(), (7, 60));
    }
}
