//! Pins: `pins` lists and releases them, `pin` makes one. They work on the objects themselves, whether a cluster runs the
//! job or not.

use millstream_common::{Env, Error, Result, VersionNumber};
use millstream_engine::coordinator::versions::{pin_row, pins as list};
use millstream_objects::Store;
use millstream_proto::version::{Pin, pin::Kind};
use millstream_state_store::version::VersionLog;
use serde_json::{Value, json};

use super::offline::no_version;
use super::show;
use crate::args::{PinArgs, PinsArgs};
use crate::environment::Environment;
use crate::process::Process;
use crate::{logs, options, people};

fn log_of(store: &Store, env: &Env) -> VersionLog {
    VersionLog::new(store.clone(), env.clone())
}

pub(super) fn pins(args: &PinsArgs, json: bool, environment: Environment) -> Result<()> {
    logs::start(&environment, "warn");
    let settings = options::of_process(&args.settings, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(&args.state, &settings)?.child(&args.name);
    let log = log_of(&store, &process.env);
    let rows = process.block_on(async {
        if log.list().await?.is_empty() {
            return Err(no_version(&args.name, &store));
        }
        let Some(id) = &args.release else { return list(&log).await };
        let all = log.pins().list().await?;
        let of_id: Vec<_> = all.iter().filter(|p| p.pin.id == *id).collect();
        if of_id.is_empty() {
            return Err(Error::config(format!("there is no pin '{id}'"))
                .code(1511)
                .at(store.url())
                .next("`millstream pins NAME --state URL` lists those that are there"));
        }
        for pin in of_id {
            log.pins().release(pin).await?;
        }
        list(&log).await
    })?;
    show(json, &Value::Array(rows), people::pins)
}

pub(super) fn pin(args: &PinArgs, json: bool, environment: Environment) -> Result<()> {
    logs::start(&environment, "warn");
    let settings = options::of_process(&args.settings, &[])?;
    let process = Process::start(1, environment)?;
    let store = process.open_store_to_read(&args.state, &settings)?.child(&args.name);
    let log = log_of(&store, &process.env);
    let row = process.block_on(async {
        let newest = log.newest().await?.ok_or_else(|| no_version(&args.name, &store))?;
        let version = args.at.unwrap_or(newest.number);
        log.boundaries().learn(newest.boundary, newest.bound);
        let absent = || {
            Error::config(format!("there is no version {version}"))
                .code(1504)
                .at(store.url())
                .next("see `millstream versions`")
        };
        if version > newest.number {
            return Err(absent());
        }
        let pin = Pin {
            id: args.id.clone(),
            version,
            kind: Kind::Savepoint.into(),
            who: "millstream pin".to_owned(),
            created_ms: process.env.wall_ms(),
            until: 0,
        };
        let pinned = log.pins().pin(&pin, log.boundaries()).await?;
        if log.read(VersionNumber(version)).await?.is_none() {
            log.pins().release(&pinned).await?;
            return Err(absent());
        }
        Ok(pin_row(&pinned))
    })?;
    show(json, &row, |row| people::pins(&json!([row])))
}
