//! Asking a coordinator: over the network, or inside this process.

use std::sync::Arc;
use std::time::Duration;

use millstream_common::{Env, Error, ErrorKind, Result};
use millstream_engine::transport::Transport;
use millstream_proto::control::client_reply::Reply;
use millstream_proto::control::client_request::Request;
use millstream_proto::control::{ClientReply, ClientRequest, Failure, Fork, Info, LeaderInfo, List, Status, Submit};
use serde_json::Value;

/// The address of a coordinator in this process: no place that would tell a user anything.
pub const IN_PROCESS: &str = "in-process";

/// Requests that only look are answered at once, or not at all.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the coordinators of one cluster.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    addresses: Vec<String>,
    env: Env,
}

impl Client {
    /// A client of the coordinators at `addresses`: they are asked in this order until one answers.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, addresses: Vec<String>, env: Env) -> Self {
        Self { transport, addresses, env }
    }

    /// Asks, with no limit of time: for what returns when it is done.
    pub async fn ask(&self, request: Request) -> Result<Reply> {
        let mut last = Error::config("no coordinator is named").code(1421).next("give --coordinator ADDR");
        for address in &self.addresses {
            let request = ClientRequest { request: Some(request.clone()) };
            match self.transport.call(address, request).await.and_then(|r| reply_of(r, address)) {
                // Another one may lead.
                Err(e) if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Fenced) => {
                    last = with_place(e, address)
                }
                answer => return answer.map_err(|e| at_address(e, address)),
            }
        }
        Err(last)
    }

    /// Asks something that is answered at once.
    pub async fn look(&self, request: Request) -> Result<Reply> {
        let what = format!("the coordinator's answer ({})", self.addresses.join(", "));
        self.env.timeout(PATIENCE, &what, self.ask(request)).await?
    }

    /// The document that answers `request`.
    pub async fn document(&self, request: Request) -> Result<Value> {
        json_of(self.look(request).await?)
    }

    /// The document that answers `request` when it is done.
    pub async fn document_when_done(&self, request: Request) -> Result<Value> {
        json_of(self.ask(request).await?)
    }

    /// Starts a job; gives its id. One that has finished already gets an id, too: its status says so.
    pub async fn submit(&self, submit: Submit) -> Result<String> {
        match self.ask(Request::Submit(submit)).await? {
            Reply::JobId(id) => Ok(id),
            other => Err(strange(&other)),
        }
    }

    /// Starts a fork; gives its id.
    pub async fn fork(&self, fork: Fork) -> Result<String> {
        match self.ask(Request::Fork(fork)).await? {
            Reply::JobId(id) => Ok(id),
            other => Err(strange(&other)),
        }
    }

    /// Who leads, and where its state is.
    pub async fn info(&self) -> Result<LeaderInfo> {
        match self.look(Request::Info(Info {})).await? {
            Reply::Info(info) => Ok(info),
            other => Err(strange(&other)),
        }
    }

    /// The `status` document of a job.
    pub async fn status(&self, job: &str) -> Result<Value> {
        self.document(Request::Status(Status { job: job.to_owned() })).await
    }

    /// The `status` documents of all jobs.
    pub async fn all_statuses(&self) -> Result<Vec<Value>> {
        let list = self.document(Request::List(List {})).await?;
        let mut documents = Vec::new();
        for job in crate::people::items(&list) {
            if let Some(id) = job["id"].as_str() {
                documents.push(self.status(id).await?);
            }
        }
        Ok(documents)
    }
}

fn reply_of(reply: ClientReply, address: &str) -> Result<Reply> {
    match reply.reply {
        Some(Reply::Failure(failure)) => Err(error_of(&failure)),
        Some(reply) => Ok(reply),
        None => Err(Error::internal("the coordinator's answer is empty")
            .code(9300)
            .at(address)
            .next("is it of this release?")),
    }
}

/// Why the job of a `status` document failed.
#[must_use]
pub fn error_of_job(document: &Value) -> Option<Error> {
    let error = document["error"].as_object()?;
    let number = error.get("code").and_then(Value::as_str).and_then(|c| c.strip_prefix("MS")?.parse().ok());
    let kind = error.get("kind").and_then(Value::as_u64).and_then(|k| u32::try_from(k).ok());
    let what = error.get("what").and_then(Value::as_str).unwrap_or("the job failed");
    Some(Error::new(ErrorKind::from_number(kind.unwrap_or(0)), number.unwrap_or(7000), what))
}

