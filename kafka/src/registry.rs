//! A schema registry over HTTP: Confluent's, or one that answers as it does (Karapace, Redpanda, Apicurio's `/apis/ccompat/v7`).
//!
//! Asks for schemas by id and registers them under subjects. Each URL is tried in turn, that which answered last first. Nothing is
//! asked twice in one call, and nothing is remembered: who asks knows what is worth it.
//! Source: the API reference of Confluent's Schema Registry.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_common::env::BoxFuture;
use millstream_common::{Env, Error, Result};
use millstream_formats::avro::SchemaRegistry;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Request, StatusCode, Url};
use serde::Deserialize;

/// The form of requests and answers.
const JSON: HeaderValue = HeaderValue::from_static("application/vnd.schemaregistry.v1+json");

/// The largest answer that is taken, bytes.
const ANSWER_MAX: usize = 16 << 20;

/// What a registry says of an id that it has not.
const NO_SCHEMA: u32 = 40403;

/// How to reach a schema registry.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Where it answers: `http://HOST:PORT`, perhaps with a path. Several are one registry.
    pub urls: Vec<String>,
    /// Name and password, when it asks for them.
    pub credentials: Option<(String, String)>,
    /// How long one URL may take to answer.
    pub request_timeout: Duration,
}

/// A schema registry that is asked over HTTP.
pub struct HttpRegistry {
    env: Env,
    client: Client,
    urls: Vec<Url>,
    credentials: Option<(String, String)>,
    request_timeout: Duration,
    /// The URL that answered last.
    first: AtomicUsize,
}

/// What came back.
struct Answer {
    status: StatusCode,
    bytes: Vec<u8>,
    from: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    schema: String,
    schema_type: Option<String>,
    references: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error_code: u32,
    message: String,
}

impl HttpRegistry {
    /// Asks nothing yet; an error names a URL that is none.
    pub fn new(env: Env, options: RegistryOptions) -> Result<Self> {
        let none = |what: String| Error::config(what).code(1353).next("give URLs like http://HOST:8081");
        if options.urls.is_empty() {
            return Err(none("no schema registry is named".into()));
        }
        let urls = options.urls.iter().map(|text| match Url::parse(text) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") || !url.has_host() => {
                Err(none(format!("'{text}' is no URL of a schema registry")))
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                Err(none("name and password of a schema registry do not belong into its URL".into()))
            }
            Ok(url) => Ok(url),
            Err(e) => Err(none(format!("'{text}' is no URL of a schema registry")).source(e)),
        });
        let urls = urls.collect::<Result<_>>()?;
        // An error means that a provider is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().build();
        let client = client.map_err(|e| Error::config("no HTTP client can be made").code(1353).source(e))?;
        let RegistryOptions { credentials, request_timeout, .. } = options;
        Ok(Self { env, client, urls, credentials, request_timeout, first: AtomicUsize::new(0) })
    }

    /// Asks for `path` below a URL: POST with a body, GET without.
    async fn ask(&self, path: &[&str], body: Option<Vec<u8>>) -> Result<Answer> {
        let first = self.first.load(Ordering::Relaxed);
        let mut last = None;
        for i in 0..self.urls.len() {
            let at = (first + i) % self.urls.len();
            let from = self.urls[at].to_string();
            let request = self.request(&self.urls[at], path, body.clone())?;
            let answer = self.env.timeout(self.request_timeout, "the schema registry", self.fetch(request)).await;
            let unreachable = |e: Error| e.code(2420).at(from.clone());
            match answer.map_err(unreachable).and_then(|a| a.map_err(unreachable)) {
                // Another one may serve.
                Ok((status, bytes)) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    let answer = Answer { status, bytes, from };
                    last =
                        Some(answer.refused(Error::unavailable("the schema registry refuses a request for now"), 2421));
                }
                Ok((status, bytes)) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(Answer { status, bytes, from });
                }
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("a schema registry without URLs")))
    }

    fn request(&self, url: &Url, path: &[&str], body: Option<Vec<u8>>) -> Result<Request> {
        let mut url = url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // A slash within a subject is none of the path's.
            segments.pop_if_empty().extend(path);
        }
        let mut request = match body {
            None => self.client.get(url),
            Some(body) => self.client.post(url).header(CONTENT_TYPE, JSON).body(body),
        };
        if let Some((name, password)) = &self.credentials {
            request = request.basic_auth(name, Some(password));
        }
        let built = request.header(ACCEPT, JSON).build();
        built.map_err(|e| Error::internal("a request to a schema registry cannot be made").source(e))
    }

    async fn fetch(&self, request: Request) -> Result<(StatusCode, Vec<u8>)> {
        let broke =
            |e: reqwest::Error| Error::unavailable("the schema registry cannot be reached").source(e.without_url());
        let mut response = self.client.execute(request).await.map_err(broke)?;
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(broke)? {
            if bytes.len() + piece.len() > ANSWER_MAX {
                return Err(Error::unavailable("the schema registry answers with too much"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((response.status(), bytes))
    }
}

impl Answer {
    fn refusal(&self) -> Refusal {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// `error`, with what the registry said and where.
    fn refused(&self, error: Error, code: u16) -> Error {
        let message = self.refusal().message;
        error.code(code).at(self.from.clone()).source(format!("{} {message}", self.status).trim_end().to_owned())
    }

    /// What the answer says when it is one.
    fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        if matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let error = Error::config("the schema registry denies access");
            return Err(self.refused(error, 1354).next("check the name and the password for it"));
        }
        let strange = Error::config("what answers is no schema registry").next("check its URL, whose path counts, too");
        if !self.status.is_success() {
            return Err(self.refused(strange, 1355));
        }
        serde_json::from_slice(&self.bytes).map_err(|e| strange.code(1355).at(self.from.clone()).source(e))
    }
}

impl SchemaRegistry for HttpRegistry {
    fn schema(&self, id: u32) -> BoxFuture<'_, Result<Option<String>>> {
        Box::pin(async move {
            let answer = self.ask(&["schemas", "ids", &id.to_string()], None).await?;
            if answer.status == StatusCode::NOT_FOUND && answer.refusal().error_code == NO_SCHEMA {
                return Ok(None);
            }
            let Schema { schema, schema_type, references } = answer.read()?;
            let unfit = |what| Err(Error::data(format!("schema {id} of the registry {what}")).code(3321));
            match schema_type.as_deref() {
                Some(other) if other != "AVRO" => unfit(format!("is of type {other}, not AVRO")),
                _ if references.is_some_and(|r| !r.is_empty()) => {
                    unfit("refers to others, which is not built yet".to_owned())
                }
                _ => Ok(Some(schema)),
            }
        })
    }

    fn register(&self, subject: &str, schema: &str) -> BoxFuture<'_, Result<u32>> {
        let body = serde_json::json!({ "schema": schema }).to_string().into_bytes();
        let subject = subject.to_owned();
        Box::pin(async move {
            let answer = self.ask(&["subjects", &subject, "versions"], Some(body)).await?;
            let refused = |what: &str| answer.refused(Error::config(format!("{what} '{subject}'")), 1356);
            match answer.status {
                StatusCode::CONFLICT => Err(refused(
                    "the schema registry refuses a schema for its compatibility with subject",
                )
                .next("change the columns so that they fit those before, or the subject's level of compatibility")),
                StatusCode::UNPROCESSABLE_ENTITY => {
                    Err(refused("the schema registry does not take the schema for subject"))
                }
                _ => Ok(answer.read::<Registered>()?.id),
            }
        })
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
