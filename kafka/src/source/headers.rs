//! The headers of a record. The binding of librdkafka panics where a name is not UTF-8, as clients in other languages than
//! Java may write it; so they are read without it.

use std::ffi::CStr;
use std::{ptr, slice};

use millstream_common::{Error, Result};
use rdkafka::bindings::rd_kafka_header_get_all;
use rdkafka::message::{BorrowedHeaders, Message, OwnedHeaders};
use rdkafka::types::RDKafkaRespErr;

/// Names and values, in their order.
pub(super) type Headers<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// Headers that librdkafka holds.
pub(super) trait Native {
    fn native(&self) -> &BorrowedHeaders;
}

impl Native for BorrowedHeaders {
    fn native(&self) -> &BorrowedHeaders {
        self
    }
}

impl Native for OwnedHeaders {
    fn native(&self) -> &BorrowedHeaders {
        self.as_borrowed()
    }
}

/// Those of a record. An error: a name is not UTF-8.
pub(super) fn headers<M: Message<Headers: Native>>(message: &M) -> Result<Headers<'_>> {
    let mut all = Headers::new();
    let Some(of) = message.headers().map(Native::native) else { return Ok(all) };
    while let Some((name, value)) = get(of, all.len()) {
        let name = name.to_str().map_err(|e| Error::data("the name of a header is not UTF-8").code(3313).source(e))?;
        all.push((name, value));
    }
    Ok(all)
}

fn get(of: &BorrowedHeaders, index: usize) -> Option<(&CStr, Option<&[u8]>)> {
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the binding's reference to headers is librdkafka's pointer to them, of no size in Rust. Name and value are theirs, and
    // so live as long as what is borrowed here; librdkafka ends the name by a zero byte, and gives a null pointer for no value.
    unsafe {
        let of = ptr::from_ref(of).cast();
        let answer = rd_kafka_header_get_all(of, index, &raw mut name, &raw mut value, &raw mut length);
        (answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| {
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), length));
            (CStr::from_ptr(name), value)
        })
    }
}
