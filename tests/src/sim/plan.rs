//! What a seed stands for: the shape of the cluster, its settings, and what goes wrong when.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_common::size::parse_duration;
use millstream_engine::worker::stores::TaskMemory;
use millstream_objects::{Faults, StoreOptions};

use super::dice::Dice;
use super::jobs::{JOBS, LATE, VISITS};
use super::net::Delays;
use super::scene;

/// Everything about a run that is drawn.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the job.
    pub job: &'static str,
    /// Its sinks.
    pub sinks: &'static [&'static str],
    /// What it starts with.
    pub parallelism: u32,
    /// Settings of the job.
    pub settings: BTreeMap<String, String>,
    /// Those that somebody starts it again with, after a stop.
    pub settings_later: BTreeMap<String, String>,
    /// Workers at a time.
    pub workers: u32,
    /// Slots of each.
    pub slots: u32,
    /// Compactors at a time.
    pub compactors: u32,
    /// Compactions that each runs at a time.
    pub compaction_slots: u32,
    /// What the compactions of a process may read and write in a second; 0: as fast as it goes.
    pub compaction_bytes_per_second: u64,
    /// When the compactor in a place is asked to leave.
    pub compactor_leaves: Vec<(Duration, usize)>,
    /// What a keyed subtask may hold.
    pub memory: TaskMemory,
    /// Bytes of blocks that a worker caches.
    pub block_cache_bytes: u64,
    /// Rows of a batch at most.
    pub batch_rows: usize,
    /// Elements that each end of a data connection holds.
    pub data_queue: usize,
    /// How long messages take.
    pub delays: Delays,
    /// How the store is talked to.
    pub store: StoreOptions,
    /// Latency of the store when nothing is wrong with it.
    pub latency: Faults,
    /// How far the clock of a process goes on each time that it is read. Else no time passes while code runs.
    pub tick: Duration,
    /// A worker or coordinator that is silent for so long is lost.
    pub heartbeat_timeout: Duration,
    /// What clients ask for, by time.
    pub requests: Vec<(Duration, Request)>,
    /// When somebody pins a version and reads it slowly.
    pub readers: Vec<Duration>,
    /// They read little and let go soon.
    pub brisk_readers: bool,
    /// When somebody forks the job, and whether from an older version than the newest.
    pub forks: Vec<(Duration, bool)>,
    /// Workers that are asked to leave, by time.
    pub leaves: Vec<(Duration, Leave)>,
    /// For how long those wait for slots elsewhere.
    pub drain_timeout: Duration,
    /// What goes wrong, by time.
    pub faults: Vec<(Duration, Fault)>,
    /// When everything is repaired.
    pub healed: Duration,
    /// Whether one split may have nothing to say until all others have said everything. Not where results of one window
    /// feed another: an idle subtask that wakes up there may be behind its neighbours, as in Flink.
    pub late_split: bool,
    /// Over how much virtual time the input comes, ms; 0: all is there at once.
    pub paced_ms: u64,
    /// Output goes to topics of a broker.
    pub to_kafka: Option<ToTopics>,
}

/// How output goes to topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToTopics {
    /// The broker gives up transactions that are older than this.
    pub transaction_timeout: Duration,
    /// Those are written again from a copy; else the job has to fail.
    pub write_again: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Another parallelism.
    Rescale(u32),
    /// A checkpoint.
    Checkpoint,
    /// The status.
    Status,
    /// A stop. Somebody starts it again, with another parallelism.
    Stop,
    /// An even spread over the workers.
    Rebalance,
}

/// A worker is asked to end, and another one takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Whose.
    pub place: usize,
    /// Where the other one is started.
    pub spare: usize,
    /// When.
    pub joins: Joins,
}

/// When the worker comes that replaces one that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// So long before.
    Before(Duration),
    /// So long after.
    After(Duration),
    /// When everything is repaired.
    WhenHealed,
}

/// What goes wrong. Nodes are meant by their place: coordinators are 0 and 1, workers follow, then compactors.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A process dies; another one takes its place after a while.
    Kill {
        /// Whose.
        place: usize,
        /// Its peers see nothing.
        silently: bool,
        /// When the next one starts.
        back_after: Duration,
    },
    /// A process stands still.
    Pause {
        /// Which.
        place: usize,
        /// For how long.
        lasts: Duration,
    },
    /// Nothing passes between two places.
    Partition {
        /// From here.
        from: usize,
        /// To there.
        to: usize,
        /// And back.
        both: bool,
        /// For how long.
        lasts: Duration,
    },
    /// One connection in this many breaks.
    Break(u64),
    /// The store misbehaves.
    Store {
        /// How.
        faults: Box<Faults>,
        /// For how long.
        lasts: Duration,
    },
    /// So many requests to the sink's place in 100 fail.
    Outside {
        /// In 100.
        percent: u64,
        /// For how long.
        lasts: Duration,
    },
    /// Another coordinator is started beside the one that leads.
    SecondCoordinator,
}

