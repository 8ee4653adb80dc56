//! What other systems reach, in units of the yardstick, and the bars that we set ourselves.
//!
//! Measured on 2 cores with 4 million events, generator included. Flink's figures come from another day and another
//! machine, at 10 million events a second of event time: they may be off by a factor of two. DBSP is Feldera's engine,
//! with all its state in memory, at 100 events a second of event time; a second figure is with all events at one time.

/// The figures of one query; `None`: not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peers {
    /// Flink 2.3 with state in its heap.
    pub flink_hash_map: f64,
    /// Flink 2.3 with state in RocksDB on the local disk.
    pub flink_rocksdb: f64,
    /// DBSP at 100 events a second of event time.
    pub dbsp: Option<f64>,
    /// DBSP with all events at one time.
    pub dbsp_one_time: Option<f64>,
    /// What Millstream is to reach with state in a folder, at [`BAR_EVENT_RATE`].
    pub bar: f64,
}

/// The event-time rate at which the bars hold.
pub const BAR_EVENT_RATE: u64 = 10_000_000;

/// The bar of a rescale's pause, in milliseconds.
pub const PAUSE_BAR_MS: f64 = 2_000.0;

/// The pauses at the largest and the smallest state differ by less than this factor.
pub const PAUSE_RATIO_BAR: f64 = 1.5;

/// The figures of a query, as `q5`.
#[must_use]
pub fn of(query: &str) -> Option<Peers> {
    let row = |bar, flink_hash_map, flink_rocksdb, dbsp, dbsp_one_time| {
        Some(Peers { flink_hash_map, flink_rocksdb, dbsp, dbsp_one_time, bar })
    };
    match query {
        "q0" => row(1.0, 0.13, 0.16, Some(0.60), None),
        "q1" => row(0.9, 0.14, 0.16, Some(0.43), None),
        "q2" => row(0.9, 0.14, 0.16, Some(0.63), None),
        "q5" => row(0.6, 0.08, 0.065, Some(0.48), Some(0.36)),
        "q7" => row(0.6, 0.034, 0.030, Some(0.41), Some(0.29)),
        "q8" => row(0.6, 0.12, 0.115, Some(0.51), Some(0.39)),
        "q11" => row(0.6, 0.084, 0.046, None, None),
        "q17" => row(0.4, 0.096, 0.10, Some(0.15), None),
        _ => None,
    }
}

/// What stands below the table of throughput.
pub const THROUGHPUT_NOTE: &str = "\
Flink 2.3's figures come from another day and machine (within a factor of two), at 10,000,000 events/s of event time;
DBSP's (Feldera, all in memory) are at 100 events/s of event time, those behind the slash with all events at one time.";

/// What stands below the table of rescales.
pub const RESCALE_NOTE: &str = "\
Flink 2.3 with ForSt on S3, 0.8 GB of state: 7-9 s to stop, then 5-31 s until all subtasks run.";

/// What stands below the table of restores.
pub const RESTORE_NOTE: &str = "\
Flink 2.3 with ForSt on S3, from the start to the first output: 23-26 s at 0.75 GB of state, 40-48 s at 1.6 GB.";
