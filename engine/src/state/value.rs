//! What can stand in a state: values that encode themselves, and the small number codec that they share.

use bytes::Bytes;
use millstream_common::{Error, Result};

/// A value of a state. Its encoding is durable: another meaning of the same bytes needs another `value_schema`.
pub trait StateValue: Send + Sized + 'static {
    /// Whether [`StateValue::heap_bytes`] stays the same while the value lives; accounting is cheaper then.
    const FIXED: bool = false;

    /// Appends the encoded value.
    fn encode(&self, into: &mut Vec<u8>);

    /// Reads what [`StateValue::encode`] wrote; `bytes` hold nothing else.
    fn decode(bytes: &[u8]) -> Result<Self>;

    /// Bytes that it holds on the heap, about.
    fn heap_bytes(&self) -> usize;
}

/// The error for a stored value that cannot be read.
pub(crate) fn damaged(what: &str) -> Error {
    Error::corrupt(format!("a stored value cannot be read: {what}")).code(4010)
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

/// Appends an unsigned number, seven bits a byte, lowest first.
#[inline]
pub fn put_u64(mut n: u64, into: &mut Vec<u8>) {
    while n >= 0x80 {
        into.push(n as u8 | 0x80);
        n >>= 7;
    }
    into.push(n as u8);
}

/// Takes a number that [`put_u64`] wrote off the front of `bytes`.
#[inline]
pub fn take_u64(bytes: &mut &[u8]) -> Result<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(|| damaged("a number is cut short"))?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(damaged("a number is too long"))
}

/// Appends a signed number: small ones of either sign are short.
#[inline]
pub fn put_i64(n: i64, into: &mut Vec<u8>) {
    put_u64((n << 1 ^ n >> 63) as u64, into);
}

/// Takes a number that [`put_i64`] wrote off the front of `bytes`.
#[inline]
pub fn take_i64(bytes: &mut &[u8]) -> Result<i64> {
    let n = take_u64(bytes)?;
    Ok((n >> 1) as i64 ^ -((n & 1) as i64))
}

/// Appends a byte string with its length.
pub fn put_bytes(bytes: &[u8], into: &mut Vec<u8>) {
    put_u64(bytes.len() as u64, into);
    into.extend_from_slice(bytes);
}

/// Takes a byte string that [`put_bytes`] wrote off the front of `bytes`.
pub fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = take_u64(bytes)?;
    let length = usize::try_from(length).ok().filter(|l| *l <= bytes.len());
    let length = length.ok_or_else(|| damaged("a byte string is cut short"))?;
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    Ok(taken)
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
