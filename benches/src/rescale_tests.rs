use serde_json::json;

use super::*;

/// Looks every 10 ms that take 1 ms, with the rows of the job and of a subtask.
fn looks_at(rows: &[(f64, Option<f64>)]) -> Vec<Look> {
    let zero = now();
    let look = |(i, (events_in, subtask)): (usize, &(f64, Option<f64>))| {
        let start = zero + Duration::from_millis(10 * i as u64);
        let rows_in = subtask.iter().map(|v| ((OPERATOR.to_owned(), "0".to_owned()), *v)).collect();
        Look {
            start,
            end: start + Duration::from_millis(1),
            counters: Counters { events_in: *events_in, rows_in, ..Counters::default() },
        }
    };
    rows.iter().enumerate().map(look).collect()
}

#[test]
fn a_gap_is_what_surely_stood_still() {
    let rows = [1.0, 2.0, 2.0, 2.0, 3.0].map(|v| (v, None));
    // From the end of the first look at 2 to the start of the last.
    assert_eq!(longest_gap(&looks_at(&rows)), Duration::from_millis(19));
    assert_eq!(longest_gap(&[]), Duration::ZERO);
}

#[test]
fn subtasks_count_when_they_stay() {
    let stays = [(1.0, Some(1.0)), (2.0, Some(1.0)), (3.0, Some(1.0)), (4.0, Some(2.0))];
    assert_eq!(longest_gap(&looks_at(&stays)), Duration::from_millis(19));
    let goes = [(1.0, Some(1.0)), (2.0, Some(1.0)), (3.0, Some(1.0)), (4.0, None)];
    assert_eq!(longest_gap(&looks_at(&goes)), Duration::ZERO);
}

fn row(gigabytes: f64, to: u32, said_ms: f64) -> Row {
    let (gap_ms, usual_ms, warm_s, command_s) = (80.0, 50.0, 3.0, 0.3);
    let step = Step { said_ms, gap_ms, usual_ms, warm_s, command_s, objects_copied: 0.0, bytes_written: 1e6 };
    Row { state: StateKind::File, gigabytes, from: 6 - to, to, state_bytes: 1e8, steps: vec![step] }
}

#[test]
fn ratios_are_of_the_largest_and_the_smallest() {
    let rows = [row(0.1, 4, 20.0), row(0.5, 4, 90.0), row(1.0, 4, 25.0), row(0.1, 2, 0.0)];
    let lines = ratios(&rows);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("file, 2 -> 4: pause at 1 GB / at 0.1 GB = 1.25 (said), 1.00 (outside)"), "{lines:?}");
}

#[test]
fn a_restart_is_no_live_rescale() {
    let done = json!({"restarts": 0, "rescales": [{"from": 2, "to": 4, "pause_ms": 9}]});
    assert_eq!(rescaled(&done, &row(1.0, 4, 0.0)).unwrap()["pause_ms"], 9);
    assert!(rescaled(&done, &row(1.0, 2, 0.0)).is_err());
    let restarted = json!({"restarts": 1, "rescales": [{"from": 2, "to": 4, "pause_ms": 9}]});
    assert!(rescaled(&restarted, &row(1.0, 4, 0.0)).unwrap_err().to_string().contains("restarts 1"));
}
