//! What every command needs of its process: threads, the seam for time and randomness, and stores opened with the
//! settings and the environment.

use std::future::Future;

use millstream_common::env::Runtimes;
use millstream_common::{Env, Result};
use millstream_engine::settings::Settings;
use millstream_objects::{Fencing, Meter, Store, StoreOptions};

use crate::environment::Environment;
use crate::out;

/// A started process.
pub struct Process {
    runtimes: Runtimes,
    /// Time, randomness, spawning.
    pub env: Env,
    /// What it was started with.
    pub environment: Environment,
}

impl Process {
    /// Starts the threads: `compute_threads` for subtasks.
    pub fn start(compute_threads: usize, environment: Environment) -> Result<Self> {
        let runtimes = Runtimes::start(compute_threads)?;
        let env = runtimes.env();
        Ok(Self { runtimes, env, environment })
    }

    /// Runs `future` to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtimes.block_on(future)
    }

    /// Opens the place of state at `url`; a folder that is absent is created.
    pub fn open_store(&self, url: &str, settings: &Settings) -> Result<Store> {
        Store::open(url, &options_told(settings), self.environment.variables(), &self.env)
    }

    /// Opens the place of state at `url` for a command that only looks: nothing is created.
    pub fn open_store_to_read(&self, url: &str, settings: &Settings) -> Result<Store> {
        Store::open_to_read(url, &options_told(settings), self.environment.variables(), &self.env)
    }
}

/// `state` for a cluster: refused when nothing would fence a second coordinator. One request, two at the first start;
/// none for a folder.
pub async fn for_cluster(state: Store) -> Result<Store> {
    match state.with_meter(Meter::new()).fencing().await? {
        Fencing::Kept => Ok(state),
        Fencing::Missing(why) => Err(state.unfenced(&why)),
    }
}

/// `state` for a process that runs a job alone: where the store cannot fence a second one, with a warning and without.
pub async fn for_one_process(state: Store) -> Result<Store> {
    match state.with_meter(Meter::new()).fencing().await? {
        Fencing::Kept => Ok(state),
        Fencing::Missing(why) => {
            out::note(&format!(
                "warning: {why}; nothing keeps a second process from writing the same state, so never start two on {}",
                state.url()
            ));
            Ok(state.for_one_process())
        }
    }
}

fn options_told(settings: &Settings) -> StoreOptions {
    let options = store_options(settings);
    if !options.inject_latency.is_zero() {
        tracing::warn!("object-store.inject-latency is on: every request takes {:?} longer", options.inject_latency);
    }
    options
}

/// The settings `object-store.*` as the store takes them.
#[must_use]
pub fn store_options(settings: &Settings) -> StoreOptions {
    let s = &settings.object_store;
    StoreOptions {
        retry_timeout: s.retry_timeout,
        request_timeout: s.request_timeout,
        connect_timeout: s.connect_timeout,
        backoff_initial: s.backoff_initial,
        backoff_max: s.backoff_max,
        multipart_threshold_bytes: s.multipart_threshold_bytes,
        multipart_part_bytes: s.multipart_part_bytes,
        inject_latency: s.inject_latency,
    }
}

/// Whether `url` names a store that is far enough away for an SSD tier to pay.
#[must_use]
pub fn is_remote(url: &str) -> bool {
    !(url.starts_with("memory:") || url.starts_with("file:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_and_the_store_have_the_same_defaults() {
        assert_eq!(store_options(&Settings::defaults()), StoreOptions::default());
    }

    #[test]
    fn what_is_remote() {
        assert!(is_remote("s3://b/x") && is_remote("gs://b") && is_remote("az://c/p"));
        assert!(!is_remote("memory://") && !is_remote("file:///tmp/x"));
    }
}
