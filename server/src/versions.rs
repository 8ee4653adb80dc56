//! What `list` says, read from a place of state without a cluster.

use std::collections::BTreeMap;

use millstream_common::{Env, Error, Result};
use millstream_objects::{Purpose, Store};
use millstream_proto::control::JobSpec;
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Status;
use millstream_state_store::version::VersionLog;
use prost::Message;
use serde_json::{Value, json};

/// The folder of the cluster beside those of jobs.
const CLUSTER: &str = "_cluster";

/// The jobs that have versions below `store`, by name.
pub async fn list(store: &Store, env: &Env) -> Result<Value> {
    let objects = store.list("", Purpose::Check).await?;
    let mut names: BTreeMap<String, Option<String>> = BTreeMap::new();
    for object in &objects {
        if let Some((name, _)) = object.path.split_once("/version/")
            && !name.contains('/')
        {
            names.entry(name.to_owned()).or_insert(None);
        }
        if object.path.starts_with(&format!("{CLUSTER}/jobs/")) && object.path.ends_with("/definition") {
            let body = store.get(&object.path, Purpose::Check).await?.unwrap_or_default();
            let spec = JobSpec::decode(body).map_err(|e| {
                Error::corrupt("the definition of a job cannot be read")
                    .code(4201)
                    .at(store.url_of(&object.path))
                    .source(e)
            })?;
            names.insert(spec.name, Some(spec.id));
        }
    }
    let mut jobs = Vec::new();
    for (name, id) in names {
        let newest = VersionLog::new(store.child(&name), env.clone()).newest().await?;
        jobs.push(entry(&name, id.as_deref(), newest.as_ref()));
    }
    Ok(Value::Array(jobs))
}

/// A job that was neither stopped nor finished may run somewhere or not: without its coordinator nobody knows.
fn entry(name: &str, id: Option<&str>, newest: Option<&VersionRecord>) -> Value {
    let state = newest.and_then(|r| match r.status() {
        Status::Finished => Some("finished"),
        Status::Stopped => Some("stopped"),
        Status::Running | Status::Unknown => None,
    });
    let parallelism = newest.and_then(|r| r.job.as_ref()).map(|j| j.parallelism);
    json!({"id": id, "name": name, "state": state, "parallelism": parallelism})
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use millstream_common::hash::HASH_ID;
    use millstream_objects::StoreOptions;
    use millstream_state_store::key::KEY_CODEC_ID;

    use super::*;

    #[test]
    fn what_nobody_can_know_is_null() {
        let mut r = VersionRecord::default();
        r.set_status(Status::Running);
        assert_eq!(entry("n", None, Some(&r)), json!({"id": null, "name": "n", "state": null, "parallelism": null}));
        r.set_status(Status::Finished);
        assert_eq!(entry("n", Some("j1"), Some(&r))["state"], "finished");
    }

    #[tokio::test]
    async fn names_come_from_chains_and_definitions() {
        let env = Env::test(1);
        let store = Store::open("memory://", &StoreOptions::default(), &BTreeMap::new(), &env).unwrap();
        assert_eq!(list(&store, &env).await.unwrap(), json!([]));
        let spec = JobSpec { id: "j1".into(), name: "b".into(), ..JobSpec::default() };
        let body = Bytes::from(spec.encode_to_vec());
        store.create("_cluster/jobs/j1/definition", body, Purpose::Job).await.unwrap();
        let mut record = VersionRecord {
            number: 1,
            generation: 1,
            nonce: "0".repeat(32),
            hash_id: HASH_ID,
            key_codec_id: KEY_CODEC_ID,
            ..VersionRecord::default()
        };
        record.set_status(Status::Stopped);
        VersionLog::new(store.child("a"), env.clone()).commit(&record).await.unwrap();
        let jobs = list(&store, &env).await.unwrap();
        assert_eq!(jobs[0], json!({"id": null, "name": "a", "state": "stopped", "parallelism": null}));
        assert_eq!((&jobs[1]["id"], &jobs[1]["name"]), (&json!("j1"), &json!("b")));
    }
}
