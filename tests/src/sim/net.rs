//! The network between nodes: connections with random delays, in order, that can break; partitions; hosts that are
//! gone with or without a word.
//!
//! Replaces: TCP, gRPC and the frames on it. What goes over a connection keeps its order and comes once; delays are drawn
//! per message; both directions are pipes of their own. Queues are bounded everywhere, so a paused reader holds its
//! writer back.
//!
//! What it never does: lose or repeat a message on a connection that stays open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{Env, Error, Lane, Result};
use millstream_engine::transport::{Arrival, DataConnection};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::dice::Dice;
use super::trace::Trace;

/// Messages on their way in one direction of a connection.
const ON_THE_WAY: usize = 16;
/// A connection that does not come about is given up after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long messages take.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// Least, microseconds.
    pub least_us: u64,
    /// Greatest, microseconds.
    pub most_us: u64,
    /// One message in a hundred takes up to this much more, microseconds.
    pub tail_us: u64,
}

/// The network. Clones share it.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    env: Env,
    trace: Trace,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    dice: Dice,
    delays: Delays,
    hosts: BTreeMap<String, Host>,
    /// From whom to whom nothing passes.
    blocked: BTreeSet<(String, String)>,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    /// By host: when it was last told to end everything that it runs, and on which connection.
    told_to_end: BTreeMap<String, (Moment, u64)>,
}

#[derive(Default)]
struct Host {
    coordinator: Option<mpsc::Sender<Arrival>>,
    data: Option<mpsc::Sender<DataConnection>>,
}

struct Link {
    ends: [String; 2],
    fate: Arc<Fates>,
}

/// The fate of a connection, for both of its pipes. (tokio's `watch` wakes its readers in a random order.)
struct Fates {
    now: Mutex<Fate>,
    changed: Notify,
}

impl Fates {
    fn set(&self, fate: Fate) {
        *self.now.lock() = fate;
        self.changed.notify_waiters();
    }

    /// Waits until the fate is another one than `fate`.
    async fn leaves(&self, fate: Fate) {
        loop {
            let changed = self.changed.notified();
            if *self.now.lock() != fate {
                return;
            }
            changed.await;
        }
    }
}

/// What has become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    /// Nothing passes any more, and nobody is told.
    Silent,
    /// Both ends learn of it, each in its own time.
    Broken,
}

/// One direction of a connection.
pub(super) struct Pipe<T> {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) rx: mpsc::Receiver<T>,
    pub(super) tx: mpsc::Sender<T>,
    pub(super) describe: fn(&T) -> String,
    /// Whether a message ends everything that its reader runs.
    pub(super) ends: fn(&T) -> bool,
}

impl Net {
    /// A network without hosts.
    #[must_use]
    pub fn new(env: Env, trace: Trace, dice: Dice, delays: Delays) -> Self {
        let state = State {
            dice,
            delays,
            hosts: BTreeMap::new(),
            blocked: BTreeSet::new(),
            links: BTreeMap::new(),
            next_link: 0,
            told_to_end: BTreeMap::new(),
        };
        Self(Arc::new(Inner { env, trace, state: Mutex::new(state), changed: Notify::new() }))
    }

    /// `host` takes what arrives for a coordinator.
    pub(super) fn listen_coordinator(&self, host: &str, arrivals: mpsc::Sender<Arrival>) {
        self.0.state.lock().hosts.entry(host.into()).or_default().coordinator = Some(arrivals);
    }

    /// `host` takes data connections.
    pub(super) fn listen_data(&self, host: &str, connections: mpsc::Sender<DataConnection>) {
        self.0.state.lock().hosts.entry(host.into()).or_default().data = Some(connections);
    }

    pub(super) fn coordinator(&self, host: &str) -> Option<mpsc::Sender<Arrival>> {
        self.0.state.lock().hosts.get(host).and_then(|h| h.coordinator.clone())
    }

    pub(super) fn data(&self, host: &str) -> Option<mpsc::Sender<DataConnection>> {
        self.0.state.lock().hosts.get(host).and_then(|h| h.data.clone())
    }

    /// `host` is gone. Its peers see their connections end, or, when it went silently, nothing at all.
    pub fn host_down(&self, host: &str, silently: bool) {
        let mut state = self.0.state.lock();
        state.hosts.remove(host);
        if silently {
            for link in state.links.values().filter(|l| l.ends.iter().any(|e| e == host)) {
                link.fate.set(Fate::Silent);
            }
        }
    }

    /// Nothing passes from `from` to `to`.
    pub fn block(&self, from: &str, to: &str) {
        self.0.state.lock().blocked.insert((from.into(), to.into()));
    }

    /// All partitions end; connections on which nothing passes any more break.
    pub fn heal(&self) {
        let mut state = self.0.state.lock();
        state.blocked.clear();
        let mut silent = Vec::new();
        for link in state.links.values() {
            if *link.fate.now.lock() == Fate::Silent {
                silent.push(link.fate.clone());
            }
        }
        drop(state);
        for fate in silent {
            fate.set(Fate::Broken);
        }
        self.0.changed.notify_waiters();
    }

    /// Breaks one open connection in `one_in`; says how many.
    pub fn break_some(&self, one_in: u64) -> usize {
        let mut state = self.0.state.lock();
        let ids: Vec<u64> = state.links.keys().copied().collect();
        let hit: Vec<u64> = ids.into_iter().filter(|_| state.dice.within(0..one_in) == 0).collect();
        for id in &hit {
            if let Some(link) = state.links.get(id) {
                link.fate.set(Fate::Broken);
            }
        }
        hit.len()
    }

