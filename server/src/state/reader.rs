//! The entries of one state of a version, as they were then: values of the newest schema that the version knows, what
//! had expired or fired left out.

use std::borrow::Cow;

use bytes::Bytes;
use millstream_common::{Error, KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::{
    map_key, map_prefix, map_prefix_end, point_key, split_map_key, split_point_key, split_timed_key, state_end,
    state_start, timed_key,
};
use millstream_state_store::schema::{
    Form, KeyColumn, NEVER_EXPIRES, Newest, Schema, TtlClock, UpgradeBuffers, take_i64,
};
use millstream_state_store::tree::StateEntry;
use millstream_state_store::{Layout, ReadTime, View};

use super::text::{hex, push_key, push_label, push_stored, push_time};
use super::version::{Fired, OpenVersion};

/// A state that cannot be shown as JSON.
pub const NO_SCHEMA: u16 = 1432;
/// An option that does not fit the state.
pub const BAD_LOOK: u16 = 1433;

/// Keys and values of one page of a scan, bytes.
const PAGE_BYTES: usize = 256 << 10;

/// Reads one state of one version.
pub struct StateReader {
    /// What it is.
    pub entry: StateEntry,
    view: View,
    ranges: KeyGroupRanges,
    fired: Fired,
    time: ReadTime,
    newest: Newest,
    buffers: UpgradeBuffers,
    raw: bool,
}

/// An entry as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its whole key.
    pub store_key: Bytes,
    /// Its value, without its tag and stamp, of the newest schema; with `raw`, as it stands there.
    pub value: Vec<u8>,
    /// When it expires.
    pub expires_ms: Option<i64>,
}

/// A page of a scan.
pub struct Page {
    /// In key order.
    pub entries: Vec<Entry>,
    /// Where the next page begins.
    pub next: Option<Bytes>,
}

impl StateReader {
    /// Of the state `entry` as it is in `version`, in the key groups of `ranges`; `known` is a version that knows the
    /// state (`version` may be older). `raw`: values as they stand there.
    pub fn new(
        version: &OpenVersion,
        known: &OpenVersion,
        entry: &StateEntry,
        ranges: &KeyGroupRanges,
        raw: bool,
    ) -> Result<Self> {
        let unknown = |s: &Schema| s.key.is_empty() || (entry.layout == Layout::Map && s.map_key.is_empty());
        if !raw && entry.schemas.last().is_none_or(unknown) {
            return Err(Error::config(format!(
                "state '{}/{}' has no schema: the release that wrote it did not describe its keys and values",
                entry.operator_uid, entry.name
            ))
            .code(NO_SCHEMA)
            .next("start the job once with this release, which adds it, or give --raw to see the bytes"));
        }
        Ok(Self {
            view: version.view(entry.task, ranges, &known.tree.layouts()),
            ranges: ranges.clone(),
            fired: version.fired(entry.task),
            time: version.time(entry.task),
            newest: Newest::new(&entry.schemas)?,
            buffers: UpgradeBuffers::default(),
            raw,
            entry: entry.clone(),
        })
    }

    /// The present schema, when there is one.
    fn schema(&self) -> Option<&Schema> {
        self.entry.schemas.last()
    }

    /// The columns of its key.
    #[must_use]
    pub fn key_columns(&self) -> &[KeyColumn] {
        self.schema().map_or(&[], |s| &s.key)
    }

    /// The columns of its map key, in a map state.
    #[must_use]
    pub fn map_key_columns(&self) -> &[KeyColumn] {
        self.schema().map_or(&[], |s| &s.map_key)
    }

    /// Whether many entries stand under one key.
    #[must_use]
    pub fn is_map(&self) -> bool {
        self.entry.layout == Layout::Map
    }

    /// Whether entries go without being deleted.
    #[must_use]
    pub fn expires(&self) -> bool {
        self.entry.layout == Layout::TimeOrdered || self.entry.schemas.iter().any(|s| s.ttl.is_some())
    }

    /// Where the state begins in the key groups that are read.
    #[must_use]
    pub fn start(&self) -> Bytes {
        let first = self.ranges.iter().next().map_or(0, |r| r.start);
        if self.entry.layout == Layout::TimeOrdered {
            return state_start(self.entry.id).into();
        }
        let mut key = Vec::new();
        point_key(self.entry.id, KeyGroup(first as u16), &[], &mut key);
        key.into()
    }

    /// Where the entries of a time-ordered state begin that have this time or a later one.
    pub fn start_at(&self, time_ms: i64) -> Result<Bytes> {
        if self.entry.layout != Layout::TimeOrdered {
            return Err(Error::config("this state has no times").code(BAD_LOOK).next("leave --time away"));
        }
        let mut key = Vec::new();
        timed_key(self.entry.id, time_ms, KeyGroup(0), &[], &mut key);
        Ok(key.into())
    }

    /// The whole key of an entry; a time is wanted of time-ordered states alone, a map key of map states: without one, what all
    /// entries of the key begin with.
    pub fn store_key(&self, hash: u64, key: &[u8], time_ms: Option<i64>, of_map: Option<&[u8]>) -> Result<Bytes> {
        let (group, mut out) = (KeyGroup::of_hash(hash), Vec::new());
        let refuse = |what: &str, next: &str| Err(Error::config(what).code(BAD_LOOK).next(next));
        if of_map.is_some() && !self.is_map() {
            return refuse("this state has one entry a key, no map", "leave --map-key away");
        }
        match (self.entry.layout, time_ms) {
            (Layout::Point, None) => point_key(self.entry.id, group, key, &mut out),
            (Layout::Map, None) => match of_map {
                Some(entry) => map_key(self.entry.id, group, key, entry, &mut out),
                None => map_prefix(self.entry.id, group, key, &mut out),
            },
            (Layout::TimeOrdered, Some(time)) => timed_key(self.entry.id, time, group, key, &mut out),
            (Layout::Point | Layout::Map, Some(_)) => return refuse("this state has no times", "leave --time away"),
            (Layout::TimeOrdered, None) => {
                let next = "give --time: the end of the window, less a millisecond, or the time of the timer";
                return refuse("the entries of this state have a time beside their key", next);
            }
        }
        Ok(out.into())
    }

