//! What a MinIO has counted: requests by kind, whoever made them.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Sub;
use std::time::Duration;

use millstream_common::{Error, Result};

use crate::counters::{get, samples};
use crate::outside::{now, sleep};

/// Where MinIO tells how many requests it has answered.
const METRICS: &str = "/minio/v2/metrics/cluster";
/// MinIO refreshes its counters every 10 s: those that have not moved for longer are up to date.
const SETTLED: Duration = Duration::from_secs(14);
/// From one look at them to the next.
const LOOK: Duration = Duration::from_millis(500);

/// Requests by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Requests {
    /// Objects read.
    pub gets: f64,
    /// Requests that write objects.
    pub writes: f64,
    /// Listings.
    pub lists: f64,
    /// Questions whether an object is there.
    pub heads: f64,
    /// Objects deleted, one by one or many at a time.
    pub deletes: f64,
}

impl Requests {
    fn of(text: &str) -> Self {
        let mut all = Self::default();
        for sample in samples(text).filter(|s| s.name == "minio_s3_requests_total") {
            let api = sample.labels.get("api").copied().unwrap_or_default();
            let starts = |with: &[&str]| with.iter().any(|w| api.starts_with(w));
            let kind = match () {
                () if starts(&["putobject", "copyobject", "postpolicy", "newmultipart", "completemultipart"]) => {
                    &mut all.writes
                }
                () if starts(&["getobject"]) => &mut all.gets,
                () if starts(&["list"]) => &mut all.lists,
                () if starts(&["head"]) => &mut all.heads,
                () if starts(&["delete"]) => &mut all.deletes,
                () => continue,
            };
            *kind += sample.value;
        }
        all
    }
}

impl Sub for Requests {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            gets: self.gets - before.gets,
            writes: self.writes - before.writes,
            lists: self.lists - before.lists,
            heads: self.heads - before.heads,
            deletes: self.deletes - before.deletes,
        }
    }
}

/// A MinIO that tells its counters to anyone.
#[derive(Clone, Copy, Debug)]
pub struct S3Server(SocketAddr);

impl S3Server {
    /// The one at `endpoint`, as `http://127.0.0.1:9000`.
    pub fn at(endpoint: &str) -> Result<Self> {
        let host = endpoint.strip_prefix("http://").map(|h| h.trim_end_matches('/'));
        host.and_then(|h| h.to_socket_addrs().ok()?.next()).map(Self).ok_or_else(|| {
            Error::config("the counters of this S3 server cannot be read: not of the form http://HOST:PORT")
                .at(format!("AWS_ENDPOINT_URL={endpoint}"))
                .next("use a MinIO on this machine (scripts/minio.sh run COMMAND)")
        })
    }

    /// What it says to have answered; some requests of the last seconds may be missing.
    pub fn requests(&self) -> Result<Requests> {
        let unusable = |e: std::io::Error| {
            Error::config("the S3 server does not tell how many requests it has answered")
                .at(format!("http://{}{METRICS}", self.0))
                .next("use a MinIO with MINIO_PROMETHEUS_AUTH_TYPE=public, as scripts/minio.sh starts it")
                .source(e)
        };
        Ok(Requests::of(&get(self.0, METRICS).map_err(unusable)?))
    }

    /// What it has answered once `count` of that stands still.
    pub fn settled(&self, count: impl Fn(&Requests) -> f64) -> Result<Requests> {
        let mut requests = self.requests()?;
        let mut since = now();
        while since.elapsed() < SETTLED {
            sleep(LOOK);
            let next = self.requests()?;
            if count(&next) != count(&requests) {
                since = now();
            }
            requests = next;
        }
        Ok(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_do() {
        let of = |api: &str, n: u32| format!("minio_s3_requests_total{{api=\"{api}\",server=\"a:1\"}} {n}\n");
        let text = of("putobject", 10) + &of("putobjectpart", 2) + &of("putbucket", 100) + &of("getobject", 1_000);
        let text = text + &of("listobjectsv2", 3) + &of("headobject", 4) + &of("deletemultipleobjects", 5);
        let all = Requests { gets: 1_000.0, writes: 12.0, lists: 3.0, heads: 4.0, deletes: 5.0 };
        assert_eq!(Requests::of(&text), all);
        assert_eq!((all - all), Requests::default());
        let errors = "minio_s3_requests_4xx_errors_total{api=\"putobject\"} 3\n";
        assert_eq!(Requests::of(errors), Requests::default());
    }

    #[test]
    fn the_server_is_found_by_its_address() {
        assert_eq!(S3Server::at("http://127.0.0.1:9000/").unwrap().0.port(), 9000);
        assert!(S3Server::at("https://127.0.0.1:9000").unwrap_err().to_string().contains("https"));
    }
}
