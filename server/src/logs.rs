//! Logs: short lines on stderr. `MILLSTREAM_LOG` sets the level, for instance `debug` or
//! `warn,millstream_engine=debug`.

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::environment::Environment;

/// Whose errors say why a job failed.
const COORDINATOR: &str = "millstream_engine::coordinator";

/// Starts to log at the level of `MILLSTREAM_LOG`, else at `default_level`. An unreadable level is the default.
pub fn start(environment: &Environment, default_level: &str) {
    start_except(environment, default_level, false);
}

/// As [`start`], for a process that ends with its job: why it failed is the line that the process ends with, so it is
/// no line of the log, too.
pub fn start_for_one_job(environment: &Environment, default_level: &str) {
    start_except(environment, default_level, true);
}

fn start_except(environment: &Environment, default_level: &str, failed_job: bool) {
    let filter = environment
        .get("MILLSTREAM_LOG")
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(default_level));
    let colours = environment.get("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let built = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        // It would panic when stderr is gone.
        .log_internal_errors(false)
        .compact()
        .finish();
    let told = filter_fn(move |m| !(failed_job && *m.level() == Level::ERROR && m.target().starts_with(COORDINATOR)));
    // A second start in one process (tests) keeps the first.
    let _ = built.with(told).try_init();
}

/// A panic is an error of ours: it shows as one, in one line, and never as a trace.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let what = panic.payload().downcast_ref::<&str>().map(|s| (*s).to_owned());
        let what = what.or_else(|| panic.payload().downcast_ref::<String>().cloned());
        let place = panic.location().map_or_else(String::new, |l| format!("; at {}:{}", l.file(), l.line()));
        crate::out::note(&crate::failure::one_line(&format!(
            "error[MS9001]: internal error: {}{place}; please report it with the lines above",
            what.unwrap_or_default()
        )));
    }));
}
