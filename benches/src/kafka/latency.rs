//! How long after an event its row is there, from Kafka to Kafka.
//!
//! q20 gives a row for each bid and waits for no window. Bids are written at a fixed rate; a consumer of librdkafka that reads what is
//! committed looks when the row of each is there. The same consumer on the topic of the bids themselves is what Kafka takes for itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millstream_common::{Error, Result};
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;

use super::broker::Broker;
use super::clients::{consumer, failed};
use super::delays::{Delays, Schedule};
use super::load::{AUCTIONS, Topic, auctions, bid_of, bids};
use crate::args::{Guarantee, LatencyArgs};
use crate::binary::{Running, words};
use crate::outside::{cores, free_ports, now, own_cpu_seconds, sleep, wait_for};
use crate::place::{Place, StateKind};
use crate::stats::{hundredths, millions, tenths, whole};
use crate::table::Table;
use crate::{Bench, counters, note, yardstick};

const PARTITIONS: u32 = 2;
/// From one checkpoint to the next.
const INTERVAL: &str = "1s";
/// So long the job may take to read the auctions.
const START_LIMIT: Duration = Duration::from_secs(120);
/// So long rows may come behind the last bid.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// A load that is later than this at any time is another load.
const LATE: Duration = Duration::from_millis(500);

/// What stands below the table.
const FLOOR: &str = "\
At least once a row is there when the broker has it. Exactly once it is there when its transaction is committed: it waits for the end \
of its epoch, 0 to 1 s\nand 0.5 s at the median, then until the checkpoint is durable, and then for the commit. No sink by transactions is below that.";

/// CPU seconds and checkpoints up to some moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    job: f64,
    broker: f64,
    here: f64,
    checkpoints: f64,
}

/// What came out of one load.
#[derive(Debug)]
struct Outcome {
    delays: Delays,
    load_late: Duration,
    before: Sample,
    after: Sample,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &LatencyArgs) -> Result<()> {
    let place = bench.places.fresh(StateKind::File)?;
    let broker = Broker::start(&args.kafka, place.folder())?;
    let y = yardstick::measure(args.yardstick_events);
    println!("## Kafka: how late rows are\n");
    println!(
        "q20 from Kafka to Kafka, parallelism {}, checkpoints every {INTERVAL}, {PARTITIONS} partitions; {} bids/s ({} of Y = {} events/s), each of\n\
         which makes a row, for {} s behind {} s of warm-up. From when a bid is due until a read_committed consumer of librdkafka has its row.\n\
         Load, broker, job and consumer share {} cores.\n",
        args.parallelism,
        args.rate,
        hundredths(args.rate as f64 / y),
        millions(y),
        args.seconds,
        args.warm_up,
        cores()
    );
    let mut table = Table::new(&[
        "rows",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "checkpoints",
        "rows twice",
        "load late ms at most",
        "cpu % job",
        "cpu % broker",
        "cpu % load and consumer",
        "broker's share of it %",
        "",
    ]);
    let phases = std::iter::once(None).chain(args.guarantee.iter().copied().map(Some));
    for (i, guarantee) in phases.enumerate() {
        let name = guarantee.map_or("the bids themselves, no job", Guarantee::name);
        let phase = Phase { bench, args, broker: &broker, place: &place, number: i };
        let outcome = phase.run(guarantee)?;
        let cells = row(name, args, &outcome);
        note(&format!("{name}: p50 {} ms, p99 {} ms {}", cells[1], cells[3], cells[12]));
        table.row(cells);
    }
    println!("{table}\ncpu %: of all cores.\n{FLOOR}\n");
    Ok(())
}

