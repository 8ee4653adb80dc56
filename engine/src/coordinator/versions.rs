//! The committed versions of a job, as `versions` lists them.

use futures::future::try_join_all;
use millstream_common::Result;
use millstream_proto::version::version_record::Kind;
use millstream_state_store::version::VersionLog;
use serde_json::{Value, json};

use super::status::state_size;
use crate::settings::Settings;

/// Records that are read at a time.
const READ_AHEAD: usize = 32;

/// The checkpoints of a job, oldest first. The newest of them, as many as the job retains, are restorable.
pub async fn list(log: &VersionLog) -> Result<Vec<Value>> {
    let numbers = log.list().await?;
    let mut rows = Vec::new();
    let mut retained = 0;
    for chunk in numbers.chunks(READ_AHEAD) {
        for record in try_join_all(chunk.iter().map(|n| log.read(*n))).await?.into_iter().flatten() {
            retained = record.retained_checkpoints;
            if record.kind() != Kind::Checkpoint {
                continue;
            }
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
    }
    if retained == 0 {
        // Written before records told it.
        retained = Settings::defaults().checkpoint.retained;
    }
    let old = rows.len().saturating_sub(retained as usize);
    for row in &mut rows[..old] {
        row["restorable"] = Value::Bool(false);
    }
    Ok(rows)
}
