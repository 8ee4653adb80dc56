use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch};

use super::*;
use crate::nexmark::{auctions, bids, event_times, persons};

const SETTINGS: EventSettings = EventSettings { event_rate: 200, base_time_ms: 1_767_225_600_000 };

fn ints(batch: &RecordBatch, name: &str) -> Vec<i64> {
    let column = batch.column_by_name(name).unwrap();
    match column.as_primitive_opt::<Int64Type>() {
        Some(c) => c.values().to_vec(),
        None => column.as_primitive::<TimestampMillisecondType>().values().to_vec(),
    }
}

fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Vec<&'a str> {
    batch.column_by_name(name).unwrap().as_string::<i32>().iter().map(Option::unwrap).collect()
}

fn share<T>(values: &[T], wanted: impl Fn(&T) -> bool) -> f64 {
    values.iter().filter(|v| wanted(v)).count() as f64 / values.len() as f64
}

fn lengths(texts: &[&str]) -> (usize, usize, f64) {
    let n: Vec<usize> = texts.iter().map(|t| t.len()).collect();
    (*n.iter().min().unwrap(), *n.iter().max().unwrap(), n.iter().sum::<usize>() as f64 / n.len() as f64)
}

#[test]
fn an_event_depends_on_its_number_alone() {
    let all = SETTINGS.generate(0, 1, 2_000).unwrap();
    let every_seventh = SETTINGS.generate(3, 7, 200).unwrap();
    for row in 0..200 {
        assert_eq!(every_seventh.slice(row, 1), all.slice(3 + row * 7, 1), "row {row}");
        assert_eq!(every_seventh.slice(row, 1), SETTINGS.generate(3 + row as u64 * 7, 1, 1).unwrap());
    }
}

#[test]
fn time_stamps_and_proportions_are_exact() {
    for rate in [1, 3, 200, 10_000, 10_000_000, 7_000_003] {
        let settings = EventSettings { event_rate: rate, ..SETTINGS };
        let batch = settings.generate(5, 16, 3_000).unwrap();
        let all = event_times(&batch).unwrap();
        assert_eq!((all.len(), all.value(2_999)), (3_000, settings.time_ms(5 + 16 * 2_999)));
        let times = ints(&bids(&batch).unwrap(), "dateTime");
        let numbers = (0..3_000).map(|i| 5 + 16 * i).filter(|n| n % 50 > 3);
        let expected: Vec<i64> = numbers.map(|n| 1_767_225_600_000 + (n * 1_000 / rate) as i64).collect();
        assert_eq!(times, expected, "rate {rate}");
    }
    let batch = SETTINGS.generate(0, 1, 5_000).unwrap();
    let counts = [persons(&batch).unwrap(), auctions(&batch).unwrap(), bids(&batch).unwrap()].map(|b| b.num_rows());
    assert_eq!(counts, [100, 300, 4_600]);
    assert_eq!(ints(&persons(&batch).unwrap(), "id"), (1_000..1_100).collect::<Vec<_>>());
    assert_eq!(ints(&auctions(&batch).unwrap(), "id"), (1_000..1_300).collect::<Vec<_>>());
}

#[test]
fn bids_are_distributed_as_in_the_benchmark() {
    let batch = bids(&SETTINGS.generate(500_000, 1, 50_000).unwrap()).unwrap();
    let (auction, bidder) = (ints(&batch, "auction"), ints(&batch, "bidder"));
    let hot = |id: &i64| id % 100 == 0 && *id >= 1_000 + 29_900;
    assert!((0.49..0.52).contains(&share(&auction, hot)), "{}", share(&auction, hot));
    assert!(auction.iter().all(|a| (1_000 + 29_800..=1_000 + 33_012).contains(a)));
    let hot = |id: &i64| id % 100 == 1 && *id >= 2_000 + 9_900;
    assert!((0.74..0.77).contains(&share(&bidder, hot)), "{}", share(&bidder, hot));
    assert!(bidder.iter().all(|b| (2_000 + 9_000..=2_000 + 11_010).contains(b)));
    let price = ints(&batch, "price");
    assert!(price.iter().all(|p| (100..=100_000_000).contains(p)));
    for decade in 2..8 {
        let part = share(&price, |p| (10_i64.pow(decade)..10_i64.pow(decade + 1)).contains(p));
        assert!((0.16..0.173).contains(&part), "10^{decade}: {part}");
    }
    let channel = texts(&batch, "channel");
    for (name, _) in HOT_CHANNELS {
        assert!((0.12..0.13).contains(&share(&channel, |c| *c == name)));
    }
    let (least, most, mean) = lengths(&texts(&batch, "extra"));
    assert!(least == 54 && most == 81 && (67.0..68.0).contains(&mean), "{least} {most} {mean}");
    let (least, most, mean) = lengths(&texts(&batch, "url"));
    assert!(
        (52..=54).contains(&least) && (77..=80).contains(&most) && (62.0..65.0).contains(&mean),
        "{least} {most} {mean}"
    );
}

