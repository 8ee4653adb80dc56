//! How many requests a read may make, and when one is made twice.
//!
//! [`RequestBudget`]: GETs cost money whatever they bring, so a job has a sustained rate of them in each worker. Who plans a read sees
//! what is left and makes fewer, larger requests of it; nobody waits for the budget.
//!
//! [`Hedging`]: of a hundred GETs some take several times as long as the others, and a batch waits for its slowest. A GET
//! that takes longer than 95 of 100 did is sent a second time, and the first answer counts; at most 5 % of all are.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::env::Moment;
use millstream_common::{Env, Result};
use parking_lot::Mutex;

/// What was not used gathers for so long.
const BURST: Duration = Duration::from_secs(10);
/// A plan may always have so many.
const LEAST: usize = 16;

/// GETs that may be made now; fills at a steady rate.
pub(crate) struct RequestBudget {
    per_second: f64,
    state: Mutex<(f64, Moment)>,
}

impl RequestBudget {
    pub(crate) fn new(per_second: u32, now: Moment) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, state: Mutex::new((per_second * BURST.as_secs_f64(), now)) }
    }

    /// How many GETs a plan should have at most.
    pub(crate) fn available(&self, now: Moment) -> usize {
        let mut state = self.state.lock();
        self.fill(&mut state, now);
        (state.0 as usize).max(LEAST)
    }

    pub(crate) fn spend(&self, gets: u64, now: Moment) {
        let mut state = self.state.lock();
        self.fill(&mut state, now);
        state.0 = (state.0 - gets as f64).max(0.0);
    }

    fn fill(&self, state: &mut (f64, Moment), now: Moment) {
        let most = self.per_second * BURST.as_secs_f64();
        state.0 = (state.0 + now.since(state.1).as_secs_f64() * self.per_second).min(most);
        state.1 = now;
    }
}

/// Latencies that are looked at.
const SAMPLES: usize = 128;
/// So many say what is usual: a job that starts with cold caches needs it soon.
const SAMPLES_LEAST: usize = 32;
/// The quantile is computed anew after so many.
const REFRESH: usize = 16;
/// Larger GETs take time for their bytes: they are not compared.
const LARGEST: u64 = 1 << 20;
/// A second request for so many first ones.
const ONE_IN: f64 = 20.0;
/// Second requests that may gather.
const MOST_SAVED: f64 = 16.0;
/// Quicker than this nobody need be.
const SHORTEST_WAIT: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    next: usize,
    /// How long to wait for the first answer; none yet.
    wait: Option<Duration>,
    saved: f64,
    /// How many were sent twice.
    twice: u64,
}

/// Sends slow GETs twice; see the module.
#[derive(Default)]
pub(crate) struct Hedging(Mutex<Seen>);

impl Hedging {
    /// Makes a GET of so many bytes by `request`.
    pub(crate) async fn get<F, R>(&self, env: &Env, bytes: u64, request: F) -> Result<Bytes>
    where
        F: Fn() -> R,
        R: Future<Output = Result<Bytes>>,
    {
        if bytes > LARGEST {
            return request().await;
        }
        let started = env.now();
        let wait = {
            let mut seen = self.0.lock();
            seen.saved = (seen.saved + 1.0 / ONE_IN).min(MOST_SAVED);
            seen.wait
        };
        let mut first = pin!(request());
        let answer = match wait {
            None => first.await,
            Some(wait) => {
                millstream_common::select! {
                    answer = &mut first => answer,
                    () = env.sleep(wait) => {
                        if self.may_send_again() {
                            either(first, pin!(request())).await
                        } else {
                            first.await
                        }
                    }
                }
            }
        };
        if answer.is_ok() {
            self.0.lock().note(env.now().since(started));
        }
        answer
    }

    fn may_send_again(&self) -> bool {
        let mut seen = self.0.lock();
        let may = seen.saved >= 1.0;
        if may {
            seen.saved -= 1.0;
            seen.twice += 1;
        }
        may
    }

