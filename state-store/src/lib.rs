//! The state of a job: one LSM tree on object storage, shared by all workers.
//!
//! Writing: [`section::SectionWriter`] collects a flush, [`StateStore::write_bundle`] uploads it, the coordinator
//! lists the [`Run`] in a version ([`version`]). Reading: a [`View`] of the version's runs answers batched look-ups
//! and scans. [`compaction`] keeps the runs few.
//!
//! Final, and held in place by golden files: [`key`] (codec and store keys), [`entry`] (kinds of entries), the version
//! record. The body of sections may be replaced under a new format number.
//!
//! What this crate never does: decide who may write (the version chain does), delete, overwrite.

mod accounts;
mod admit;
#[cfg(test)]
mod admit_tests;
mod behind;
pub mod compaction;
mod cursor;
pub mod entry;
mod fetch;
mod fold;
pub mod fsck;
mod get;
#[cfg(test)]
mod golden;
mod heads;
pub mod heat;
pub mod key;
mod layout;
#[cfg(test)]
mod map_tests;
#[cfg(test)]
mod model_tests;
mod neighbours;
mod plan;
mod report;
mod requests;
mod resident;
#[cfg(test)]
mod resident_tests;
mod run;
mod scan;
pub mod schema;
pub mod section;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;
mod touched;
pub mod tree;
pub mod version;
mod view;
mod warm;

pub use accounts::{RequestUse, StoreUse, TaskUse, TaskWrites};
pub use entry::{Expiry, MergeOperator, MergeOperators, ReadTime};
pub use get::Values;
pub use layout::{Layout, Layouts, Place, StateLayout};
pub use report::ReadReport;
pub use resident::Residency;
pub use run::{HeatPart, Run, object_path, ranges_from_proto, ranges_to_proto};
pub use scan::ScanPiece;
pub use section::{EncodedSection, Interval, SectionWriter, Sequence, SharedBlock};
pub use store::{StateStore, StateStoreOptions, WriterName};
pub use touched::KeyPiece;
pub use tree::Tree;
pub use view::View;
pub use warm::WarmUp;

/// The caches of a process, with blocks as this crate reads them.
pub type Caches = millstream_cache::Caches<SharedBlock>;
