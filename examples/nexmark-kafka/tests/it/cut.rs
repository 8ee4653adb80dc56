//! The network between the processes and the broker is cut: nothing goes through, and the sockets stay open; or they are
//! reset, too.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use super::cluster::{Armed, Cluster, Role};
use super::program::wait;
use super::queries::{exactly, golden, golden_events, rows};
use super::support::{bootstrap, brokers, create_topic, read, run, unique, variable};

/// There is one listener of the broker that advertises the proxy's port.
static ONE: Mutex<()> = Mutex::new(());

/// Stands where the broker's listener CUT says that it is. Ends with its value.
struct Proxy {
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
    _one: MutexGuard<'static, ()>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    healed: Condvar,
}

#[derive(Default)]
struct State {
    is_cut: bool,
    is_over: bool,
    /// Both sides of all connections.
    open: Vec<Weak<TcpStream>>,
    /// How often something had to wait for the end of a cut.
    held: u64,
}

impl Proxy {
    fn start() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = TcpListener::bind(variable("KAFKA_BOOTSTRAP_CUT")).unwrap();
        let shared = Arc::<Shared>::default();
        let accepting = shared.clone();
        let listening = thread(move || {
            for client in listener.incoming() {
                if accepting.state().is_over {
                    return;
                }
                accepting.connect(client.unwrap());
            }
        });
        Self { shared, listening: Some(listening), _one: one }
    }

    /// From now on nothing goes through, in neither direction.
    fn cut(&self) {
        self.shared.state().is_cut = true;
    }

    /// What was held goes through.
    fn heal(&self) {
        self.shared.state().is_cut = false;
        self.shared.healed.notify_all();
    }

    /// Ends all connections; what they hold is lost.
    fn reset(&self) {
        for stream in self.shared.state().open.drain(..).filter_map(|stream| stream.upgrade()) {
            // It may have ended by itself.
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn held(&self) -> u64 {
        self.shared.state().held
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.heal();
        self.reset();
        // The listener looks when somebody comes.
        drop(TcpStream::connect(variable("KAFKA_BOOTSTRAP_CUT")));
        // The next one listens at the same port.
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        let broker = TcpStream::connect(variable("KAFKA_CUT_TARGET")).unwrap();
        let sides = [Arc::new(client), Arc::new(broker)];
        let mut state = self.state();
        state.open.retain(|stream| stream.strong_count() > 0);
        for stream in &sides {
            stream.set_nodelay(true).unwrap();
            state.open.push(Arc::downgrade(stream));
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let (shared, from, to) = (self.clone(), sides[from].clone(), sides[to].clone());
            thread(move || shared.pump(&from, &to));
        }
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut bytes).unwrap_or(0);
            // Nor is an end seen through a cut.
            self.pass();
            if read == 0 || to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Waits for the end of a cut.
    fn pass(&self) {
        let mut state = self.state();
        state.held += u64::from(state.is_cut);
        while state.is_cut {
            state = self.healed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[allow(clippy::disallowed_methods)] // a real network
fn thread(run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(run)
}

/// q20 through the proxy, with these arguments; the name of the job, which is that of the topic of its results.
fn submit(cluster: &Cluster, parallelism: &str, checkpoint_timeout: &str, more: &[&str]) -> String {
    let (events, results, through) = (golden_events(), unique("cut"), variable("KAFKA_BOOTSTRAP_CUT"));
    run(|_| async { create_topic(&results, 2).await });
    let timeout = format!("checkpoint.timeout={checkpoint_timeout}");
    let options = ["-p", parallelism, "--checkpoint-interval", "200ms", "-D", &timeout];
    let common =
        ["--brokers", &through, "--events", events, "--results", &results, "--stop", "latest", "--rate", "1500"];
    let args = [&common[..], more].concat();
    cluster.submit("q20", &results, &options, &args);
    results
}

/// Waits until the broker has so few open transactions of a job.
fn wait_for_open(job: &str, at_most: usize) {
    let prefix = format!("millstream-{job}-");
    run(|env| async move {
        let brokers = brokers(&env, &bootstrap());
        for _ in 0..600 {
            if brokers.ongoing_transactions(&prefix).await.unwrap().transactions.len() <= at_most {
                return;
            }
            env.sleep(Duration::from_millis(100)).await;
        }
        panic!("more than {at_most} transactions of {job} stay open");
    });
}

/// Each cut lasts until a checkpoint has taken too long.
#[test]
fn a_job_that_is_cut_off_again_and_again_gives_each_row_once() {
    let proxy = Proxy::start();
    let mut cluster = Cluster::start(2, 1, &[]);
    let job = submit(&cluster, "2", "1s", &["--transaction-timeout", "1m"]);
    let completed = |s: &serde_json::Value| s["checkpoints"]["completed"].as_u64().unwrap_or(0);
    let failed = |s: &serde_json::Value| s["checkpoints"]["failed"].as_u64().unwrap_or(0);
    let mut before = 0;
    for is_reset in [false, true, false] {
        let amid = cluster.wait_for(&job, "it runs", |s| s["state"] == "running" && completed(s) > before + 2);
        let held = proxy.held();
        proxy.cut();
        if is_reset {
            proxy.reset();
        }
        cluster.wait_for(&job, "a checkpoint fails", |s| failed(s) > failed(&amid));
        assert!(proxy.held() > held, "nobody was cut off");
        proxy.heal();
        before = completed(&amid);
    }
    cluster.finish(&job);
    assert!(cluster.deaths.is_empty());
    exactly(&job, "q20");
}

/// One worker and one subtask, which stays at `at` until the network is cut, and is cut off for as long as it takes the broker
/// to give up its transactions.
fn cut_off_at(at: &'static str, before_cut: impl Fn(&str)) -> (Proxy, Cluster, String) {
    cut_off((at, before_cut), &[], "fail")
}

/// The same, with further variables, and what becomes of lost transactions.
fn cut_off(
    (at, before_cut): (&'static str, impl Fn(&str)),
    armed: &[Armed],
    lost_transactions: &str,
) -> (Proxy, Cluster, String) {
    let proxy = Proxy::start();
    let armed = [&[(Role::Worker, "MILLSTREAM_STAY_AT", at)], armed].concat();
    let cluster = Cluster::start(1, 1, &armed);
    let job = submit(&cluster, "1", "2s", &["--transaction-timeout", "6s", "--lost-transactions", lost_transactions]);
    let stays = cluster.point(&format!("stays-{}", at.split(':').next().unwrap()));
    wait("it stays", || stays.exists());
    before_cut(&job);
    proxy.cut();
    std::fs::remove_file(stays).unwrap();
    wait_for_open(&job, 0);
    proxy.heal();
    (proxy, cluster, job)
}

/// No version lists it, so it is written again.
#[test]
fn a_transaction_that_the_broker_gives_up_before_its_version_is_there_is_written_again() {
    // All others are committed by then.
    let (_proxy, mut cluster, job) = cut_off_at("sink-flushed:3", |job| wait_for_open(job, 1));
    let end = cluster.finish(&job);
    assert!(end["restarts"].as_u64() > Some(0), "{}", end["restarts"]);
    exactly(&job, "q20");
}

/// A version lists it: what it wrote is gone, and nobody writes it again. The job says so and ends.
#[test]
fn a_transaction_that_the_broker_gives_up_behind_its_version_ends_the_job_with_what_is_lost() {
    let (_proxy, mut cluster, job) = cut_off_at("worker-told:3", |_| {});
    let end = cluster.wait_for(&job, "it ends", |s| {
        assert!(s["state"] != "finished", "what is lost was not said");
        s["state"] == "failed"
    });
    assert_eq!(end["error"]["code"], "MS3333", "{}", end["error"]);
    let what = end["error"]["what"].as_str().unwrap();
    assert!(what.contains("rows of epoch") && what.contains("of subtask 0 are lost"), "{what}");
    let (found, mut due) = (rows(&read(&job, 2)), golden("q20"));
    due.sort();
    assert!(found.windows(2).all(|two| two[0] < two[1]), "a row is there twice");
    assert!(found.iter().all(|row| due.binary_search(row).is_ok()), "a row is none of the golden ones");
    assert!(!found.is_empty() && found.len() < due.len(), "{} rows", found.len());
}

/// The same cut, and a copy is kept: whoever writes it again is killed when the records are there, or committed already, and the
/// next one neither loses nor doubles them.
fn is_written_again_though_killed_at(at: &'static str) {
    let armed = [(Role::Worker, "MILLSTREAM_KILL_AT", at)];
    let (_proxy, mut cluster, job) = cut_off(("worker-told:3", |_: &str| {}), &armed, "write-again");
    let end = cluster.finish(&job);
    assert!(end["restarts"].as_u64() > Some(0), "{}", end["restarts"]);
    let deaths: Vec<_> = cluster.deaths.iter().map(|d| (d.role, d.signal)).collect();
    assert_eq!(deaths, [(Role::Worker, Some(9))]);
    assert!(cluster.deaths[0].log.contains(&format!("killed at {at}\n")), "{}", cluster.deaths[0].log);
    exactly(&job, "q20");
}

#[test]
fn what_is_lost_is_written_again_by_the_next_one_when_the_first_has_written_it() {
    is_written_again_though_killed_at("again-written");
}

#[test]
fn what_is_lost_is_there_once_when_who_committed_it_again_is_killed() {
    is_written_again_though_killed_at("again-committed");
}