    /// The values of some keys.
    pub async fn get(&mut self, keys: &[Bytes]) -> Result<Vec<Option<Entry>>> {
        let (values, _) = self.view.multi_get(keys, &self.time).await?;
        std::iter::zip(keys, values.iter()).map(|(k, v)| v.map_or(Ok(None), |v| self.entry(k, v))).collect()
    }

    /// The entries from `from` on.
    pub async fn page(&mut self, from: &[u8]) -> Result<Page> {
        self.page_to(from, &state_end(self.entry.id)).await
    }

    /// The entries of one key of a map state, from `from` on; `prefix` is what all of them begin with.
    pub async fn page_of_map(&mut self, prefix: &[u8], from: &[u8]) -> Result<Page> {
        self.page_to(from, &map_prefix_end(prefix)).await
    }

    async fn page_to(&mut self, from: &[u8], end: &[u8]) -> Result<Page> {
        let piece = self.view.scan(from, end, PAGE_BYTES, &self.time).await?;
        let mut entries = Vec::with_capacity(piece.entries.len());
        for (key, value) in &piece.entries {
            entries.extend(self.entry(key, value)?);
        }
        Ok(Page { entries, next: piece.next })
    }

    /// An entry, unless it had fired or expired in its own key group.
    fn entry(&mut self, store_key: &Bytes, value: &[u8]) -> Result<Option<Entry>> {
        let Some(Parts { time, group, .. }) = split(self.entry.layout, store_key) else { return Ok(None) };
        if time.is_some_and(|t| t <= self.fired.of(group)) {
            return Ok(None);
        }
        let ttl = self.entry.schemas.last().and_then(|s| s.ttl);
        let (mut bytes, _) = self.newest.read(value, &mut self.buffers)?;
        let stamp = if ttl.is_some() { take_i64(&mut bytes)? } else { NEVER_EXPIRES };
        let by_event_time = ttl.is_some_and(|t| t.clock == TtlClock::EventTime);
        if by_event_time && stamp != NEVER_EXPIRES && stamp <= self.fired.of(group) {
            return Ok(None);
        }
        let expires_ms = Some(stamp).filter(|s| *s != NEVER_EXPIRES);
        let value = if self.raw { value.to_vec() } else { bytes.to_vec() };
        Ok(Some(Entry { store_key: store_key.clone(), value, expires_ms }))
    }

    /// Appends `"key":{..},"time":".."` or `"key":{..},"map_key":{..}`: what an entry stands under.
    pub fn push_place(&self, store_key: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let Some(parts) = split(self.entry.layout, store_key) else { return Ok(()) };
        push_label("key", 0, out);
        push_columns(&parts.key, self.key_columns(), out)?;
        // The prefix of a key stands for all of its entries.
        if let Some(map_key) = parts.map_key.filter(|m| !m.is_empty()) {
            push_label("map_key", 1, out);
            push_columns(map_key, self.map_key_columns(), out)?;
        }
        if let Some(time) = parts.time {
            push_label("time", 1, out);
            push_time(time, out);
        }
        Ok(())
    }

    /// Appends a value.
    pub fn push_value(&self, value: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if self.raw {
            out.extend_from_slice(format!("\"{}\"", hex(value)).as_bytes());
            return Ok(());
        }
        let opaque = Form::Rest;
        push_stored(self.schema().map_or(&opaque, |s| &s.value), value, out)
    }

    /// Appends an entry as a JSON line.
    pub fn push_line(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<()> {
        out.push(b'{');
        self.push_place(&entry.store_key, out)?;
        push_label("value", 1, out);
        self.push_value(&entry.value, out)?;
        if let Some(expires) = entry.expires_ms {
            push_label("expires", 1, out);
            push_time(expires, out);
        }
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

/// What a store key is made of.
struct Parts<'k> {
    /// Of time-ordered states.
    time: Option<i64>,
    group: KeyGroup,
    key: Cow<'k, [u8]>,
    /// Of map states.
    map_key: Option<&'k [u8]>,
}

fn split(layout: Layout, store_key: &[u8]) -> Option<Parts<'_>> {
    match layout {
        Layout::Point => {
            let (_, group, key) = split_point_key(store_key)?;
            Some(Parts { time: None, group, key: key.into(), map_key: None })
        }
        Layout::TimeOrdered => {
            let (_, time, group, key) = split_timed_key(store_key)?;
            Some(Parts { time: Some(time), group, key: key.into(), map_key: None })
        }
        Layout::Map => {
            let mut key = Vec::new();
            let (_, group, map_key) = split_map_key(store_key, &mut key)?;
            Some(Parts { time: None, group, key: key.into(), map_key: Some(map_key) })
        }
    }
}

/// Appends a key, or its bytes when its columns are not known.
fn push_columns(key: &[u8], columns: &[KeyColumn], out: &mut Vec<u8>) -> Result<()> {
    if columns.is_empty() {
        out.extend_from_slice(format!("\"{}\"", hex(key)).as_bytes());
        return Ok(());
    }
    push_key(key, columns, out)
}
