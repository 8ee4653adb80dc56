//! What the entries of one key amount to. Pure.
//!
//! A chain is a key's entries newest first. It reaches back to the first put or delete, or to an entry that had
//! expired when the next newer operand was written: that operand began anew. The expiry of the newest entry is the
//! value's.

use millstream_common::{Error, Result};

use crate::entry::{EntryRef, Expiry, MergeOperator, ReadTime};

/// What a read of a key gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Resolved<'a> {
    Absent,
    Value(&'a [u8]),
    Merged(Vec<u8>),
}

/// What stands at the old end of a chain.
enum Base<'a> {
    Value(&'a [u8]),
    Absent,
    /// The chain may go on in older runs.
    Unknown,
}

/// One operand of a chain.
#[derive(Clone, Debug)]
struct Operand<'a> {
    bytes: std::borrow::Cow<'a, [u8]>,
    written_ms: i64,
    expiry: Expiry,
}

/// Follows a chain: its operands, newest first, and its base. A chain that ends without a put or delete has `end` as
/// its base.
fn follow<'a>(
    chain: impl Iterator<Item = Result<EntryRef<'a>>>,
    end: Base<'a>,
) -> Result<(Vec<Operand<'a>>, Base<'a>)> {
    let mut operands: Vec<Operand<'a>> = Vec::new();
    for entry in chain {
        let entry = entry?;
        if operands.last().is_some_and(|newer| entry.expiry().had_come(newer.written_ms)) {
            return Ok((operands, Base::Absent));
        }
        match entry {
            EntryRef::Put { value, .. } => return Ok((operands, Base::Value(value))),
            EntryRef::Delete => return Ok((operands, Base::Absent)),
            EntryRef::Merge { operand, written_ms, expiry } => {
                operands.push(Operand { bytes: operand.into(), written_ms, expiry });
            }
        }
    }
    Ok((operands, end))
}

/// The value of a key at `time`. `chain`: all its entries, encoded, newest first. `operator` is asked for only when
/// there are operands.
pub(crate) fn resolve<'a, 'o>(
    chain: impl IntoIterator<Item = &'a [u8]>,
    time: &ReadTime,
    operator: impl FnOnce() -> Result<&'o dyn MergeOperator>,
) -> Result<Resolved<'a>> {
    let mut chain = chain.into_iter().map(EntryRef::decode).peekable();
    match chain.peek() {
        None | Some(Ok(EntryRef::Delete)) => return Ok(Resolved::Absent),
        Some(Ok(newest)) if newest.expiry().has_come(time) => return Ok(Resolved::Absent),
        Some(Ok(EntryRef::Put { value, .. })) => return Ok(Resolved::Value(value)),
        _ => {}
    }
    let (operands, base) = follow(chain, Base::Absent)?;
    merged(operator()?, &operands, &base).map(Resolved::Merged)
}

fn merged(operator: &dyn MergeOperator, operands: &[Operand<'_>], base: &Base<'_>) -> Result<Vec<u8>> {
    let oldest_first: Vec<&[u8]> = operands.iter().rev().map(|o| o.bytes.as_ref()).collect();
    let base = if let Base::Value(v) = base { Some(*v) } else { None };
    operator.merge(base, &oldest_first)
}

/// What a compaction writes for a key.
pub(crate) struct Fold<'o> {
    /// No older run holds anything of these key groups.
    pub(crate) bottom: bool,
    pub(crate) time: ReadTime,
    /// The time of an entry stands in its key. Operands of such a state expire at that time, as what they are added to.
    pub(crate) by_time: bool,
    /// The state's merge operator, if it has one.
    pub(crate) operator: Option<&'o dyn MergeOperator>,
}

