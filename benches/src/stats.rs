//! Medians, and figures as text.

/// The median, the least and the greatest of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of them lie below. Of an even number the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// `None` without measurements.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }

    /// Median, and the range when there is one, each written by `show`.
    #[must_use]
    pub fn text(&self, show: impl Fn(f64) -> String) -> String {
        if self.min == self.max {
            show(self.median)
        } else {
            format!("{} ({}-{})", show(self.median), show(self.min), show(self.max))
        }
    }
}

/// The spread of what was measured, or a dash.
#[must_use]
pub fn spread_text(values: impl IntoIterator<Item = f64>, show: impl Fn(f64) -> String) -> String {
    Spread::of(values).map_or_else(|| "-".to_owned(), |s| s.text(show))
}

/// In millions, with two digits.
#[must_use]
pub fn millions(value: f64) -> String {
    format!("{:.2} M", value / 1e6)
}

/// With one digit behind the point.
#[must_use]
pub fn tenths(value: f64) -> String {
    format!("{value:.1}")
}

/// With two digits behind the point.
#[must_use]
pub fn hundredths(value: f64) -> String {
    format!("{value:.2}")
}

/// Without digits behind the point.
#[must_use]
pub fn whole(value: f64) -> String {
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
    }

    #[test]
    fn texts() {
        assert_eq!(spread_text([2e6, 2.5e6, 1e6], millions), "2.00 M (1.00 M-2.50 M)");
        assert_eq!(spread_text([7.0], whole), "7");
        assert_eq!(spread_text([], hundredths), "-");
    }
}
