//! The committed versions of a job, as `versions` lists them, and its pins.

use std::collections::BTreeMap;

use millstream_common::Result;
use millstream_proto::version::pin;
use millstream_proto::version::version_record::Kind;
use millstream_state_store::version::VersionLog;
use millstream_state_store::version::pins::Pinned;
use serde_json::{Value, json};

use super::status::state_size;
use crate::settings::Settings;

/// The checkpoints of a job, oldest first: those that are not given up, and pinned ones. Those that the job's settings keep
/// and pinned ones are restorable.
pub async fn list(log: &VersionLog) -> Result<Vec<Value>> {
    // The boundary last: what goes meanwhile is left out.
    let mut rows = Vec::new();
    let mut unreadable = Vec::new();
    let mut retained = (0, 0);
    let mut newest_ms = 0;
    let pins = log.pins().list().await?;
    // Take-overs stand for ever: what is below the boundary is not even read, unless it is pinned.
    let bound = log.boundaries().find().await?.bound;
    let mut numbers = log.list().await?;
    numbers.retain(|n| n.0 >= bound || pins.iter().any(|p| p.pin.version == n.0));
    log.read_each(&numbers, |number, record| {
        let record = match record {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(e) => {
                unreadable.push((number.0, e));
                return Ok(());
            }
        };
        retained = (record.retained_checkpoints, record.retained_for_ms);
        newest_ms = record.committed_ms;
        if record.kind() == Kind::Checkpoint {
            let (state_bytes, state_objects) = state_size(&record);
            rows.push(json!({
                "version": record.number,
                "epoch": record.epoch,
                "committed_ms": record.committed_ms,
                "parallelism": record.job.as_ref().map(|j| j.parallelism),
                "state_bytes": state_bytes,
                "state_objects": state_objects,
                "bytes_written": record.bytes_written,
                "restorable": true,
            }));
        }
        Ok(())
    })
    .await?;
    let bound = log.boundaries().find().await?.bound;
    // Those below the boundary are about to go, perhaps half gone.
    if let Some((_, e)) = unreadable.into_iter().find(|(n, _)| *n >= bound) {
        return Err(e);
    }
    let mut pinned: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for p in pins.iter().filter(|p| p.confirmed && p.pin.kind() != pin::Kind::Start) {
        pinned.entry(p.pin.version).or_default().push(&p.pin.id);
    }
    let number = |row: &Value| row["version"].as_u64().unwrap_or_default();
    rows.retain(|row| number(row) >= bound || pinned.contains_key(&number(row)));
    if retained.0 == 0 {
        // Written before records told it.
        retained.0 = Settings::defaults().checkpoint.retained;
    }
    let old = rows.len().saturating_sub(retained.0 as usize);
    for row in &mut rows[..old] {
        let age_ms = newest_ms - row["committed_ms"].as_i64().unwrap_or_default();
        let young = retained.1 > 0 && age_ms <= retained.1 as i64;
        row["restorable"] = Value::Bool(young || pinned.contains_key(&number(row)));
    }
    for row in &mut rows {
        if let Some(ids) = pinned.get(&number(row)) {
            row["pins"] = json!(ids);
        }
    }
    Ok(rows)
}

/// The pins of a job, by id. Those of starts are left out: they are over at once.
pub async fn pins(log: &VersionLog) -> Result<Vec<Value>> {
    let pins = log.pins().list().await?;
    Ok(pins.iter().filter(|p| p.pin.kind() != pin::Kind::Start).map(pin_row).collect())
}

/// A pin, as `pins` and `pin` show it.
#[must_use]
pub fn pin_row(p: &Pinned) -> Value {
    let kind = match p.pin.kind() {
        pin::Kind::Reader => "reader",
        pin::Kind::Fork => "fork",
        pin::Kind::Savepoint => "savepoint",
        pin::Kind::Start => "start",
        pin::Kind::Unknown => "unknown",
    };
    json!({
        "id": p.pin.id, "version": p.pin.version, "kind": kind, "who": p.pin.who, "created_ms": p.pin.created_ms,
        "confirmed": p.confirmed,
    })
}
