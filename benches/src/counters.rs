//! Counters over HTTP: a GET by hand, and Prometheus text.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// The body that `http://address/path` gives; anything but 200 is an error.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    // 1.0: the body comes in one piece, and the connection ends behind it.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: text/plain\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| Error::new(ErrorKind::InvalidData, "no HTTP answer"))?;
    let first = head.lines().next().unwrap_or_default();
    if first.split(' ').nth(1) != Some("200") {
        return Err(Error::new(ErrorKind::InvalidData, first.to_owned()));
    }
    Ok(body.to_owned())
}

/// One line of Prometheus text.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The metric.
    pub name: &'a str,
    /// Labels by name.
    pub labels: BTreeMap<&'a str, &'a str>,
    /// The value.
    pub value: f64,
}

impl Sample<'_> {
    /// Whether it has this label.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.labels.get(name) == Some(&value)
    }
}

/// All samples of a text. Escapes in the values of labels stay as they are: nothing that is measured has any.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|l| !l.starts_with('#')).filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample { name: series, labels: BTreeMap::new(), value });
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while let Some((label, more)) = rest.split_once("=\"") {
        let (text, more) = more.split_once('"')?;
        labels.insert(label.trim_start_matches(','), text);
        rest = more;
    }
    Some(Sample { name, labels, value })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn samples_are_read() {
        let text = "# TYPE a counter\na{api=\"putobject\",server=\"127.0.0.1:9\"} 12\nb 1.5\nnonsense\nc{x=\"1\" 2\n";
        let found: Vec<_> = samples(text).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].has("api", "putobject") && found[0].has("server", "127.0.0.1:9") && found[0].value == 12.0);
        assert!(found[1].name == "b" && found[1].labels.is_empty() && found[1].value == 1.5);
    }

    /// Serves `answer` once.
    fn served(answer: &'static str) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let read = stream.read(&mut request).unwrap();
                assert!(request[..read].starts_with(b"GET /metrics HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            get(address, "/metrics")
        })
    }

    #[test]
    fn a_body_is_fetched_and_failures_are_told() {
        assert_eq!(served("HTTP/1.1 200 OK\r\nx: y\r\n\r\na 1\n").unwrap(), "a 1\n");
        assert!(served("HTTP/1.1 403 Forbidden\r\n\r\nno").unwrap_err().to_string().contains("403"));
        assert!(served("what").is_err());
    }
}
