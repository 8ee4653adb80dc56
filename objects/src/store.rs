//! A place in an object store, as the rest of the project sees it.
//!
//! It owns the names below its prefix, the account of its requests and the rule for each operation: which are repeated
//! until the retry time-out, and what absent, existing and short objects mean. It never overwrites on its own account:
//! [`Store::put`] is for names that are used once, [`Store::create`] for names that many may want.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use millstream_common::{Env, Error, Result};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::attempt::{AttemptError, Backend, Reply, Request, read_body};
use crate::failure::{Failure, Scheme, absent_bucket};
use crate::limiter::RequestClass;
use crate::meter::{Meter, Operation, Purpose, shown_limit};
use crate::options::StoreOptions;
use crate::upload::Upload;

/// The names that one LIST request returns.
const NAMES_PER_LIST: usize = 1_000;

/// Objects that one request deletes, where the store has such requests (S3).
const NAMES_PER_DELETE: usize = 1_000;

/// A place in an object store: everything below a prefix. Cheap to clone; clones and children share the connection
/// and the account.
#[derive(Clone)]
pub struct Store {
    pub(crate) backend: Arc<Backend>,
    pub(crate) prefix: Arc<str>,
    pub(crate) meter: Meter,
    /// Nobody else writes here: see [`Store::for_one_process`].
    pub(crate) one_process: bool,
}

/// What became of a create-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// This call created the object.
    Now,
    /// An object with that name is there: somebody else's, or this caller's from an earlier attempt with an unknown
    /// end. Read it back to know.
    AlreadyExists,
}

/// An object that a listing named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name below the store's prefix.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

impl Store {
    pub(crate) fn new(backend: Backend, prefix: &str) -> Self {
        Self {
            backend: Arc::new(backend),
            prefix: prefix.trim_matches('/').into(),
            meter: Meter::new(),
            one_process: false,
        }
    }

    /// A store on a backend that the caller made: for tests and the simulation. `description` stands for the URL in
    /// messages.
    #[must_use]
    pub fn from_backend(backend: Arc<dyn ObjectStore>, description: &str, options: &StoreOptions, env: &Env) -> Store {
        let url = if description.ends_with("://") { description } else { description.trim_end_matches('/') }.to_owned();
        Self::new(Backend::new(backend, url, Scheme::Other, options.clone(), env.clone()), "")
    }

    /// As [`Store::from_backend`], for one that takes uploads in parts.
    #[must_use]
    pub fn from_backend_with_uploads<B: ObjectStore + MultipartStore>(
        backend: Arc<B>,
        description: &str,
        options: &StoreOptions,
        env: &Env,
    ) -> Store {
        let mut opened =
            Backend::new(backend.clone(), description.to_owned(), Scheme::Other, options.clone(), env.clone());
        opened.uploads = Some(backend);
        Self::new(opened, "")
    }

    /// The place `path` below this one, with the same account.
    #[must_use]
    pub fn child(&self, path: &str) -> Store {
        Store { prefix: join(&self.prefix, path).into(), ..self.clone() }
    }

    /// The same place with another account.
    #[must_use]
    pub fn with_meter(&self, meter: Meter) -> Store {
        Store { meter, ..self.clone() }
    }

    /// The account of this place's requests.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// How many reads (get, head, list) and writes (put, delete, copy) a second go to the store at present, over all
    /// places of it that this process has opened together; `None`: the store does not throttle.
    #[must_use]
    pub fn limits_per_s(&self) -> (Option<u64>, Option<u64>) {
        let of = |class| shown_limit(self.backend.limit(class));
        (of(RequestClass::Read), of(RequestClass::Write))
    }

