//! The headers of a record. The binding of librdkafka panics where a name is not UTF-8, as clients in other languages than
//! Java may write it; so they are read without it.

use std::ffi::CStr;
use std::ptr::{self, NonNull};
use std::slice;

use millstream_common::{Error, Result};
use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers, rd_kafka_message_t};
use rdkafka::types::RDKafkaRespErr;

/// Names and values, in their order.
pub(super) type Headers<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// Those of a record. An error: a name is not UTF-8.
///
/// # Safety
///
/// `record` is one of librdkafka's, which lives for `'a`.
pub(super) unsafe fn headers<'a>(record: NonNull<rd_kafka_message_t>) -> Result<Headers<'a>> {
    let (mut all, mut of) = (Headers::new(), ptr::null_mut());
    // SAFETY: by the caller. It answers that there are none, or with a pointer to what the record owns.
    let answer = unsafe { rd_kafka_message_headers(record.as_ptr(), &raw mut of) };
    if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(all);
    }
    // SAFETY: they live as long as the record does.
    while let Some((name, value)) = unsafe { get::<'a>(of, all.len()) } {
        let name = name.to_str().map_err(|e| Error::data("the name of a header is not UTF-8").code(3313).source(e))?;
        all.push((name, value));
    }
    Ok(all)
}

/// Safe to be called with headers that live for `'a`.
unsafe fn get<'a>(of: *const rd_kafka_headers_t, index: usize) -> Option<(&'a CStr, Option<&'a [u8]>)> {
    let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
    // SAFETY: name and value are those of the headers, and so live for 'a; librdkafka ends the name by a zero byte, and gives a null
    // pointer for no value.
    unsafe {
        let answer = rd_kafka_header_get_all(of, index, &raw mut name, &raw mut value, &raw mut length);
        (answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| {
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), length));
            (CStr::from_ptr(name), value)
        })
    }
}
