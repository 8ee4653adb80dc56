//! Entry kinds: what stands in the tree under a key. Final; golden files hold the bytes in place.
//!
//! An entry is a head byte (bits 0-3 the kind: 1 put, 2 delete, 3 merge; bits 4-5 the expiry: 0 never, 1 event time,
//! 2 processing time; the others 0), the expiry time when there is one (i64, little endian, milliseconds), for a
//! merge the time of the write (i64, little endian, milliseconds), and the value or operand to its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_common::{Error, Result};

/// Until when an entry counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// For ever.
    #[default]
    Never,
    /// Until this event time (milliseconds): expired once the watermark is at or beyond it.
    EventTime(i64),
    /// Until this processing time (milliseconds since 1970).
    ProcessingTime(i64),
}

/// The clocks that a read or a compaction goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadTime {
    /// What expires at event time `e` is gone when `e <= event_time_ms`.
    pub event_time_ms: i64,
    /// What expires at processing time `p` is gone when `p <= processing_time_ms`.
    pub processing_time_ms: i64,
}

impl ReadTime {
    /// Before everything: nothing has expired.
    pub const START: Self = Self { event_time_ms: i64::MIN, processing_time_ms: i64::MIN };
}

impl Expiry {
    /// Whether it has come at `time`.
    #[inline]
    #[must_use]
    pub fn has_come(self, time: &ReadTime) -> bool {
        match self {
            Self::Never => false,
            Self::EventTime(e) => e <= time.event_time_ms,
            Self::ProcessingTime(p) => p <= time.processing_time_ms,
        }
    }

    /// Whether it had come at `time_ms` of its own clock.
    #[inline]
    #[must_use]
    pub fn had_come(self, time_ms: i64) -> bool {
        match self {
            Self::Never => false,
            Self::EventTime(t) | Self::ProcessingTime(t) => t <= time_ms,
        }
    }
}

/// An entry, borrowed from where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRef<'a> {
    /// The key has this value.
    Put {
        /// The value.
        value: &'a [u8],
        /// Until when.
        expiry: Expiry,
    },
    /// The key has no value.
    Delete,
    /// The key's value changes by an operand; what it was need not be known to write this.
    Merge {
        /// The operand.
        operand: &'a [u8],
        /// When it was written, in milliseconds of the clock that the state expires by. An older entry that had
        /// expired by then is no part of the value.
        written_ms: i64,
        /// Until when the value counts after this write.
        expiry: Expiry,
    },
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const MERGE: u8 = 3;

impl<'a> EntryRef<'a> {
    /// Appends the entry's bytes to `into`.
    #[inline]
    pub fn encode(&self, into: &mut Vec<u8>) {
        let (kind, expiry) = match self {
            Self::Put { expiry, .. } => (PUT, *expiry),
            Self::Delete => (DELETE, Expiry::Never),
            Self::Merge { expiry, .. } => (MERGE, *expiry),
        };
        match expiry {
            Expiry::Never => into.push(kind),
            Expiry::EventTime(t) => {
                into.push(kind | 1 << 4);
                into.extend_from_slice(&t.to_le_bytes());
            }
            Expiry::ProcessingTime(t) => {
                into.push(kind | 2 << 4);
                into.extend_from_slice(&t.to_le_bytes());
            }
        }
        match self {
            Self::Put { value, .. } => into.extend_from_slice(value),
            Self::Delete => {}
            Self::Merge { operand, written_ms, .. } => {
                into.extend_from_slice(&written_ms.to_le_bytes());
                into.extend_from_slice(operand);
            }
        }
    }

    /// Reads an entry; `bytes` hold nothing else.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let (head, rest) = bytes.split_first().ok_or_else(|| bad_entry("it is empty"))?;
        let (expiry, rest) = match head >> 4 {
            0 => (Expiry::Never, rest),
            1 => take_time(rest).map(|(t, r)| (Expiry::EventTime(t), r))?,
            2 => take_time(rest).map(|(t, r)| (Expiry::ProcessingTime(t), r))?,
            _ => return Err(bad_entry("its expiry is unknown")),
        };
        match head & 15 {
            PUT => Ok(Self::Put { value: rest, expiry }),
            DELETE if rest.is_empty() && expiry == Expiry::Never => Ok(Self::Delete),
            MERGE => {
                let (written_ms, operand) = take_time(rest)?;
                Ok(Self::Merge { operand, written_ms, expiry })
            }
            _ => Err(bad_entry("its kind is unknown")),
        }
    }

    /// Until when it counts.
    #[must_use]
    pub fn expiry(&self) -> Expiry {
        match self {
            Self::Put { expiry, .. } | Self::Merge { expiry, .. } => *expiry,
            Self::Delete => Expiry::Never,
        }
    }

    /// Whether nothing older under the key matters.
    #[inline]
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Merge { .. })
    }
}

