//! What can stand in a state: values that encode themselves, and the small number codec that they share.

use bytes::Bytes;
use millstream_common::Result;
pub(crate) use millstream_state_store::schema::damaged;
pub use millstream_state_store::schema::{put_bytes, put_i64, put_u64, take_bytes, take_i64, take_u64};

/// A value of a state. Its encoding is durable: what stands in it is told by the state's descriptor, and another meaning
/// of the same bytes needs another one.
pub trait StateValue: Send + Sized + 'static {
    /// Whether [`StateValue::heap_bytes`] stays the same while the value lives; accounting is cheaper then.
    const FIXED: bool = false;

    /// Appends the encoded value.
    fn encode(&self, into: &mut Vec<u8>);

    /// Reads what [`StateValue::encode`] wrote; `bytes` hold nothing else.
    fn decode(bytes: &[u8]) -> Result<Self>;

    /// Bytes that it holds on the heap, about.
    fn heap_bytes(&self) -> usize;

    /// Called once for a value that was stored with an older schema, after it was upgraded and decoded: puts right what
    /// the bytes of single fields cannot, an order by them, say.
    fn after_upgrade(&mut self) {}
}

impl StateValue for () {
    const FIXED: bool = true;
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() { Ok(()) } else { Err(damaged("a timer has a value")) }
    }
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl StateValue for i64 {
    const FIXED: bool = true;
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.to_le_bytes());
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Self::from_le_bytes(bytes.try_into().map_err(|_| damaged("a number is not 8 bytes long"))?))
    }
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl StateValue for u64 {
    const FIXED: bool = true;
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.to_le_bytes());
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Self::from_le_bytes(bytes.try_into().map_err(|_| damaged("a number is not 8 bytes long"))?))
    }
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl StateValue for Vec<u8> {
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self);
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(bytes.to_vec())
    }
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl StateValue for Bytes {
    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self);
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(Self::copy_from_slice(bytes))
    }
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_byte_strings_come_back() {
        let numbers = [0, 1, -1, 63, 64, -64, -65, 300, i64::MAX, i64::MIN, 1_767_225_600_000];
        let mut bytes = Vec::new();
        for n in numbers {
            put_i64(n, &mut bytes);
            put_bytes(&n.to_le_bytes()[..(n as usize) % 9], &mut bytes);
        }
        let mut rest = &bytes[..];
        for n in numbers {
            assert_eq!(take_i64(&mut rest).unwrap(), n);
            assert_eq!(take_bytes(&mut rest).unwrap(), &n.to_le_bytes()[..(n as usize) % 9]);
        }
        assert!(rest.is_empty() && take_u64(&mut rest).is_err());
        assert!(take_bytes(&mut &[5u8, 1, 2][..]).is_err());
        assert!(take_u64(&mut &[0xffu8; 11][..]).is_err());
        assert_eq!(
            {
                let mut b = Vec::new();
                put_i64(-3, &mut b);
                b
            },
            [5]
        );
    }
}