/// The error that a failure tells of.
#[must_use]
pub fn error_of(failure: &Failure) -> Error {
    let code = u16::try_from(failure.code).unwrap_or(9000);
    Error::new(ErrorKind::from_number(failure.kind), code, &failure.what).at(&failure.place).next(&failure.next)
}

/// Errors that say nothing of where they came up did so at the coordinator.
fn at_address(error: Error, address: &str) -> Error {
    if error.place().is_empty() && address != IN_PROCESS { error.at(address) } else { error }
}

fn with_place(error: Error, address: &str) -> Error {
    if address == IN_PROCESS {
        return error;
    }
    let error = at_address(error, address);
    if error.advice().is_empty() { error.next("is a coordinator running there? see --coordinator") } else { error }
}

fn json_of(reply: Reply) -> Result<Value> {
    match reply {
        Reply::Json(text) => serde_json::from_str(&text)
            .map_err(|e| Error::internal("the coordinator's answer is no JSON document").code(9301).source(e)),
        other => Err(strange(&other)),
    }
}

fn strange(reply: &Reply) -> Error {
    let kind = match reply {
        Reply::Failure(_) => "a failure",
        Reply::JobId(_) => "an id",
        Reply::Json(_) => "a document",
        Reply::Info(_) => "its state",
    };
    Error::internal(format!("the coordinator answered with {kind}, which is no answer to this")).code(9302)
}

#[cfg(test)]
mod tests {
    use millstream_engine::transport::in_process::InProcess;
    use millstream_engine::transport::{Arrival, ClientCall};

    use super::*;

    /// A coordinator at `address` that gives `answers` one after the other.
    fn coordinator(net: &InProcess, address: &str, answers: Vec<Reply>, env: &Env) {
        let mut arrivals = net.listen_coordinator(address);
        drop(env.spawn(millstream_common::Lane::Io, "coordinator", async move {
            for answer in answers {
                let Some(Arrival::Client(ClientCall { reply, .. })) = arrivals.recv().await else { return };
                let _ = reply.send(ClientReply { reply: Some(answer) });
            }
        }));
    }

    fn client(net: &InProcess, addresses: &[&str], env: &Env) -> Client {
        Client::new(Arc::new(net.clone()), addresses.iter().map(|a| (*a).to_owned()).collect(), env.clone())
    }

    fn failure(kind: u32, code: u32, what: &str) -> Reply {
        Reply::Failure(Failure { kind, code, what: what.into(), place: String::new(), next: String::new() })
    }

    #[tokio::test]
    async fn the_next_coordinator_is_asked_when_one_does_not_lead() {
        let (net, env) = (InProcess::default(), Env::test(1));
        coordinator(&net, "a", vec![failure(4, 5000, "deposed")], &env);
        coordinator(&net, "b", vec![Reply::Json("[]".into())], &env);
        let list = client(&net, &["nobody", "a", "b"], &env).document(Request::List(List {})).await.unwrap();
        assert_eq!(list, serde_json::json!([]));
        let e = client(&net, &["nobody"], &env).info().await.unwrap_err();
        assert!(e.place() == "nobody" && e.kind() == ErrorKind::Unavailable, "{e:?}");
    }

    #[tokio::test]
    async fn a_failure_keeps_its_number_and_a_strange_answer_is_one() {
        let (net, env) = (InProcess::default(), Env::test(1));
        let answers = vec![failure(2, 1002, "bad"), Reply::JobId("j1".into()), Reply::JobId("j1".into())];
        coordinator(&net, "a", answers, &env);
        let client = client(&net, &["a"], &env);
        let refused = client.submit(Submit::default()).await.unwrap_err();
        assert_eq!((refused.number(), refused.place()), (1002, "a"));
        assert_eq!(client.submit(Submit::default()).await.unwrap(), "j1");
        assert_eq!(client.status("j1").await.unwrap_err().number(), 9302);
    }

    #[test]
    fn a_job_tells_why_it_failed() {
        let doc = serde_json::json!({"error": {"code": "MS3002", "kind": 1, "what": "bad line; at a.ndjson:51"}});
        let e = error_of_job(&doc).unwrap();
        assert_eq!((e.number(), e.kind(), e.to_string().as_str()), (3002, ErrorKind::Data, "bad line; at a.ndjson:51"));
        assert!(error_of_job(&serde_json::json!({"error": null})).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_hangs_is_not_waited_for() {
        let (net, env) = (InProcess::default(), Env::test(1));
        let _arrivals = net.listen_coordinator("a");
        let e = client(&net, &["a"], &env).status("j1").await.unwrap_err();
        assert!(e.kind() == ErrorKind::Unavailable && e.to_string().contains("10s"), "{e}");
    }
}
