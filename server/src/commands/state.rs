//! `state`: a look into the state of a job, from the object store. A coordinator, where one is asked, only says which
//! place and which name; the state is read from here, and no worker is asked for anything.

use bytes::Bytes;
use millstream_common::{Error, ErrorKind, KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::Store;

use super::{ask, show};
use crate::client::Client;
use crate::environment::Environment;
use crate::process::Process;
use crate::state::diff::StateDiff;
use crate::state::key;
use crate::state::reader::{BAD_LOOK, StateReader};
use crate::state::version::{NO_VERSION, OpenVersion, open_version};
use crate::state_args::{DiffArgs, GetArgs, LsArgs, PlaceArgs, ScanArgs, StateCommand};
use crate::{logs, options, out, people};

/// The state of a cluster cannot be read from where the command was typed.
const NOT_FROM_HERE: u16 = 1434;

/// Carries one out. Lines are JSON with and without `--json`: they are made to be read by other programs and by people.
pub(super) fn carry_out(command: &StateCommand, json: bool, environment: Environment) -> Result<()> {
    match command {
        StateCommand::Ls(args) => ls(args, json, environment),
        StateCommand::Get(args) => get(args, environment),
        StateCommand::Scan(args) => scan(args, environment),
        StateCommand::Diff(args) => diff(args, environment),
    }
}

/// A job's prefix, for reading.
struct Place {
    process: Process,
    store: Store,
    /// The job's name.
    name: String,
    /// The place of state, when a coordinator told it.
    told: Option<String>,
}

fn open(args: &PlaceArgs, environment: Environment) -> Result<Place> {
    let settings = options::of_process(&args.settings, &[])?;
    if let Some(url) = &args.state {
        logs::start(&environment, "warn");
        let process = Process::start(1, environment)?;
        let store = process.open_store_to_read(url, &settings)?.child(&args.job);
        return Ok(Place { process, store, name: args.job.clone(), told: None });
    }
    let asking = ask::start(&args.cluster, environment)?;
    let (url, name) = asking.process.block_on(place_of(&asking.client, &args.job))?;
    let process = asking.process;
    let store = process.open_store_to_read(&url, &settings).map_err(|e| from_here(e, &url))?.child(&name);
    Ok(Place { process, store, name, told: Some(url) })
}

/// The place of state and the name of a job that a coordinator knows.
async fn place_of(client: &Client, job: &str) -> Result<(String, String)> {
    let status = client.status(job).await?;
    let name = status["name"].as_str().ok_or_else(|| {
        Error::internal("the coordinator's answer has no name of the job").code(9306).next("is it of this release?")
    })?;
    Ok((client.info().await?.state_url, name.to_owned()))
}

/// What a coordinator can open need not be what its client can.
fn from_here(error: Error, url: &str) -> Error {
    let local = url.starts_with("file:");
    let next = if local {
        "this folder is one of the coordinator's machine: ask there"
    } else {
        "the coordinator hands out the URL alone: give the store's variables (docs/object-stores.md) here, too"
    };
    Error::config(format!("the state of the cluster cannot be read from here: {error}"))
        .code(NOT_FROM_HERE)
        .at(url)
        .next(next)
}

impl Place {
    async fn version(&self, at: Option<u64>) -> Result<OpenVersion> {
        let opened = open_version(&self.store, &self.process.env, &self.name, at).await;
        match (&self.told, opened) {
            // No version at all: it is another folder of that name, or a bucket of that name elsewhere.
            (Some(url), Err(e)) if e.number() == NO_VERSION || is_of_access(&e) => Err(from_here(e, url)),
            (_, opened) => opened,
        }
    }
}

/// Whether credentials, addresses or networks are the matter.
fn is_of_access(e: &Error) -> bool {
    matches!(e.number(), 1101..=1108) || e.kind() == ErrorKind::Unavailable
}

fn ranges(groups: Option<(u32, u32)>) -> KeyGroupRanges {
    groups.map_or_else(KeyGroupRanges::all, |(a, b)| KeyGroupRanges::from(KeyGroupRange::new(a, b + 1)))
}

fn ls(args: &LsArgs, json: bool, environment: Environment) -> Result<()> {
    let place = open(&args.place, environment)?;
    let list = place.process.block_on(async { Ok(place.version(args.at).await?.list()) })?;
    show(json, &list, people::states)
}

fn get(args: &GetArgs, environment: Environment) -> Result<()> {
    let place = open(&args.place, environment)?;
    let lines = place.process.block_on(async {
        let version = place.version(args.at).await?;
        let mut reader = of(&version, &args.which, &KeyGroupRanges::all(), args.raw)?;
        let of_map = args.map_key.as_deref();
        let store_key = |text: &String| store_key(&reader, text, args.time, of_map);
        let keys = args.keys.iter().map(store_key).collect::<Result<Vec<_>>>()?;
        let mut lines = Vec::new();
        if reader.is_map() && of_map.is_none() {
            for prefix in &keys {
                push_map(&mut reader, prefix, &mut lines).await?;
            }
            return Ok(lines);
        }
        for (key, entry) in std::iter::zip(&keys, reader.get(&keys).await?) {
            match entry {
                Some(entry) => reader.push_line(&entry, &mut lines)?,
                None => push_nothing(&reader, key, &mut lines)?,
            }
        }
        Ok(lines)
    })?;
    out::lines(&lines).map(drop)
}

/// All entries of a key of a map state.
async fn push_map(reader: &mut StateReader, prefix: &[u8], lines: &mut Vec<u8>) -> Result<()> {
    let (mut from, mut found) = (Some(Bytes::copy_from_slice(prefix)), false);
    while let Some(start) = from {
        let page = reader.page_of_map(prefix, &start).await?;
        found |= !page.entries.is_empty();
        page.entries.iter().try_for_each(|entry| reader.push_line(entry, lines))?;
        from = page.next;
    }
    if found { Ok(()) } else { push_nothing(reader, prefix, lines) }
}

fn push_nothing(reader: &StateReader, key: &[u8], lines: &mut Vec<u8>) -> Result<()> {
    lines.push(b'{');
    reader.push_place(key, lines)?;
    lines.extend_from_slice(b",\"value\":null}\n");
    Ok(())
}

fn of(version: &OpenVersion, which: &str, ranges: &KeyGroupRanges, raw: bool) -> Result<StateReader> {
    StateReader::new(version, version, version.state(which)?, ranges, raw)
}

fn store_key(reader: &StateReader, text: &str, time: Option<i64>, of_map: Option<&str>) -> Result<Bytes> {
    let key = key::parse(text, reader.key_columns())?;
    // Of a state that is no map, it is refused whatever it says.
    let parse = |text| if reader.is_map() { key::parse(text, reader.map_key_columns()) } else { Ok(key.clone()) };
    let of_map = of_map.map(parse).transpose()?;
    reader.store_key(key.hash(0), key.key(0), time, of_map.as_ref().map(|k| k.key(0)))
}

fn scan(args: &ScanArgs, environment: Environment) -> Result<()> {
    let place = open(&args.place, environment)?;
    place.process.block_on(async {
        let version = place.version(args.at).await?;
        let ranges = ranges(args.key_groups);
        let mut reader = of(&version, &args.which, &ranges, args.raw)?;
        let mut from = match (&args.from, args.time) {
            (Some(text), time) => Some(store_key(&reader, text, time, args.map_key.as_deref())?),
            (None, Some(time)) => Some(reader.start_at(time)?),
            (None, None) => Some(reader.start()),
        };
        let mut left = args.limit.unwrap_or(u64::MAX);
        while let Some(start) = from.filter(|_| left > 0) {
            let page = reader.page(&start).await?;
            let (mut lines, most) = (Vec::new(), usize::try_from(left).unwrap_or(usize::MAX));
            for entry in page.entries.iter().take(most) {
                reader.push_line(entry, &mut lines)?;
                left -= 1;
            }
            if !out::lines(&lines)? {
                break;
            }
            from = page.next;
        }
        Ok(())
    })
}

fn diff(args: &DiffArgs, environment: Environment) -> Result<()> {
    let place = open(&args.place, environment)?;
    place.process.block_on(async {
        let before = place.version(Some(args.at)).await?;
        let after = place.version(args.to).await?;
        let ranges = ranges(args.key_groups);
        // The younger version knows all schemas of both.
        let younger = if before.number > after.number { &before } else { &after };
        let entry = younger.state(&args.which)?;
        let older = if before.number > after.number { &after } else { &before };
        // After a start from an older version that need not be so.
        if older.find(&args.which).is_some_and(|there| !entry.may_follow(there)) {
            let what =
                format!("'{}' is another state in version {} than in {}", args.which, older.number, younger.number);
            return Err(Error::config(what)
                .code(BAD_LOOK)
                .next("scan each version: the job was started anew between them"));
        }
        let reader = |version: &OpenVersion| StateReader::new(version, younger, entry, &ranges, args.raw);
        let mut diff = StateDiff::new((&before, &after), reader(&before)?, reader(&after)?, &ranges, younger);
        while let Some(changes) = diff.next().await? {
            let mut lines = Vec::new();
            changes.iter().try_for_each(|change| diff.push_line(change, &mut lines))?;
            if !out::lines(&lines)? {
                break;
            }
        }
        Ok(())
    })
}
