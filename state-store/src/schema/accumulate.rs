//! Accumulators: how two rows of them become one, told by the schema of the state alone.
//!
//! A row of accumulators is a record of numbers ([`Form::Integer`]). What a field is says how it adds up: a plain integer
//! is a count; a record of the kind `sum` is a sum and how many values are in it; `min` and `max` are a value and how many
//! were seen. All of that is associative, so rows may be added up in any pieces. Sums and counts wrap around at the ends
//! of 64 bits.
//!
//! The merge operator [`ACCUMULATORS`] merges the stored form: values and operands are encoded alike (tag, stamp with a
//! TTL, row), each is upgraded to the newest schema before it is added, and the result is of the newest. So whoever holds
//! the table of states can merge, the operator's program is not needed.

use millstream_common::{Error, Result};

use super::{Field, Form, NEVER_EXPIRES, Newest, Schema, UpgradeBuffers, damaged, put_i64, put_tag, take_i64};
use crate::entry::MergeOperator;

/// The name of the merge operator of states whose values are rows of accumulators.
pub const ACCUMULATORS: &str = "accumulators";

/// The kind of a record that holds a sum and how many values are in it.
pub const SUM: &str = "sum";
/// The kind of a record that holds the least value and how many were seen.
pub const MIN: &str = "min";
/// The kind of a record that holds the greatest value and how many were seen.
pub const MAX: &str = "max";

/// How one accumulator adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Count,
    Sum,
    Min,
    Max,
}

/// How rows of accumulators add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accumulate(Vec<Part>);

impl Accumulate {
    /// Of rows of this form; why not, when they are no accumulators.
    pub fn of(form: &Form) -> Result<Self, String> {
        let Form::Record { fields, .. } = form else { return Err(format!("{form} is no row of accumulators")) };
        fields.iter().map(part_of).collect::<Result<_, _>>().map(Self)
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.0.iter().map(|p| if *p == Part::Count { 1 } else { 2 }).sum()
    }

    /// Adds the row `from` to the row `into`; both have [`Accumulate::width`] numbers.
    #[inline]
    pub fn add(&self, into: &mut [i64], from: &[i64]) {
        let mut at = 0;
        for part in &self.0 {
            match part {
                Part::Count => {
                    into[at] = into[at].wrapping_add(from[at]);
                    at += 1;
                    continue;
                }
                Part::Sum => into[at] = into[at].wrapping_add(from[at]),
                Part::Min | Part::Max if from[at + 1] == 0 => {}
                Part::Min if into[at + 1] == 0 || from[at] < into[at] => into[at] = from[at],
                Part::Max if into[at + 1] == 0 || from[at] > into[at] => into[at] = from[at],
                Part::Min | Part::Max => {}
            }
            into[at + 1] = into[at + 1].wrapping_add(from[at + 1]);
            at += 2;
        }
    }
}

fn part_of(field: &Field) -> Result<Part, String> {
    let part = match &field.form {
        Form::Integer => Part::Count,
        Form::Record { kind, fields } if fields.len() == 2 && fields.iter().all(|f| f.form == Form::Integer) => {
            match kind.as_str() {
                SUM => Part::Sum,
                MIN => Part::Min,
                MAX => Part::Max,
                _ => return Err(format!("the field '{}' is a '{kind}', which does not add up", field.name)),
            }
        }
        other => return Err(format!("the field '{}' is {other}, which does not add up", field.name)),
    };
    // Each operand of an older schema would bring its own.
    match &field.default {
        Some(default) if default.iter().any(|b| *b != 0) => {
            Err(format!("the field '{}' has a default that counts", field.name))
        }
        _ => Ok(part),
    }
}

/// Rows that are being added up.
#[derive(Default)]
struct Adding {
    buffers: UpgradeBuffers,
    /// None before the first row.
    sum: Vec<i64>,
    /// The row that is being added, to be used again.
    row: Vec<i64>,
}

/// The merge operator of one state; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccumulatorMerge {
    newest: Newest,
    /// Values have a stamp.
    stamped: bool,
    parts: Accumulate,
}

impl AccumulatorMerge {
    /// Of a state that has had these schemas, oldest first.
    pub fn new(history: &[Schema]) -> Result<Self> {
        let newest = history.last().ok_or_else(|| damaged("nothing is known of the form of accumulators"))?;
        let parts = Accumulate::of(&newest.value).map_err(|why| {
            Error::config(format!("a state cannot be merged as accumulators: {why}"))
                .code(1208)
                .next("describe the state with fields of the kinds sum, min and max and plain counts, without defaults")
        })?;
        Ok(Self { newest: Newest::new(history)?, stamped: newest.ttl.is_some(), parts })
    }

    /// Adds a stored row; its stamp.
    fn take(&self, bytes: &[u8], adding: &mut Adding) -> Result<i64> {
        let Adding { buffers, sum, row } = adding;
        let (mut bytes, _) = self.newest.read(bytes, buffers)?;
        let stamp = if self.stamped { take_i64(&mut bytes)? } else { NEVER_EXPIRES };
        row.clear();
        row.reserve(self.parts.width());
        while !bytes.is_empty() {
            row.push(take_i64(&mut bytes)?);
        }
        if row.len() != self.parts.width() {
            return Err(damaged("a row of accumulators has another number of them"));
        }
        if sum.is_empty() {
            std::mem::swap(sum, row);
        } else {
            self.parts.add(sum, row);
        }
        Ok(stamp)
    }
}

impl MergeOperator for AccumulatorMerge {
    fn name(&self) -> &str {
        ACCUMULATORS
    }

