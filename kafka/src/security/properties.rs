//! TLS and SASL by name, for jobs whose settings are text. The names are those that clients of Kafka have for the same.

use std::collections::BTreeMap;
use std::fmt;

use millstream_common::{Error, Result};
use millstream_engine::dataflow::nearest;

use super::{Bearer, ClientCertificate, ClientCredentials, Login, OURS, Sasl, Secret, Security, Tls};

/// There is no property of this name.
const UNKNOWN: u16 = 1427;
/// Two properties do not go together, or one lacks another.
const CONTRADICTION: u16 = 1428;
/// A property cannot have this value.
const VALUE: u16 = 1429;

const PROTOCOL: &str = "security.protocol";
const MECHANISM: &str = "sasl.mechanism";
const USERNAME: &str = "sasl.username";
const PASSWORD: &str = "sasl.password";
const TOKEN: &str = "sasl.oauthbearer.token";
const ENDPOINT: &str = "sasl.oauthbearer.token.endpoint.url";
const CLIENT_ID: &str = "sasl.oauthbearer.client.id";
const CLIENT_SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const CA: &str = "ssl.ca.location";
const CERTIFICATE: &str = "ssl.certificate.location";
const KEY: &str = "ssl.key.location";
const KEY_PASSWORD: &str = "ssl.key.password";

/// All there are.
const NAMES: [&str; 13] = [
    PROTOCOL,
    MECHANISM,
    USERNAME,
    PASSWORD,
    TOKEN,
    ENDPOINT,
    CLIENT_ID,
    CLIENT_SECRET,
    SCOPE,
    CA,
    CERTIFICATE,
    KEY,
    KEY_PASSWORD,
];

/// Names that other clients have for what is said otherwise here, by their beginnings.
const ELSEWHERE: [(&str, &str); 7] = [
    ("sasl.jaas.config", "give sasl.username and sasl.password, or sasl.oauthbearer.*"),
    ("sasl.oauthbearer.client.credentials.", "give sasl.oauthbearer.client.id and sasl.oauthbearer.client.secret"),
    ("ssl.truststore.", "give ssl.ca.location, a PEM file"),
    ("ssl.keystore.", "give ssl.certificate.location and ssl.key.location, PEM files"),
    ("ssl.endpoint.identification.algorithm", LEAVE_AWAY),
    ("enable.ssl.certificate.verification", LEAVE_AWAY),
    ("sasl.kerberos.", "use PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"),
];
const LEAVE_AWAY: &str = "leave it away: the certificate and the host name of a broker are always looked at";

/// What connections do, as `security.protocol` names it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Protocol {
    tls: bool,
    sasl: bool,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.tls, self.sasl) {
            (false, false) => "PLAINTEXT",
            (true, false) => "SSL",
            (false, true) => "SASL_PLAINTEXT",
            (true, true) => "SASL_SSL",
        })
    }
}

impl Security {
    /// Reads properties by name:
    ///
    /// | name | value |
    /// |---|---|
    /// | `security.protocol` | PLAINTEXT (default), SSL, SASL_PLAINTEXT, SASL_SSL |
    /// | `ssl.ca.location` | a PEM file of CAs; without it those that the system trusts |
    /// | `ssl.certificate.location`, `ssl.key.location` | PEM files: a certificate of our own |
    /// | `ssl.key.password` | a [`Secret`]: what that key is encrypted with |
    /// | `sasl.mechanism` | PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER |
    /// | `sasl.username`, `sasl.password` | the password is a [`Secret`] |
    /// | `sasl.oauthbearer.token` | a [`Secret`]: a token that somebody else keeps current |
    /// | `sasl.oauthbearer.token.endpoint.url`, `.client.id`, `.client.secret`, `.scope` | below `sasl.oauthbearer`: tokens of an endpoint; `.client.secret` is a [`Secret`] |
    ///
    /// Errors show what stands at `security.protocol`, `sasl.mechanism` and the endpoint, and no other value.
    pub fn from_properties(properties: &BTreeMap<String, String>) -> Result<Self> {
        if let Some(name) = properties.keys().find(|name| !NAMES.contains(&name.as_str())) {
            return Err(unknown(name));
        }
        if let Some((name, _)) = properties.iter().find(|(_, value)| value.trim().is_empty()) {
            return Err(Error::config(format!("the property {name} has no value")).code(VALUE));
        }
        let given = Given { protocol: protocol(properties.get(PROTOCOL))?, properties };
        if !given.protocol.tls {
            given.refuse(|name| name.starts_with("ssl."), "SSL or SASL_SSL")?;
        }
        if !given.protocol.sasl {
            given.refuse(|name| name.starts_with("sasl."), "SASL_SSL or SASL_PLAINTEXT")?;
        }
        let tls = given.protocol.tls.then(|| given.tls()).transpose()?;
        let sasl = given.protocol.sasl.then(|| given.sasl()).transpose()?;
        let security = Self { tls, sasl };
        security.check()?;
        Ok(security)
    }

    /// The same for properties among which there are others, which are for librdkafka and given back.
    pub fn split_properties(all: &BTreeMap<String, String>) -> Result<(Self, BTreeMap<String, String>)> {
        let is_ours = |name: &str| OURS.iter().any(|begin| name.starts_with(begin));
        let (ours, others) = all.iter().map(|(n, v)| (n.clone(), v.clone())).partition(|(name, _)| is_ours(name));
        Ok((Self::from_properties(&ours)?, others))
    }
}

