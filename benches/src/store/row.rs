//! The value of the benches as a state of an operator has it: decoded, of a fixed size, in its slot.

use millstream_common::{Error, Result};
use millstream_engine::state::StateValue;
use millstream_state_store::key::KeyBuffer;

use super::keys::{Key, VALUE_BYTES, Value};

/// A value in a working set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub Value);

impl Row {
    /// The number that its first bytes are.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.0.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b))
    }

    /// Makes that number greater by one.
    pub fn count(&mut self) {
        let next = self.stamp().wrapping_add(1);
        self.0[..8].copy_from_slice(&next.to_le_bytes());
    }
}

impl StateValue for Row {
    const FIXED: bool = true;

    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.0);
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let value: Result<Value, _> = bytes.try_into();
        value.map(Self).map_err(|_| Error::corrupt(format!("a value has not {VALUE_BYTES} bytes")))
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A batch's keys as a keyed task has them, hashed.
pub fn key_buffer(keys: &[Key]) -> Result<KeyBuffer> {
    let mut buffer = KeyBuffer::default();
    keys.iter().try_for_each(|key| buffer.push(key))?;
    Ok(buffer)
}
