//! `bench fork`: a second job from a version of a job that runs and has much state.
//!
//! The parent has its state already and goes on with half of its events when it is forked. The clock starts with the command
//! and is read when the operator that holds the state has taken a row of the fork. What was copied is told by the store's
//! listing of what lies below the fork's name at that moment.
//!
//! Three outputs are compared, line by line: that of the parent, that of the fork, and that of the parent's job once it was
//! started again from the version of the fork. And the first one with that of a job of the same arguments that was never forked.

use std::fs;
use std::path::Path;

use millstream_common::{Error, Result};
use serde_json::Value;

use crate::args::ForkArgs;
use crate::cluster::{Cluster, Plan};
use crate::filled::{Load, OPERATOR};
use crate::outside::now;
use crate::place::{Place, StateKind};
use crate::stats::{hundredths, spread_text, whole};
use crate::table::Table;
use crate::{Bench, note};

const WORKERS: u32 = 2;
/// The parent's state is filled in so many seconds, or in more.
const FILLING_S: u64 = 10;
/// The parent's settings: versions are kept, so that it can be started again from the fork's.
const KEEP: &str = "-D checkpoint.retained=100000";

/// One fork.
#[derive(Debug)]
struct Forked {
    first_row_s: f64,
    command_s: f64,
    data_objects: u64,
    data_bytes: u64,
    copies: f64,
    /// What all of the fork has read by then.
    bytes_read: f64,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &ForkArgs) -> Result<()> {
    println!("## Fork\n");
    println!(
        "keyed-count, keys of 1,000 bytes, {} events/s, two workers; the parent runs on. Seconds since the command, median of {}",
        args.rate, args.runs
    );
    println!("runs (least-greatest).\n");
    let mut table = Table::new(&[
        "state",
        "GB",
        "first row",
        "command",
        "data objects of the fork then",
        "bytes of them",
        "copies asked of the store",
        "MB read to first row",
        "lines of output",
    ]);
    for state in bench.places.kinds(args.state.as_deref(), &[StateKind::File, StateKind::S3])? {
        let (mut all, mut lines) = (Vec::new(), 0);
        for _ in 0..args.runs {
            let place = bench.places.fresh(state)?;
            let (forked, output) = measure(bench, args, &place)?;
            note(&format!("{} {} GB: first row of the fork {:.2} s", state.name(), args.gigabytes, forked.first_row_s));
            lines = output;
            all.push(forked);
        }
        let spread = |value: fn(&Forked) -> f64, show: fn(f64) -> String| spread_text(all.iter().map(value), show);
        table.row(vec![
            state.name().to_owned(),
            args.gigabytes.to_string(),
            spread(|f| f.first_row_s, hundredths),
            spread(|f| f.command_s, hundredths),
            spread(|f| f.data_objects as f64, whole),
            spread(|f| f.data_bytes as f64, whole),
            spread(|f| f.copies, whole),
            spread(|f| f.bytes_read / 1e6, whole),
            lines.to_string(),
        ]);
    }
    println!("{table}");
    println!(
        "The outputs of parent, fork, restart from the fork's version and of a job that was never forked are equal.\n"
    );
    Ok(())
}

fn measure(bench: &Bench, args: &ForkArgs, place: &Place) -> Result<(Forked, usize)> {
    let load = Load::of_size(args.gigabytes, args.rate);
    let output = |name: &str| place.folder().join(format!("out-{name}"));
    let mut plan = Plan::new(&bench.binary, place, WORKERS)?;
    let mut cluster = plan.start()?;
    cluster.wait_for_workers()?;
    // Never forked: what comes out without end of it all.
    let alone = submit(&cluster, &load, "alone", 0, &output("alone"), "")?;
    wait_for_end(&mut cluster, &alone)?;
    // Not as fast as it goes: it would have come to its end before it is stopped.
    let filling = submit(&cluster, &load, "parent", load.keys / FILLING_S, &output("parent"), KEEP)?;
    cluster.wait_for_job(&filling, "its state is there", |c| c.events_in >= load.keys as f64)?;
    cluster.ask(&format!("stop {filling}"))?;
    let parent = submit(&cluster, &load, "parent", args.rate, &output("parent"), KEEP)?;
    let before = cluster.wait_for_job(&parent, "it goes on", |c| c.checkpoints >= 2.0)?.events_in;
    let (forked, fork, version) = fork(&mut cluster, place, &parent, &output("fork"))?;
    let after = cluster.wait_for_job(&parent, "the parent runs", |c| c.events_in > before)?;
    if after.events_in >= (2 * load.keys) as f64 {
        return Err(too_short("the parent had ended before it was forked"));
    }
    let both = [parent, fork];
    both.iter().try_for_each(|id| wait_for_end(&mut cluster, id))?;
    let first = lines(&output("parent"))?;
    fs::rename(output("parent"), output("first")).map_err(|e| unreadable(&output("parent"), e))?;
    let again = submit(&cluster, &load, "parent", 0, &output("parent"), &format!("{KEEP} --from {version}"))?;
    wait_for_end(&mut cluster, &again)?;
    for (name, what) in [("alone", "a job that was never forked"), ("fork", "the fork"), ("parent", "the restart")] {
        if lines(&output(name))? != first {
            return Err(Error::internal(format!("the output of {what} differs from the parent's"))
                .at(place.folder().display().to_string())
                .next("run the bench again, and compare the folders out-* before it ends"));
        }
    }
    Ok((forked, first.len()))
}