    /// The place beside this one: its last part replaced by `name`.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Store {
        let parent = self.prefix.rsplit_once('/').map_or("", |(parent, _)| parent);
        Store { prefix: join(parent, name).into(), ..self.clone() }
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("")
    }

    /// Where the object `path` is, for messages.
    #[must_use]
    pub fn url_of(&self, path: &str) -> String {
        let full = join(&self.prefix, path);
        // `memory://` and `file:///` end with the slash that separates.
        let slash = if full.is_empty() || self.backend.url.ends_with('/') { "" } else { "/" };
        format!("{}{slash}{full}", self.backend.url)
    }

    /// Writes an object whose name is used once, from parts that are concatenated. Repeated freely until the retry
    /// time-out; then `Unavailable`, which says by [`Error::applied`] whether it may be there. A big one goes in several
    /// requests, where the store has that; it appears whole or not at all.
    pub async fn put(&self, path: &str, body: Vec<Bytes>, purpose: Purpose) -> Result<()> {
        let (at, location) = (self.url_of(path), self.location(path)?);
        let bytes = body.iter().map(|part| part.len() as u64).sum();
        if let Some(uploads) = &self.backend.uploads
            && self.puts_of(bytes) > 1
        {
            let upload = Upload { path, at: &at, location: &location, bytes, purpose };
            return self.upload(uploads, upload, body).await;
        }
        self.put_whole(&at, location, body, purpose).await
    }

    async fn put_whole(&self, at: &str, location: Path, body: Vec<Bytes>, purpose: Purpose) -> Result<()> {
        let payload: PutPayload = body.into_iter().collect();
        let bytes = payload.content_length() as u64;
        let request = self.request(Operation::Put, purpose, at, bytes);
        let attempt = || {
            let (backend, location, payload) = (self.backend.clone(), location.clone(), payload.clone());
            boxed(async move {
                let put = backend.store.put(&location, payload);
                Backend::in_time(&backend.env, backend.options.request_timeout, bytes, put).await
            })
        };
        self.done(self.backend.repeat(request, attempt).await?, at).map(|_| ())
    }

    /// Creates an object unless one of that name is there, in one attempt. An error that says `Maybe` by
    /// [`Error::applied`] leaves open whether it happened, or still will: the caller repeats it with the same content
    /// and reads back.
    ///
    /// On a store without create-if-absent it is refused, but for a single process ([`Store::for_one_process`]).
    pub async fn create(&self, path: &str, body: Bytes, purpose: Purpose) -> Result<Created> {
        if self.one_process {
            return self.create_alone(path, body, purpose).await;
        }
        self.check_serves_cluster()?;
        let (at, location) = (self.url_of(path), self.location(path)?);
        let bytes = body.len() as u64;
        let request = self.request(Operation::Put, purpose, &at, bytes);
        let backend = self.backend.clone();
        let attempt = boxed(async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let put = backend.store.put_opts(&location, body.into(), options);
            Backend::in_time(&backend.env, backend.options.request_timeout, bytes, put).await
        });
        match self.backend.once(request, attempt).await {
            Ok(_) => Ok(Created::Now),
            Err(Failure::Exists) => Ok(Created::AlreadyExists),
            Err(Failure::Absent) => Err(absent_bucket(&self.backend.url, "it was not found").at(at)),
            Err(Failure::Final(e)) => Err(e.at(at)),
            Err(Failure::BeyondEnd(text)) => Err(Error::internal(format!("a write met a range error ({text})")).at(at)),
            Err(Failure::Again(trouble)) => Err(self.backend.unrepeated(request, &trouble)),
        }
    }

    /// A create for a process that is the only one: a look, and a plain write when nothing is there. Repeated after an
    /// unknown end it finds its own object, as the other way does.
    async fn create_alone(&self, path: &str, body: Bytes, purpose: Purpose) -> Result<Created> {
        if self.size(path, purpose).await?.is_some() {
            return Ok(Created::AlreadyExists);
        }
        self.put_whole(&self.url_of(path), self.location(path)?, vec![body], purpose).await.map(|()| Created::Now)
    }

    /// Reads an object; `None` when it is absent.
    pub async fn get(&self, path: &str, purpose: Purpose) -> Result<Option<Bytes>> {
        let at = self.url_of(path);
        match self.read(path, None, purpose, &at).await? {
            Reply::Done(body) => Ok(Some(body)),
            Reply::Absent => Ok(None),
            Reply::BeyondEnd(text) => Err(Error::internal(format!("a whole read met a range error ({text})")).at(at)),
        }
    }

    /// Reads bytes `range` of an object that must be there and that long; else a `Corrupt` error names it.
    pub async fn get_range(&self, path: &str, range: Range<u64>, purpose: Purpose) -> Result<Bytes> {
        let at = self.url_of(path);
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        let short = |detail: String| {
            Error::corrupt(format!("bytes {}..{} of an object were wanted, but {detail}", range.start, range.end))
                .code(4101)
                .at(&at)
                .next(CORRUPT_NEXT)
        };
        match self.read(path, Some(range.clone()), purpose, &at).await? {
            Reply::Done(body) if body.len() as u64 == range.end - range.start => Ok(body),
            Reply::Done(body) => Err(short(format!("it ends at {}", range.start + body.len() as u64))),
            Reply::BeyondEnd(text) => Err(short(format!("it is shorter ({text})"))),
            Reply::Absent => {
                Err(Error::corrupt("an object that must be there is absent").code(4100).at(&at).next(CORRUPT_NEXT))
            }
        }
    }

    /// The size of an object in bytes; `None` when it is absent.
    pub async fn size(&self, path: &str, purpose: Purpose) -> Result<Option<u64>> {
        let (at, location) = (self.url_of(path), self.location(path)?);
        let attempt = || {
            let (backend, location) = (self.backend.clone(), location.clone());
            boxed(async move {
                let head = backend.store.head(&location);
                Backend::in_time(&backend.env, backend.options.request_timeout, 0, head).await
            })
        };
        match self.backend.repeat(self.request(Operation::Head, purpose, &at, 0), attempt).await? {
            Reply::Absent => Ok(None),
            reply => self.done(reply, &at).map(|meta| Some(meta.size)),
        }
    }

    /// All objects below the folder `prefix` (whole segments; empty for all), however deep, sorted by path.
    pub async fn list(&self, prefix: &str, purpose: Purpose) -> Result<Vec<Listed>> {
        self.list_after(prefix, None, purpose).await
    }

    /// As [`Store::list`], but only those whose path is greater than `after` (a path below this store, as in
    /// [`Listed::path`]). On S3 the names before it are not transferred.
    pub async fn list_after(&self, prefix: &str, after: Option<&str>, purpose: Purpose) -> Result<Vec<Listed>> {
        let (at, folder) = (self.url_of(prefix), self.location(prefix)?);
        let after = after.map(|a| self.location(a)).transpose()?;
        let request = self.request(Operation::List, purpose, &at, 0);
        let attempt = || {
            let (backend, folder, after) = (self.backend.clone(), folder.clone(), after.clone());
            boxed(async move {
                let mut names = match &after {
                    Some(after) => backend.store.list_with_offset(Some(&folder), after),
                    None => backend.store.list(Some(&folder)),
                };
                let (env, limit) = (&backend.env, backend.options.request_timeout);
                let mut out = Vec::new();
                while let Some(meta) =
                    env.timeout(limit, "the listing", names.next()).await.map_err(|_| AttemptError::Slow(limit))?
                {
                    let meta = meta?;
                    out.push((meta.location, meta.size));
                }
                Ok(out)
            })
        };
        let found = match self.backend.repeat(request, attempt).await? {
            // A folder that does not exist holds nothing.
            Reply::Absent if self.backend.scheme == Scheme::File => Vec::new(),
            reply => self.done(reply, &at)?,
        };
        self.meter.count_requests(Operation::List, purpose, (found.len().saturating_sub(1) / NAMES_PER_LIST) as u64);
        let cut = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let mut listed: Vec<Listed> = found
            .into_iter()
            // Not every store knows where to start.
            .filter(|(path, _)| after.as_ref().is_none_or(|after| path > after))
            .filter_map(|(path, bytes)| Some(Listed { path: path.as_ref().get(cut..)?.to_owned(), bytes }))
            .collect();
        listed.sort_unstable();
        Ok(listed)
    }

    /// Deletes an object; that it is absent already is fine.
    pub async fn delete(&self, path: &str, purpose: Purpose) -> Result<()> {
        let (at, location) = (self.url_of(path), self.location(path)?);
        let attempt = || {
            let (backend, location) = (self.backend.clone(), location.clone());
            boxed(async move {
                let delete = backend.store.delete(&location);
                Backend::in_time(&backend.env, backend.options.request_timeout, 0, delete).await
            })
        };
        match self.backend.repeat(self.request(Operation::Delete, purpose, &at, 0), attempt).await? {
            Reply::Absent => Ok(()),
            reply => self.done(reply, &at),
        }
    }

    /// How many requests a put of `bytes` bytes is, when none is repeated.
    #[must_use]
    pub fn puts_of(&self, bytes: u64) -> u64 {
        let options = &self.backend.options;
        match &self.backend.uploads {
            // The beginning, the parts, the end.
            Some(_) if bytes > options.multipart_threshold_bytes => 2 + bytes.div_ceil(options.multipart_part_bytes),
            _ => 1,
        }
    }

    /// Deletes objects, in bulk where the store can; absent ones are fine. In the order of `paths` as far as pieces of 1,000
    /// go. Counted as one request a piece: only S3 has such requests, and deletes cost nothing. On an error some may
    /// be gone.
    pub async fn delete_all(&self, paths: &[String], purpose: Purpose) -> Result<()> {
        for piece in paths.chunks(NAMES_PER_DELETE) {
            let at = self.url_of(&piece[0]);
            let locations = piece.iter().map(|p| self.location(p)).collect::<Result<Vec<_>>>()?;
            let attempt = || {
                let (backend, locations) = (self.backend.clone(), locations.clone());
                boxed(async move {
                    let names = futures::stream::iter(locations.into_iter().map(Ok)).boxed();
                    let mut deleted = backend.store.delete_stream(names);
                    let (env, limit) = (&backend.env, backend.options.request_timeout);
                    loop {
                        let next = env.timeout(limit, "the delete", deleted.next()).await;
                        match next.map_err(|_| AttemptError::Slow(limit))? {
                            None => return Ok(()),
                            Some(Ok(_) | Err(object_store::Error::NotFound { .. })) => {}
                            Some(Err(e)) => return Err(e.into()),
                        }
                    }
                })
            };
            match self.backend.repeat(self.request(Operation::Delete, purpose, &at, 0), attempt).await? {
                Reply::Absent => {}
                reply => self.done(reply, &at)?,
            }
        }
        Ok(())
    }

    async fn read(&self, path: &str, range: Option<Range<u64>>, purpose: Purpose, at: &str) -> Result<Reply<Bytes>> {
        let location = self.location(path)?;
        let request = self.request(Operation::Get, purpose, at, 0);
        let attempt = || {
            let (backend, location) = (self.backend.clone(), location.clone());
            let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
            boxed(async move {
                let (env, limit) = (&backend.env, backend.options.request_timeout);
                let result = Backend::in_time(env, limit, 0, backend.store.get_opts(&location, options)).await?;
                read_body(env, limit, result).await
            })
        };
        let reply = self.backend.repeat(request, attempt).await?;
        if let Reply::Done(body) = &reply {
            self.meter.count_bytes(Operation::Get, purpose, body.len() as u64);
        }
        Ok(reply)
    }

    /// For operations on which neither absent objects nor ranges make sense.
    pub(crate) fn done<T>(&self, reply: Reply<T>, at: &str) -> Result<T> {
        match reply {
            Reply::Done(done) => Ok(done),
            Reply::Absent => Err(absent_bucket(&self.backend.url, "it was not found").at(at)),
            Reply::BeyondEnd(text) => Err(Error::internal(format!("a range error without a range ({text})")).at(at)),
        }
    }

    pub(crate) fn request<'a>(
        &'a self,
        operation: Operation,
        purpose: Purpose,
        at: &'a str,
        bytes: u64,
    ) -> Request<'a> {
        Request { operation, purpose, meter: &self.meter, at, bytes }
    }

    fn location(&self, path: &str) -> Result<Path> {
        let full = join(&self.prefix, path);
        Path::parse(&full).map_err(|e| {
            Error::config(format!("'{full}' cannot be the name of an object ({e})"))
                .code(1107)
                .at(&self.backend.url)
                .next("use names without control characters, empty parts, '.' and '..'")
        })
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.url()).finish()
    }
}

const CORRUPT_NEXT: &str = "somebody changed or deleted it; `millstream fsck` shows what else is missing";

fn join(prefix: &str, path: &str) -> String {
    let path = path.trim_matches('/');
    match (prefix.is_empty(), path.is_empty()) {
        (true, _) => path.to_owned(),
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}/{path}"),
    }
}

pub(crate) fn boxed<T>(
    future: impl Future<Output = Result<T, AttemptError>> + Send + 'static,
) -> crate::attempt::Attempt<T> {
    Box::pin(future)
}