/// How many seeds of 100 have the job whose state expires.
const VISITS_PERCENT: u64 = 10;
/// How many seeds of 100 write to topics.
const KAFKA_PERCENT: u64 = 25;
/// In how many of 100 of those a transaction may last no longer than a checkpoint takes, so that some are lost.
const BRIEF_PERCENT: u64 = 20;
/// In how many of 100 of those lost transactions are written again.
const COPIES_PERCENT: u64 = 60;
/// In how many of 100 of those in which anything fails requests to the broker do.
const KAFKA_FAULTS_PERCENT: u64 = 60;
/// How many seeds of 100 play a scene.
const SCENES_PERCENT: u64 = 30;
/// Coordinators that there can be at a time.
pub const COORDINATORS: usize = 2;

impl Plan {
    /// The plan of `seed`.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let (mut job, mut sinks) = *dice.pick(JOBS);
        if Dice::new(seed, "visits").chance(VISITS_PERCENT) {
            (job, sinks) = VISITS;
        }
        let workers = dice.within(2..5) as u32;
        let slots = 6u32.div_ceil(workers) + dice.within(0..2) as u32;
        let (rows_bytes, write_buffer_bytes) =
            *dice.pick(&[(64 << 20, 64 << 20), (64 << 20, 64 << 20), (20_000, 6_000), (4_000, 1_500)]);
        let mut plan = Self {
            job,
            sinks,
            parallelism: dice.within(1..5) as u32,
            settings: settings(&mut dice),
            settings_later: BTreeMap::new(),
            workers,
            slots,
            compactors: 0,
            compaction_slots: 1,
            compaction_bytes_per_second: 0,
            compactor_leaves: Vec::new(),
            memory: TaskMemory {
                rows_bytes,
                write_buffer_bytes,
                reads_bytes: rows_bytes / 2,
                due_bytes: *Dice::new(seed, "due").pick(&[64 << 20, 60_000, 12_000]),
            },
            block_cache_bytes: *dice.pick(&[16 << 10, 64 << 10, 8 << 20]),
            batch_rows: *dice.pick(&[1, 7, 32, 200]),
            data_queue: *dice.pick(&[1, 2, 8]),
            delays: delays(&mut dice),
            store: store_options(&mut dice),
            latency: latency(&mut dice),
            tick: Duration::from_nanos(*Dice::new(seed, "tick").pick(&[0, 100, 1_000, 5_000])),
            heartbeat_timeout: *dice.pick(&[Duration::from_millis(1_500), Duration::from_secs(4)]),
            requests: Vec::new(),
            readers: Vec::new(),
            brisk_readers: false,
            forks: Vec::new(),
            leaves: Vec::new(),
            drain_timeout: Duration::ZERO,
            faults: Vec::new(),
            healed: Duration::ZERO,
            late_split: !matches!(job, "busiest" | "mixed" | LATE),
            paced_ms: *dice.pick(&[0, 4_000, 8_000, 15_000, 25_000]),
            to_kafka: None,
        };

