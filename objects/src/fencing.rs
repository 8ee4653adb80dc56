//! Whether a store refuses to create an object that is there: what keeps two processes from committing the same version.
//!
//! A store that says that it has no create-if-absent is believed. One that says nothing, or says that it has it, is tried:
//! some accept the condition and ignore it. The trial is one object with a fixed name and content, `_cluster/probe/`:
//! whoever starts creates it. Where it exists, that is one refused request; where it does not, the second attempt
//! must be refused. It holds nothing, so it does not matter who wrote it, nor that it stays.
//!
//! A store without create-if-absent serves a single process that has said so ([`Store::for_one_process`]): there a
//! create is a look, and a plain write when nothing is there. **Nothing fences then:** two processes on the same state
//! may both find a number free, the later write wins, and what the other one committed is lost. The engine's other
//! checks stay (a record that is not one's own on read-back ends a process), but they close no race.

use bytes::Bytes;
use millstream_common::{Error, ErrorKind, Result};

use crate::failure::Scheme;
use crate::meter::Purpose;
use crate::store::{Created, Store};

/// Below the place of the state.
const PROBE: &str = "_cluster/probe/create-if-absent";
const CONTENT: &[u8] = b"A start of Millstream tried here whether the store refuses to create what exists.\n";

/// What a store was found to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// It refuses to create an object that is there.
    Kept,
    /// It does not; the text says how that is known.
    Missing(String),
}

impl Store {
    /// Finds out whether the store refuses to create what is there. This place must be the root of a state; one or two
    /// requests, none for a folder or memory.
    pub async fn fencing(&self) -> Result<Fencing> {
        if !self.backend.creates_if_absent {
            return Ok(Fencing::Missing("the store has no create-if-absent".into()));
        }
        if matches!(self.backend.scheme, Scheme::Memory | Scheme::File) {
            return Ok(Fencing::Kept);
        }
        for _ in 0..2 {
            match self.try_to_create().await {
                Ok(Created::AlreadyExists) => return Ok(Fencing::Kept),
                Ok(Created::Now) => {}
                // "Not implemented" and the like: the condition is what is not usual about this request.
                Err(e) if e.kind() == ErrorKind::Config && e.number() == 1106 => {
                    return Ok(Fencing::Missing(format!("the store refuses the condition ({e})")));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Fencing::Missing("the store ignores the condition: it created an object that was there".into()))
    }

    async fn try_to_create(&self) -> Result<Created> {
        let (env, limit) = (&self.backend.env, self.backend.options.retry_timeout);
        let started = env.now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.create(PROBE, Bytes::from_static(CONTENT), Purpose::Leader).await {
                // What is not certain is not repeated there, and may be here; what was repeated has taken its time.
                Err(e) if e.kind() == ErrorKind::Unavailable && env.now().since(started) < limit => {
                    self.backend.pause(attempts).await;
                }
                done => return done,
            }
        }
    }

    /// Refuses a store that says itself that it cannot serve a cluster. Sends nothing.
    pub fn check_serves_cluster(&self) -> Result<()> {
        if self.backend.creates_if_absent { Ok(()) } else { Err(self.unfenced("the store has no create-if-absent")) }
    }

    /// The error for a store that is [`Fencing::Missing`] for the reason `why`.
    #[must_use]
    pub fn unfenced(&self, why: &str) -> Error {
        Error::config(format!("the state of a cluster cannot be in this store: nothing would fence a second coordinator ({why})"))
            .code(1110)
            .at(self.url())
            .next("use a store with conditional writes (docs/object-stores.md), or `millstream run`, which needs none for a single process")
    }

    /// This place for a process that is the only one: what [`Store::create`] does where the store cannot, see the module.
    #[must_use]
    pub fn for_one_process(&self) -> Store {
        Store { one_process: true, ..self.clone() }
    }
}
