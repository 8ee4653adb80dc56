//! Leader election of a cluster on the object store, and the cluster's list of jobs.
//!
//! `_cluster/leader/{generation}` is created if absent, never overwritten, never deleted: whoever creates the greatest
//! leads. Time only says when to try.
//!
//! A job is `_cluster/jobs/{id}/definition`. A leader that runs it says so before in `resumed/{generation}`, one under
//! which it ended in `end/{generation}`. A job has ended when no leader has resumed it since: an `end` that a deposed
//! leader writes late is below the generation of whoever resumed the job, and says nothing. Of several jobs of one name
//! only the last resumed counts: a definition that a deposed leader writes late is none.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::{Env, Error, Generation, Result};
use millstream_objects::{Created, Purpose, Store};
use millstream_proto::control::{ClientRequest, Info, JobSpec, client_reply, client_request};
use prost::Message;
use serde_json::Value;

use crate::transport::Transport;

/// A leader that does not answer for so long may be succeeded.
const LEADER_SILENCE: Duration = Duration::from_secs(2);

/// A job of the cluster.
pub(crate) struct Listing {
    pub(crate) spec: JobSpec,
    /// Its last status, when it has ended.
    pub(crate) ended: Option<Value>,
    /// The generation of the last leader that ran it.
    pub(crate) resumed: u64,
}

/// The cluster's folder in its state place.
#[derive(Clone)]
pub(crate) struct Cluster {
    store: Store,
    env: Env,
}

impl Cluster {
    pub(crate) fn new(root: &Store, env: Env) -> Self {
        Self { store: root.child("_cluster"), env }
    }

    /// Becomes the leader, unless another one answers.
    pub(crate) async fn lead(&self, address: &str, transport: &Arc<dyn Transport>) -> Result<Generation> {
        loop {
            let newest = self.newest().await?;
            if let Some((generation, leader)) = &newest
                && leader != address
                && self.answers(leader, transport).await
            {
                return Err(Error::config(format!("another coordinator leads this cluster (generation {generation})"))
                    .code(5003)
                    .at(leader.clone())
                    .next("use that one, or end it first"));
            }
            let next = newest.map_or(Generation(1), |(g, _)| g.next());
            if self.create(next, address).await? {
                return Ok(next);
            }
        }
    }

    async fn answers(&self, leader: &str, transport: &Arc<dyn Transport>) -> bool {
        let start = self.env.now();
        while self.env.now().since(start) < LEADER_SILENCE {
            let request = ClientRequest { request: Some(client_request::Request::Info(Info {})) };
            let left = LEADER_SILENCE.saturating_sub(self.env.now().since(start)).max(Duration::from_millis(100));
            match self.env.timeout(left, "the leader's answer", transport.call(leader, request)).await {
                Ok(Ok(reply)) if matches!(reply.reply, Some(client_reply::Reply::Info(_))) => return true,
                _ => self.env.sleep(Duration::from_millis(200)).await,
            }
        }
        false
    }

    /// The greatest generation and its leader's address.
    pub(crate) async fn newest(&self) -> Result<Option<(Generation, String)>> {
        let Some((generation, path)) = self.newest_listed().await? else { return Ok(None) };
        let body = self.store.get(&path, Purpose::Leader).await?.unwrap_or_default();
        let doc: Value = serde_json::from_slice(&body)
            .map_err(|e| Error::corrupt("the leader record cannot be read").code(4020).at(path).source(e))?;
        Ok(Some((generation, doc["address"].as_str().unwrap_or_default().to_owned())))
    }

    /// The greatest generation and where its record stands.
    async fn newest_listed(&self) -> Result<Option<(Generation, String)>> {
        let listed = self.store.list("leader", Purpose::Leader).await?;
        let Some(last) = listed.last() else { return Ok(None) };
        let generation = number_at_end(&last.path)
            .ok_or_else(|| Error::corrupt("this is no leader record").at(last.path.clone()))?;
        Ok(Some((Generation(generation), last.path.clone())))
    }

    /// Whether a leader above `generation` exists. One LIST: an idle cluster asks it again and again.
    pub(crate) async fn is_succeeded(&self, generation: Generation) -> Result<bool> {
        Ok(self.newest_listed().await?.is_some_and(|(g, _)| g > generation))
    }

