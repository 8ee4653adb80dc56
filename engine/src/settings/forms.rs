//! How values of settings are written: reading and showing are inverses.

use std::path::PathBuf;
use std::time::Duration;

use millstream_common::size::{parse_bytes, parse_duration};
use millstream_common::{Error, Result};

use super::{CheckpointMode, CompactionPlace, DayWindow, MALFORMED_SETTING, Residency, RestartStrategy};

/// A way to write a value.
pub trait Form {
    /// What it is in the typed settings.
    type Value;
    /// Reads it.
    fn read(text: &str) -> Result<Self::Value>;
    /// Writes it so that `read` gives the same.
    fn show(value: &Self::Value) -> String;
}

/// `500ms`, `10s`, `2min`, `0`.
pub struct Time;
/// `512MiB`, `20GB`, `1000`.
pub struct Size;
/// A whole number.
pub struct Count;
/// A decimal number.
pub struct Number;
/// A folder.
pub struct Folder;
/// A [`CheckpointMode`].
pub struct Mode;
/// A [`RestartStrategy`].
pub struct Strategy;
/// A [`Residency`].
pub struct Place;
/// A [`CompactionPlace`].
pub struct Runner;
/// `always`, or a [`DayWindow`] as `22:00-06:00`.
pub struct Schedule;
/// `auto`, or as `F`.
pub struct Auto<F>(std::marker::PhantomData<F>);
/// `none`, or as `F`.
pub struct Perhaps<F>(std::marker::PhantomData<F>);

impl Form for Time {
    type Value = Duration;
    fn read(text: &str) -> Result<Duration> {
        parse_duration(text)
    }
    fn show(value: &Duration) -> String {
        show_duration(*value)
    }
}

impl Form for Size {
    type Value = u64;
    fn read(text: &str) -> Result<u64> {
        parse_bytes(text)
    }
    fn show(value: &u64) -> String {
        show_bytes(*value)
    }
}

impl Form for Count {
    type Value = u32;
    fn read(text: &str) -> Result<u32> {
        text.trim().parse().map_err(|_| malformed(text, "a whole number", "a number such as 10"))
    }
    fn show(value: &u32) -> String {
        value.to_string()
    }
}

impl Form for Number {
    type Value = f64;
    fn read(text: &str) -> Result<f64> {
        let number = text.trim().parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| malformed(text, "a number", "a number such as 1.5"))
    }
    fn show(value: &f64) -> String {
        value.to_string()
    }
}

impl Form for Folder {
    type Value = PathBuf;
    fn read(text: &str) -> Result<PathBuf> {
        if text.is_empty() { Err(malformed(text, "a folder", "a path")) } else { Ok(PathBuf::from(text)) }
    }
    fn show(value: &PathBuf) -> String {
        value.display().to_string()
    }
}

impl Form for Schedule {
    type Value = Option<DayWindow>;
    fn read(text: &str) -> Result<Self::Value> {
        if text.trim() == "always" {
            return Ok(None);
        }
        let ends = text.trim().split_once('-').and_then(|(from, to)| Some((minute_of_day(from)?, minute_of_day(to)?)));
        match ends {
            Some((from_min, to_min)) if from_min != to_min => Ok(Some(DayWindow { from_min, to_min })),
            _ => Err(malformed(text, "always, nor a part of the day (UTC)", "22:00-06:00")),
        }
    }
    fn show(value: &Self::Value) -> String {
        let time = |min: u16| format!("{:02}:{:02}", min / 60, min % 60);
        value.map_or_else(|| "always".to_owned(), |w| format!("{}-{}", time(w.from_min), time(w.to_min)))
    }
}

/// `22:00`, in minutes; `24:00` is midnight.
fn minute_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |t: &str| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= 24 * 60).then_some(all % (24 * 60))
}

impl<F: Form> Form for Auto<F> {
    type Value = Option<F::Value>;
    fn read(text: &str) -> Result<Self::Value> {
        if text.trim() == "auto" { Ok(None) } else { F::read(text).map(Some) }
    }
    fn show(value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| "auto".to_owned(), F::show)
    }
}

impl<F: Form> Form for Perhaps<F> {
    type Value = Option<F::Value>;
    fn read(text: &str) -> Result<Self::Value> {
        if text.trim() == "none" { Ok(None) } else { F::read(text).map(Some) }
    }
    fn show(value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| "none".to_owned(), F::show)
    }
}

/// Words and what they stand for.
fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T> {
    let found = words.iter().find(|(w, _)| *w == text.trim());
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(w, _)| *w).collect();
        malformed(text, "known here", &known.join(", "))
    })
}

fn show_word<T: Copy + PartialEq>(value: T, words: &[(&'static str, T)]) -> String {
    // Each list below names every variant; a test shows it.
    words.iter().find(|(_, v)| *v == value).map_or_else(String::new, |(w, _)| (*w).to_owned())
}

macro_rules! words {
    ($form:ident, $value:ty, $($word:literal => $variant:expr),+) => {
        impl Form for $form {
            type Value = $value;
            fn read(text: &str) -> Result<$value> {
                word(text, &[$(($word, $variant)),+])
            }
            fn show(value: &$value) -> String {
                show_word(*value, &[$(($word, $variant)),+])
            }
        }
    };
}

words!(Mode, CheckpointMode, "exactly-once" => CheckpointMode::ExactlyOnce, "at-least-once" => CheckpointMode::AtLeastOnce);
words!(Strategy, RestartStrategy, "exponential-delay" => RestartStrategy::ExponentialDelay, "none" => RestartStrategy::None,
    "fixed-delay" => RestartStrategy::FixedDelay, "failure-rate" => RestartStrategy::FailureRate);
words!(Runner, CompactionPlace, "auto" => CompactionPlace::Auto, "workers" => CompactionPlace::Workers,
    "compactors" => CompactionPlace::Compactors);
words!(Place, Residency, "remote" => Residency::Remote, "local" => Residency::Local, "memory" => Residency::Memory);

fn malformed(text: &str, what: &str, examples: &str) -> Error {
    Error::config(format!("'{text}' is not {what}")).code(MALFORMED_SETTING).next(format!("write {examples}"))
}

/// A duration in the largest unit that shows it exactly: `10min`, `1500ms`, `0`.
#[must_use]
pub fn show_duration(value: Duration) -> String {
    let us = value.as_micros();
    let units = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s"), (1_000, "ms")];
    if us == 0 {
        return "0".to_owned();
    }
    units
        .iter()
        .find(|(unit, _)| us.is_multiple_of(*unit))
        .map_or_else(|| format!("{us}us"), |(unit, name)| format!("{}{name}", us / unit))
}

/// A size in the largest unit that shows it exactly: `512MiB`, `10GB`, `1234`.
#[must_use]
pub fn show_bytes(value: u64) -> String {
    let units = [
        (1 << 40, "TiB"),
        (1_000_000_000_000, "TB"),
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1_000, "kB"),
    ];
    if value == 0 {
        return "0".to_owned();
    }
    units
        .iter()
        .find(|(unit, _)| value.is_multiple_of(*unit))
        .map_or_else(|| value.to_string(), |(unit, name)| format!("{}{name}", value / unit))
}