        plan.healed = dice.millis(plan.paced_ms / 2 + 1_000..plan.paced_ms + 5_000);
        if Dice::new(seed, "residency").chance(20) {
            plan.settings.insert("state.residency".to_owned(), "memory".to_owned());
        }
        plan.draw_garbage(&mut Dice::new(seed, "garbage"));
        plan.draw_requests(&mut Dice::new(seed, "requests"));
        plan.draw_leaves(&mut Dice::new(seed, "leaves"));
        plan.draw_compactors(&mut Dice::new(seed, "compactors"));
        plan.draw_sizes(&mut Dice::new(seed, "sizes"));
        if !Dice::new(seed, "calm").chance(12) {
            plan.draw_faults(&mut Dice::new(seed, "faults"));
        }
        let mut dice = Dice::new(seed, "scene");
        if dice.chance(SCENES_PERCENT) {
            scene::set(&mut plan, &mut dice);
        }
        let mut dice = Dice::new(seed, "kafka");
        if dice.chance(KAFKA_PERCENT) {
            let mut copies = Dice::new(seed, "copies");
            let write_again = copies.chance(COPIES_PERCENT);
            // What is written again does not end the run: it may happen often.
            let brief = dice.chance(BRIEF_PERCENT) || (write_again && copies.chance(50));
            let transaction_timeout = if brief { plan.briefest_transaction() } else { Duration::from_secs(900) };
            plan.to_kafka = Some(ToTopics { transaction_timeout, write_again });
            // A broker does not tell of which epoch a row is, by which a fork's rows are told from its parent's.
            plan.forks.clear();
            if !plan.faults.is_empty() && dice.chance(KAFKA_FAULTS_PERCENT) {
                for _ in 0..dice.within(1..8) {
                    let fault = Fault::Outside { percent: dice.within(5..60), lasts: dice.millis(200..9_000) };
                    plan.faults.push((plan.moment(&mut dice), fault));
                }
            }
            if !plan.faults.is_empty() && write_again && brief {
                for _ in 0..copies.within(1..4) {
                    let lasts = transaction_timeout + copies.millis(0..4_000);
                    plan.faults
                        .push((plan.moment(&mut copies), Fault::Outside { percent: copies.within(60..100), lasts }));
                }
            }
            plan.faults.sort_by_key(|f| f.0);
        }
        plan.settings_later = plan.settings.clone();
        let block_size = *Dice::new(seed, "settings later").pick(&["1KiB", "4KiB", "15KiB"]);
        plan.settings_later.insert("state.block-size".to_owned(), block_size.to_owned());
        plan
    }

    /// The shortest time-out of transactions that the sink takes.
    fn briefest_transaction(&self) -> Duration {
        let setting = |name: &str| self.settings.get(name).and_then(|text| parse_duration(text).ok());
        let (interval, duration) = (setting("checkpoint.interval"), setting("checkpoint.timeout"));
        interval.unwrap_or_default() + duration.unwrap_or_default() + Duration::from_millis(10)
    }

    fn moment(&self, dice: &mut Dice) -> Duration {
        dice.millis(0..self.healed.as_millis() as u64)
    }

    /// What is kept, how often the rest is collected, and who reads meanwhile.
    fn draw_garbage(&mut self, dice: &mut Dice) {
        let pairs = [
            ("checkpoint.retained", *dice.pick(&["1", "1", "2", "5"])),
            ("checkpoint.retained-for", *dice.pick(&["0", "0", "0", "700ms"])),
            ("versions.collect-interval", *dice.pick(&["20ms", "100ms", "700ms"])),
            ("versions.collect-records", *dice.pick(&["1", "1", "3", "20"])),
            ("versions.orphan-delay", *dice.pick(&["0", "100ms", "2s"])),
            ("versions.orphan-interval", *dice.pick(&["50ms", "300ms", "3s"])),
        ];
        self.settings.extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for _ in 0..*dice.pick(&[0, 1, 3, 8]) {
            self.readers.push(self.moment(dice));
        }
        self.readers.sort();
        for _ in 0..*dice.pick(&[0, 0, 0, 1, 2]) {
            let when = self.moment(dice);
            self.forks.push((when, dice.chance(50)));
        }
        self.forks.sort();
    }

    fn draw_requests(&mut self, dice: &mut Dice) {
        let rescales = *dice.pick(&[0, 2, 6, 20]);
        for _ in 0..rescales {
            self.requests.push((self.moment(dice), Request::Rescale(dice.within(1..5) as u32)));
        }
        for _ in 0..dice.within(0..3) {
            self.requests.push((self.moment(dice), Request::Checkpoint));
            self.requests.push((self.moment(dice), Request::Status));
        }
        for _ in 0..*dice.pick(&[0, 0, 1, 4]) {
            self.requests.push((self.moment(dice), Request::Rebalance));
        }
        for _ in 0..*dice.pick(&[0, 0, 0, 1, 2]) {
            self.requests.push((self.moment(dice), Request::Stop));
        }
        self.requests.sort_by_key(|r| r.0);
    }

    fn draw_leaves(&mut self, dice: &mut Dice) {
        self.drain_timeout = *dice.pick(&[1, 5, 25, 25].map(Duration::from_secs));
        // In some runs all are replaced in time; in some, all leave at once.
        let kinds = *dice.pick(&[1, 2, 3]);
        let together = dice.chance(15).then(|| self.moment(dice));
        let count = if together.is_some() { u64::from(self.workers) } else { *dice.pick(&[0, 0, 1, 2, 3, 6]) };
        let none_in_time = together.is_some() && dice.chance(50);
        for i in 0..count {
            let when = match together {
                Some(first) => first + dice.millis(0..400),
                None => self.moment(dice),
            };
            let joins = match dice.within(0..kinds) {
                _ if none_in_time => Joins::WhenHealed,
                0 => Joins::Before(dice.millis(1_000..4_000)),
                1 => Joins::After(dice.millis(0..4_000)),
                _ => Joins::WhenHealed,
            };
            let any = dice.within(0..u64::from(self.workers) + i);
            let place = COORDINATORS + if together.is_some() { i } else { any } as usize;
            let spare = COORDINATORS + (u64::from(self.workers) + i) as usize;
            self.leaves.push((when, Leave { place, spare, joins }));
        }
        self.leaves.sort_by_key(|l| l.0);
    }

    /// Who merges runs, how many of them, and how fast.
    fn draw_compactors(&mut self, dice: &mut Dice) {
        self.compactors = *dice.pick(&[0, 0, 1, 1, 2]);
        self.compaction_slots = *dice.pick(&[1, 1, 2, 4]);
        self.compaction_bytes_per_second = *dice.pick(&[0, 0, 0, 64 << 10, 8 << 10]);
        let place = *dice.pick(&["auto", "auto", "compactors", "workers"]);
        let place = if self.compactors == 0 { "auto" } else { place };
        let trigger = *dice.pick(&["8", "8", "4", "3", "2"]);
        let pairs = [
            ("state.compaction.where", place),
            ("state.compaction.trigger-runs", trigger),
            ("state.compaction.schedule", *dice.pick(&["always", "always", "22:00-06:00", "10:00-11:00"])),
        ];
        self.settings.extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for i in 0..self.compactors as usize {
            for _ in 0..*dice.pick(&[0, 0, 1, 2]) {
                self.compactor_leaves.push((self.moment(dice), self.first_compactor() + i));
            }
        }
        self.compactor_leaves.sort();
    }

    /// What is so small that little state stands for much.
    fn draw_sizes(&mut self, dice: &mut Dice) {
        // Runs of many objects, merged in rounds.
        let of_output = *dice.pick(&["64MiB", "64MiB", "8KiB", "1KiB"]);
        self.settings.insert("state.compaction.output-size".to_owned(), of_output.to_owned());
        // A bundle of many parts takes longer than the shortest time-out, however often it is tried; so does the last barrier
        // behind all that is left to fire, a few rows at a time.
        if self.store.multipart_part_bytes < 1 << 10 || self.memory.due_bytes < 20_000 {
            self.settings.insert("checkpoint.timeout".to_owned(), "20s".to_owned());
        }
    }

    /// The place of the first compactor: behind those of all others.
    #[must_use]
    pub fn first_compactor(&self) -> usize {
        COORDINATORS + self.workers as usize + self.leaves.len()
    }

    /// Whether each worker that leaves finds slots elsewhere, and has the time to hand over.
    #[must_use]
    pub fn leaves_at_leisure(&self) -> bool {
        let in_time = |joins| matches!(joins, Joins::Before(_));
        self.drain_timeout >= Duration::from_secs(25) && self.leaves.iter().all(|l| in_time(l.1.joins))
    }

    fn draw_faults(&mut self, dice: &mut Dice) {
        let count = *dice.pick(&[1, 3, 6, 12, 25]);
        let kinds = dice.within(1..8);
        for _ in 0..count {
            let fault = self.fault(dice, kinds);
            self.faults.push((self.moment(dice), fault));
        }
        // Amid rescales above all.
        for i in 0..self.requests.len() {
            if matches!(self.requests[i].1, Request::Rescale(_)) && dice.chance(30) {
                let fault = self.fault(dice, kinds);
                self.faults.push((self.requests[i].0 + dice.millis(0..800), fault));
            }
        }
        // And amid handing over.
        for i in 0..self.leaves.len() {
            if dice.chance(40) {
                let fault = self.fault(dice, kinds);
                self.faults.push((self.leaves[i].0 + dice.millis(0..1_500), fault));
            }
        }
        self.faults.sort_by_key(|f| f.0);
    }

    /// `kinds`: how many kinds of faults this run has, so that some runs have many of few kinds.
    fn fault(&self, dice: &mut Dice, kinds: u64) -> Fault {
        let places = self.first_compactor() as u64 + u64::from(self.compactors);
        let place = dice.within(0..places) as usize;
        let lasts = dice.millis(200..9_000);
        match dice.within(0..kinds) {
            0 => Fault::Kill { place, silently: dice.chance(30), back_after: dice.millis(50..6_000) },
            1 => Fault::Store { faults: Box::new(self.store_faults(dice)), lasts },
            2 => Fault::Pause { place, lasts },
            3 => {
                let to = (place + dice.within(1..places) as usize) % places as usize;
                Fault::Partition { from: place, to, both: dice.chance(60), lasts }
            }
            4 => Fault::Break(dice.within(2..12)),
            5 => Fault::SecondCoordinator,
            _ => Fault::Outside { percent: dice.within(5..60), lasts },
        }
    }

    fn store_faults(&self, dice: &mut Dice) -> Faults {
        if dice.chance(20) {
            return Faults { unreachable: true, ..self.latency.clone() };
        }
        if dice.chance(30) {
            // Commits that are not confirmed and land a little later.
            return Faults {
                error_after: 0.1,
                late_write: 0.5,
                late_by: dice.millis(100..4_000),
                only_paths_with: "/version/".into(),
                ..self.latency.clone()
            };
        }
        if dice.chance(30) {
            // Bundles that cannot be written for a while.
            let error_before = f64::from(*dice.pick(&[40, 80, 100])) / 100.0;
            return Faults { error_before, only_paths_with: "/data/".into(), ..self.latency.clone() };
        }
        let mut rate = || f64::from(*dice.pick(&[0, 0, 3, 10, 30])) / 100.0;
        let mut faults = Faults {
            throttle: rate(),
            error_before: rate(),
            error_after: rate(),
            late_write: rate(),
            conflict: rate(),
            hang: rate() / 3.0,
            slow_stream: rate(),
            cut_stream: rate(),
            torn_upload: rate(),
            lost_completion: rate(),
            late_completion: rate(),
            ..self.latency.clone()
        };
        faults.late_by = dice.millis(100..40_000);
        faults.stream_pause = dice.millis(10..300);
        if dice.chance(20) {
            // Pins and boundaries alone.
            faults.only_paths_with = (*dice.pick(&["/pins/", "/boundary/"])).into();
        } else if dice.chance(40) {
            // The commits alone.
            faults.only_paths_with = "/version/".into();
        }
        faults
    }
}

