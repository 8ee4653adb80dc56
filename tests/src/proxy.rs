//! A small HTTP proxy between a client and a server of object storage, which loses, delays or cuts what a test plans.
//!
//! It owns a listener and the rules of the test. Order of events for a request: read all of it; count it against the
//! rules; forward it on a connection of its own and read the whole reply; hand the reply back. Once a request was read
//! it goes on whether or not its client waits, so a client that gave up can find its write applied, or see it land
//! later. One request per connection; never a change to what is forwarded but the `Connection` header.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::AbortOnDrop;
use millstream_common::{Env, Error, Lane, Result};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HEAD_BYTES_MAX: usize = 64 << 10;
/// How many requests are remembered.
const SEEN_MAX: usize = 10_000;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is cut before the server sees the request.
    CutRequest,
    /// The server sees the request this much later, whether or not its client still waits.
    DelayRequest(Duration),
    /// The server applies the request, and the connection is cut instead of a reply.
    LoseReply,
    /// The server applies the request, and its reply comes this much later.
    DelayReply(Duration),
}

/// Which request is hit.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its method, as `PUT`.
    pub method: &'static str,
    /// What its path contains; empty for all.
    pub path_contains: String,
    /// The first of the matching requests from now on that is hit, from 1.
    pub nth: usize,
    /// How many in a row are hit.
    pub times: usize,
    /// What happens to it.
    pub fault: Fault,
}

impl Rule {
    /// Hits the `nth` PUT (from 1) whose path contains `path_contains`.
    #[must_use]
    pub fn put(path_contains: &str, nth: usize, fault: Fault) -> Self {
        Self { method: "PUT", path_contains: path_contains.to_owned(), nth, times: 1, fault }
    }
}

/// A request that came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// The status that the server answered; 0 when it never saw the request, or has not answered yet.
    pub status: u16,
    /// What happened to it.
    pub fault: Option<Fault>,
}

/// A running proxy; dropping it ends it. Requests on their way go on.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accept: AbortOnDrop,
}

struct Shared {
    upstream: String,
    env: Env,
    rules: Mutex<Vec<(Rule, usize)>>,
    /// With the number that each request got.
    seen: Mutex<VecDeque<(u64, Seen)>>,
    next: Mutex<u64>,
}

impl Proxy {
    /// Listens on a free port of this machine and forwards to `upstream` (`http://host:port`).
    pub async fn start(upstream: &str, env: &Env) -> Result<Proxy> {
        let failed = |e: std::io::Error| Error::unavailable("the proxy cannot listen").source(e);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let host = upstream.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let shared = Arc::new(Shared {
            upstream: host,
            env: env.clone(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            next: Mutex::default(),
        });
        let serving = shared.clone();
        let accept = env.spawn(Lane::Io, "proxy", async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = serving.clone();
                serving.env.spawn(Lane::Io, "proxied request", async move {
                    // A broken connection is what a client sees, too: nothing else to do about it.
                    let _ = shared.serve(client).await;
                });
            }
        });
        Ok(Proxy { address, shared, _accept: AbortOnDrop(accept) })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule for the requests that come from now on.
    pub fn plan(&self, rule: Rule) {
        self.shared.rules.lock().push((rule, 0));
    }

    /// The requests that came by, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().iter().map(|(_, s)| s.clone()).collect()
    }
}

impl Shared {
    async fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let Some(request) = read_request(&mut client).await? else { return Ok(()) };
        let fault = self.judge(&request);
        let number = self.remember(&request, fault);
        match fault {
            Some(Fault::CutRequest) => return Ok(()),
            Some(Fault::DelayRequest(by)) => self.env.sleep(by).await,
            _ => {}
        }
        let reply = self.forward(&request).await?;
        self.answered(number, status_of(&reply));
        match fault {
            Some(Fault::LoseReply) => return Ok(()),
            Some(Fault::DelayReply(by)) => self.env.sleep(by).await,
            _ => {}
        }
        client.write_all(&reply).await?;
        client.shutdown().await
    }

    /// Counts the request against every rule that it matches; the first rule that is due decides.
    fn judge(&self, request: &Request) -> Option<Fault> {
        let mut due = None;
        for (rule, count) in self.rules.lock().iter_mut() {
            if rule.method == request.method && request.path.contains(&rule.path_contains) {
                *count += 1;
                if due.is_none() && (rule.nth..rule.nth + rule.times).contains(count) {
                    due = Some(rule.fault);
                }
            }
        }
        due
    }

    fn remember(&self, request: &Request, fault: Option<Fault>) -> u64 {
        let number = {
            let mut next = self.next.lock();
            *next += 1;
            *next
        };
        let mut seen = self.seen.lock();
        if seen.len() == SEEN_MAX {
            seen.pop_front();
        }
        let (method, path) = (request.method.clone(), request.path.clone());
        seen.push_back((number, Seen { method, path, status: 0, fault }));
        number
    }

    fn answered(&self, number: u64, status: u16) {
        if let Some((_, seen)) = self.seen.lock().iter_mut().find(|(n, _)| *n == number) {
            seen.status = status;
        }
    }

    /// Sends the request on a connection that the server closes after its reply, and returns the reply.
    async fn forward(&self, request: &Request) -> std::io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(&self.upstream).await?;
        server.write_all(request.head.as_bytes()).await?;
        // A server that refuses by the head alone answers and closes before it has read the body: its reply counts.
        let sent = server.write_all(&request.body).await;
        let mut reply = Vec::new();
        let read = server.read_to_end(&mut reply).await;
        if reply.is_empty() {
            sent?;
            read?;
        }
        Ok(reply)
    }
}

