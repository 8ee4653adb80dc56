//! Lateness beside what is counted row by row.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// How late each row is, and how many are at or behind the watermark, by the words of the definition.
fn exactly(times: &[i64], before: Option<i64>, delay_ms: i64) -> (Vec<u64>, u64) {
    let (mut late, mut behind) = (Vec::new(), 0);
    for (i, time) in times.iter().enumerate() {
        let greatest = times[..i].iter().copied().chain(before).max();
        late.push(greatest.map_or(0, |g| (g - time).max(0) as u64));
        behind += u64::from(greatest.is_some_and(|g| *time <= g - delay_ms));
    }
    (late, behind)
}

#[test]
fn buckets_follow_on_each_other_and_bounds_belong_to_theirs() {
    let bounds: Vec<u64> = (0..BUCKETS).map_while(bound_ms).collect();
    assert_eq!(bounds.len(), BUCKETS - 1);
    assert_eq!((bounds[..10].to_vec(), bounds.last()), (vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9], Some(&LATENESS_MS_MAX)));
    for (i, bound) in bounds.iter().enumerate() {
        assert_eq!((bucket(*bound), bucket(bound + 1)), (i, i + 1), "{bound}");
    }
    assert!(bounds.windows(2).skip(8).all(|b| (b[1] - b[0]) * 8 <= b[0]), "an eighth at most");
    assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    assert!(BOUNDS_MS.iter().all(|b| bounds.contains(b)) && BOUNDS_MS[..4] == [0, 1, 4, 16]);
}

#[test]
fn quantiles_are_those_of_the_rows_but_for_an_eighth() {
    let mut rng = SmallRng::seed_from_u64(7);
    for round in 0..100 {
        let rows = rng.random_range(1..1_000);
        let spread = 1_i64 << rng.random_range(0..25);
        let step = rng.random_range(0..50);
        let times: Vec<i64> = (0..rows).map(|i| i * step + rng.random_range(0..spread)).collect();
        let before = rng.random_bool(0.5).then(|| rng.random_range(0..spread));
        let delay_ms = rng.random_range(0..spread);
        let (mut late, behind) = exactly(&times, before, delay_ms);
        let mut progress = SplitProgress::new(before);
        // Whatever the batches are.
        for piece in times.chunks(rng.random_range(1..500)) {
            let greatest = progress.note(piece.len() as u64, &piece.to_vec().into(), delay_ms);
            assert!(greatest >= piece.iter().copied().max());
        }
        let lateness = progress.lateness();
        assert_eq!((progress.rows(), progress.behind()), (late.len() as u64, behind), "round {round}");
        assert_eq!((lateness.count(), lateness.sum_ms()), (late.len() as u64, late.iter().sum()));
        late.sort_unstable();
        for of_1000 in [1, 500, 990, 999, 1_000] {
            let nth = (late.len() * of_1000 as usize).div_ceil(1_000);
            let exact = late[nth - 1] + 1;
            let told = lateness.delay_ms(of_1000).unwrap();
            assert!(
                (exact..=exact + exact / 8).contains(&told),
                "{told} for {exact}, {of_1000} of 1000, round {round}"
            );
            assert!(late.iter().filter(|l| **l < told).count() >= nth);
        }
        for (i, count) in lateness.coarse().into_iter().enumerate() {
            let (above, up_to) = (i.checked_sub(1).map(|i| BOUNDS_MS[i]), BOUNDS_MS.get(i));
            let mine = late.iter().filter(|l| above.is_none_or(|a| **l > a) && up_to.is_none_or(|b| *l <= b));
            assert_eq!(count, mine.count() as u64);
        }
    }
}

#[test]
fn sums_are_those_of_both_and_nothing_is_known_of_no_row() {
    let (mut a, mut b) = (Lateness::default(), Lateness::default());
    assert_eq!((a.delay_ms(990), a.count()), (None, 0));
    (0..99).for_each(|_| a.note(0));
    assert_eq!((a.delay_ms(990), a.delay_ms(1_000)), (Some(1), Some(1)));
    b.note(u64::MAX);
    a += &b;
    assert_eq!((a.count(), a.sum_ms(), a.delay_ms(990), a.delay_ms(999)), (100, u64::MAX, Some(1), None));
    assert_eq!(a.coarse()[BOUNDS_MS.len()], 1);
}

#[test]
fn rows_without_an_event_time_are_not_late() {
    let mut progress = SplitProgress::new(None);
    assert_eq!(progress.note(2, &TimestampMillisecondArray::new_null(2), 5), None);
    let times = TimestampMillisecondArray::from(vec![None, Some(100), None, Some(90), Some(95), Some(96)]);
    assert_eq!(progress.note(6, &times, 5), Some(100));
    assert_eq!((progress.rows(), progress.behind(), progress.lateness().count()), (8, 2, 4));
    // The extremes of time are no reason to panic.
    let mut progress = SplitProgress::new(Some(i64::MAX));
    assert_eq!(progress.note(1, &vec![i64::MIN].into(), 5), Some(i64::MAX));
    assert_eq!((progress.behind(), progress.lateness().delay_ms(990)), (1, None));
}
