//! Time stamps as text: `2026-01-01 00:00:04.330`, always UTC, in the proleptic Gregorian calendar, years 0 to 9999.

use arrow_schema::TimeUnit;

const DAY_S: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01. Years are counted from March here, so that the leap day comes last.
const EPOCH_DAYS_FROM_MARCH_0: i64 = 719_468;
const DAYS_OF_400_YEARS: i64 = 146_097;

/// The first millisecond of year 0 and the last of year 9999: what [`parse_timestamp`] accepts lies between.
pub const RANGE_MS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// The date of a day, counted in days since 1970-01-01: year, month (1 to 12), day (1 to 31).
#[must_use]
pub fn civil_of_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + EPOCH_DAYS_FROM_MARCH_0;
    let cycle = shifted.div_euclid(DAYS_OF_400_YEARS);
    let in_cycle = shifted.rem_euclid(DAYS_OF_400_YEARS);
    // Leap days before this one inside the cycle: one every 4 years, none every 100, one at its very end.
    let year = (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    // Months from March repeat 31 30 31 30 31, 153 days.
    let month_from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) = if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (cycle * 400 + year + carry, month as u32, day as u32)
}

/// Days since 1970-01-01 of a date; `None` when there is no such date.
#[must_use]
pub fn days_of_civil(year: i64, month: u32, day: u32) -> Option<i64> {
    if !(1..=12).contains(&month) || day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let (from_march, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let (cycle, in_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let in_year = (153 * i64::from(from_march) + 2) / 5 + i64::from(day) - 1;
    Some(cycle * DAYS_OF_400_YEARS + 365 * in_cycle + in_cycle / 4 - in_cycle / 100 + in_year - EPOCH_DAYS_FROM_MARCH_0)
}

fn days_of_month(year: i64, month: u32) -> u32 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Parses `2026-01-01 00:00:04.330`: milliseconds since 1970 (UTC). A `T` may stand for the space and a `Z` at the
/// end; the fraction may have one to three digits or be missing, and so may the whole time of day. `None` when it is
/// anything else.
#[must_use]
pub fn parse_timestamp(text: &str) -> Option<i64> {
    let (seconds, nanos, digits) = moment(text)?;
    (digits <= 3).then(|| seconds * 1_000 + i64::from(nanos) / 1_000_000)
}

/// As [`parse_timestamp`], in units of `10^-digits` seconds, `digits` being 0, 3, 6 or 9: up to nine digits of a fraction are
/// taken, those finer than the unit are cut off. With `zoned` an offset like `+02:00` may stand at the end. `None` also for
/// what the unit cannot reach.
#[must_use]
pub fn parse_timestamp_in(text: &str, digits: u32, zoned: bool) -> Option<i64> {
    let (text, offset) = match text.len().checked_sub(6) {
        Some(at) if zoned && text.len() > 16 && matches!(text.as_bytes()[at], b'+' | b'-') => {
            let b = text.as_bytes();
            let (h, m) = (self::digits(&b[at + 1..at + 3])?, self::digits(&b[at + 4..])?);
            if b[at + 3] != b':' || h > 18 || m > 59 {
                return None;
            }
            let seconds = h * 3_600 + m * 60;
            (&text[..at], if b[at] == b'-' { -seconds } else { seconds })
        }
        _ => (text, 0),
    };
    let (seconds, nanos, _) = moment(text)?;
    let fraction = i64::from(nanos) / 10_i64.pow(9 - digits);
    (seconds - offset).checked_mul(10_i64.pow(digits))?.checked_add(fraction)
}

/// How many digits of a second's fraction a unit has.
#[must_use]
pub fn digits_of(unit: TimeUnit) -> u32 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    }
}