impl Fold<'_> {
    /// Calls `write` with the encoded entries that stand for `chain` from now on, newest first; with none when the
    /// key is gone.
    ///
    /// Nothing that a read can see changes, at any time from `time` on. An expired entry becomes a tombstone, or an older
    /// put with a longer life would come back. But where the state has a merge operator, an expired entry stays while it is
    /// the newest here: an operand in a younger run may have been written before the entry expired, and then it still
    /// counts. In a state in time order it does not: it has expired with all entries of its key.
    pub(crate) fn run(&self, chain: &[&[u8]], mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Some(newest_bytes) = chain.first() else { return Ok(()) };
        let newest = EntryRef::decode(newest_bytes)?;
        let tombstone = |write: &mut dyn FnMut(&[u8]) -> Result<()>| {
            let mut bytes = Vec::with_capacity(1);
            EntryRef::Delete.encode(&mut bytes);
            if self.bottom { Ok(()) } else { write(&bytes) }
        };
        match newest {
            EntryRef::Delete => return tombstone(&mut write),
            _ if self.by_time && newest.expiry().has_come(&self.time) => return tombstone(&mut write),
            EntryRef::Put { expiry, .. } if self.operator.is_none() && expiry.has_come(&self.time) => {
                return tombstone(&mut write);
            }
            EntryRef::Put { .. } => return write(newest_bytes),
            EntryRef::Merge { .. } => {}
        }
        let operator = self
            .operator
            .ok_or_else(|| Error::corrupt("a state without a merge operator holds a merge operand").code(4002))?;
        let end = if self.bottom { Base::Absent } else { Base::Unknown };
        let (operands, base) = follow(chain.iter().map(|e| EntryRef::decode(e)), end)?;
        let mut bytes = Vec::new();
        if !matches!(base, Base::Unknown) {
            let value = merged(operator, &operands, &base)?;
            EntryRef::Put { value: &value, expiry: newest.expiry() }.encode(&mut bytes);
            return write(&bytes);
        }
        for operand in combined(operator, operands)?.iter().rev() {
            bytes.clear();
            let Operand { bytes: operand, written_ms, expiry } = operand;
            EntryRef::Merge { operand, written_ms: *written_ms, expiry: *expiry }.encode(&mut bytes);
            write(&bytes)?;
        }
        Ok(())
    }
}

