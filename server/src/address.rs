//! The form of addresses. Whether anybody is there is found out later; a malformed one is refused when it is typed.

use std::net::{IpAddr, SocketAddr};

/// Refuses what is not `HOST:PORT`.
pub fn host_and_port(text: &str) -> Result<String, String> {
    let refused = |why: String| Err(format!("{why}: write HOST:PORT, as 127.0.0.1:6123"));
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    match text.rsplit_once(':') {
        _ if text.trim().is_empty() => refused("an address is missing".to_owned()),
        None => refused(format!("'{text}' has no port")),
        Some((host, _)) if !is_host(host) => refused(format!("'{host}' is no name of a machine")),
        Some((_, port)) => match port.parse::<u16>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => refused(format!("'{port}' is no port from 0 to 65535")),
        },
    }
}

/// As [`host_and_port`], or `none`.
pub fn host_and_port_or_none(text: &str) -> Result<String, String> {
    if text == "none" { Ok(text.to_owned()) } else { host_and_port(text) }
}

/// As [`host_and_port`], but the port may be left away.
pub fn host_perhaps_port(text: &str) -> Result<String, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() || is_host(text) { Ok(text.to_owned()) } else { host_and_port(text) }
}

/// Addresses of coordinators with commas between them; each may begin with `http://`.
pub fn coordinators(text: &str) -> Result<String, String> {
    for address in list(text) {
        let address = host_and_port(&address)?;
        if address.ends_with(":0") {
            return Err(format!("nobody can be reached at port 0: '{address}'"));
        }
    }
    Ok(text.to_owned())
}

/// The addresses in a list with commas between them.
#[must_use]
pub fn list(text: &str) -> Vec<String> {
    text.split(',').map(|a| a.trim().trim_start_matches("http://").to_owned()).collect()
}

/// Whether `host:port`, or the host alone, can be reached from this machine alone. Names other than localhost count as
/// open.
#[must_use]
pub fn is_loopback(address: &str) -> bool {
    if let Ok(a) = address.parse::<SocketAddr>() {
        return a.ip().is_loopback();
    }
    if let Ok(ip) = address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return ip.is_loopback();
    }
    address.rsplit_once(':').map_or(address, |(host, _)| host) == "localhost"
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_addresses_are_told_from_others() {
        for good in ["127.0.0.1:6123", "[::1]:0", "localhost:80", "worker-1.example.org:1", "my_host:65535"] {
            host_and_port(good).unwrap();
            host_perhaps_port(good).unwrap();
        }
        for (bad, word) in [
            ("", "missing"),
            ("foo", "no port"),
            ("127.0.0.1:99999", "'99999' is no port"),
            ("host:", "'' is no port"),
            (":80", "'' is no name"),
            ("a b:80", "'a b' is no name"),
            ("host/path:80", "no name"),
            ("::1:80x", "no name"),
        ] {
            assert!(host_and_port(bad).unwrap_err().contains(word), "{bad}: {:?}", host_and_port(bad));
        }
        for good in ["worker-1", "10.0.0.1", "fe80::1", "[fe80::1]"] {
            host_perhaps_port(good).unwrap();
        }
        assert!(host_perhaps_port("").is_err() && host_perhaps_port("host:http").is_err());
        assert!(host_and_port_or_none("none").is_ok() && host_and_port_or_none("nobody").is_err());
    }

    #[test]
    fn each_coordinator_of_a_list_is_looked_at() {
        coordinators("a:1, http://b:2").unwrap();
        for bad in ["", "a:1,", "a:1,b", "a:0"] {
            assert!(coordinators(bad).is_err(), "{bad}");
        }
        assert_eq!(list("a:1, http://b:2"), ["a:1", "b:2"]);
    }

    #[test]
    fn what_others_cannot_reach() {
        for address in ["127.0.0.1:6123", "[::1]:0", "localhost:80", "127.8.8.8", "localhost", "::1"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["0.0.0.0:6123", "10.0.0.1", "example.org:80", "[::]:1"] {
            assert!(!is_loopback(address), "{address}");
        }
    }
}