fn row(name: &str, args: &LatencyArgs, outcome: &Outcome) -> Vec<String> {
    let warm_up = Schedule { rate: args.rate }.events_in(args.warm_up);
    let found = match outcome.delays.percentiles(warm_up) {
        Ok(_) if outcome.load_late > LATE => Err("the load was late: nothing to be told".to_owned()),
        Err(why) if outcome.load_late > LATE => Err(format!("{why}; the load was late, too")),
        other => other,
    };
    let (figures, verdict) = match found {
        Ok(p) => ([p.p50, p.p90, p.p99, p.max].map(tenths), String::new()),
        Err(why) => (std::array::from_fn(|_| "-".to_owned()), why),
    };
    let used = |of: fn(&Sample) -> f64| of(&outcome.after) - of(&outcome.before);
    let (job, broker, here) = (used(|s| s.job), used(|s| s.broker), used(|s| s.here));
    let of_all = |seconds: f64| whole(100.0 * seconds / (f64::from(args.seconds) * cores() as f64));
    let mut cells = vec![name.to_owned()];
    cells.extend(figures);
    cells.extend([
        whole(used(|s| s.checkpoints)),
        outcome.delays.twice().to_string(),
        tenths(outcome.load_late.as_secs_f64() * 1e3),
        of_all(job),
        of_all(broker),
        of_all(here),
        whole(100.0 * broker / (job + broker + here).max(f64::MIN_POSITIVE)),
        verdict,
    ]);
    cells
}

struct Phase<'a> {
    bench: &'a Bench,
    args: &'a LatencyArgs,
    broker: &'a Broker,
    place: &'a Place,
    number: usize,
}

impl Phase<'_> {
    /// With a job that promises so much, or without one.
    fn run(&self, guarantee: Option<Guarantee>) -> Result<Outcome> {
        let (events, results) = (format!("events-{}", self.number), format!("results-{}", self.number));
        self.broker.create_topic(&events, PARTITIONS)?;
        let to = Topic { broker: &self.broker.address, name: &events, partitions: PARTITIONS };
        auctions(to)?;
        let mut job = None;
        if let Some(guarantee) = guarantee {
            self.broker.create_topic(&results, PARTITIONS)?;
            job = Some(self.start(&events, &results, guarantee)?);
        }
        let from = if job.is_some() { &results } else { &events };
        let consumer = consumer(&self.broker.address, from, PARTITIONS, &[("isolation.level", "read_committed")])?;
        self.measure(to, &consumer, job.as_mut())
    }

    /// Starts the job, and waits until it has read the auctions.
    fn start(&self, events: &str, results: &str, guarantee: Guarantee) -> Result<Job> {
        let metrics = std::net::SocketAddr::from(([127, 0, 0, 1], free_ports(1)?[0]));
        let line = format!(
            "run q20 --name {results} -p {} --state {}/{results} --checkpoint-interval {INTERVAL} --metrics-listen {metrics} -- \
             --brokers {} --events {events} --results {results} --guarantee {}",
            self.args.parallelism,
            self.place.url(),
            self.broker.address,
            guarantee.name()
        );
        let log = self.place.folder().join(format!("{results}.log"));
        let mut job = Job { process: self.bench.binary.start(&words(&line), &log)?, metrics };
        let ready = wait_for(START_LIMIT, Duration::from_millis(100), || {
            job.process.must_run()?;
            Ok((job.counter("millstream_events_in_total") >= AUCTIONS as f64).then_some(()))
        })?;
        ready.map(|()| job).ok_or_else(|| {
            Error::unavailable(format!("the job has not read {AUCTIONS} auctions within {START_LIMIT:?}"))
        })
    }

    /// Writes bids and reads rows.
    fn measure(&self, to: Topic<'_>, consumer: &BaseConsumer, job: Option<&mut Job>) -> Result<Outcome> {
        let schedule = Schedule { rate: self.args.rate };
        let (warm_up, all) = (self.args.warm_up, self.args.warm_up + self.args.seconds);
        let (events, not_counted) = (schedule.events_in(all), schedule.events_in(warm_up));
        // Clients are connected by then.
        let start = now() + Duration::from_millis(500);
        let stop = AtomicBool::new(false);
        let mut delays = Delays::new(schedule, events);
        thread::scope(|scope| {
            let load = scope.spawn(|| bids(to, schedule, start, (events, not_counted), &stop));
            let samples = scope.spawn(|| self.sample(start, job, &stop));
            let end = start + Duration::from_secs(all.into()) + DRAIN_LIMIT;
            let read = read(consumer, &mut delays, start, end, &stop);
            stop.store(true, Ordering::Relaxed);
            let samples = joined(samples)?;
            let load_late = joined(load)?;
            read?;
            Ok((samples, load_late))
        })
        .map(|((before, after), load_late)| Outcome { delays, load_late, before, after })
    }

    /// What was used up by the end of the warm-up, and by the end of the load; an error when the job ends before.
    fn sample(&self, start: Instant, mut job: Option<&mut Job>, stop: &AtomicBool) -> Result<(Sample, Sample)> {
        let mut found = Vec::new();
        for seconds in [self.args.warm_up, self.args.warm_up + self.args.seconds] {
            let at = start + Duration::from_secs(seconds.into());
            while now() < at {
                if let Some(Err(e)) = job.as_mut().map(|job| job.process.must_run()) {
                    stop.store(true, Ordering::Relaxed);
                    return Err(e);
                }
                sleep(at.saturating_duration_since(now()).min(Duration::from_millis(50)));
            }
            let (cpu, checkpoints) = match job.as_ref() {
                Some(job) => (job.process.cpu_seconds()?, job.counter("millstream_checkpoints_completed_total")),
                None => (0.0, 0.0),
            };
            found.push(Sample { job: cpu, broker: self.broker.cpu_seconds()?, here: own_cpu_seconds(), checkpoints });
        }
        Ok((found[0], found[1]))
    }
}

