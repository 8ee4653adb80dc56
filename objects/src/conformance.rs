//! The exam that every backend passes that serves a cluster; [`without_create`] is what one for a single process passes.
//! It leaves its objects behind, below a name of its own.
//!
//! A failure is an `Internal` error that says which promise the backend broke.

use bytes::Bytes;
use millstream_common::{Applied, Env, Error, ErrorKind, Lane, Result};

use crate::{Created, Fencing, Listed, Operation, Purpose, Store};

const P: Purpose = Purpose::Check;
/// Writers that want the same name at once.
const WRITERS: usize = 8;

/// Runs all parts on a new place below `store`.
pub async fn run(store: &Store, env: &Env) -> Result<()> {
    without_create(store, env).await?;
    let store = store.child(&format!("conformance-{}", env.unique_id()));
    need("a store for a cluster says that it fences", store.check_serves_cluster().is_ok(), &store)?;
    for start in 0..2 {
        let fencing = store.fencing().await?;
        need(&format!("start {start} finds that the store fences"), fencing == Fencing::Kept, &store)?;
    }
    create(&store.child("create")).await?;
    races(&store.child("race"), env, 20).await?;
    metered(&store.child("meter")).await
}

/// Runs what needs no create-if-absent on a new place below `store`.
pub async fn without_create(store: &Store, env: &Env) -> Result<()> {
    let store = store.child(&format!("conformance-{}", env.unique_id()));
    write_and_read(&store.child("read")).await?;
    ranges(&store.child("ranges")).await?;
    absent(&store.child("absent")).await?;
    names(&store.child("names")).await?;
    listings(&store.child("list")).await?;
    create(&store.for_one_process().child("create-alone")).await?;
    deletes(&store.child("delete")).await?;
    // More than the default of object-store.multipart-threshold.
    big(&store.child("big"), (36 << 20) + 1).await
}

fn need(promise: &str, kept: bool, store: &Store) -> Result<()> {
    if kept {
        return Ok(());
    }
    Err(Error::internal(format!("the object store breaks a promise: {promise}")).code(9100).at(store.url()))
}

async fn write_and_read(store: &Store) -> Result<()> {
    let parts = vec![Bytes::from_static(b"one "), Bytes::new(), Bytes::from_static(b"two")];
    store.put("a", parts, P).await?;
    need("parts are concatenated", store.get("a", P).await?.as_deref() == Some(b"one two"), store)?;
    need("the size is known", store.size("a", P).await? == Some(7), store)?;
    store.put("a", vec![Bytes::from_static(b"again")], P).await?;
    need("a put replaces", store.get("a", P).await?.as_deref() == Some(b"again"), store)?;
    store.put("empty", vec![], P).await?;
    need("an object may be empty", store.get("empty", P).await?.as_deref() == Some(b""), store)?;
    need("an empty object has size 0", store.size("empty", P).await? == Some(0), store)?;
    let parent_sees = store.child("deep/er");
    store.put("deep/er/x", vec![Bytes::from_static(b"x")], P).await?;
    need("a child sees what its parent wrote", parent_sees.get("x", P).await?.as_deref() == Some(b"x"), store)?;
    let beside = store.child("deep/other").sibling("er").get("x", P).await?;
    need("a sibling is the place beside", beside.as_deref() == Some(b"x"), store)
}

async fn ranges(store: &Store) -> Result<()> {
    let body: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    store.put("r", vec![Bytes::from(body.clone())], P).await?;
    for range in [0..1, 0..100_000, 99_999..100_000, 12_345..54_321] {
        let got = store.get_range("r", range.clone(), P).await?;
        let wanted = &body[range.start as usize..range.end as usize];
        need("a range is the bytes of the object", got == wanted, store)?;
    }
    need("an empty range is empty", store.get_range("r", 5..5, P).await?.is_empty(), store)?;
    for range in [99_990..100_010, 100_000..100_001, 200_000..200_010] {
        let e = store.get_range("r", range, P).await.err();
        need("a range beyond the end is corrupt", is(&e, ErrorKind::Corrupt, 4101), store)?;
        need("the error names the object", e.is_some_and(|e| e.place().ends_with("/r")), store)?;
    }
    Ok(())
}

async fn absent(store: &Store) -> Result<()> {
    need("an absent object is none", store.get("no", P).await?.is_none(), store)?;
    need("an absent object has no size", store.size("no", P).await?.is_none(), store)?;
    let e = store.get_range("no/where", 0..10, P).await.err();
    need("a range of an absent object is corrupt", is(&e, ErrorKind::Corrupt, 4100), store)?;
    need("an empty folder lists nothing", store.list("", P).await?.is_empty(), store)?;
    need("an absent folder lists nothing", store.list("no/such", P).await?.is_empty(), store)
}

