//! How fast the compactions of a process may read and write.
//!
//! What was transferred is paid for by waiting before the next transfer, so that over any longer time the rate holds,
//! whatever the size of a request. The compactions of a process share one.

use std::sync::Arc;
use std::time::Duration;

use millstream_common::Env;
use millstream_common::env::Moment;
use parking_lot::Mutex;

/// A limit of bytes a second. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Throttle(Option<Arc<Account>>);

#[derive(Debug)]
struct Account {
    bytes_per_second: u64,
    /// What was transferred so far is paid for then.
    paid: Mutex<Moment>,
}

impl Throttle {
    /// At most so many bytes a second, read and written together; 0: as fast as it goes.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        let account = || Arc::new(Account { bytes_per_second, paid: Mutex::default() });
        Self((bytes_per_second > 0).then(account))
    }

    /// Accounts a transfer of so many bytes, and waits until those before it are paid for.
    pub async fn pass(&self, bytes: u64, env: &Env) {
        let wait = self.take(bytes, env.now());
        if !wait.is_zero() {
            env.sleep(wait).await;
        }
    }

    /// How long whoever transfers `bytes` at `now` waits before.
    fn take(&self, bytes: u64, now: Moment) -> Duration {
        let Some(account) = &self.0 else { return Duration::ZERO };
        let us = u128::from(bytes) * 1_000_000 / u128::from(account.bytes_per_second);
        let mut paid = account.paid.lock();
        let begins = now.max(*paid);
        *paid = begins + Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX));
        begins.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_transferred_is_paid_for_before_the_next_transfer() {
        let at = |ms| Moment(Duration::from_millis(ms));
        let throttle = Throttle::new(1_000);
        assert_eq!(throttle.take(500, at(0)), Duration::ZERO);
        assert_eq!(throttle.clone().take(2_000, at(100)), Duration::from_millis(400), "clones share it");
        assert_eq!(throttle.take(1, at(2_000)), Duration::from_millis(500));
        // What was not used is not saved up.
        assert_eq!(throttle.take(1_000, at(60_000)), Duration::ZERO);
        assert_eq!(throttle.take(0, at(60_000)), Duration::from_secs(1));
        assert_eq!(Throttle::new(0).take(u64::MAX, at(0)), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds() {
        let (env, throttle) = (Env::test(1), Throttle::new(1 << 20));
        let start = env.now();
        for _ in 0..11 {
            throttle.pass(1 << 20, &env).await;
        }
        let took = env.now().since(start);
        assert!(took >= Duration::from_secs(10) && took < Duration::from_millis(10_100), "{took:?}");
    }
}
