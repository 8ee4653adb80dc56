//! The progress line of `run` on a terminal: rate, lag, watermark, last checkpoint.

use std::io::Write;
use std::time::Duration;

use millstream_common::env::Moment;
use serde_json::Value;

use crate::people;
use crate::table::grouped;

/// Event time further behind the wall clock than this is history: its lag tells nobody anything.
const LAG_SHOWN_MS: i64 = 7 * 86_400_000;

/// Draws over its own line again and again; silent when stderr is no terminal.
pub struct Progress {
    on: bool,
    drawn: bool,
    before: Option<(Moment, u64)>,
}

impl Progress {
    /// For this process's stderr.
    #[must_use]
    pub fn of_stderr() -> Self {
        Self { on: std::io::IsTerminal::is_terminal(&std::io::stderr()), drawn: false, before: None }
    }

    /// Whether there is anybody to draw for.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Shows a `status` document.
    pub fn show(&mut self, doc: &Value, now: Moment, wall_ms: i64) {
        if !self.on {
            return;
        }
        let rows = doc["events_in"].as_u64().unwrap_or(0);
        let rate = self.before.map(|(then, before)| rate(rows.saturating_sub(before), now.since(then)));
        self.before = Some((now, rows));
        self.draw(&line(doc, rate.unwrap_or(0), wall_ms));
    }

    /// Ends the line, before anything else is written.
    pub fn end(&mut self) {
        if self.drawn {
            self.draw("");
            self.drawn = false;
        }
    }

    fn draw(&mut self, text: &str) {
        // To the start of the line, then clear it. Nobody is told when a terminal is gone.
        let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
        let _ = std::io::stderr().flush();
        self.drawn = true;
    }
}

fn rate(rows: u64, time: Duration) -> u64 {
    if time.is_zero() { 0 } else { (rows as f64 / time.as_secs_f64()) as u64 }
}

fn line(doc: &Value, rate: u64, wall_ms: i64) -> String {
    let watermark = doc["watermark_ms"].as_i64();
    let lag = watermark.map(|w| wall_ms.saturating_sub(w)).filter(|lag| (0..LAG_SHOWN_MS).contains(lag));
    let lag = lag.map_or_else(String::new, |ms| format!(" (lag {:.1} s)", ms as f64 / 1000.0));
    format!(
        "{} {}: {} rows/s, {} in, {} out, watermark {}{lag}, checkpoint {} in {} ms",
        doc["job"].as_str().unwrap_or("-"),
        doc["state"].as_str().unwrap_or("-"),
        grouped(rate),
        grouped(doc["events_in"].as_u64().unwrap_or(0)),
        grouped(doc["rows_out"].as_u64().unwrap_or(0)),
        people::time(&doc["watermark_ms"]),
        doc["epoch"].as_u64().map_or_else(|| "-".to_owned(), |e| e.to_string()),
        doc["checkpoints"]["duration_ms_p50"].as_u64().map_or_else(|| "-".to_owned(), |ms| ms.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_says_where_a_job_stands() {
        let doc = json!({"job": "q5", "state": "running", "events_in": 5000, "rows_out": 2, "epoch": 3,
            "watermark_ms": 1_767_225_600_000_i64, "checkpoints": {"duration_ms_p50": 40}});
        let shown = line(&doc, rate(1000, Duration::from_millis(500)), 1_767_225_602_500);
        assert_eq!(
            shown,
            "q5 running: 2,000 rows/s, 5,000 in, 2 out, watermark 2026-01-01 00:00:00.000 (lag 2.5 s), checkpoint 3 in 40 ms"
        );
        assert!(line(&json!({}), 0, 0).contains("watermark -, checkpoint - in - ms"));
    }
}
