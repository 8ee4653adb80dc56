//! `state`: a look into the state of a job, from the object store alone.

use bytes::Bytes;
use millstream_common::{Error, KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::Store;

use super::show;
use crate::environment::Environment;
use crate::process::Process;
use crate::state::diff::StateDiff;
use crate::state::key;
use crate::state::reader::{BAD_LOOK, StateReader};
use crate::state::version::{OpenVersion, open_version};
use crate::state_args::{DiffArgs, GetArgs, LsArgs, PlaceArgs, ScanArgs, StateCommand};
use crate::{logs, options, out, people};

/// Carries one out. Lines are JSON with and without `--json`: they are made to be read by other programs and by people.
pub(super) fn carry_out(command: &StateCommand, json: bool, environment: Environment) -> Result<()> {
    match command {
        StateCommand::Ls(args) => ls(args, json, environment),
        StateCommand::Get(args) => get(args, environment),
        StateCommand::Scan(args) => scan(args, environment),
        StateCommand::Diff(args) => diff(args, environment),
    }
}

/// The job's prefix, for reading.
fn open(place: &PlaceArgs, environment: Environment) -> Result<(Process, Store)> {
    logs::start(&environment, "warn");
    let settings = options::of_process(&place.settings, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(&place.state, &settings)?.child(&place.job);
    Ok((process, store))
}

async fn version(process: &Process, store: &Store, place: &PlaceArgs, at: Option<u64>) -> Result<OpenVersion> {
    open_version(store, &process.env, &place.job, at).await
}

fn ranges(groups: Option<(u32, u32)>) -> KeyGroupRanges {
    groups.map_or_else(KeyGroupRanges::all, |(a, b)| KeyGroupRanges::from(KeyGroupRange::new(a, b + 1)))
}

fn ls(args: &LsArgs, json: bool, environment: Environment) -> Result<()> {
    let (process, store) = open(&args.place, environment)?;
    let list = process.block_on(async { Ok(version(&process, &store, &args.place, args.at).await?.list()) })?;
    show(json, &list, people::states)
}

fn get(args: &GetArgs, environment: Environment) -> Result<()> {
    let (process, store) = open(&args.place, environment)?;
    let lines = process.block_on(async {
        let version = version(&process, &store, &args.place, args.at).await?;
        let mut reader = of(&version, &args.which, &KeyGroupRanges::all(), args.raw)?;
        let keys = args.keys.iter().map(|text| store_key(&reader, text, args.time)).collect::<Result<Vec<_>>>()?;
        let mut lines = Vec::new();
        for (key, entry) in std::iter::zip(&keys, reader.get(&keys).await?) {
            match entry {
                Some(entry) => reader.push_line(&entry, &mut lines)?,
                None => {
                    lines.push(b'{');
                    reader.push_place(key, &mut lines)?;
                    lines.extend_from_slice(b",\"value\":null}\n");
                }
            }
        }
        Ok(lines)
    })?;
    out::lines(&lines).map(drop)
}

fn of(version: &OpenVersion, which: &str, ranges: &KeyGroupRanges, raw: bool) -> Result<StateReader> {
    StateReader::new(version, version, version.state(which)?, ranges, raw)
}

fn store_key(reader: &StateReader, text: &str, time: Option<i64>) -> Result<Bytes> {
    let key = key::parse(text, reader.key_columns())?;
    reader.store_key(key.hash(0), key.key(0), time)
}

fn scan(args: &ScanArgs, environment: Environment) -> Result<()> {
    let (process, store) = open(&args.place, environment)?;
    process.block_on(async {
        let version = version(&process, &store, &args.place, args.at).await?;
        let ranges = ranges(args.key_groups);
        let mut reader = of(&version, &args.which, &ranges, args.raw)?;
        let mut from = match (&args.from, args.time) {
            (Some(text), time) => Some(store_key(&reader, text, time)?),
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
    let (process, store) = open(&args.place, environment)?;
    process.block_on(async {
        let before = version(&process, &store, &args.place, Some(args.at)).await?;
        let after = version(&process, &store, &args.place, args.to).await?;
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
