//! Addresses: what a process may bind, and what it tells others.
//!
//! Connections carry neither encryption nor authentication yet, so an address that other machines reach is bound only
//! when the user has said that this is meant.

use std::net::{IpAddr, SocketAddr};

use millstream_common::{Error, Result};
use tokio::net::{TcpListener, lookup_host};

/// Binds `listen` (`HOST:PORT`). Refused when it is not loopback, unless `insecure`.
pub(super) async fn bind(listen: &str, insecure: bool) -> Result<TcpListener> {
    let addresses: Vec<SocketAddr> = lookup_host(listen)
        .await
        .map_err(|e| Error::config("this address cannot be listened on").code(1120).at(listen).source(e))?
        .collect();
    check_exposure(listen, &addresses, insecure)?;
    let taken = |e| {
        let next = "choose another --listen, or end the process that has it";
        Error::config("this address cannot be listened on").code(1120).at(listen).source(e).next(next)
    };
    TcpListener::bind(addresses.as_slice()).await.map_err(taken)
}

fn check_exposure(listen: &str, addresses: &[SocketAddr], insecure: bool) -> Result<()> {
    if insecure || addresses.iter().all(|a| a.ip().is_loopback()) {
        return Ok(());
    }
    let what = "other machines reach this address, and connections are neither encrypted nor authenticated";
    Err(Error::config(what).code(1121).at(listen).next("listen on 127.0.0.1, or say --insecure in a network you trust"))
}

/// What peers are told: `advertise` (`HOST:PORT`, or a host that gets the bound port), else the bound address.
pub(super) fn advertised(advertise: Option<&str>, bound: SocketAddr) -> Result<String> {
    let Some(advertise) = advertise else {
        if bound.ip().is_unspecified() {
            let next = "say with --advertise by which address other machines reach it";
            return Err(Error::config("an address that stands for all of them cannot be told to others")
                .code(1126)
                .at(bound.to_string())
                .next(next));
        }
        return Ok(bound.to_string());
    };
    if advertise.parse::<SocketAddr>().is_ok() {
        return Ok(advertise.to_owned());
    }
    // A bare IPv6 address is full of colons, but has no port.
    if let Ok(ip) = advertise.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, bound.port()).to_string());
    }
    match advertise.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(advertise.to_owned()),
        None if !advertise.is_empty() => Ok(format!("{advertise}:{}", bound.port())),
        _ => Err(Error::config("this is no address to advertise")
            .code(1126)
            .at(advertise)
            .next("give HOST or HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_to_others() {
        let bound: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        let all: SocketAddr = "0.0.0.0:4000".parse().unwrap();
        assert_eq!(advertised(None, bound).unwrap(), "127.0.0.1:4000");
        assert_eq!(advertised(None, all).unwrap_err().number(), 1126);
        for (given, told) in [
            ("worker-1", "worker-1:4000"),
            ("worker-1:99", "worker-1:99"),
            ("10.0.0.1", "10.0.0.1:4000"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("fe80::1", "[fe80::1]:4000"),
            ("[fe80::1]:99", "[fe80::1]:99"),
        ] {
            assert_eq!(advertised(Some(given), all).unwrap(), told);
        }
        for bad in ["", ":99", "host:", "host:http", "host:70000"] {
            assert_eq!(advertised(Some(bad), all).unwrap_err().number(), 1126, "{bad}");
        }
    }

    #[tokio::test]
    async fn only_loopback_is_bound_unasked() {
        assert!(bind("127.0.0.1:0", false).await.is_ok());
        let refused = bind("0.0.0.0:0", false).await.unwrap_err();
        assert!(refused.number() == 1121 && refused.to_string().contains("--insecure"), "{refused}");
        assert!(bind("0.0.0.0:0", true).await.is_ok());
        assert_eq!(bind("nonsense", true).await.unwrap_err().number(), 1120);
    }
}