fn unknown(name: &str) -> Error {
    let error = Error::config(format!("there is no property {name} of TLS and SASL")).code(UNKNOWN);
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(begin, _)| name.starts_with(begin)) {
        return error.next(*instead);
    }
    match nearest(name, NAMES) {
        Some(near) => error.next(format!("the nearest known one is {near}")),
        None => error.next(format!("there are {}", NAMES.join(", "))),
    }
}

fn protocol(text: Option<&String>) -> Result<Protocol> {
    let all = [(false, false), (true, false), (false, true), (true, true)].map(|(tls, sasl)| Protocol { tls, sasl });
    let text = text.map_or("PLAINTEXT", String::as_str);
    let found = all.into_iter().find(|p| p.to_string().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        Error::config(format!("there is no {PROTOCOL} {text:?}"))
            .code(VALUE)
            .next(format!("write {}", all.map(|p| p.to_string()).join(", ")))
    })
}

struct Given<'a> {
    protocol: Protocol,
    properties: &'a BTreeMap<String, String>,
}

impl Given<'_> {
    /// Refuses what has no meaning without another protocol.
    fn refuse(&self, is_it: impl Fn(&str) -> bool, wants: &str) -> Result<()> {
        match self.properties.keys().find(|name| is_it(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("the property {name} has no meaning with {PROTOCOL} {}", self.protocol);
                Err(Error::config(what)
                    .code(CONTRADICTION)
                    .next(format!("give {PROTOCOL}={wants}, or leave {name} away")))
            }
        }
    }

    fn tls(&self) -> Result<Tls> {
        let client = match (self.get(CERTIFICATE), self.get(KEY)) {
            (None, None) => match self.get(KEY_PASSWORD) {
                None => None,
                Some(_) => return Err(lacks(KEY_PASSWORD, KEY)),
            },
            (Some(_), None) => return Err(lacks(CERTIFICATE, KEY)),
            (None, Some(_)) => return Err(lacks(KEY, CERTIFICATE)),
            (Some(certificate), Some(key)) => {
                let passphrase = self.get(KEY_PASSWORD).map(|_| self.secret(KEY_PASSWORD)).transpose()?;
                Some(ClientCertificate { certificate: certificate.into(), key: key.into(), passphrase })
            }
        };
        Ok(Tls { ca: self.get(CA).map(Into::into).into_iter().collect(), client })
    }

    fn sasl(&self) -> Result<Sasl> {
        let mechanism = self.get(MECHANISM).ok_or_else(|| lacks(PROTOCOL, MECHANISM))?;
        let by_login: fn(Login) -> Sasl = match mechanism {
            "PLAIN" => Sasl::Plain,
            "SCRAM-SHA-256" => Sasl::ScramSha256,
            "SCRAM-SHA-512" => Sasl::ScramSha512,
            "OAUTHBEARER" => {
                self.refuse_beside(&[USERNAME, PASSWORD], &format!("{MECHANISM} {mechanism}"))?;
                return Ok(Sasl::OAuthBearer(self.bearer()?));
            }
            other => {
                return Err(Error::config(format!("there is no {MECHANISM} {other:?} here"))
                    .code(VALUE)
                    .next("write PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"));
            }
        };
        self.refuse_beside(&[TOKEN, ENDPOINT, CLIENT_ID, CLIENT_SECRET, SCOPE], &format!("{MECHANISM} {mechanism}"))?;
        let user = self.get(USERNAME).ok_or_else(|| lacks(MECHANISM, USERNAME))?.to_owned();
        self.get(PASSWORD).ok_or_else(|| lacks(USERNAME, PASSWORD))?;
        Ok(by_login(Login { user, password: self.secret(PASSWORD)? }))
    }

    fn bearer(&self) -> Result<Bearer> {
        if self.get(TOKEN).is_some() {
            self.refuse_beside(&[ENDPOINT, CLIENT_ID, CLIENT_SECRET, SCOPE], TOKEN)?;
            return Ok(Bearer::Token(self.secret(TOKEN)?));
        }
        let endpoint = self.get(ENDPOINT).ok_or_else(|| lacks(MECHANISM, ENDPOINT))?.to_owned();
        let client_id = self.get(CLIENT_ID).ok_or_else(|| lacks(ENDPOINT, CLIENT_ID))?.to_owned();
        self.get(CLIENT_SECRET).ok_or_else(|| lacks(CLIENT_ID, CLIENT_SECRET))?;
        let (client_secret, scope) = (self.secret(CLIENT_SECRET)?, self.get(SCOPE).map(str::to_owned));
        Ok(Bearer::ClientCredentials(ClientCredentials { endpoint, client_id, client_secret, scope }))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// A reference, of a property that is given. What stands there otherwise is not shown: it may be the secret.
    fn secret(&self, name: &str) -> Result<Secret> {
        self.get(name).unwrap_or_default().parse().map_err(|e: Error| e.at(name))
    }

    /// Refuses properties that have no meaning beside another one.
    fn refuse_beside(&self, names: &[&str], other: &str) -> Result<()> {
        match names.iter().find(|name| self.get(name).is_some()) {
            None => Ok(()),
            Some(name) => {
                let what = format!("the property {name} has no meaning beside {other}");
                Err(Error::config(what).code(CONTRADICTION).next("leave one of them away"))
            }
        }
    }
}

fn lacks(name: &str, other: &str) -> Error {
    Error::config(format!("the property {name} is of no use without {other}"))
        .code(CONTRADICTION)
        .next(format!("give {other}, too"))
}

#[cfg(test)]
#[path = "properties_tests.rs"]
mod tests;