async fn names(store: &Store) -> Result<()> {
    let names = ["with space", "ümlaut", "a+b=c&d", "per%cent", "q?x", "dot.and-dash_under", "~tilde(1)"];
    for name in names {
        store.put(name, vec![Bytes::from(name)], P).await?;
        need("a name reads back", store.get(name, P).await?.as_deref() == Some(name.as_bytes()), store)?;
    }
    let listed: Vec<String> = store.list("", P).await?.into_iter().map(|l| l.path).collect();
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    need("names are listed as they were written", listed == sorted, store)?;
    for bad in ["a//b", "../x", "new\nline"] {
        let e = store.put(bad, vec![], P).await.err();
        need("a name that cannot be is refused", is(&e, ErrorKind::Config, 1107), store)?;
    }
    Ok(())
}

async fn listings(store: &Store) -> Result<()> {
    for name in ["b/2", "a/1", "a/x/deep", "ab/3", "c"] {
        store.put(name, vec![Bytes::from(name)], P).await?;
    }
    let paths = |listed: Vec<Listed>| listed.into_iter().map(|l| l.path).collect::<Vec<_>>();
    let all = store.list("", P).await?;
    need("sizes are listed", all.iter().all(|l| l.bytes == l.path.len() as u64), store)?;
    need("a listing is sorted and deep", paths(all) == ["a/1", "a/x/deep", "ab/3", "b/2", "c"], store)?;
    need("a folder is whole segments", paths(store.list("a", P).await?) == ["a/1", "a/x/deep"], store)?;
    need("a trailing slash changes nothing", paths(store.list("a/", P).await?) == ["a/1", "a/x/deep"], store)?;
    let after = paths(store.list_after("", Some("ab/3"), P).await?);
    need("a listing starts after a name", after == ["b/2", "c"], store)?;
    let after = paths(store.list_after("a", Some("a/1"), P).await?);
    need("a listing starts after a name of its folder", after == ["a/x/deep"], store)?;
    let child = paths(store.child("a").list("", P).await?);
    need("paths are below the place that is asked", child == ["1", "x/deep"], store)
}

/// Creates as callers of [`Store::create`] are to: what may have happened, as when a busy server resets a connection, is repeated
/// once with the same content, and read back.
async fn create_surely(store: &Store, name: &str, body: Bytes) -> Result<Created> {
    match store.create(name, body.clone(), P).await {
        Err(e) if e.applied() == Applied::Maybe => {}
        done => return done,
    }
    if store.create(name, body.clone(), P).await? == Created::Now {
        return Ok(Created::Now);
    }
    let is_mine = store.get(name, P).await?.is_some_and(|there| there == body);
    Ok(if is_mine { Created::Now } else { Created::AlreadyExists })
}

async fn create(store: &Store) -> Result<()> {
    let (mine, other) = (Bytes::from_static(b"mine"), Bytes::from_static(b"other"));
    need("a new name is created", create_surely(store, "v/1", mine).await? == Created::Now, store)?;
    let second = create_surely(store, "v/1", other.clone()).await?;
    need("a name is created once", second == Created::AlreadyExists, store)?;
    need("who comes second changes nothing", store.get("v/1", P).await?.as_deref() == Some(b"mine"), store)?;
    store.put("put", vec![Bytes::from_static(b"put")], P).await?;
    let over = create_surely(store, "put", other.clone()).await?;
    need("what a put wrote is not created", over == Created::AlreadyExists, store)?;
    store.delete("v/1", P).await?;
    need("a deleted name can be created", create_surely(store, "v/1", other).await? == Created::Now, store)
}

/// `rounds` times, 8 writers create the same name at once: one wins, and the object is the winner's.
pub async fn races(store: &Store, env: &Env, rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let name = format!("r{round}");
        let running: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, name) = (store.clone(), name.clone());
                env.run(Lane::Io, "race", async move {
                    let body = Bytes::from(format!("{writer}").repeat(1_000));
                    // A store may answer "busy" to one of two writers: neither a win nor a loss yet.
                    for _ in 0..10 {
                        match store.create(&name, body.clone(), P).await {
                            Err(e) if e.kind() == ErrorKind::Unavailable => {}
                            done => return done,
                        }
                    }
                    store.create(&name, body, P).await
                })
            })
            .collect();
        let mut winners = Vec::new();
        for (writer, outcome) in running.into_iter().enumerate() {
            if outcome.await?? == Created::Now {
                winners.push(writer);
            }
        }
        need("of many that create a name one wins", winners.len() == 1, store)?;
        let body = store.get(&name, P).await?;
        let wanted = winners[0].to_string().repeat(1_000);
        need("the object is the winner's", body.as_deref() == Some(wanted.as_bytes()), store)?;
    }
    Ok(())
}

