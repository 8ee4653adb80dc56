//! Records of one partition, taken out of librdkafka many at a time (`rd_kafka_consume_batch_queue`). Its binding hands them
//! out one by one, each as an event of its own, and copies those that are to be kept.
//!
//! What librdkafka says of the partition as a whole (it is gone, it must not be read) comes to nobody this way, but for its log:
//! the consumer listens to that.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use millstream_common::Result;
use rdkafka::bindings::{
    rd_kafka_consume_batch_queue, rd_kafka_message_destroy, rd_kafka_message_t, rd_kafka_message_timestamp,
    rd_kafka_queue_destroy, rd_kafka_queue_get_partition, rd_kafka_queue_t, rd_kafka_timestamp_type_t,
};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;

use super::consumer::Context;
use super::headers::{Headers, headers};

/// Records that are taken out at once, at most. Those that a reader has no use for yet wait with it, beside those that
/// wait with librdkafka.
const RECORDS: usize = 1_024;

/// The queue of one partition.
pub(super) struct Queue {
    native: NonNull<rd_kafka_queue_t>,
    /// Says when there is something. Holds the consumer, too, which ends behind the queue and all that came out of it.
    wakes: PartitionQueue<Context>,
}

// SAFETY: librdkafka locks its queues by itself; any thread may take from one and let one go.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    /// Takes a partition's records out of the queue that all partitions share, once for each partition: before anything of it
    /// is fetched.
    pub(super) fn new(consumer: &Arc<BaseConsumer<Context>>, topic: &str, partition: i32) -> Option<Self> {
        let wakes = consumer.split_partition_queue(topic, partition)?;
        let topic = CString::new(topic).ok()?;
        // SAFETY: the handle is that of a living consumer, the name ends with a zero byte; what this gives is counted, and let go
        // in `drop`.
        let native = unsafe { rd_kafka_queue_get_partition(consumer.client().native_ptr(), topic.as_ptr(), partition) };
        Some(Self { native: NonNull::new(native)?, wakes })
    }

    /// Is called when the queue was empty and no longer is.
    pub(super) fn on_nonempty(&mut self, wake: impl Fn() + Send + Sync + 'static) {
        self.wakes.set_nonempty_callback(wake);
    }

    /// Lets all that is there go.
    pub(super) fn clear(self: &Arc<Self>) {
        let mut all = Records::new(self.clone());
        while all.take() {
            all.release();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: counted in `new`, and let go here alone.
        unsafe { rd_kafka_queue_destroy(self.native.as_ptr()) }
    }
}

/// What a reader has taken out of its queue and not used yet.
pub(super) struct Records {
    queue: Arc<Queue>,
    /// Those in `used..taken` are there.
    records: Box<[*mut rd_kafka_message_t]>,
    used: usize,
    taken: usize,
}

// SAFETY: a record may be read and let go by any thread, and nobody else has a pointer to it.
unsafe impl Send for Records {}

/// What comes next in a queue.
pub(super) enum Next<'a> {
    Record(Record<'a>),
    /// The reader was at the end: all records in front of this offset that it may see came before.
    End(i64),
    Failed(KafkaError),
}

impl Records {
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self { queue, records: vec![ptr::null_mut(); RECORDS].into(), used: 0, taken: 0 }
    }

    /// The first of those that were not used; `None`: nothing is there, and the queue will say when there is.
    pub(super) fn first(&mut self) -> Option<Next<'_>> {
        if self.used == self.taken && !self.take() {
            return None;
        }
        let record = Record { native: NonNull::new(self.records[self.used])?, taken: PhantomData };
        Some(match record.error() {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Next::Record(record),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => Next::End(record.offset()),
            error => Next::Failed(KafkaError::MessageConsumption(error.into())),
        })
    }

    /// Lets the first one go.
    pub(super) fn pass(&mut self) {
        if self.used < self.taken {
            // SAFETY: librdkafka filled in so many pointers, which are ours until they are let go, here and in order: once each.
            unsafe { rd_kafka_message_destroy(self.records[self.used]) }
            self.used += 1;
        }
    }

    /// Takes what is there. Nothing may be left of what was taken before.
    fn take(&mut self) -> bool {
        debug_assert_eq!(self.used, self.taken, "records that were not used");
        let queue = self.queue.native.as_ptr();
        // SAFETY: the queue is there as long as this is, and there is room for as many pointers as it is told. It waits for nothing.
        let taken = unsafe { rd_kafka_consume_batch_queue(queue, 0, self.records.as_mut_ptr(), self.records.len()) };
        // Negative: no queue, which cannot be.
        (self.used, self.taken) = (0, usize::try_from(taken).unwrap_or(0));
        self.taken > 0
    }

    fn release(&mut self) {
        while self.used < self.taken {
            self.pass();
        }
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.release();
    }
}

/// A record, where librdkafka has received it.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    native: NonNull<rd_kafka_message_t>,
    /// Until it is passed.
    taken: PhantomData<&'a [u8]>,
}

impl<'a> Record<'a> {
    fn error(self) -> RDKafkaRespErr {
        // SAFETY: a record that was taken and not let go. Its number comes from the broker, and may be none that the enumeration has.
        let number = unsafe { (&raw const (*self.native.as_ptr()).err).cast::<i32>().read() };
        RDKafkaRespErr::try_from(number).unwrap_or(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN)
    }

    pub(super) fn offset(self) -> i64 {
        // SAFETY: as above.
        unsafe { (*self.native.as_ptr()).offset }
    }

    pub(super) fn key(self) -> Option<&'a [u8]> {
        // SAFETY: as above; key and length belong together.
        unsafe { bytes((*self.native.as_ptr()).key, (*self.native.as_ptr()).key_len) }
    }

    /// `None`: a tombstone.
    pub(super) fn value(self) -> Option<&'a [u8]> {
        // SAFETY: as above; value and length belong together.
        unsafe { bytes((*self.native.as_ptr()).payload, (*self.native.as_ptr()).len) }
    }

    /// Of the record, or of when the broker got it: as its topic has it.
    pub(super) fn timestamp_ms(self) -> Option<i64> {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: as above.
        let ms = unsafe { rd_kafka_message_timestamp(self.native.as_ptr(), &raw mut kind) };
        (ms != -1 && kind != rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(ms)
    }

    /// An error: a name is not UTF-8.
    pub(super) fn headers(self) -> Result<Headers<'a>> {
        // SAFETY: as above; names and values live as long as the record does.
        unsafe { headers(self.native) }
    }
}

/// Bytes that live for `'a`; `None` where there is a null pointer.
unsafe fn bytes<'a>(of: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: by the caller.
    (!of.is_null()).then(|| unsafe { slice::from_raw_parts(of.cast::<u8>(), length) })
}