fn settings(dice: &mut Dice) -> BTreeMap<String, String> {
    let pairs = [
        ("checkpoint.interval", *dice.pick(&["50ms", "200ms", "500ms", "2s"])),
        ("checkpoint.timeout", *dice.pick(&["2s", "5s", "20s"])),
        ("checkpoint.tolerable-failures", *dice.pick(&["0", "1", "3", "10"])),
        ("restart.initial-delay", *dice.pick(&["50ms", "400ms"])),
        ("restart.max-delay", "2s"),
        ("state.block-size", *dice.pick(&["1KiB", "15KiB"])),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn delays(dice: &mut Dice) -> Delays {
    let (least_us, most_us, tail_us) =
        *dice.pick(&[(50, 300, 0), (100, 2_000, 20_000), (1_000, 8_000, 200_000), (0, 40_000, 0)]);
    Delays { least_us, most_us, tail_us }
}

fn store_options(dice: &mut Dice) -> StoreOptions {
    // In some runs bundles and the outputs of compactions go in many parts.
    let (multipart_threshold_bytes, multipart_part_bytes) = *dice.pick(&[(32 << 20, 16 << 20), (600, 250)]);
    StoreOptions {
        multipart_threshold_bytes,
        multipart_part_bytes,
        retry_timeout: *dice.pick(&[300, 1_000, 4_000, 20_000, 60_000].map(Duration::from_millis)),
        request_timeout: *dice.pick(&[Duration::from_millis(700), Duration::from_secs(3)]),
        backoff_initial: Duration::from_millis(20),
        backoff_max: Duration::from_secs(1),
        ..StoreOptions::default()
    }
}

fn latency(dice: &mut Dice) -> Faults {
    let (p50, p99) = *dice.pick(&[(1, 3), (5, 40), (28, 80)]);
    Faults { latency_p50: Duration::from_millis(p50), latency_p99: Duration::from_millis(p99), ..Faults::none() }
}