struct Request {
    method: String,
    path: String,
    /// With `Connection: close`, and the empty line at the end.
    head: String,
    body: Vec<u8>,
}

/// The next request of a connection; `None` when it ends before one. Bodies need a Content-Length.
async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if client.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
        if read.len() > HEAD_BYTES_MAX {
            return Err(std::io::Error::other("the head of a request is too long"));
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let header = |name: &str| {
        head.lines()
            .skip(1)
            .filter_map(|l| l.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    };
    if header("Transfer-Encoding").is_some() || header("Expect").is_some() {
        return Err(std::io::Error::other("the proxy understands bodies with a Content-Length only"));
    }
    let length: usize = header("Content-Length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut body = read.split_off(end + 4);
    let have = body.len().min(length);
    body.resize(length, 0);
    client.read_exact(&mut body[have..]).await?;
    let kept: Vec<&str> = head.lines().filter(|l| !l.to_ascii_lowercase().starts_with("connection:")).collect();
    let head = format!("{}\r\nConnection: close\r\n\r\n", kept.join("\r\n"));
    Ok(Some(Request { method, path, head, body }))
}

/// The status of a reply; 0 when it holds none.
fn status_of(reply: &[u8]) -> u16 {
    let line = reply.split(|b| *b == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers `202` to everything and counts what it saw.
    async fn server(env: &Env) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let got = bodies.clone();
        env.spawn(Lane::Io, "server", async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let request = read_request(&mut connection).await.unwrap().unwrap();
                got.lock().push(String::from_utf8(request.body).unwrap());
                connection.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
        });
        (url, bodies)
    }

    async fn put(proxy: &Proxy, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(proxy.address).await.unwrap();
        let text =
            format!("PUT {path} HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        connection.write_all(text.as_bytes()).await.unwrap();
        let mut reply = String::new();
        let _ = connection.read_to_string(&mut reply).await;
        reply
    }

    #[tokio::test]
    async fn the_planned_requests_are_hit_and_no_others() {
        let env = Env::test(1);
        let (url, bodies) = server(&env).await;
        let proxy = Proxy::start(&url, &env).await.unwrap();
        proxy.plan(Rule::put("/v/", 2, Fault::LoseReply));
        proxy.plan(Rule::put("/w/", 1, Fault::CutRequest));
        assert!(put(&proxy, "/v/1", "one").await.ends_with("ok"));
        assert!(put(&proxy, "/x", "other").await.ends_with("ok"));
        assert_eq!(put(&proxy, "/v/2", "two").await, "");
        assert_eq!(put(&proxy, "/w/1", "cut").await, "");
        assert!(put(&proxy, "/v/3", "").await.ends_with("ok"));
        assert_eq!(*bodies.lock(), ["one", "other", "two", ""]);
        let seen: Vec<_> = proxy.seen().into_iter().map(|s| (s.path, s.status, s.fault)).collect();
        assert_eq!(seen[2], ("/v/2".to_owned(), 202, Some(Fault::LoseReply)));
        assert_eq!(seen[3], ("/w/1".to_owned(), 0, Some(Fault::CutRequest)));
    }

    #[tokio::test]
    async fn a_delayed_request_lands_although_its_client_is_gone() {
        let env = Env::test(1);
        let (url, bodies) = server(&env).await;
        let proxy = Proxy::start(&url, &env).await.unwrap();
        proxy.plan(Rule::put("", 1, Fault::DelayRequest(Duration::from_millis(200))));
        let gone = env.timeout(Duration::from_millis(50), "the put", put(&proxy, "/v", "late")).await;
        assert!(gone.is_err() && bodies.lock().is_empty());
        for _ in 0..100 {
            if !bodies.lock().is_empty() {
                break;
            }
            env.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(*bodies.lock(), ["late"]);
    }
}
