//! Records taken from librdkafka many at a time (`rd_kafka_consume_batch_queue`), which the binding has no name for.

use std::ptr;
use std::time::Duration;

use millstream_common::{Error, Result};
use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_message_destroy, rd_kafka_message_t, rd_kafka_queue_destroy,
    rd_kafka_queue_get_consumer, rd_kafka_queue_t,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;

/// At most so many at once.
const RECORDS: usize = 4_096;

/// Reads a consumer that nobody else reads.
pub struct Batches<'a> {
    queue: *mut rd_kafka_queue_t,
    /// The queue's, which must not end before it.
    _consumer: &'a BaseConsumer,
    records: Vec<*mut rd_kafka_message_t>,
}

impl<'a> Batches<'a> {
    /// Of a consumer with a group's name, whose records are all in one queue.
    pub fn new(consumer: &'a BaseConsumer) -> Result<Self> {
        // SAFETY: the handle is that of a living consumer; what this gives is counted, and let go in `drop`.
        let queue = unsafe { rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        if queue.is_null() {
            return Err(Error::internal("the consumer has no queue"));
        }
        Ok(Self { queue, _consumer: consumer, records: vec![ptr::null_mut(); RECORDS] })
    }

    /// Takes what is there, or comes within `limit`, lets it go, and says how many records and bytes of values it was.
    pub fn take(&mut self, limit: Duration) -> Result<(u64, u64)> {
        let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is there until `drop`, and there is room for as many pointers as it is told.
        let taken =
            unsafe { rd_kafka_consume_batch_queue(self.queue, millis, self.records.as_mut_ptr(), self.records.len()) };
        let taken = usize::try_from(taken).map_err(|_| Error::unavailable("reading a batch of records failed"))?;
        let (mut count, mut bytes, mut wrong) = (0, 0, None);
        for record in self.records.iter().take(taken) {
            // SAFETY: the call filled in so many pointers to records, which are ours until they are destroyed, here and once.
            let (error, length) = unsafe {
                let found = ((**record).err, (**record).len);
                rd_kafka_message_destroy(*record);
                found
            };
            if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                count += 1;
                bytes += length as u64;
            } else {
                wrong = Some(error);
            }
        }
        match wrong {
            Some(error) => Err(Error::unavailable(format!("a record could not be read: {error:?}"))),
            None => Ok((count, bytes)),
        }
    }
}

impl Drop for Batches<'_> {
    fn drop(&mut self) {
        // SAFETY: counted in `new`, and let go here alone.
        unsafe { rd_kafka_queue_destroy(self.queue) }
    }
}