    /// When `host` was last told to end everything that it runs, on a connection that still stands.
    #[must_use]
    pub fn told_to_end(&self, host: &str) -> Option<Moment> {
        self.0.state.lock().told_to_end.get(host).map(|told| told.0)
    }

    fn is_blocked(&self, from: &str, to: &str) -> bool {
        let state = self.0.state.lock();
        !state.blocked.is_empty() && state.blocked.contains(&(from.to_owned(), to.to_owned()))
    }

    fn delay(&self) -> Duration {
        let mut state = self.0.state.lock();
        let Delays { least_us, most_us, tail_us } = state.delays;
        let mut us = state.dice.within(least_us..most_us + 1);
        if tail_us > 0 && state.dice.chance(1) {
            us += state.dice.within(0..tail_us);
        }
        Duration::from_micros(us)
    }

    /// Waits until something can pass from `from` to `to`.
    async fn passable(&self, from: &str, to: &str) {
        loop {
            let changed = self.0.changed.notified();
            if !self.is_blocked(from, to) {
                return;
            }
            changed.await;
        }
    }

    /// One message from `from` to `to` outside of any connection.
    pub(super) async fn travel(&self, from: &str, to: &str) -> Result<()> {
        self.0.env.sleep(self.delay()).await;
        self.0.env.timeout(CONNECT_TIMEOUT, "the connection", self.passable(from, to)).await
    }

    /// Opens a connection of two pipes, or of one.
    pub(super) fn open<A: Send + 'static, B: Send + 'static>(
        &self,
        what: String,
        there: Pipe<A>,
        back: Option<Pipe<B>>,
    ) {
        let fate = Arc::new(Fates { now: Mutex::new(Fate::Open), changed: Notify::new() });
        let mut state = self.0.state.lock();
        let id = state.next_link;
        state.next_link += 1;
        state.links.insert(id, Link { ends: [there.from.clone(), there.to.clone()], fate: fate.clone() });
        drop(state);
        self.0.trace.event("connect", &there.from, &format!("#{id} to {}: {what}", there.to));
        let net = self.clone();
        self.0.env.spawn(Lane::Io, "connection", async move {
            let there = net.pump(id, there, &fate);
            match back {
                Some(back) => {
                    futures::join!(there, net.pump(id, back, &fate));
                }
                None => there.await,
            }
            let mut state = net.0.state.lock();
            state.links.remove(&id);
            state.told_to_end.retain(|_, told| told.1 != id);
        });
    }

    async fn pump<T>(&self, id: u64, mut pipe: Pipe<T>, fate: &Fates) {
        let mut queue: VecDeque<(Moment, T)> = VecDeque::new();
        let mut open = true;
        let mut last = Moment::default();
        while open || !queue.is_empty() {
            let now = self.0.env.now();
            let wait = queue.front().map(|(due, _)| due.since(now)).unwrap_or_default();
            let room = open && queue.len() < ON_THE_WAY;
            millstream_common::select! {
                () = fate.leaves(Fate::Open) => return self.tear(pipe, fate).await,
                () = pipe.tx.closed() => {
                    self.0.env.sleep(self.delay()).await;
                    return;
                }
                item = pipe.rx.recv(), if room => match item {
                    Some(item) => {
                        last = last.max(now + self.delay());
                        queue.push_back((last, item));
                    }
                    None => open = false,
                },
                () = self.0.env.sleep(wait), if !queue.is_empty() => {
                    if self.is_blocked(&pipe.from, &pipe.to) {
                        millstream_common::select! {
                            () = self.passable(&pipe.from, &pipe.to) => {}
                            () = fate.leaves(Fate::Open) => return self.tear(pipe, fate).await,
                            () = pipe.tx.closed() => return,
                        }
                        continue;
                    }
                    let permit = millstream_common::select! {
                        () = fate.leaves(Fate::Open) => None,
                        permit = pipe.tx.reserve() => permit.ok(),
                    };
                    let (Some(permit), Some((_, item))) = (permit, queue.pop_front()) else { continue };
                    self.0.trace.event("deliver", &pipe.to, &format!("#{id} {}", (pipe.describe)(&item)));
                    if (pipe.ends)(&item) {
                        let told = (self.0.env.now(), id);
                        self.0.state.lock().told_to_end.insert(pipe.to.clone(), told);
                    }
                    permit.send(item);
                }
            }
        }
        // The writer has ended; the reader learns of it one delay later.
        self.0.env.sleep(self.delay()).await;
    }

    /// The two ends learn of a break, each in its own time; of silence they learn nothing until it is broken.
    async fn tear<T>(&self, pipe: Pipe<T>, fate: &Fates) {
        fate.leaves(Fate::Silent).await;
        let Pipe { rx, tx, .. } = pipe;
        let (writer_first, first, second) = {
            let mut state = self.0.state.lock();
            (state.dice.chance(50), state.dice.millis(0..20), state.dice.millis(0..500))
        };
        self.0.env.sleep(first).await;
        if writer_first {
            drop(rx);
            self.0.env.sleep(second).await;
            drop(tx);
        } else {
            drop(tx);
            self.0.env.sleep(second).await;
            drop(rx);
        }
    }
}

/// Nobody is there.
pub(super) fn refused(host: &str) -> Error {
    Error::unavailable("connection refused").code(2100).at(host)
}