/// Operands (given newest first) with neighbours combined where the operator can; oldest first. A combined operand
/// has the time of the older write, which decides about what is older still, and the expiry of the newer one.
fn combined<'a>(operator: &dyn MergeOperator, operands: Vec<Operand<'a>>) -> Result<Vec<Operand<'a>>> {
    let mut out: Vec<Operand<'a>> = Vec::with_capacity(operands.len());
    for newer in operands.into_iter().rev() {
        if let Some(older) = out.last_mut()
            && let Some(both) = operator.combine(&older.bytes, &newer.bytes)?
        {
            older.bytes = both.into();
            older.expiry = newer.expiry;
        } else {
            out.push(newer);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::MergeOperators;

    const NONE: ReadTime = ReadTime::START;

    fn at(t: i64) -> ReadTime {
        ReadTime { event_time_ms: t, processing_time_ms: i64::MIN }
    }

    fn put(v: i64, expiry: Option<i64>) -> Vec<u8> {
        let mut out = Vec::new();
        let expiry = expiry.map_or(Expiry::Never, Expiry::EventTime);
        EntryRef::Put { value: &v.to_le_bytes(), expiry }.encode(&mut out);
        out
    }

    fn add(v: i64, written_ms: i64, expiry: Option<i64>) -> Vec<u8> {
        let mut out = Vec::new();
        let expiry = expiry.map_or(Expiry::Never, Expiry::EventTime);
        EntryRef::Merge { operand: &v.to_le_bytes(), written_ms, expiry }.encode(&mut out);
        out
    }

    fn delete() -> Vec<u8> {
        let mut out = Vec::new();
        EntryRef::Delete.encode(&mut out);
        out
    }

    fn read(chain: &[Vec<u8>], time: &ReadTime) -> Option<i64> {
        let operators = MergeOperators::default();
        let value = |b: &[u8]| Some(i64::from_le_bytes(b.try_into().unwrap()));
        match resolve(chain.iter().map(Vec::as_slice), time, || operators.get("add-i64")).unwrap() {
            Resolved::Absent => None,
            Resolved::Value(v) => value(v),
            Resolved::Merged(v) => value(&v),
        }
    }

    fn fold(chain: &[Vec<u8>], bottom: bool, time: ReadTime, merges: bool) -> Vec<Vec<u8>> {
        let operators = MergeOperators::default();
        let operator = merges.then(|| operators.get("add-i64").unwrap());
        let mut out = Vec::new();
        let chain: Vec<_> = chain.iter().map(Vec::as_slice).collect();
        Fold { bottom, time, by_time: false, operator }
            .run(&chain, |e| {
                out.push(e.to_vec());
                Ok(())
            })
            .unwrap();
        out
    }

    #[test]
    fn the_newest_entry_decides() {
        assert_eq!(read(&[put(2, None), put(1, None)], &NONE), Some(2));
        assert_eq!(read(&[delete(), put(1, None)], &NONE), None);
        assert_eq!(read(&[], &NONE), None);
        // An older put with a longer life does not come back.
        assert_eq!(read(&[put(2, Some(10)), put(1, None)], &at(9)), Some(2));
        assert_eq!(read(&[put(2, Some(10)), put(1, None)], &at(10)), None);
    }

    #[test]
    fn an_operand_written_after_its_base_expired_begins_anew() {
        let before = [add(5, 9, Some(30)), put(100, Some(10))];
        assert_eq!(read(&before, &at(20)), Some(105));
        let after = [add(5, 10, Some(30)), put(100, Some(10))];
        assert_eq!(read(&after, &at(20)), Some(5));
        assert_eq!(read(&after, &at(30)), None);
        let chain = [add(1, 25, None), add(5, 10, Some(30)), add(7, 8, Some(10)), put(100, None)];
        assert_eq!(read(&chain, &at(40)), Some(6));
    }

    #[test]
    fn tombstones_go_only_at_the_bottom() {
        assert_eq!(fold(&[delete(), put(1, None)], false, NONE, false), [delete()]);
        assert!(fold(&[delete(), put(1, None)], true, NONE, false).is_empty());
        assert_eq!(fold(&[put(1, Some(10))], false, at(10), false), [delete()]);
        assert!(fold(&[put(1, Some(10))], true, at(10), false).is_empty());
        assert_eq!(fold(&[put(1, Some(10)), delete()], true, at(9), false), [put(1, Some(10))]);
    }

    #[test]
    fn an_expired_put_hides_an_older_one_with_a_longer_life_on_either_clock() {
        type Clock = (fn(i64) -> Expiry, fn(i64) -> ReadTime);
        let clocks: [Clock; 2] = [
            (Expiry::EventTime, at),
            (Expiry::ProcessingTime, |t| ReadTime { event_time_ms: i64::MIN, processing_time_ms: t }),
        ];
        for (expiry, time) in clocks {
            let put = |v: i64, e: Expiry| {
                let mut out = Vec::new();
                EntryRef::Put { value: &v.to_le_bytes(), expiry: e }.encode(&mut out);
                out
            };
            let younger = [put(2, expiry(10))];
            for older in [put(1, expiry(99)), put(1, Expiry::Never)] {
                // The older one is in a run below the merge.
                for now in 5..15 {
                    let mut chain = fold(&younger, false, time(now), false);
                    assert_eq!(chain.len(), 1);
                    chain.push(older.clone());
                    for later in now..30 {
                        let expected = (later < 10).then_some(2);
                        assert_eq!(read(&chain, &time(later)), expected, "merged at {now}, read at {later}");
                    }
                }
            }
        }
    }

    #[test]
    fn operands_merge_with_what_is_known() {
        // The base may be below: one operand, with the older write's time and the newer's expiry.
        let chain = [add(2, 20, Some(50)), add(1, 10, Some(40))];
        assert_eq!(fold(&chain, false, NONE, true), [add(3, 10, Some(50))]);
        assert_eq!(fold(&chain, true, NONE, true), [put(3, Some(50))]);
        let chain = [add(2, 20, Some(50)), put(1, Some(30)), put(9, None)];
        assert_eq!(fold(&chain, false, NONE, true), [put(3, Some(50))]);
        // The base had expired: nothing older counts, so the value is known.
        let chain = [add(2, 20, Some(50)), put(1, Some(20))];
        assert_eq!(fold(&chain, false, NONE, true), [put(2, Some(50))]);
        assert_eq!(fold(&[add(2, 20, None), delete()], false, NONE, true), [put(2, None)]);
    }

    #[test]
    fn what_is_due_at_the_time_in_its_key_goes_in_whole() {
        let operators = MergeOperators::default();
        let operator = Some(operators.get("add-i64").unwrap());
        let fold = |chain: &[Vec<u8>], bottom, time| {
            let (chain, mut out): (Vec<_>, Vec<_>) = (chain.iter().map(Vec::as_slice).collect(), Vec::new());
            let fold = Fold { bottom, time, by_time: true, operator };
            fold.run(&chain, |e| {
                out.push(e.to_vec());
                Ok(())
            })
            .unwrap();
            out
        };
        let chain = [add(2, 5, Some(50)), add(1, 4, Some(50)), put(1, Some(50))];
        for (bottom, left) in [(false, vec![delete()]), (true, Vec::new())] {
            assert_eq!((fold(&chain, bottom, at(50)), fold(&chain[2..], bottom, at(50))), (left.clone(), left));
            assert_eq!(fold(&chain, bottom, at(49)), [put(4, Some(50))]);
        }
        assert_eq!(fold(&chain[..2], false, at(49)), [add(3, 4, Some(50))]);
    }

    #[test]
    fn an_expired_value_stays_for_a_younger_operand_that_it_was_alive_for() {
        let folded = fold(&[put(1, Some(10))], true, at(15), true);
        let chain: Vec<_> = [add(2, 9, Some(20))].into_iter().chain(folded).collect();
        assert_eq!(read(&chain, &at(15)), Some(3));
    }
}