async fn deletes(store: &Store) -> Result<()> {
    store.put("x", vec![Bytes::from_static(b"x")], P).await?;
    store.put("y", vec![Bytes::from_static(b"y")], P).await?;
    store.delete("x", P).await?;
    need("a deleted object is absent", store.get("x", P).await?.is_none(), store)?;
    need("a deleted object is not listed", store.list("", P).await?.len() == 1, store)?;
    store.delete("x", P).await?;
    store.delete("never/was", P).await?;
    need("others stay", store.get("y", P).await?.is_some(), store)?;
    let names: Vec<String> = (0..40).map(|i| format!("many/{i}")).collect();
    for name in &names {
        store.put(name, vec![Bytes::from_static(b"z")], P).await?;
    }
    let (gone, kept) = names.split_at(35);
    store.delete_all(gone, P).await?;
    store.delete_all(gone, P).await?;
    let left: Vec<String> = store.list("many", P).await?.into_iter().map(|l| l.path).collect();
    need("many are deleted at once, and no others", left == kept, store)?;
    let bulk: Vec<String> = (0..1_205).map(|i| format!("bulk/{i}")).collect();
    for name in bulk.iter().step_by(100) {
        store.put(name, vec![Bytes::from_static(b"z")], P).await?;
    }
    store.delete_all(&bulk, P).await?;
    store.delete_all(&[], P).await?;
    need("what is deleted in bulk is gone, absent or not", store.list("bulk", P).await?.is_empty(), store)?;
    need("others stay", store.get("y", P).await?.is_some(), store)
}

/// An object of `bytes` bytes, written in parts of 1 MiB, read whole and by ranges.
pub async fn big(store: &Store, bytes: usize) -> Result<()> {
    let parts: Vec<Bytes> = (0..bytes.div_ceil(1 << 20))
        .map(|part| {
            let size = (bytes - (part << 20)).min(1 << 20);
            (0..size).map(|i| ((i * 31 + part * 7) >> 3) as u8).collect::<Vec<u8>>().into()
        })
        .collect();
    let whole = parts.concat();
    let before = store.meter().snapshot();
    store.put("big", parts, P).await?;
    let m = store.meter().snapshot().since(&before);
    let requests = store.puts_of(bytes as u64);
    need("a big object is as many requests as its parts ask for", m.put == requests || m.retries > 0, store)?;
    need("every byte is sent once", m.bytes_written == bytes as u64 || m.retries > 0, store)?;
    need("the size of a big object", store.size("big", P).await? == Some(bytes as u64), store)?;
    need("a big object reads back", store.get("big", P).await?.is_some_and(|b| b == whole), store)?;
    let (start, end) = (bytes / 3, bytes / 2);
    let middle = store.get_range("big", start as u64..end as u64, P).await?;
    need("a big range reads back", middle == whole[start..end], store)
}

/// `count` objects are listed, also when that takes several requests.
pub async fn many(store: &Store, env: &Env, count: usize) -> Result<()> {
    let store = store.child(&format!("many-{}", env.unique_id()));
    for group in (0..count).collect::<Vec<_>>().chunks(32) {
        let puts = group.iter().map(|i| {
            let store = store.clone();
            async move { store.put(&format!("{i:08}"), vec![], P).await }
        });
        futures::future::try_join_all(puts).await?;
    }
    let listed = store.list("", P).await?;
    let right = listed.len() == count && listed.iter().enumerate().all(|(i, l)| l.path == format!("{i:08}"));
    need("every object is listed once", right, &store)?;
    let middle = format!("{:08}", count / 2);
    let rest = store.list_after("", Some(&middle), P).await?;
    let right = rest.len() == count - count / 2 - 1 && rest.first() == listed.get(count / 2 + 1);
    need("a long listing starts after a name", right, &store)
}

async fn metered(store: &Store) -> Result<()> {
    let store = store.with_meter(crate::Meter::new());
    store.put("a", vec![Bytes::from_static(b"12345")], Purpose::State).await?;
    store.create("b", Bytes::from_static(b"123"), Purpose::Version).await?;
    store.create("b", Bytes::from_static(b"123"), Purpose::Version).await?;
    store.get("a", Purpose::State).await?;
    store.get_range("a", 1..3, Purpose::Compaction).await?;
    store.size("a", P).await?;
    store.list("", P).await?;
    store.delete("a", P).await?;
    let m = store.meter().snapshot();
    // On a real network an attempt may have been repeated: then only the lower bounds hold.
    let exact = m.retries == 0;
    let counts = [m.put, m.get, m.head, m.list, m.delete];
    let right = counts == [3, 2, 1, 1, 1] && m.bytes_written == 11 && m.bytes_read == 7;
    need("every request is counted", right || !exact, &store)?;
    let version = m.tally(Operation::Put, Purpose::Version);
    need("requests are counted by purpose", version.requests == 2 || !exact, &store)
}

fn is(e: &Option<Error>, kind: ErrorKind, number: u16) -> bool {
    e.as_ref().is_some_and(|e| e.kind() == kind && e.number() == number)
}
