//! Threads for calls of librdkafka that block. The pool that files and names are read by must not wait for brokers.

use millstream_common::{Error, Result};
use tokio::sync::{Semaphore, oneshot};

/// So many calls at once, in the whole process; further ones wait. A producer of librdkafka has four threads by itself, and one
/// is made in less than half a second where brokers are well.
const THREADS: usize = 16;

static FREE: Semaphore = Semaphore::const_new(THREADS);

/// Makes a call on a thread of its own. Who no longer waits for the answer does not end the call; what it gives is dropped on that
/// thread, too.
pub(super) async fn block<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let no_end = || Error::canceled("a call of librdkafka has no end");
    let place = FREE.acquire().await.map_err(|e| no_end().source(e))?;
    let (done, answer) = oneshot::channel();
    // librdkafka is no part of a simulation: here are threads that `Env` knows nothing of.
    std::thread::Builder::new()
        .name("ms-librdkafka".to_owned())
        .spawn(move || {
            drop(done.send(call()));
            drop(place);
        })
        .map_err(|e| Error::unavailable("no thread can be started for librdkafka").code(2445).source(e))?;
    answer.await.map_err(|e| no_end().source(e))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::sync_channel;

    use super::*;

    /// All are there, none goes on before `go` says so; with one more than there are threads.
    #[tokio::test]
    async fn calls_beyond_the_last_thread_wait_and_one_that_nobody_waits_for_is_dropped_on_its_thread() {
        struct Held(std::sync::mpsc::SyncSender<std::thread::ThreadId>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.send(std::thread::current().id()).unwrap();
            }
        }
        let running = Arc::new(AtomicUsize::new(0));
        let (began, begins) = sync_channel(THREADS + 1);
        let (dropped, drops) = sync_channel(1);
        let mut gates = Vec::new();
        let mut calls = Vec::new();
        for _ in 0..=THREADS {
            let (go, gate) = sync_channel::<()>(1);
            gates.push(go);
            let (running, began, held) = (running.clone(), began.clone(), Held(dropped.clone()));
            calls.push(Box::pin(block(move || {
                running.fetch_add(1, Ordering::SeqCst);
                began.send(()).unwrap();
                // Also when the test has failed, and the gate is gone.
                let _ = gate.recv();
                held
            })));
        }
        for call in &mut calls {
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        (0..THREADS).for_each(|_| begins.recv().unwrap());
        assert_eq!(running.load(Ordering::SeqCst), THREADS);
        // Nobody waits for the first any more: its place is free again when it is done.
        drop(calls.remove(0));
        gates[0].send(()).unwrap();
        assert_ne!(drops.recv().unwrap(), std::thread::current().id());
        let mut last = calls.pop().unwrap();
        gates[THREADS].send(()).unwrap();
        let held = last.as_mut().await.unwrap();
        assert_eq!(running.load(Ordering::SeqCst), THREADS + 1);
        drop((held, gates));
        drops.recv().unwrap();
        for call in calls {
            drop(call.await.unwrap());
            drops.recv().unwrap();
        }
    }
}
