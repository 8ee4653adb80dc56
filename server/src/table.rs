//! Tables for people: columns as wide as their widest cell, numbers to the right.

/// A table of text.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows.
    #[must_use]
    pub fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, without a line feed at the end.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.header.len();
        let cell = |row: &[String], i: usize| row.get(i).cloned().unwrap_or_default();
        let width = |i: usize| {
            let widest = self.rows.iter().map(|r| cell(r, i).chars().count()).max().unwrap_or(0);
            widest.max(self.header[i].chars().count())
        };
        let is_number = |i: usize| {
            let mut cells = self.rows.iter().map(|r| cell(r, i)).filter(|c| c != "-").peekable();
            cells.peek().is_some()
                && cells.all(|c| c.starts_with(|c: char| c.is_ascii_digit()) && !c.contains(['-', ':']))
        };
        let shape: Vec<(usize, bool)> = (0..columns).map(|i| (width(i), is_number(i))).collect();
        let line = |cells: &[String]| {
            let padded = shape.iter().enumerate().map(|(i, (width, right))| {
                let text = cell(cells, i);
                let space = " ".repeat(width - text.chars().count());
                if *right { format!("{space}{text}") } else { format!("{text}{space}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let header: Vec<String> = self.header.iter().map(|h| (*h).to_owned()).collect();
        std::iter::once(line(&header)).chain(self.rows.iter().map(|r| line(r))).collect::<Vec<_>>().join("\n")
    }
}

/// `1,234,567`.
#[must_use]
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `12.3 MB`.
#[must_use]
pub fn bytes(n: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", n as f64 / unit),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut t = Table::new(&["id", "rows", "when"]);
        t.row(vec!["a".into(), "1,000".into(), "2026-01-01".into()]);
        t.row(vec!["job-2".into(), "7".into()]);
        assert_eq!(t.render(), "id      rows  when\na      1,000  2026-01-01\njob-2      7");
        assert_eq!(Table::new(&["id", "name"]).render(), "id  name");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((grouped(0), grouped(999), grouped(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!((bytes(999), bytes(1_500), bytes(12_300_000)), ("999 B".into(), "1.5 kB".into(), "12.3 MB".into()));
    }
}
