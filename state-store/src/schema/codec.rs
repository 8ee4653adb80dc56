//! The numbers and byte strings that stored values are made of, and the tag in front of a value.

use millstream_common::{Error, Result};

/// The error for a stored value that cannot be read.
#[must_use]
pub fn damaged(what: &str) -> Error {
    Error::corrupt(format!("a stored value cannot be read: {what}")).code(4010)
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

/// The schema version of values without a tag: the first one of their state.
pub const UNTAGGED: u32 = 1;

/// Appends the tag of schema version `version`: nothing for the first, else the number as [`put_u64`] writes it, with one
/// byte `00` more. No number is ever written so long, and a described value begins with a number or with a marker below
/// 2, so no untagged value begins like that.
#[inline]
pub fn put_tag(version: u32, into: &mut Vec<u8>) {
    if version == UNTAGGED {
        return;
    }
    put_u64(u64::from(version), into);
    if let Some(last) = into.last_mut() {
        *last |= 0x80;
    }
    into.push(0);
}

/// The schema version that a described value was written with, and the value behind its tag.
#[inline]
#[must_use]
pub fn split_tag(bytes: &[u8]) -> (u32, &[u8]) {
    match bytes {
        [first, 0, rest @ ..] if *first >= 0x80 => (u32::from(first & 0x7f), rest),
        [first, second, ..] if *first >= 0x80 && *second >= 0x80 => split_long_tag(bytes),
        _ => (UNTAGGED, bytes),
    }
}

#[cold]
fn split_long_tag(bytes: &[u8]) -> (u32, &[u8]) {
    let mut n = 0u32;
    for (i, byte) in bytes.iter().enumerate().take(6) {
        if *byte == 0 {
            return (n, &bytes[i + 1..]);
        }
        if *byte < 0x80 || i == 5 {
            break;
        }
        n |= u32::from(byte & 0x7f) << (7 * i);
    }
    (UNTAGGED, bytes)
}