/// Whether the entry is a put that does not expire: its value is all behind the head byte.
#[inline]
pub(crate) fn is_plain_put(bytes: &[u8]) -> bool {
    bytes.first() == Some(&PUT)
}

/// Whether nothing older under the key matters, from the entry's head byte alone.
#[inline]
pub(crate) fn ends_chain(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|head| head & 15 != MERGE)
}

fn take_time(bytes: &[u8]) -> Result<(i64, &[u8])> {
    let (time, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| bad_entry("it is too short"))?;
    Ok((i64::from_le_bytes(*time), rest))
}

fn bad_entry(why: &str) -> Error {
    Error::corrupt(format!("a stored entry cannot be read: {why}")).code(4002)
}

/// How operands become values. Both functions are pure and must agree: merging what was combined gives what merging
/// one after the other gives.
pub trait MergeOperator: Send + Sync {
    /// The name that stands in the version. Another name is another operator.
    fn name(&self) -> &str;
    /// The value of `base` (none: the key was absent) after `operands`, oldest first.
    fn merge(&self, base: Option<&[u8]>, operands: &[&[u8]]) -> Result<Vec<u8>>;
    /// One operand that does what both do one after the other; `None` when there is no such operand.
    fn combine(&self, older: &[u8], newer: &[u8]) -> Result<Option<Vec<u8>>>;
}

/// The merge operators that a process knows, by name. Cheap to clone.
#[derive(Clone)]
pub struct MergeOperators(Arc<BTreeMap<String, Arc<dyn MergeOperator>>>);

impl Default for MergeOperators {
    /// Those built in: `append` and `add-i64`.
    fn default() -> Self {
        Self::with(Vec::new())
    }
}

impl MergeOperators {
    /// Those built in and `more`.
    #[must_use]
    pub fn with(more: Vec<Arc<dyn MergeOperator>>) -> Self {
        let built_in: [Arc<dyn MergeOperator>; 2] = [Arc::new(Append), Arc::new(AddI64)];
        Self(Arc::new(built_in.into_iter().chain(more).map(|o| (o.name().to_owned(), o)).collect()))
    }

    /// The operator of this name.
    pub fn get(&self, name: &str) -> Result<&dyn MergeOperator> {
        self.0.get(name).map(AsRef::as_ref).ok_or_else(|| {
            let what = if name.is_empty() {
                "a state holds merge operands but names no merge operator".to_owned()
            } else {
                format!("the merge operator '{name}' is not known to this program")
            };
            Error::config(what).code(1203).next("run the job with the program that wrote its state")
        })
    }
}

/// Lists: a value is its elements, each a u32 length (little endian) and that many bytes; so is an operand.
struct Append;

impl MergeOperator for Append {
    fn name(&self) -> &str {
        "append"
    }

    fn merge(&self, base: Option<&[u8]>, operands: &[&[u8]]) -> Result<Vec<u8>> {
        let mut out = base.unwrap_or_default().to_vec();
        operands.iter().for_each(|o| out.extend_from_slice(o));
        Ok(out)
    }

    fn combine(&self, older: &[u8], newer: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(Some([older, newer].concat()))
    }
}

/// Appends one element to the bytes of a list for the operator `append`.
pub fn append_element(element: &[u8], into: &mut Vec<u8>) -> Result<()> {
    let length = u32::try_from(element.len())
        .map_err(|_| Error::data("an element of a list state is longer than 4 GiB").code(3202))?;
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(element);
    Ok(())
}

/// The elements of a list that the operator `append` made.
pub fn list_elements(mut list: &[u8]) -> Result<Vec<&[u8]>> {
    let mut out = Vec::new();
    while !list.is_empty() {
        let (length, rest) = list.split_first_chunk::<4>().ok_or_else(|| bad_entry("a list is cut short"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let element = rest.get(..length).ok_or_else(|| bad_entry("a list is cut short"))?;
        out.push(element);
        list = &rest[length..];
    }
    Ok(out)
}

/// Sums: value and operand are an i64, little endian; wraps around at the ends.
struct AddI64;

impl AddI64 {
    fn read(bytes: &[u8]) -> Result<i64> {
        let bytes = bytes.try_into().map_err(|_| bad_entry("a sum is not 8 bytes long"))?;
        Ok(i64::from_le_bytes(bytes))
    }
}

impl MergeOperator for AddI64 {
    fn name(&self) -> &str {
        "add-i64"
    }

    fn merge(&self, base: Option<&[u8]>, operands: &[&[u8]]) -> Result<Vec<u8>> {
        let mut sum = base.map_or(Ok(0), Self::read)?;
        for o in operands {
            sum = sum.wrapping_add(Self::read(o)?);
        }
        Ok(sum.to_le_bytes().to_vec())
    }

    fn combine(&self, older: &[u8], newer: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(Some(Self::read(older)?.wrapping_add(Self::read(newer)?).to_le_bytes().to_vec()))
    }
}
