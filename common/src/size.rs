//! Sizes and durations as people write them.

use std::time::Duration;

use crate::{Error, Result};

/// Parses `512MiB`, `20GB`, `64kb`, `1000`. Decimal units are powers of 1,000, binary ones (`KiB`) of 1,024.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let t = text.trim();
    let split = t.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(t.len());
    let (number, unit) = t.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(bad(text, "a size", "512MiB, 20GB or 1000")),
    };
    let number: f64 = number.parse().map_err(|_| bad(text, "a size", "512MiB, 20GB or 1000"))?;
    Ok((number * factor as f64) as u64)
}

/// Parses `500ms`, `10s`, `2m`, `1h`, `3d`, `250us`, and `0`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let t = text.trim();
    if t == "0" {
        return Ok(Duration::ZERO);
    }
    let split = t.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(t.len());
    let (number, unit) = t.split_at(split);
    let seconds = match unit.trim().to_ascii_lowercase().as_str() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(bad(text, "a duration", "500ms, 10s, 2m or 1h")),
    };
    let number: f64 = number.parse().map_err(|_| bad(text, "a duration", "500ms, 10s, 2m or 1h"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| bad(text, "a duration", "500ms, 10s, 2m or 1h"))
}

fn bad(text: &str, what: &str, examples: &str) -> Error {
    Error::config(format!("'{text}' is not {what}")).code(1001).next(format!("write {examples}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_s_sizes_and_durations() {
        assert_eq!(parse_bytes("512MiB").unwrap(), 512 << 20);
        assert_eq!(parse_bytes("20GB").unwrap(), 20_000_000_000);
        assert_eq!(parse_bytes("1.5k").unwrap(), 1_500);
        assert!(parse_bytes("12 parsecs").is_err() && parse_bytes("").is_err());
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("0").unwrap(), Duration::ZERO);
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        assert!(parse_duration("four").is_err() && parse_duration("-1s").is_err() && parse_duration("5").is_err());
    }
}
