//! Runs seeds of the simulation: `sim --seeds 1..1000`, or one with everything that happens: `sim --seed 42 --trace`.

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use millstream_common::planted;
use millstream_tests::sim;

const USAGE: &str = "usage: sim --seeds FIRST..LAST | --seed N  [--bug N] [--trace] [--stop-at-first]";

struct Options {
    seeds: RangeInclusive<u64>,
    trace: bool,
    stop_at_first: bool,
}

fn options() -> Option<Options> {
    let mut options = Options { seeds: 1..=50, trace: false, stop_at_first: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seed" => {
                let seed = args.next()?.parse().ok()?;
                options.seeds = seed..=seed;
            }
            "--seeds" => {
                let range = args.next()?;
                let (first, last) = range.split_once("..")?;
                options.seeds = first.parse().ok()?..=last.trim_start_matches('=').parse().ok()?;
            }
            "--bug" => {
                let bug = args.next()?.parse().ok()?;
                if !planted::plant(bug) {
                    eprintln!("no bug is in this program: build it with MILLSTREAM_PLANTED_BUGS=1");
                    return None;
                }
            }
            "--trace" => options.trace = true,
            "--stop-at-first" => options.stop_at_first = true,
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if options.trace {
        tracing_subscriber::fmt().with_env_filter("debug,hyper=off").without_time().with_ansi(false).init();
    }
    let (mut passed, mut failed) = (0u64, 0u64);
    let mut virtual_time = Duration::ZERO;
    for seed in options.seeds {
        let outcome = sim::run(seed, options.trace);
        virtual_time += outcome.virtual_time;
        if outcome.violations.is_empty() {
            passed += 1;
            println!(
                "seed {seed}: ok, {:.1} s, {} events, trace {:016x}, {}",
                outcome.virtual_time.as_secs_f64(),
                outcome.events,
                outcome.trace_hash,
                outcome.summary
            );
        } else {
            failed += 1;
            let first = outcome.violations.first().map_or("", String::as_str);
            println!("seed {seed}: FAILED, trace {:016x}, {} -- {first}", outcome.trace_hash, outcome.summary);
            println!("replay: cargo run -p millstream-tests --bin sim -- --seed {seed} --trace");
            if options.stop_at_first {
                break;
            }
        }
    }
    println!("{passed} passed, {failed} failed ({:.0} s of virtual time)", virtual_time.as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
