//! Values from text: what CSV has everywhere, and JSON inside of strings.

use crate::columns::{Column, Values};
use crate::time::{digits_of, parse_timestamp_in};

/// Why a text is no value of a column: "no integer".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotThat(pub(crate) &'static str);

/// Adds the value that `text` spells. Nothing is rounded; spaces around it count. Only a scalar column has texts.
pub(crate) fn parse_into(text: &str, column: &mut Column) -> Result<(), NotThat> {
    fn number<T: std::str::FromStr + TryFrom<i128>>(text: &str) -> Result<T, NotThat> {
        // Rust takes a plus sign, as Java does. `12.0` and `1.2e1` are integers, too.
        let exact = || decimal(text, 38, 0).ok().and_then(|value| T::try_from(value).ok());
        text.parse().ok().or_else(exact).ok_or(NotThat("no integer that fits"))
    }
    /// What is written as a number is one: none is so large that it becomes infinite.
    fn float<T: std::str::FromStr>(text: &str, is_infinite: impl Fn(&T) -> bool) -> Result<T, NotThat> {
        let value = text.parse().map_err(|_| NotThat("no number"))?;
        let spelled = !text.bytes().any(|b| b.is_ascii_digit());
        if is_infinite(&value) && !spelled { Err(NotThat("a number that does not fit")) } else { Ok(value) }
    }
    match &mut column.values {
        Values::Boolean(v) => v.append(match text {
            _ if text.eq_ignore_ascii_case("true") => true,
            _ if text.eq_ignore_ascii_case("false") => false,
            _ => return Err(NotThat("neither true nor false")),
        }),
        Values::Int8(v) => v.push(number(text)?),
        Values::Int16(v) => v.push(number(text)?),
        Values::Int32(v) => v.push(number(text)?),
        Values::Int64(v) => v.push(number(text)?),
        Values::UInt8(v) => v.push(number(text)?),
        Values::UInt16(v) => v.push(number(text)?),
        Values::UInt32(v) => v.push(number(text)?),
        Values::UInt64(v) => v.push(number(text)?),
        Values::Float32(v) => v.push(float(text, |v: &f32| v.is_infinite())?),
        Values::Float64(v) => v.push(float(text, |v: &f64| v.is_infinite())?),
        Values::Decimal(v, precision, scale) => v.push(decimal(text, *precision, *scale)?),
        Values::Text(v) => v.push(text.as_bytes()).then_some(()).ok_or(NotThat("too much for one batch"))?,
        Values::Date(v) => v.push(date(text).ok_or(NotThat("no date like 2026-01-31"))?),
        Values::Time(v, unit, zone) => {
            let time = parse_timestamp_in(text, digits_of(*unit), zone.is_some());
            v.push(time.ok_or(NotThat("no time stamp like 2026-01-31 23:59:59.999 that fits"))?);
        }
        Values::Binary(_)
        | Values::DayMillis(_)
        | Values::DayMicros(_)
        | Values::Struct(..)
        | Values::List(..)
        | Values::Map(..) => {
            return Err(NotThat("no value of this column"));
        }
    }
    column.pushed();
    Ok(())
}

fn date(text: &str) -> Option<i32> {
    let ms = (text.len() == 10).then(|| parse_timestamp_in(text, 3, false))??;
    i32::try_from(ms.div_euclid(86_400_000)).ok()
}

/// `-12.50`, `1.2e3`: times 10 to the `scale`; an error rather than a rounded one.
pub(crate) fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, NotThat> {
    const WRONG: NotThat = NotThat("no decimal number");
    const UNFIT: NotThat = NotThat("a number with more digits than the column has");
    let (negative, text) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, e.parse::<i32>().map_err(|_| WRONG)?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.len() + fraction.len() == 0 {
        return Err(WRONG);
    }
    let mut value: i128 = 0;
    let mut digits = 0_u32;
    // Zeros at the end of a fraction say nothing: they wait until a digit follows.
    let mut zeros = 0_i64;
    let mut shift = i64::from(exponent) + i64::from(scale);
    for (i, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        if !digit.is_ascii_digit() {
            return Err(WRONG);
        }
        if i >= whole.len() {
            shift -= 1;
        }
        if digit == b'0' {
            zeros += i64::from(digits > 0);
            continue;
        }
        for _ in 0..std::mem::take(&mut zeros) {
            value = value.checked_mul(10).ok_or(UNFIT)?;
            digits += 1;
        }
        value = value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit - b'0'))).ok_or(UNFIT)?;
        digits += 1;
    }
    if value == 0 {
        return Ok(0);
    }
    let shift = shift + zeros;
    // A negative shift would cut digits off that are not zeros.
    let shift = u32::try_from(shift).map_err(|_| UNFIT)?;
    let value = 10_i128.checked_pow(shift).and_then(|f| value.checked_mul(f)).ok_or(UNFIT)?;
    let bound = 10_i128.checked_pow(u32::from(precision)).unwrap_or(i128::MAX);
    if value >= bound {
        return Err(UNFIT);
    }
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_never_rounded() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("-0.000", Ok(0)),
            ("12.5", Ok(1_250)),
            ("-12.5", Ok(-1_250)),
            ("+12.50000", Ok(1_250)),
            ("0.01", Ok(1)),
            ("00100", Ok(10_000)),
            ("1e2", Ok(10_000)),
            ("1.2345e2", Ok(12_345)),
            ("12000e-3", Ok(1_200)),
            ("12345e-2", Ok(12_345)),
            ("99999.99", Ok(9_999_999)),
            (".5", Ok(50)),
            ("5.", Ok(500)),
        ] {
            assert_eq!(decimal(text, 7, 2), expected, "{text}");
        }
        for text in ["0.001", "100000", "1e99", "1e-9", "99999.995", "12345678901234567890123456789012345678901"] {
            assert_eq!(decimal(text, 7, 2), Err(NotThat("a number with more digits than the column has")), "{text}");
        }
        for text in ["", "-", ".", "1,5", "1e", "0x1", " 1", "e5", "--1", "1.2.3"] {
            assert_eq!(decimal(text, 7, 2), Err(NotThat("no decimal number")), "{text}");
        }
        assert_eq!(decimal("99999999999999999999999999999999999999", 38, 0), Ok(10_i128.pow(38) - 1));
        assert_eq!(decimal("1e38", 38, 0), Err(NotThat("a number with more digits than the column has")));
    }
}