    /// Refuses to go on when a leader above `generation` exists.
    pub(crate) async fn still_leads(&self, generation: Generation) -> Result<()> {
        if self.is_succeeded(generation).await? {
            let what = format!("a newer coordinator leads this cluster: generation {generation} is fenced");
            return Err(Error::fenced(what).code(5004));
        }
        Ok(())
    }

    async fn create(&self, generation: Generation, address: &str) -> Result<bool> {
        let path = format!("leader/{:020}", generation.0);
        let doc = serde_json::json!({"address": address, "nonce": self.env.unique_id()}).to_string();
        self.create_once(&path, Bytes::from(doc), Purpose::Leader).await
    }

    /// Creates an object whose content is unique; true when it is ours that stands, whatever happened to the replies.
    async fn create_once(&self, path: &str, body: Bytes, purpose: Purpose) -> Result<bool> {
        let mut wait = Duration::from_millis(50);
        let start = self.env.now();
        loop {
            match self.store.create(path, body.clone(), purpose).await {
                Ok(Created::Now) => return Ok(true),
                Ok(Created::AlreadyExists) => {
                    if let Some(there) = self.store.get(path, purpose).await? {
                        return Ok(there == body);
                    }
                }
                Err(e) if e.is_final() => return Err(e),
                Err(e) if self.env.now().since(start) > Duration::from_secs(180) => return Err(e),
                Err(_) => {}
            }
            self.env.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    /// Records a new job.
    pub(crate) async fn define(&self, spec: &JobSpec) -> Result<()> {
        let path = format!("jobs/{}/definition", spec.id);
        self.create_once(&path, Bytes::from(spec.encode_to_vec()), Purpose::Job).await.map(drop)
    }

    /// Records how a job ended under the leader of `generation`. Whoever leads later sees it: that nobody did when it
    /// stood is checked afterwards.
    pub(crate) async fn end(&self, id: &str, generation: Generation, status: &Value) -> Result<()> {
        self.still_leads(generation).await?;
        let path = format!("jobs/{id}/end/{:020}", generation.0);
        self.create_once(&path, Bytes::from(status.to_string()), Purpose::Job).await?;
        self.still_leads(generation).await
    }

    /// Records that the leader of `generation` goes on with a job.
    pub(crate) async fn resume(&self, id: &str, generation: Generation) -> Result<()> {
        let path = format!("jobs/{id}/resumed/{:020}", generation.0);
        self.create_once(&path, Bytes::from(self.env.unique_id()), Purpose::Job).await.map(drop)
    }

    /// All jobs, the last resumed first.
    pub(crate) async fn jobs(&self) -> Result<Vec<Listing>> {
        let listed = self.store.list("jobs", Purpose::Job).await?;
        let mut jobs = Vec::new();
        for found in listed.iter().filter(|l| l.path.ends_with("/definition")) {
            let Some(body) = self.store.get(&found.path, Purpose::Job).await? else { continue };
            let spec = JobSpec::decode(body).map_err(|e| {
                Error::corrupt("the definition of a job cannot be read").code(4021).at(found.path.clone()).source(e)
            })?;
            let folder = found.path.trim_end_matches("definition");
            let newest = |what: &str| {
                let prefix = format!("{folder}{what}/");
                listed.iter().filter(|l| l.path.starts_with(&prefix)).max_by_key(|l| number_at_end(&l.path))
            };
            let resumed = newest("resumed").and_then(|l| number_at_end(&l.path));
            let ended = match newest("end").filter(|l| number_at_end(&l.path) >= resumed) {
                Some(end) => {
                    let body = self.store.get(&end.path, Purpose::Job).await?.unwrap_or_default();
                    // Whatever it says: it has ended.
                    Some(serde_json::from_slice(&body).unwrap_or_else(|_| serde_json::json!({"id": spec.id})))
                }
                None => None,
            };
            jobs.push(Listing { spec, ended, resumed: resumed.unwrap_or_default() });
        }
        jobs.sort_by_key(|j| std::cmp::Reverse(j.resumed));
        Ok(jobs)
    }
}

fn number_at_end(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.parse().ok()
}