fn submit(cluster: &Cluster<'_>, load: &Load, name: &str, rate: u64, output: &Path, options: &str) -> Result<String> {
    let (keys, events) = (load.keys, 2 * load.keys);
    cluster.ask(&format!(
        "submit keyed-count --name {name} -p 2 --checkpoint-interval 1s {options} -- --keys {keys} --value-bytes 1000 \
         --events {events} --rate {rate} --distribution zipf --fill --output files:{}",
        output.display()
    ))
}

fn fork(cluster: &mut Cluster<'_>, place: &Place, parent: &str, output: &Path) -> Result<(Forked, String, String)> {
    let started = now();
    let said = cluster.document(&format!("fork {parent} --name fork --json -- --output files:{}", output.display()))?;
    let command_s = started.elapsed().as_secs_f64();
    let id = said["id"].as_str().unwrap_or_default().to_owned();
    let running = |c: &crate::cluster::Counters| c.subtasks_of(OPERATOR).sum::<f64>() > 0.0;
    let counters = cluster.wait_for_job(&id, "the fork has taken a row", running)?;
    let first_row_s = started.elapsed().as_secs_f64();
    let (data_objects, data_bytes) = place.objects("fork/data")?;
    let status = cluster.document(&format!("status {id} --json"))?;
    let of = cluster.document(&format!("status {parent} --json"))?;
    let copies = |s: &Value| s.pointer("/object_store/copy").and_then(Value::as_f64).unwrap_or(f64::NAN);
    let forked = Forked {
        first_row_s,
        command_s,
        data_objects,
        data_bytes,
        copies: copies(&status) + copies(&of),
        bytes_read: counters.bytes_read,
    };
    Ok((forked, id, status["forked_from"]["version"].to_string()))
}

fn wait_for_end(cluster: &mut Cluster<'_>, job: &str) -> Result<()> {
    cluster.wait(&format!("the job {job} ends"), |cluster| {
        let status = cluster.document(&format!("status {job} --json"))?;
        match status["state"].as_str() {
            Some("finished") if status["restarts"] == 0 => Ok(Some(())),
            Some("finished" | "failed") => Err(Error::unavailable(format!("the job {job} has not run through"))
                .at(status.to_string())
                .next("run it by hand")),
            _ => Ok(None),
        }
    })
}

/// All lines of the files of a folder, sorted.
fn lines(folder: &Path) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| unreadable(&folder, e))? {
            let path = entry.map_err(|e| unreadable(&folder, e))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !is_hidden(&path) {
                let text = fs::read_to_string(&path).map_err(|e| unreadable(&path, e))?;
                lines.extend(text.lines().map(str::to_owned));
            }
        }
    }
    lines.sort_unstable();
    if lines.is_empty() { Err(too_short("no output")) } else { Ok(lines) }
}

/// Files that a reader of the output passes over.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']))
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::unavailable("an output cannot be read")
        .at(path.display().to_string())
        .next("see whether it is there")
        .source(e)
}

fn too_short(why: &str) -> Error {
    Error::unavailable(why.to_owned()).at("bench fork").next("give a lower --rate or more --gigabytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_all_visible_files() {
        let folder = tempfile::tempdir().unwrap();
        assert!(lines(folder.path()).is_err());
        fs::create_dir(folder.path().join("x")).unwrap();
        fs::write(folder.path().join("x/part-1"), "b\na\n").unwrap();
        fs::write(folder.path().join("part-0"), "c\n").unwrap();
        fs::write(folder.path().join(".part-2"), "d\n").unwrap();
        assert_eq!(lines(folder.path()).unwrap(), ["a", "b", "c"]);
    }
}
