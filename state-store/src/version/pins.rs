//! Pins: `pins/{id}/{unique}.pin` below the job's prefix keeps one version restorable, whatever the job retains.
//!
//! Order of events: the pin is created, then the boundary is read; when the version is below it by then, the pin is
//! released again and nothing was gained. A collector draws the boundary first and lists the pins afterwards, so one of
//! the two sees the other (docs/garbage.md). That it came in time is written down, in `pins/{id}/{unique}.confirmed`: a pin
//! whose creation was given up may still come to be, and then says nothing of its version.
//!
//! The unique part is there for releases that are carried out late: they must not hit a later pin of the same id.

use std::time::Duration;

use bytes::Bytes;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, Result};
use millstream_objects::{Created, Purpose, Store};
use millstream_proto::version::{Pin, pin};

use super::boundary::BoundaryLog;
use super::sealed::Seal;

const SEAL: Seal = Seal { magic: *b"MSPN", format: 1, what: "pin", code: 4009 };

const PAUSE: Duration = Duration::from_millis(200);
/// A pin that cannot be created is given up after so many tries.
const TRIES: usize = 30;

/// A pin that stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Pinned {
    /// Its path below the job's prefix.
    pub path: String,
    /// What it says.
    pub pin: Pin,
    /// It came in time: its version is restorable as long as it stands.
    pub confirmed: bool,
}

impl Pinned {
    /// Whether it keeps its version when `newest` is the newest one: a start's does not once its number is taken.
    #[must_use]
    pub fn holds(&self, newest: u64) -> bool {
        self.pin.kind() != pin::Kind::Start || self.pin.until > newest
    }
}

/// The pins of one job.
#[derive(Clone)]
pub struct Pins {
    store: Store,
    env: Env,
}

impl Pins {
    /// The pins below `store`, the job's prefix.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        Self { store, env }
    }

    /// All pins, by id. One that is released meanwhile is left out; one that is damaged is an error: nothing may be
    /// deleted as long as it is not known what it holds.
    pub async fn list(&self) -> Result<Vec<Pinned>> {
        let mut pins = Vec::new();
        let listed = self.store.list("pins/", Purpose::Version).await?;
        for found in listed.iter().filter(|l| l.path.ends_with(PIN)) {
            let Some(bytes) = self.store.get(&found.path, Purpose::Version).await? else { continue };
            let pin = decode(&bytes).map_err(|e| e.at(self.store.url_of(&found.path)))?;
            let confirmed = listed.iter().any(|l| l.path == confirmation(&found.path));
            pins.push(Pinned { path: found.path.clone(), pin, confirmed });
        }
        Ok(pins)
    }

    /// Pins a version under an id that no pin has. `boundaries` must be of the same job; what it knows may be old. On an
    /// error a pin may be left, or come to be, that keeps the version for longer than is needed.
    pub async fn pin(&self, pin: &Pin, boundaries: &BoundaryLog) -> Result<Pinned> {
        check_id(&pin.id)?;
        let taken = self.store.list(&format!("pins/{}", pin.id), Purpose::Version).await?;
        if let Some(other) = taken.iter().find(|l| l.path.ends_with(PIN)) {
            return Err(Error::config(format!("there is a pin '{}' already", pin.id))
                .code(1510)
                .at(self.store.url_of(&other.path))
                .next("give another id, or release that one: `millstream pins NAME --release ID`"));
        }
        // A planted bug: a release that is carried out late hits the next pin of the id.
        let unique = if bug_is_planted(8) { "0".to_owned() } else { self.env.unique_id() };
        let path = format!("pins/{}/{unique}{PIN}", pin.id);
        let pinned = Pinned { path, pin: pin.clone(), confirmed: true };
        self.create(&pinned.path, Bytes::from(encode(pin))).await?;
        let confirmed = async {
            self.check(&pinned, boundaries).await?;
            self.create(&confirmation(&pinned.path), Bytes::new()).await
        };
        match confirmed.await {
            Ok(()) => Ok(pinned),
            Err(e) => {
                self.give_up(&pinned).await;
                Err(e)
            }
        }
    }

    /// Whether a pin that stands came in time: its version is not below the boundary, or another pin has kept it until
    /// now.
    async fn check(&self, pinned: &Pinned, boundaries: &BoundaryLog) -> Result<()> {
        let (version, bound) = (pinned.pin.version, boundaries.find().await?.bound);
        // A planted bug: the pin alone is taken for enough.
        if version >= bound || bug_is_planted(5) {
            return Ok(());
        }
        let keeps = |other: &Pinned| {
            let same = other.confirmed && other.pin.version == version;
            same && other.path != pinned.path && other.pin.kind() != pin::Kind::Start
        };
        if self.list().await?.iter().any(keeps) {
            return Ok(());
        }
        Err(given_up(version, bound).at(self.store.url()))
    }

    /// What is left of a pin that holds nothing: it keeps a version too long, at worst.
    async fn give_up(&self, pinned: &Pinned) {
        if let Err(e) = self.release(pinned).await {
            tracing::warn!("pin '{}' is left over: {e}", pinned.pin.id);
        }
    }

    async fn create(&self, path: &str, body: Bytes) -> Result<()> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.store.create(path, body.clone(), Purpose::Version).await {
                // Nobody else has this name.
                Ok(Created::Now | Created::AlreadyExists) => {
                    // Absent: a 409 without a winner.
                    if self.store.get(path, Purpose::Version).await?.is_some() {
                        return Ok(());
                    }
                }
                Err(e) if e.is_final() => return Err(e),
                Err(e) => last = Some(e),
            }
            self.env.sleep(PAUSE).await;
        }
        let e = last.unwrap_or_else(|| Error::unavailable("the pin cannot be created").code(2303));
        Err(e.at(self.store.url_of(path)))
    }

    /// Releases a pin; that it is gone is fine. What it held may be collected from now on.
    pub async fn release(&self, pinned: &Pinned) -> Result<()> {
        self.store.delete_all(&[pinned.path.clone(), confirmation(&pinned.path)], Purpose::Version).await
    }
}

const PIN: &str = ".pin";

/// Where it stands that the pin at `path` came in time.
fn confirmation(path: &str) -> String {
    format!("{}.confirmed", path.trim_end_matches(PIN))
}

/// A version that is asked for is below the boundary.
#[must_use]
pub fn given_up(version: u64, bound: u64) -> Error {
    Error::config(format!("version {version} is no longer kept: the job keeps versions from {bound} on"))
        .code(1509)
        .next("see `millstream versions`; a setting (checkpoint.retained, checkpoint.retained-for) or a pin keeps more")
}

fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if !id.is_empty() && id.chars().all(allowed) && !id.chars().all(|c| c == '.') {
        return Ok(());
    }
    Err(Error::config(format!("'{id}' cannot be the id of a pin"))
        .code(1508)
        .next("use letters, digits, '.', '-' and '_'"))
}

/// The bytes of a pin's object.
pub(super) fn encode(pin: &Pin) -> Vec<u8> {
    SEAL.close(pin)
}

/// The pin in an object's bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Pin> {
    SEAL.open(bytes)
}
