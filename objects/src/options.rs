//! The settings of a store.

use std::time::Duration;

use millstream_common::{Error, Result};

/// How a store is talked to. Data with one default and one validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// For how long a request is repeated before its caller gets an error (`object-store.retry-timeout`).
    pub retry_timeout: Duration,
    /// After how long without progress one attempt is given up (`object-store.request-timeout`). A body to be sent
    /// gets one second more for each MiB.
    pub request_timeout: Duration,
    /// How long it may take to connect (`object-store.connect-timeout`).
    pub connect_timeout: Duration,
    /// The wait before the first repetition; it doubles from one to the next (`object-store.backoff-initial`).
    pub backoff_initial: Duration,
    /// The longest wait between two attempts (`object-store.backoff-max`).
    pub backoff_max: Duration,
    /// A body of more than this many bytes is sent in parts (`object-store.multipart-threshold`).
    pub multipart_threshold_bytes: u64,
    /// The size of a part (`object-store.multipart-part-size`); four are on their way at once.
    pub multipart_part_bytes: u64,
    /// Delays each request by this much and up to a tenth more, one in a hundred by three times that
    /// (`object-store.inject-latency`). For benches and tests; zero switches it off.
    pub inject_latency: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            retry_timeout: Duration::from_secs(180),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            backoff_initial: Duration::from_millis(50),
            backoff_max: Duration::from_secs(10),
            multipart_threshold_bytes: 32 << 20,
            multipart_part_bytes: 16 << 20,
            inject_latency: Duration::ZERO,
        }
    }
}

impl StoreOptions {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("request-timeout", self.request_timeout),
            ("connect-timeout", self.connect_timeout),
            ("backoff-initial", self.backoff_initial),
            ("backoff-max", self.backoff_max),
        ];
        for (name, value) in positive {
            if value.is_zero() {
                return Err(bad(format!("object-store.{name} is zero"), "set it above zero, for instance to 1s"));
            }
        }
        if self.multipart_part_bytes == 0 {
            return Err(bad("object-store.multipart-part-size is zero".into(), "16MiB is the default"));
        }
        if self.backoff_initial > self.backoff_max {
            return Err(bad(
                format!(
                    "object-store.backoff-initial ({:?}) is above object-store.backoff-max ({:?})",
                    self.backoff_initial, self.backoff_max
                ),
                "lower the one or raise the other",
            ));
        }
        Ok(())
    }
}

fn bad(what: String, next: &str) -> Error {
    Error::config(what).code(1105).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_nonsense_is_refused() {
        StoreOptions::default().validate().unwrap();
        let zero = StoreOptions { request_timeout: Duration::ZERO, ..StoreOptions::default() };
        assert!(zero.validate().unwrap_err().to_string().contains("object-store.request-timeout"));
        let crossed = StoreOptions { backoff_initial: Duration::from_secs(60), ..StoreOptions::default() };
        assert_eq!(crossed.validate().unwrap_err().number(), 1105);
    }
}