/// Seconds since 1970, nanoseconds of the fraction, and how many digits that had.
fn moment(text: &str) -> Option<(i64, u32, usize)> {
    let b = text.as_bytes();
    if b.len() < 10 || b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    let days = days_of_civil(digits(&b[0..4])?, digits(&b[5..7])? as u32, digits(&b[8..10])? as u32)?;
    let clock = &b[10..];
    if clock.is_empty() {
        return Some((days * DAY_S, 0, 0));
    }
    let clock = clock.strip_suffix(b"Z").unwrap_or(clock);
    if clock.len() < 9 || !matches!(clock[0], b' ' | b'T') || clock[3] != b':' || clock[6] != b':' {
        return None;
    }
    let (h, m, s) = (digits(&clock[1..3])?, digits(&clock[4..6])?, digits(&clock[7..9])?);
    if h > 23 || m > 59 || s > 59 {
        return None;
    }
    let (nanos, fraction_digits) = match &clock[9..] {
        [] => (0, 0),
        [b'.', f @ ..] if (1..=9).contains(&f.len()) => (digits(f)? * 10_i64.pow(9 - f.len() as u32), f.len()),
        _ => return None,
    };
    Some((days * DAY_S + h * 3_600 + m * 60 + s, nanos as u32, fraction_digits))
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
}

/// Writes time stamps; remembers the day it wrote last, since neighbours mostly share it.
#[derive(Clone, Debug)]
pub struct TimestampText {
    day: i64,
    text: Vec<u8>,
}

impl Default for TimestampText {
    fn default() -> Self {
        Self { day: i64::MIN, text: Vec::new() }
    }
}

impl TimestampText {
    /// Appends `2026-01-01` for a day, counted in days since 1970-01-01.
    pub fn push_date(&mut self, days: i64, out: &mut Vec<u8>) {
        if days != self.day {
            self.text.clear();
            let (year, month, day) = civil_of_days(days);
            // Beyond the usual years ISO 8601 asks for a sign.
            let sign = if year < 0 {
                "-"
            } else if year > 9_999 {
                "+"
            } else {
                ""
            };
            self.text.extend_from_slice(format!("{sign}{:04}-{month:02}-{day:02}", year.unsigned_abs()).as_bytes());
            self.day = days;
        }
        out.extend_from_slice(&self.text);
    }

    /// Appends `2026-01-01 00:00:04.330` for a moment in units of `10^-digits` seconds since 1970 (UTC); `digits` (0,
    /// 3, 6 or 9) is also how many fraction digits it prints.
    pub fn push_timestamp(&mut self, value: i64, digits: u32, out: &mut Vec<u8>) {
        let unit = 10_i64.pow(digits);
        let (seconds, fraction) = (value.div_euclid(unit), value.rem_euclid(unit));
        self.push_date(seconds.div_euclid(86_400), out);
        let of_day = seconds.rem_euclid(86_400) as u32;
        let mut clock = *b" 00:00:00";
        for (at, n) in [(1, of_day / 3_600), (4, of_day / 60 % 60), (7, of_day % 60)] {
            clock[at] += (n / 10) as u8;
            clock[at + 1] += (n % 10) as u8;
        }
        out.extend_from_slice(&clock);
        if digits > 0 {
            out.push(b'.');
            let mut divisor = unit / 10;
            while divisor > 0 {
                out.push(b'0' + (fraction / divisor % 10) as u8);
                divisor /= 10;
            }
        }
    }
}

