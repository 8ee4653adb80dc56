//! Windows as panes: the greatest common pieces of which windows of one size and slide are made. A row belongs to one
//! pane, a window is a run of panes, so a row is stored once however many windows it is in.
//!
//! A pane is known by its **life**: the time at and below which it counts for nothing, because every window it belongs to
//! has fired. That is the time its entries have in the state.

use crate::element::TimestampMs;

/// How time is cut. All lengths in milliseconds; `slide_ms <= size_ms`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panes {
    size_ms: i64,
    slide_ms: i64,
    /// Length of a pane.
    width_ms: i64,
}

impl Panes {
    pub(super) fn new(size_ms: i64, slide_ms: i64) -> Self {
        Self { size_ms, slide_ms, width_ms: gcd(size_ms, slide_ms) }
    }

    /// From the end of a pane to the end of the last window that it may be in.
    pub(super) fn keep_ms(&self) -> i64 {
        self.size_ms - self.width_ms
    }

    /// The life of the pane that begins at `start`.
    fn life_of_start(&self, start: TimestampMs) -> TimestampMs {
        start + self.width_ms - 1 + self.keep_ms()
    }

    /// The (exclusive) end of a pane, by its life.
    fn end(&self, life: TimestampMs) -> TimestampMs {
        life.saturating_add(1).saturating_sub(self.keep_ms())
    }

    /// Whether all windows of a pane have fired when its key group has fired up to `fired`.
    #[inline]
    pub(super) fn is_late(&self, life: TimestampMs, fired: TimestampMs) -> bool {
        if life <= fired {
            return true;
        }
        // Where panes are shorter than the slide, the last window may have ended a little before.
        let slack = self.slide_ms - self.width_ms;
        life <= fired.saturating_add(slack) && self.last_window_end(life) - 1 <= fired
    }

    fn last_window_end(&self, life: TimestampMs) -> TimestampMs {
        let start = self.end(life) - self.width_ms;
        start.div_euclid(self.slide_ms) * self.slide_ms + self.size_ms
    }

    /// The end of the first window that ends at or behind `time`.
    fn window_end_from(&self, time: TimestampMs) -> TimestampMs {
        let behind = time.saturating_sub(self.size_ms);
        let periods = behind.div_euclid(self.slide_ms) + i64::from(behind.rem_euclid(self.slide_ms) > 0);
        periods.saturating_mul(self.slide_ms).saturating_add(self.size_ms)
    }

    /// The end of the first window that holds a pane and has not fired when windows ending at or before `fired_end` have.
    pub(super) fn next_window_end(&self, life: TimestampMs, fired_end: TimestampMs) -> Option<TimestampMs> {
        let pane_end = self.end(life);
        let end = self.window_end_from(pane_end.max(fired_end.saturating_add(1)));
        (pane_end > end - self.size_ms).then_some(end)
    }

    /// The end of the last window that is due at `watermark`.
    pub(super) fn last_due_end(&self, watermark: TimestampMs) -> TimestampMs {
        let ahead = watermark.saturating_add(1).saturating_sub(self.size_ms);
        ahead.div_euclid(self.slide_ms).saturating_mul(self.slide_ms).saturating_add(self.size_ms)
    }

    /// The panes of the window that ends at `end`: those with a life greater than the first and not beyond the second.
    pub(super) fn lives_of_window(&self, end: TimestampMs) -> (TimestampMs, TimestampMs) {
        ((end - 1).saturating_sub(self.width_ms), (end - 1).saturating_add(self.keep_ms()))
    }

    /// The lives of the panes of rows at `times`.
    pub(super) fn lives(&self, times: &[TimestampMs], into: &mut Vec<TimestampMs>) {
        into.clear();
        into.reserve(times.len());
        // Rows come about in order: most lie in the pane of the row before.
        let (mut start, mut life) = (i64::MAX, 0);
        for &t in times {
            if !(start..start.saturating_add(self.width_ms)).contains(&t) {
                start = t.div_euclid(self.width_ms) * self.width_ms;
                life = self.life_of_start(start);
            }
            into.push(life);
        }
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ends of all windows that hold `t`, by trying them.
    fn window_ends(size: i64, slide: i64, t: i64) -> Vec<i64> {
        (-100..100).map(|k| k * slide).filter(|s| *s <= t && t < s + size).map(|s| s + size).collect()
    }

    #[test]
    fn panes_make_up_windows() {
        for (size, slide) in [(10, 10), (10, 2), (10, 4), (7, 3), (9, 6), (1, 1), (5, 5)] {
            let panes = Panes::new(size, slide);
            for t in -40..40 {
                let mut lives = Vec::new();
                panes.lives(&[t, t], &mut lives);
                let life = lives[0];
                let ends = window_ends(size, slide, t);
                assert_eq!(panes.last_window_end(life), *ends.last().unwrap());
                assert!(life >= ends.last().unwrap() - 1);
                for fired in -60..60 {
                    assert_eq!(
                        panes.is_late(life, fired),
                        ends.last().unwrap() - 1 <= fired,
                        "{size} {slide} {t} {fired}"
                    );
                    let next = ends.iter().copied().find(|e| *e > fired);
                    assert_eq!(panes.next_window_end(life, fired), next, "{size} {slide} {t} {fired}");
                }
                for start in (-20..20).map(|k| k * slide) {
                    let (after, until) = panes.lives_of_window(start + size);
                    assert_eq!(after < life && life <= until, start <= t && t < start + size);
                }
                let due = panes.last_due_end(t);
                assert!(due <= t + 1 && due + slide > t + 1 && (due - size).rem_euclid(slide) == 0);
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let panes = Panes::new(10_000, 2_000);
        assert!(panes.last_due_end(i64::MAX) > i64::MAX - 20_000);
        panes.last_due_end(i64::MIN);
        assert!(panes.is_late(5_000, i64::MAX) && !panes.is_late(5_000, i64::MIN));
        assert_eq!(panes.next_window_end(8_999 + 1_000, i64::MIN), Some(2_000));
        assert_eq!(panes.next_window_end(9_999, i64::MAX), None);
    }
}
