//! Which GETs bring the blocks that are wanted. Pure.

use std::ops::Range;

/// Limits of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlanLimits {
    /// Neighbouring blocks with at most this many unwanted bytes between them come in one GET.
    pub(crate) gap_bytes: u64,
    /// What the gap grows to, at most, while a plan has more GETs than [`PlanLimits::gets`].
    pub(crate) widest_gap_bytes: u64,
    /// As many GETs go at once: a plan of more makes them larger rather than let them queue.
    pub(crate) gets: usize,
    /// Bytes that may come along because somebody has a place for them. Without it, larger GETs bring at most
    /// [`WORTH`] times what is wanted.
    pub(crate) room_bytes: u64,
    /// A GET is at most this large, but for a single block that is larger.
    pub(crate) request_bytes: u64,
}

/// A GET that is saved costs about as much as the bytes of three blocks beside each that is wanted.
const WORTH: u64 = 4;

/// A block that is wanted: its object (by any index) and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) object: usize,
    pub(crate) range: Range<u64>,
}

/// One GET and which of the wanted blocks it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedGet {
    pub(crate) object: usize,
    pub(crate) range: Range<u64>,
    /// Indices into what was wanted.
    pub(crate) members: Vec<usize>,
}

pub(crate) fn plan(wanted: &[Wanted], limits: PlanLimits) -> Vec<PlannedGet> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_unstable_by_key(|&i| (wanted[i].object, wanted[i].range.start));
    let wanted_bytes: u64 = wanted.iter().map(|w| w.range.end - w.range.start).sum();
    let most_bytes = (wanted_bytes * WORTH).max(wanted_bytes + limits.room_bytes);
    let mut gap_bytes = limits.gap_bytes;
    let mut gets = plan_with(wanted, &order, gap_bytes, limits.request_bytes);
    while gets.len() > limits.gets && gap_bytes < limits.widest_gap_bytes {
        gap_bytes = (gap_bytes.max(1) * 2).min(limits.widest_gap_bytes);
        let wider = plan_with(wanted, &order, gap_bytes, limits.request_bytes);
        if wider.iter().map(|g| g.range.end - g.range.start).sum::<u64>() > most_bytes {
            break;
        }
        gets = wider;
    }
    gets
}

fn plan_with(wanted: &[Wanted], order: &[usize], gap_bytes: u64, request_bytes: u64) -> Vec<PlannedGet> {
    let mut gets: Vec<PlannedGet> = Vec::new();
    for &i in order {
        let w = &wanted[i];
        match gets.last_mut() {
            Some(get)
                if get.object == w.object
                    && w.range.start <= get.range.end.saturating_add(gap_bytes)
                    && w.range.end.max(get.range.end) - get.range.start <= request_bytes =>
            {
                get.range.end = get.range.end.max(w.range.end);
                get.members.push(i);
            }
            _ => gets.push(PlannedGet { object: w.object, range: w.range.clone(), members: vec![i] }),
        }
    }
    gets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(object: usize, start: u64, end: u64) -> Wanted {
        Wanted { object, range: start..end }
    }

    #[test]
    fn near_blocks_share_a_get_and_far_ones_do_not() {
        let limits = PlanLimits { gap_bytes: 10, widest_gap_bytes: 10, gets: 1, room_bytes: 0, request_bytes: 100 };
        let all = [wanted(1, 0, 20), wanted(0, 100, 120), wanted(0, 0, 20), wanted(0, 30, 50), wanted(0, 61, 70)];
        let gets = plan(&all, limits);
        let expected = [(0, 0..50, vec![2, 3]), (0, 61..70, vec![4]), (0, 100..120, vec![1]), (1, 0..20, vec![0])];
        let got: Vec<_> = gets.into_iter().map(|g| (g.object, g.range, g.members)).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn no_get_is_larger_than_allowed_but_for_one_block() {
        let limits = PlanLimits { gap_bytes: 10, widest_gap_bytes: 10, gets: 1, room_bytes: 0, request_bytes: 100 };
        let all: Vec<_> = (0..10).map(|i| wanted(0, i * 40, i * 40 + 40)).chain([wanted(0, 400, 1000)]).collect();
        let gets = plan(&all, limits);
        assert!(gets[..5].iter().all(|g| g.range.end - g.range.start <= 100));
        assert_eq!(gets.last().unwrap().range, 400..1000);
        assert_eq!(gets.iter().map(|g| g.members.len()).sum::<usize>(), all.len());
    }
    #[test]
    fn more_gets_than_go_at_once_become_larger_ones() {
        let all: Vec<_> = (0..8).map(|i| wanted(0, i * i * 10, i * i * 10 + 1)).collect();
        let count = |gets, widest_gap_bytes, room_bytes| {
            let limits = PlanLimits { gap_bytes: 10, widest_gap_bytes, gets, room_bytes, request_bytes: 1 << 20 };
            plan(&all, limits).len()
        };
        assert_eq!((count(7, 1000, 1000), count(6, 1000, 1000), count(1, 1000, 1000)), (7, 6, 1));
        assert_eq!(count(1, 50, 1000), 5, "no gap is wider than the widest");
        // 8 bytes are wanted: 32 are worth it, and with 50 to be kept, 58 are.
        assert_eq!((count(1, 1000, 0), count(1, 1000, 50)), (7, 6), "nobody has a place for more");
    }
}