/// `2026-01-01 00:00:04.330` for milliseconds since 1970 (UTC).
#[must_use]
pub fn format_timestamp_ms(ms: i64) -> String {
    let mut out = Vec::with_capacity(23);
    TimestampText::default().push_timestamp(ms, 3, &mut out);
    out.iter().map(|b| char::from(*b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_are_two_sides_of_a_moment() {
        for (text, ms) in [
            ("2026-01-01 00:00:04.330", 1_767_225_604_330),
            ("1970-01-01 00:00:00.000", 0),
            ("1969-12-31 23:59:59.999", -1),
            ("2024-02-29 12:34:56.007", 1_709_210_096_007),
            ("2000-02-29 00:00:00.000", 951_782_400_000),
            ("0000-01-01 00:00:00.000", *RANGE_MS.start()),
            ("9999-12-31 23:59:59.999", *RANGE_MS.end()),
        ] {
            assert_eq!(parse_timestamp(text), Some(ms), "{text}");
            assert_eq!(format_timestamp_ms(ms), text);
        }
    }

    #[test]
    fn every_day_of_eight_centuries_comes_back() {
        let first = days_of_civil(1600, 1, 1).unwrap();
        let mut expected = (1600, 1, 1);
        for days in first..days_of_civil(2400, 1, 1).unwrap() {
            assert_eq!(civil_of_days(days), expected);
            assert_eq!(days_of_civil(expected.0, expected.1, expected.2), Some(days));
            let (y, m, d) = expected;
            expected = if d < days_of_month(y, m) {
                (y, m, d + 1)
            } else if m < 12 {
                (y, m + 1, 1)
            } else {
                (y + 1, 1, 1)
            };
        }
    }

    #[test]
    fn other_ways_to_write_it_and_what_is_none() {
        let day = parse_timestamp("2026-01-01").unwrap();
        for same in ["2026-01-01T00:00:00Z", "2026-01-01 00:00:00", "2026-01-01T00:00:00.0"] {
            assert_eq!(parse_timestamp(same), Some(day), "{same}");
        }
        assert_eq!(parse_timestamp("2026-01-01 00:00:00.5"), Some(day + 500));
        for none in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2026-01-00",
            "2026-01-01 24:00:00",
            "2026-01-01 00:60:00",
            "2026-01-01 00:00:00.",
            "2026-01-01 00:00:00.1234",
            "2026-01-01x00:00:00",
            "2026-01-01 00:00",
            "20x6-01-01",
            "2026-01-01 00:00:00.0Zé",
            "2026-01-01Z",
        ] {
            assert_eq!(parse_timestamp(none), None, "{none}");
        }
    }

    #[test]
    fn finer_units_and_offsets() {
        let text = "2026-01-01T00:00:04.330123456Z";
        assert_eq!(parse_timestamp_in(text, 0, false), Some(1_767_225_604));
        assert_eq!(parse_timestamp_in(text, 3, false), Some(1_767_225_604_330));
        assert_eq!(parse_timestamp_in(text, 9, true), Some(1_767_225_604_330_123_456));
        assert_eq!(parse_timestamp_in("1969-12-31 23:59:59.9995", 3, false), Some(-1));
        assert_eq!(parse_timestamp_in("2026-01-01 02:00:04+02:00", 3, true), Some(1_767_225_604_000));
        assert_eq!(parse_timestamp_in("2025-12-31 18:30:04.5-05:30", 3, true), Some(1_767_225_604_500));
        assert_eq!(parse_timestamp_in("2026-01-01 02:00:04+02:00", 3, false), None, "no zone is wanted");
        assert_eq!(parse_timestamp_in("9999-01-01", 9, false), None, "nanoseconds do not reach so far");
        assert_eq!(parse_timestamp_in("2026-01-01", 3, true), Some(1_767_225_600_000), "a day has dashes");
        for none in ["2026-01-01 02:00:04+2:00", "2026-01-01 02:00:04+0200", "2026-01-01 02:00:04é+02:00"] {
            assert_eq!(parse_timestamp_in(none, 3, true), None, "{none}");
        }
    }

    #[test]
    fn other_units_print_their_digits() {
        let text = |value, digits| {
            let mut out = Vec::new();
            TimestampText::default().push_timestamp(value, digits, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(1, 0), "1970-01-01 00:00:01");
        assert_eq!(text(-1, 6), "1969-12-31 23:59:59.999999");
        assert_eq!(text(1_000_000_007, 9), "1970-01-01 00:00:01.000000007");
        assert_eq!(text(253_402_300_800, 0), "+10000-01-01 00:00:00");
    }
}