/// Reads rows until all are there, time is over or somebody says `stop`.
fn read(consumer: &BaseConsumer, delays: &mut Delays, start: Instant, end: Instant, stop: &AtomicBool) -> Result<()> {
    while delays.missing() > 0 && now() < end && !stop.load(Ordering::Relaxed) {
        let Some(record) = consumer.poll(Duration::from_millis(20)) else { continue };
        let came = now().saturating_duration_since(start);
        let record = record.map_err(|e| failed("reading a row", e))?;
        // An auction, when the bids themselves are read, has none.
        let Some(bid) = record.payload().and_then(bid_of) else { continue };
        if !delays.saw(bid, came) {
            return Err(Error::data(format!("there is a row of bid {bid}, which nobody wrote")));
        }
    }
    Ok(())
}

/// What a thread came to.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::internal("a thread of the bench panicked")))
}

struct Job {
    process: Running,
    metrics: std::net::SocketAddr,
}

impl Job {
    /// The sum over all labels; 0 while nobody answers.
    fn counter(&self, name: &str) -> f64 {
        let text = counters::get(self.metrics, "/metrics").unwrap_or_default();
        counters::samples(&text).filter(|s| s.name == name).map(|s| s.value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::default_of;

    #[test]
    fn a_row_has_figures_or_says_why_not() {
        let mut args: LatencyArgs = default_of();
        (args.rate, args.warm_up, args.seconds) = (100, 1, 2);
        let schedule = Schedule { rate: 100 };
        let outcome = |rows: u64, late| {
            let mut delays = Delays::new(schedule, 300);
            (0..rows).for_each(|n| assert!(delays.saw(n, schedule.due(n) + Duration::from_millis(5))));
            let before = Sample { job: 1.0, broker: 2.0, here: 3.0, checkpoints: 4.0 };
            let seconds = cores() as f64;
            let after =
                Sample { job: 1.0 + seconds, broker: 2.0 + seconds / 2.0, here: 3.0 + seconds / 2.0, checkpoints: 6.0 };
            Outcome { delays, load_late: Duration::from_millis(late), before, after }
        };
        let cells = row("x", &args, &outcome(300, 7));
        assert_eq!(cells[..8], ["x", "5.0", "5.0", "5.0", "5.0", "2", "0", "7.0"]);
        assert_eq!(cells[8..], ["50", "25", "25", "25", ""]);
        assert_eq!(row("x", &args, &outcome(300, 900))[12], "the load was late: nothing to be told");
        assert!(row("x", &args, &outcome(299, 900))[12].ends_with("the load was late, too"));
        let behind = row("x", &args, &outcome(299, 7));
        assert!(behind[1] == "-" && behind[12].contains("1 of 300 rows had not come"), "{behind:?}");
    }
}