#[test]
fn auctions_and_persons_are_distributed_as_in_the_benchmark() {
    let batch = SETTINGS.generate(1_000_000, 1, 100_000).unwrap();
    let auctions = auctions(&batch).unwrap();
    let (start, end) = (ints(&auctions, "dateTime"), ints(&auctions, "expires"));
    let open: Vec<i64> = start.iter().zip(&end).map(|(s, e)| e - s).collect();
    assert!(open.iter().all(|d| (1..=16_660).contains(d)));
    let mean = open.iter().sum::<i64>() / open.len() as i64;
    assert!((8_100..8_550).contains(&mean), "{mean}");
    let (initial, reserve) = (ints(&auctions, "initialBid"), ints(&auctions, "reserve"));
    assert!(initial.iter().zip(&reserve).all(|(i, r)| r > i));
    let seller = ints(&auctions, "seller");
    assert!((0.73..0.77).contains(&share(&seller, |s| s % 100 == 0 && *s >= 1_000 + 20_000)));
    assert!(ints(&auctions, "category").iter().all(|c| (10..15).contains(c)));
    for (name, expected) in [("itemName", 11.0), ("description", 51.0), ("extra", 390.0)] {
        let (_, _, mean) = lengths(&texts(&auctions, name));
        assert!((mean - expected).abs() < expected * 0.03, "{name}: {mean}");
    }

    let persons = persons(&batch).unwrap();
    assert!(texts(&persons, "creditCard").iter().all(|c| {
        c.len() == 19 && c.bytes().enumerate().all(|(i, b)| if i % 5 == 4 { b == b' ' } else { b.is_ascii_digit() })
    }));
    assert!(texts(&persons, "emailAddress").iter().all(|e| e.ends_with(".com") && e.matches('@').count() == 1));
    for state in STATES {
        assert!((0.14..0.20).contains(&share(&texts(&persons, "state"), |s| *s == state)));
    }
    let (least, most, mean) = lengths(&texts(&persons, "extra"));
    assert!(least >= 105 && most <= 180 && (137.0..142.0).contains(&mean), "{least} {most} {mean}");
}

#[test]
fn slices_and_shuffles_of_a_batch_show_their_own_rows() {
    let batch = SETTINGS.generate(0, 1, 200).unwrap();
    let part = batch.slice(49, 7);
    assert_eq!(ints(&persons(&part).unwrap(), "id"), [1_001]);
    assert_eq!(ints(&auctions(&part).unwrap(), "id"), [1_003, 1_004, 1_005]);
    assert_eq!(bids(&part).unwrap().num_rows(), 3);
    let expected: Vec<i64> = (49..56).map(|n| SETTINGS.time_ms(n)).collect();
    assert_eq!(event_times(&part).unwrap().values()[..], expected);
    assert!(event_times(&batch.slice(3, 0)).unwrap().is_empty());
    let whole = bids(&batch).unwrap();
    assert!(std::ptr::eq(
        whole.column(6).to_data().buffers()[1].as_ptr(),
        bids(&batch).unwrap().column(6).to_data().buffers()[1].as_ptr()
    ));
    assert_eq!(bids(&batch.slice(100, 50)).unwrap(), whole.slice(92, 46));
    let backwards = arrow_array::UInt32Array::from_iter_values((0..200).rev());
    let shuffled = arrow_select::take::take_record_batch(&batch, &backwards).unwrap();
    let mut expected = ints(&whole, "dateTime");
    expected.reverse();
    assert_eq!(ints(&bids(&shuffled).unwrap(), "dateTime"), expected);
    assert_eq!(ints(&persons(&shuffled).unwrap(), "id"), [1_003, 1_002, 1_001, 1_000]);
}
