//! The boundary: which versions are given up. `boundary/{number, 20 digits}` below the job's prefix: numbered from 1 on
//! without holes, each created once, never changed, never deleted, so that whoever knew one of them learns of all later
//! ones by asking for the next number. docs/garbage.md says why that is needed and why it is enough.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::{Env, Generation, Result};
use millstream_objects::{Created, Purpose, Store};
use millstream_proto::version::Boundary;
use parking_lot::Mutex;

use super::sealed::Seal;

const SEAL: Seal = Seal { magic: *b"MSBO", format: 1, what: "boundary", code: 4008 };

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How far the chain of boundaries is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The number of the newest known boundary; 0: none.
    pub number: u64,
    /// Versions below it are given up; 0 and 1: none is.
    pub bound: u64,
    /// The generation of its writer.
    pub generation: Generation,
}

/// What became of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// Ours stands.
    Ours(Known),
    /// Somebody else's has the number.
    Theirs(Known),
}

/// The boundaries of one job. Clones share what is known.
#[derive(Clone)]
pub struct BoundaryLog {
    store: Store,
    env: Env,
    known: Arc<Mutex<Known>>,
}

impl BoundaryLog {
    /// The boundaries below `store`, the job's prefix.
    #[must_use]
    pub fn new(store: Store, env: Env) -> Self {
        Self { store, env, known: Arc::default() }
    }

    /// The path of a boundary below the job's prefix.
    #[must_use]
    pub fn path(number: u64) -> String {
        format!("boundary/{number:020}")
    }

    /// The newest boundary that was seen or drawn here, or that [`BoundaryLog::learn`] told.
    #[must_use]
    pub fn known(&self) -> Known {
        *self.known.lock()
    }

    /// Takes over what a version record says of the boundaries before it.
    pub fn learn(&self, number: u64, bound: u64) {
        let mut known = self.known.lock();
        if number > known.number {
            *known = Known { number, bound, generation: Generation(0) };
        }
    }

    /// Follows the chain from what is known to its end: one GET when nothing has been added.
    pub async fn newest(&self) -> Result<Known> {
        loop {
            let next = self.known().number + 1;
            let Some(found) = self.read(next).await? else { return Ok(self.known()) };
            self.saw(&found);
        }
    }

    /// As [`BoundaryLog::newest`] for who knows nothing of the chain: finds its end by one listing.
    pub async fn find(&self) -> Result<Known> {
        let listed = self.store.list("boundary/", Purpose::Version).await?;
        if let Some(last) = listed.iter().filter_map(|l| number_of(&l.path)).max()
            && last > self.known().number
            && let Some(found) = self.read(last).await?
        {
            self.saw(&found);
        }
        self.newest().await
    }

    fn saw(&self, found: &Boundary) -> Known {
        let mut known = self.known.lock();
        if found.number > known.number {
            *known = Known { number: found.number, bound: found.bound, generation: Generation(found.generation) };
        }
        *known
    }

    async fn read(&self, number: u64) -> Result<Option<Boundary>> {
        let path = Self::path(number);
        let Some(bytes) = self.store.get(&path, Purpose::Version).await? else { return Ok(None) };
        let found = decode(&bytes).map_err(|e| e.at(self.store.url_of(&path)))?;
        if found.number != number {
            return Err(SEAL.damaged("it is another one's").at(self.store.url_of(&path)));
        }
        Ok(Some(found))
    }

    /// Draws the boundary that follows `after`, at `bound` (never below the one before). Ends when the number is taken; an
    /// error leaves open whether ours will stand: whoever tries again finds it.
    pub async fn draw(&self, after: Known, bound: u64, generation: Generation) -> Result<Drawn> {
        let boundary = Boundary {
            number: after.number + 1,
            bound: bound.max(after.bound),
            generation: generation.0,
            nonce: self.env.unique_id(),
            created_ms: self.env.wall_ms(),
        };
        let (path, body) = (Self::path(boundary.number), Bytes::from(encode(&boundary)));
        let mut pause = FIRST_PAUSE;
        loop {
            let taken = match self.store.create(&path, body.clone(), Purpose::Version).await {
                Ok(Created::Now) => true,
                Ok(Created::AlreadyExists) => true,
                Err(e) if e.is_final() => return Err(e),
                Err(e) => {
                    tracing::debug!("boundary {} is not drawn yet: {e}", boundary.number);
                    false
                }
            };
            // What stands decides, whatever the answer was.
            match self.read(boundary.number).await {
                Ok(Some(found)) if found.nonce == boundary.nonce => return Ok(Drawn::Ours(self.saw(&found))),
                Ok(Some(found)) => return Ok(Drawn::Theirs(self.saw(&found))),
                Ok(None) => tracing::debug!(taken, "nobody has boundary {} yet", boundary.number),
                Err(e) if e.is_final() => return Err(e.maybe_applied()),
                Err(_) => {}
            }
            let jitter = self.env.random_below(pause.as_millis() as u64 / 2 + 1);
            self.env.sleep(pause + Duration::from_millis(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// The bytes of a boundary's object.
pub(super) fn encode(boundary: &Boundary) -> Vec<u8> {
    SEAL.close(boundary)
}

/// The boundary in an object's bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Boundary> {
    SEAL.open(bytes)
}

/// The number that a path below the job's prefix names.
pub(crate) fn number_of(path: &str) -> Option<u64> {
    let digits = path.strip_prefix("boundary/")?;
    let right = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| right)
}
