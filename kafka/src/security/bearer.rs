//! Tokens for OAUTHBEARER: from a reference, or from a token endpoint for a client's id and secret.
//!
//! A token is asked for by each connection of ours that is opened. librdkafka asks from its poll, which must not wait: it is
//! given the token that is there while the next one is fetched, and waits only for the first.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use millstream_common::{Env, Error, Result};
use serde::Deserialize;

use super::{Secret, Tls};

/// How long a token endpoint may take, and librdkafka waits for its first token.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// Somebody else keeps it current.
    Token(Secret),
    /// OpenID Connect, client credentials.
    ClientCredentials(ClientCredentials),
}

/// What a token endpoint is asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCredentials {
    /// `https://...`, by certificates that the system trusts; `http://` only on this machine.
    pub endpoint: String,
    /// Our name there.
    pub client_id: String,
    /// What proves it.
    pub client_secret: Secret,
    /// What the token is to be good for; none: what the endpoint gives without being asked.
    pub scope: Option<String>,
}

/// A token. Its value is in no `Debug`.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) value: String,
    /// Milliseconds since 1970; `None`: it does not say.
    pub(super) expires_ms: Option<i64>,
}

impl Bearer {
    pub(super) fn check(&self) -> Result<()> {
        let Self::ClientCredentials(client) = self else { return Ok(()) };
        let url = url::Url::parse(&client.endpoint).ok();
        let host = url.as_ref().and_then(url::Url::host);
        let here = match &host {
            Some(url::Host::Domain(name)) => *name == "localhost",
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        match url.as_ref().map(url::Url::scheme) {
            Some("https") if host.is_some() => Ok(()),
            Some("http") if here => Ok(()),
            _ => Err(Error::config("the token endpoint is no address that a secret may be sent to")
                .code(1419)
                .at(client.endpoint.clone())
                .next("give one that begins with https://")),
        }
    }
}

/// A token that is good now.
pub(crate) async fn bearer(env: &Env, bearer: &Bearer) -> Result<Token> {
    let (token, place) = match bearer {
        Bearer::Token(secret) => {
            let value = secret.read()?;
            (Token { expires_ms: expiry(&value), value }, secret.to_string())
        }
        Bearer::ClientCredentials(client) => (fetch(env, client).await?, client.endpoint.clone()),
    };
    if token.expires_ms.is_some_and(|expires| expires <= env.wall_ms()) {
        return Err(Error::unavailable("the token has expired")
            .code(2432)
            .at(place)
            .next("put a new one there, and compare the clocks"));
    }
    // Else it could end its field of the message, or that of librdkafka.
    if !token.value.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::config("what is to be a token has bytes that no token has").code(1412).at(place));
    }
    Ok(token)
}

/// When a token that is a JWT says that it expires, ms since 1970. Whether it is a good one only the broker can tell.
fn expiry(token: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| (claims.exp * 1e3) as i64)
}

/// RFC 6749, section 4.4.
async fn fetch(env: &Env, client: &ClientCredentials) -> Result<Token> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: Option<String>,
        /// A number; some endpoints write it as a text.
        expires_in: Option<serde_json::Value>,
        error: Option<String>,
        error_description: Option<String>,
    }
    let silent = |what: &str| Error::unavailable(what).code(2430).at(client.endpoint.clone());
    let secret = client.client_secret.read()?;
    let asked_ms = env.wall_ms();
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let who = BASE64_STANDARD.encode(format!("{}:{}", encoded(&client.client_id), encoded(&secret)));
    let scope = client.scope.as_ref().map(|scope| format!("&scope={}", encoded(scope))).unwrap_or_default();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(crate::client::tls_config(&Tls::default())?)
        // Secrets go where the settings say, and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(FETCH_TIMEOUT)
        .build()
        .map_err(|e| Error::internal("no HTTP client can be made").source(e))?;
    let request = http
        .post(&client.endpoint)
        .header("authorization", format!("Basic {who}"))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(format!("grant_type=client_credentials{scope}"));
    let response = request.send().await.map_err(|e| silent("the token endpoint does not answer").source(e))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|e| silent("the token endpoint broke off").source(e))?;
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    if status.is_client_error() && !matches!(status.as_u16(), 408 | 429) {
        let (error, description) = answer.map(|a| (a.error, a.error_description)).unwrap_or_default();
        let why = [error, description].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Err(Error::config(format!("the token endpoint refuses the client: {status} {why}"))
            .code(1416)
            .at(client.endpoint.clone())
            .next("correct the client's id, its secret or the scope"));
    }
    let Some(Answer { access_token: Some(value), expires_in, .. }) = answer.filter(|_| status.is_success()) else {
        return Err(silent(&format!("the token endpoint answers {status}, without a token")));
    };
    let seconds = expires_in.and_then(|e| e.as_f64().or_else(|| e.as_str()?.parse().ok()));
    let expires_ms = seconds.map(|seconds| asked_ms.saturating_add((seconds * 1e3) as i64)).or(expiry(&value));
    Ok(Token { value, expires_ms })
}
