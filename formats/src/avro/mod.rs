//! Avro records as rows, and rows as Avro records, alone or with a schema registry.
//!
//! With a registry a record is in Confluent's wire format: a zero byte, the id of its schema in four bytes (big-endian), Avro's
//! binary encoding. Whoever writes registers the schema of its table once; whoever reads asks for a schema when its id comes
//! first, and what was written is resolved to the columns of its table. Without a registry a record is nothing but the
//! encoding, and all were written with one schema.
//!
//! | column | read from | written as |
//! |---|---|---|
//! | boolean | boolean | boolean |
//! | integer | int or long that fits, whatever it means | int up to 32 bits with a sign or 16 without one, long up to 64 or 32; 64 bits without a sign: not |
//! | float, double | float; int, long; for a double double | float, double |
//! | string | string, enum, bytes that are UTF-8, uuid | string |
//! | bytes | bytes, fixed, string | bytes |
//! | decimal | decimal that fits without being rounded | bytes with decimal |
//! | date | date; int | date |
//! | time of day in ms, in µs | time-millis, time-micros; int, long | time-millis, time-micros |
//! | time stamp | timestamp-millis, -micros, -nanos, the local ones into columns without a zone; finer digits than the column's are cut off; long, in units of the column | timestamp-millis (also of seconds), -micros, -nanos with a zone, the local ones without |
//! | row, list, map with string keys | record, array, map | record, array, map |
//!
//! A column that may be null is written as a union of null, its default, and its type. A union is read branch by branch: a
//! value of a branch that has no form in the column makes its record bad. Fields that no column names are passed over; a column that
//! was not written is null, or what a reader's schema has as its default. Fields are found by name, then by the aliases of a
//! reader's schema; names of records and sizes of fixed types are not compared.
//!
//! Why not arrow-avro 59 or apache-avro 0.22: the decoder of the first keeps in some of its columns what it had read of a record
//! that is bad further on; the second refuses schemas that registries hold (a namespace with a dash, a default that does not fit).

mod binary;
mod reading;
mod registry;
mod resolve;
mod schema;
mod writing;

pub use reading::{AvroDecoding, Written};
pub use registry::SchemaRegistry;
pub use writing::AvroEncoding;

#[cfg(test)]
mod tests;