    /// The value has the stamp of the newest operand, as it has its expiry.
    fn merge(&self, base: Option<&[u8]>, operands: &[&[u8]]) -> Result<Vec<u8>> {
        let (mut adding, mut stamp) = (Adding::default(), NEVER_EXPIRES);
        for bytes in base.iter().chain(operands) {
            stamp = self.take(bytes, &mut adding)?;
        }
        let mut out = Vec::new();
        put_tag(self.newest.version(), &mut out);
        if self.stamped {
            put_i64(stamp, &mut out);
        }
        adding.sum.iter().for_each(|n| put_i64(*n, &mut out));
        Ok(out)
    }

    fn combine(&self, older: &[u8], newer: &[u8]) -> Result<Option<Vec<u8>>> {
        self.merge(Some(older), &[newer]).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::{Ttl, TtlClock};
    use super::*;

    fn numbers(name: &str, kind: &str) -> Field {
        let fields = ["value", "values"].map(|n| Field::new(n, Form::Integer)).to_vec();
        Field::new(name, Form::Record { kind: kind.to_owned(), fields })
    }

    fn schema(fields: Vec<Field>, ttl: Option<Ttl>) -> Schema {
        Schema { key: Vec::new(), map_key: Vec::new(), value: Form::Record { kind: "panes".into(), fields }, ttl }
    }

    fn all() -> Vec<Field> {
        vec![Field::new("rows", Form::Integer), numbers("sum", SUM), numbers("min", MIN), numbers("max", MAX)]
    }

    fn encoded(version: u32, stamp: Option<i64>, row: &[i64]) -> Vec<u8> {
        let mut out = Vec::new();
        put_tag(version, &mut out);
        stamp.iter().chain(row).for_each(|n| put_i64(*n, &mut out));
        out
    }

    #[test]
    fn any_pieces_give_what_all_rows_give() {
        let merge = AccumulatorMerge::new(&[schema(all(), None)]).unwrap();
        let mut rng = SmallRng::seed_from_u64(7);
        for _ in 0..500 {
            let rows: Vec<Option<i64>> =
                (0..rng.random_range(1..12)).map(|_| rng.random_bool(0.8).then(|| rng.random_range(-9..9))).collect();
            let one = |v: &Option<i64>| encoded(1, None, &v.map_or([1, 0, 0, 0, 0, 0, 0], |v| [1, v, 1, v, 1, v, 1]));
            let values: Vec<i64> = rows.iter().copied().flatten().collect();
            let (n, or0) = (values.len() as i64, |v: Option<&i64>| v.copied().unwrap_or(0));
            let row =
                [rows.len() as i64, values.iter().sum(), n, or0(values.iter().min()), n, or0(values.iter().max()), n];
            // Cut anywhere: combined operands, perhaps on a base, give the same bytes.
            let mut pieces: Vec<Vec<u8>> = rows.iter().map(one).collect();
            while pieces.len() > 2 && rng.random_bool(0.8) {
                let i = rng.random_range(0..pieces.len() - 1);
                let newer = pieces.remove(i + 1);
                pieces[i] = merge.combine(&pieces[i], &newer).unwrap().unwrap();
            }
            let operands: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            assert_eq!(merge.merge(None, &operands).unwrap(), encoded(1, None, &row));
            assert_eq!(merge.merge(Some(operands[0]), &operands[1..]).unwrap(), encoded(1, None, &row));
        }
    }

    #[test]
    fn older_operands_are_upgraded_before_they_are_added() {
        let ttl = Some(Ttl { duration_ms: 10, clock: TtlClock::EventTime });
        let newer = vec![numbers("max", MAX), Field::new("rows", Form::Integer), numbers("sum", SUM)];
        let merge = AccumulatorMerge::new(&[schema(all(), None), schema(newer, ttl)]).unwrap();
        // rows 2, sum 5 of 2, min 1, max 4; then, of the new schema, max 3 of one row that is not in the sum.
        let old = encoded(1, None, &[2, 5, 2, 1, 2, 4, 2]);
        let new = encoded(2, Some(77), &[3, 1, 1, 0, 0]);
        let expected = encoded(2, Some(77), &[4, 3, 3, 5, 2]);
        // These bytes are durable.
        assert_eq!(expected, [0x82, 0, 0x9a, 1, 8, 6, 6, 10, 4]);
        assert_eq!(merge.merge(Some(&old), &[&new]).unwrap(), expected);
        assert_eq!(merge.merge(None, &[&old, &new]).unwrap(), expected);
        assert_eq!(merge.combine(&old, &new).unwrap().unwrap(), expected);
        let unstamped = encoded(2, Some(NEVER_EXPIRES), &[4, 2, 2, 5, 2]);
        assert_eq!(merge.merge(Some(&old), &[]).unwrap(), unstamped);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        for bad in [
            Form::Integer,
            Form::Record { kind: "panes".into(), fields: vec![Field::new("a", Form::Rest)] },
            Form::Record { kind: "panes".into(), fields: vec![numbers("a", "median")] },
            Form::Record { kind: "panes".into(), fields: vec![Field::new("a", Form::Integer).with_default(vec![2])] },
        ] {
            let schema = Schema { key: Vec::new(), map_key: Vec::new(), value: bad, ttl: None };
            assert_eq!(AccumulatorMerge::new(&[schema]).unwrap_err().number(), 1208);
        }
        let merge = AccumulatorMerge::new(&[schema(all(), None)]).unwrap();
        for bad in [&[2u8, 2][..], &encoded(1, None, &[0; 8]), &[0x82, 0, 2]] {
            assert_eq!(merge.merge(None, &[bad]).unwrap_err().number(), 4010, "{bad:?}");
        }
    }
}