    /// How long 95 of 100 small GETs take at most; `None` before enough were seen.
    pub(crate) fn usual(&self) -> Option<Duration> {
        self.0.lock().wait
    }

    /// How many GETs were sent twice.
    pub(crate) fn twice(&self) -> u64 {
        self.0.lock().twice
    }
}

/// The first good answer; when one is an error, that of the other.
async fn either<R>(mut first: std::pin::Pin<&mut R>, mut second: std::pin::Pin<&mut R>) -> Result<Bytes>
where
    R: Future<Output = Result<Bytes>>,
{
    let (answer, of_first) = millstream_common::select! {
        answer = &mut first => (answer, true),
        answer = &mut second => (answer, false),
    };
    match (answer, of_first) {
        (Err(_), true) => second.await,
        (Err(_), false) => first.await,
        (answer, _) => answer,
    }
}

impl Seen {
    fn note(&mut self, latency: Duration) {
        if self.latencies.len() < SAMPLES {
            self.latencies.push(latency);
        } else {
            self.latencies[self.next % SAMPLES] = latency;
        }
        self.next += 1;
        if self.latencies.len() >= SAMPLES_LEAST && self.next.is_multiple_of(REFRESH) {
            let mut sorted = self.latencies.clone();
            sorted.sort_unstable();
            self.wait = Some(sorted[sorted.len() * 95 / 100].max(SHORTEST_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_budget_fills_at_its_rate() {
        let at = |ms| Moment(Duration::from_millis(ms));
        let budget = RequestBudget::new(100, at(0));
        assert_eq!(budget.available(at(0)), 1000);
        budget.spend(5000, at(0));
        assert_eq!(budget.available(at(0)), LEAST);
        assert_eq!(budget.available(at(500)), 50);
        assert_eq!(budget.available(at(60_000)), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_ones_are_sent_twice_and_no_others() {
        let env = Env::test(1);
        let (hedging, sent) = (Hedging::default(), AtomicU64::new(0));
        let mut longest = Duration::ZERO;
        for n in 0..2000_u64 {
            let started = env.now();
            let tries = AtomicU64::new(0);
            let request = || {
                sent.fetch_add(1, Ordering::Relaxed);
                // Every 50th takes long, at the first time.
                let slow = n % 50 == 7 && tries.fetch_add(1, Ordering::Relaxed) == 0;
                let latency = Duration::from_millis(if slow { 1000 } else { 20 + n % 10 });
                let env = env.clone();
                async move {
                    env.sleep(latency).await;
                    Ok(Bytes::new())
                }
            };
            hedging.get(&env, 1000, request).await.unwrap();
            if n > SAMPLES as u64 {
                longest = longest.max(env.now().since(started));
            }
        }
        let sent = sent.load(Ordering::Relaxed);
        assert!((2030..=2100).contains(&sent), "{sent}");
        assert_eq!(hedging.twice(), sent - 2000);
        assert!(longest < Duration::from_millis(100), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_waits_for_the_other_answer() {
        let env = Env::test(1);
        let hedging = Hedging::default();
        for _ in 0..SAMPLES * 2 {
            hedging.get(&env, 1, || async { Ok(Bytes::new()) }).await.unwrap();
        }
        let tries = AtomicU64::new(0);
        let request = || {
            let (first, env) = (tries.fetch_add(1, Ordering::Relaxed) == 0, env.clone());
            async move {
                env.sleep(Duration::from_millis(if first { 30 } else { 50 })).await;
                if first { Err(millstream_common::Error::unavailable("no")) } else { Ok(Bytes::from_static(b"yes")) }
            }
        };
        assert_eq!(hedging.get(&env, 1, request).await.unwrap(), "yes");
        assert_eq!(tries.load(Ordering::Relaxed), 2);
    }
}
