//! The same for clients of librdkafka.

use std::path::Path;
use std::sync::Arc;

use millstream_common::env::Lane;
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::OAuthToken;

use super::bearer::{Bearer, FETCH_TIMEOUT, Token, bearer};
use super::{Sasl, Security, Tls, unreadable};

/// When librdkafka asks again for a token that does not say how long it is good, ms: the reference is then read anew.
const UNTOLD_LIFETIME_MS: i64 = 5 * 60 * 1_000;

impl Security {
    /// Sets the properties of a client of librdkafka; secrets are read now. For [`Sasl::OAuthBearer`] its context asks
    /// [`Tokens`] besides.
    pub fn to_librdkafka(&self, config: &mut ClientConfig) -> Result<()> {
        // Before librdkafka does it: else OpenSSL frees what its threads still use, when the process ends.
        openssl::init();
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            tls.to_librdkafka(config)?;
        }
        let Some(sasl) = &self.sasl else { return Ok(()) };
        config.set("sasl.mechanisms", sasl.mechanism());
        match sasl {
            Sasl::Plain(login) | Sasl::ScramSha256(login) | Sasl::ScramSha512(login) => {
                config.set("sasl.username", &login.user).set("sasl.password", login.password.read()?);
            }
            Sasl::OAuthBearer(_) => {}
        }
        Ok(())
    }
}

impl Tls {
    fn to_librdkafka(&self, config: &mut ClientConfig) -> Result<()> {
        // All files are read as our own connections do, for errors that name them.
        crate::client::tls_config(self)?;
        config.set("ssl.endpoint.identification.algorithm", "https");
        if !self.ca.is_empty() {
            let files = self.ca.iter().map(|path| std::fs::read_to_string(path).map_err(|e| unreadable(path, e)));
            config.set("ssl.ca.pem", files.collect::<Result<Vec<_>>>()?.join("\n"));
        }
        if let Some(client) = &self.client {
            config.set("ssl.certificate.location", path_text(&client.certificate)?);
            config.set("ssl.key.location", path_text(&client.key)?);
            if let Some(passphrase) = &client.passphrase {
                config.set("ssl.key.password", passphrase.read()?);
            }
        }
        Ok(())
    }
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| unreadable(path, "its name is not UTF-8"))
}

/// What a context of librdkafka gives for [`rdkafka::ClientContext::generate_oauth_token`].
#[derive(Clone)]
pub struct Tokens(Option<Arc<Inner>>);

struct Inner {
    env: Env,
    bearer: Bearer,
    last: Mutex<Option<Token>>,
}

impl Tokens {
    /// Without [`Sasl::OAuthBearer`] nobody asks for one.
    #[must_use]
    pub fn new(env: &Env, security: &Security) -> Self {
        Self(match &security.sasl {
            Some(Sasl::OAuthBearer(bearer)) => {
                Some(Arc::new(Inner { env: env.clone(), bearer: bearer.clone(), last: Mutex::default() }))
            }
            _ => None,
        })
    }

    /// Whether librdkafka will ask for one.
    pub(crate) fn are_needed(&self) -> bool {
        self.0.is_some()
    }

    /// A token that is good now. The first is waited for, at most 10 s; later ones are fetched while the last one is good.
    pub fn token(&self) -> Result<OAuthToken> {
        let inner = self.0.as_ref().ok_or_else(|| Error::internal("a token that nobody has asked for"))?;
        let now = inner.env.wall_ms();
        let last = inner.last.lock().clone().filter(|t| t.expires_ms.is_some_and(|expires| expires > now + 1_000));
        let (done, first) = std::sync::mpsc::sync_channel(1);
        let (this, waits) = (inner.clone(), last.is_none());
        inner.env.spawn(Lane::Io, "a token for librdkafka", async move {
            match bearer(&this.env, &this.bearer).await {
                Err(e) if !waits => tracing::warn!("no new token yet: {e}"),
                token => {
                    if let Ok(token) = &token {
                        *this.last.lock() = Some(token.clone());
                    }
                    // Who waits may have given up.
                    let _ = done.send(token);
                }
            }
        });
        let token = match last {
            Some(token) => token,
            None => first
                .recv_timeout(FETCH_TIMEOUT)
                .map_err(|e| Error::unavailable("no token came in time").code(2430).source(e))??,
        };
        Ok(OAuthToken {
            lifetime_ms: token.expires_ms.unwrap_or(now + UNTOLD_LIFETIME_MS),
            token: token.value,
            // Brokers take the name out of the token; librdkafka wants one all the same.
            principal_name: "millstream".to_owned(),
        })
    }
}
