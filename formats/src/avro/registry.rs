//! Where schemas are kept under ids, and what was learnt from there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use millstream_common::env::BoxFuture;
use millstream_common::{ErrorKind, Result};
use parking_lot::Mutex;

use super::resolve::{Plan, Wanted};
use super::schema::Schema;

/// Keeps schemas; each has an id for ever. What does not answer is `Unavailable`; an access that is denied is `Config`.
pub trait SchemaRegistry: Send + Sync {
    /// The text of the Avro schema with this id; `None` when there is none. A `Data` error when it cannot be used.
    fn schema(&self, id: u32) -> BoxFuture<'_, Result<Option<String>>>;
    /// The id of a schema under `subject`, where it is added unless it is there already. A `Config` error when the registry
    /// refuses it.
    fn register(&self, subject: &str, schema: &str) -> BoxFuture<'_, Result<u32>>;
}

/// How many ids are remembered.
const KNOWN_MAX: usize = 1_000;

/// After so many records an id without a usable schema is asked for again: the registry may have lagged behind.
const BAD_RECORDS: u32 = 1_000;

/// The numbers of what is wrong with a record's schema.
const NO_SCHEMA: u16 = 3320;
const UNFIT_SCHEMA: u16 = 3321;

/// What is known of an id.
#[derive(Clone)]
pub(super) enum Known {
    Plan(Arc<Plan>),
    /// Why its records cannot be read: the number of the error, and what it says.
    Bad(u16, Arc<str>),
}

/// What all decoders of a source have learnt. Two that meet a new id at once both ask for it.
pub(super) struct Plans {
    registry: Arc<dyn SchemaRegistry>,
    wanted: Arc<Wanted>,
    known: Mutex<KnownIds>,
}

#[derive(Default)]
struct KnownIds {
    /// With the number of records that it is good for yet.
    by_id: BTreeMap<u32, (Known, u32)>,
    /// The oldest first; ids of damaged records must not push out the others, so they have a list of their own.
    plans: VecDeque<u32>,
    bad: VecDeque<u32>,
}

impl Plans {
    pub(super) fn new(registry: Arc<dyn SchemaRegistry>, wanted: Arc<Wanted>) -> Self {
        Self { registry, wanted, known: Mutex::default() }
    }

    /// What is known of `id`, for one record.
    pub(super) fn get(&self, id: u32) -> Option<Known> {
        let mut known = self.known.lock();
        let (found, left) = known.by_id.get_mut(&id)?;
        *left = left.checked_sub(1)?;
        Some(found.clone())
    }

    /// Asks the registry for `id`. An error says nothing about the record.
    pub(super) async fn ask(&self, id: u32) -> Result<Known> {
        let known = match self.registry.schema(id).await {
            Ok(Some(text)) => match Schema::parse(&text).and_then(|s| Plan::new(Arc::new(s), &self.wanted)) {
                Ok(plan) => Known::Plan(Arc::new(plan)),
                Err(what) => Known::Bad(UNFIT_SCHEMA, format!("records of schema {id} cannot be read: {what}").into()),
            },
            Ok(None) => Known::Bad(NO_SCHEMA, format!("the schema registry has no schema {id}").into()),
            Err(e) if e.kind() == ErrorKind::Data => Known::Bad(e.number(), e.to_string().into()),
            Err(e) => return Err(e),
        };
        self.known.lock().insert(id, known.clone());
        Ok(known)
    }
}

impl KnownIds {
    fn insert(&mut self, id: u32, known: Known) {
        let is_bad = matches!(known, Known::Bad(..));
        let left = if is_bad { BAD_RECORDS } else { u32::MAX };
        self.plans.retain(|&other| other != id);
        self.bad.retain(|&other| other != id);
        let list = if is_bad { &mut self.bad } else { &mut self.plans };
        list.push_back(id);
        if list.len() > KNOWN_MAX
            && let Some(oldest) = list.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.by_id.insert(id, (known, left));
    }
}

/// The id of a record and its encoding.
pub(super) fn unframe(record: &[u8]) -> Result<(u32, &[u8]), String> {
    match record.split_first_chunk::<5>() {
        Some((&[0, a, b, c, d], encoding)) => Ok((u32::from_be_bytes([a, b, c, d]), encoding)),
        _ => Err("a record with a schema id begins with a zero byte and four of its id".into()),
    }
}

/// Appends what stands in front of the encoding.
pub(super) fn frame(id: u32, out: &mut Vec<u8>) {
    out.push(0);
    out.extend_from_slice(&id.to_be_bytes());
}
