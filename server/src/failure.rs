//! How commands fail: one line on stderr, and an exit code.

use millstream_common::{Error, ErrorKind};
use millstream_jobs::args::refusal;

use crate::config_file::BAD_FILE;
use crate::options::NOT_OF_PROCESSES;

/// A job's arguments are malformed.
pub const JOB_USAGE: u16 = 1002;
/// The command line parser refuses it.
pub const COMMAND_USAGE: u16 = 1003;

/// Done.
pub const DONE: u8 = 0;
/// The job or the command failed.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const WRONG_USAGE: u8 = 2;

/// Numbers that stand for wrong usage: a malformed size or duration, arguments of a job, the command line, an unknown
/// setting, a malformed value of one, a configuration file that is none, a setting of jobs given to a process.
const USAGE: [u16; 7] = [1001, JOB_USAGE, COMMAND_USAGE, 1400, 1401, BAD_FILE, NOT_OF_PROCESSES];

/// The exit code for an error.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    if error.kind() == ErrorKind::Config && USAGE.contains(&error.number()) { WRONG_USAGE } else { FAILED }
}

/// `error[MSnnnn]: what happened; where; what to do next`, in one line.
#[must_use]
pub fn error_line(error: &Error) -> String {
    let fenced = if error.kind() == ErrorKind::Fenced && !error.what().contains("fenced") { "fenced: " } else { "" };
    one_line(&format!("error[MS{:04}]: {fenced}{error}", error.number()))
}

/// Line breaks and what surrounds them become single spaces.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the command line parser said, as an error of ours: its message, its tip, and where to find help.
#[must_use]
pub fn of_parser(error: &clap::Error) -> Error {
    let (what, mut tips) = refusal(error);
    for line in error.to_string().lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            tips.push(line.trim_start_matches("For more information, ").trim_end_matches('.').to_owned());
        }
    }
    Error::config(what).code(COMMAND_USAGE).next(tips.join("; "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn an_error_is_one_line_with_number_place_and_advice() {
        let cause = std::io::Error::other("first\n  second");
        let e =
            Error::unavailable("the store does not answer").code(2001).at("s3://b/x").next("look\nat it").source(cause);
        assert_eq!(error_line(&e), "error[MS2001]: the store does not answer: first second; at s3://b/x; look at it");
        assert_eq!(exit_code(&e), FAILED);
    }

    #[test]
    fn one_that_was_taken_over_says_fenced() {
        assert_eq!(
            error_line(&Error::fenced("generation 3 took over")),
            "error[MS5000]: fenced: generation 3 took over"
        );
        assert_eq!(error_line(&Error::fenced("fenced by 3")), "error[MS5000]: fenced by 3");
    }

    #[test]
    fn wrong_usage_has_its_own_exit_code() {
        for number in [1001, 1002, 1003, 1400, 1401, 1403, 1405] {
            assert_eq!(exit_code(&Error::config("x").code(number)), WRONG_USAGE);
        }
        assert_eq!(exit_code(&Error::config("x").code(1410)), FAILED);
        assert_eq!(exit_code(&Error::data("x").code(1002)), FAILED);
    }

    #[test]
    fn what_the_parser_says_fits_in_a_line() {
        let e = crate::args::Cli::try_parse_from(["millstream", "run", "j", "--paralelism", "3"]).unwrap_err();
        let line = error_line(&of_parser(&e));
        assert!(line.starts_with("error[MS1003]: unexpected argument '--paralelism' found; "), "{line}");
        assert!(line.contains("--parallelism") && line.contains("--help") && !line.contains('\n'), "{line}");
    }
}
