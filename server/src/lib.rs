//! The command line of Millstream, and the only place that reads files and the environment and wires the parts.
//!
//! A program with jobs of its own has the same commands:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     let jobs = millstream_engine::dataflow::JobRegistry::new(); // with(...) your own
//!     millstream_server::main(jobs)
//! }
//! ```
//!
//! Order of events: the command line is parsed and refused before anything starts; settings are layered and checked;
//! then a command runs. What fails ends as one line on stderr and an exit code ([`failure`]), never as a panic.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use millstream_common::{Error, kill_points};
use millstream_engine::dataflow::JobRegistry;
use millstream_jobs::args::HELP_ASKED;

pub mod address;
pub mod args;
pub mod client;
mod commands;
pub mod config_file;
pub mod environment;
pub mod failure;
pub mod folders;
pub mod http;
pub mod logs;
pub mod metrics;
pub mod options;
pub mod out;
pub mod people;
pub mod process;
pub mod progress;
pub mod signals;
pub mod state;
pub mod state_args;
pub mod stores;
pub mod table;
pub mod usage;
pub mod versions;

/// Carries out the command that the process was started with; `registry` holds the jobs it can run.
#[must_use]
pub fn main(registry: JobRegistry) -> ExitCode {
    logs::report_panics();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return not_parsed(&e),
    };
    let environment = environment::Environment::read();
    kill_points::arm(|name| environment.get(name).map(str::to_owned));
    match commands::carry_out(cli, Arc::new(registry), environment) {
        Ok(()) => ExitCode::from(failure::DONE),
        Err(e) if e.number() == HELP_ASKED => match out::print(e.what().trim_end()) {
            Ok(()) => ExitCode::from(failure::DONE),
            Err(e) => ended(&e),
        },
        Err(e) => ended(&e),
    }
}

/// Prints the help or version that was asked for, or help where no command was given; else says what is wrong.
fn not_parsed(e: &clap::Error) -> ExitCode {
    let code = match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => failure::DONE,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => failure::WRONG_USAGE,
        _ => return ended(&failure::of_parser(e)),
    };
    // Nobody is told when stdout is gone.
    let _ = e.print();
    ExitCode::from(code)
}

fn ended(error: &Error) -> ExitCode {
    out::note(&failure::error_line(error));
    ExitCode::from(failure::exit_code(error))
}
