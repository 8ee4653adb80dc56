//! TLS and SASL: how a cluster is reached, said once for librdkafka and for our own connections.
//!
//! Settings name files and [`Secret`]s and hold no content of either. Both are read when a connection is opened, so that one
//! that was changed is used by the next connection; by librdkafka, when the next consumer or producer is made. There is no
//! setting that leaves out the check of a broker's certificate or host name.

mod bearer;
#[cfg(feature = "librdkafka")]
mod librdkafka;
mod properties;
mod secret;

use std::path::PathBuf;

use millstream_common::{Error, Result};

pub(crate) use bearer::bearer;
pub use bearer::{Bearer, ClientCredentials};
#[cfg(feature = "librdkafka")]
pub use librdkafka::Tokens;
pub use secret::Secret;

/// How connections to brokers are secured; by default not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Encrypted, to brokers that prove who they are; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// How we prove who we are; `None`: not by SASL.
    pub sasl: Option<Sasl>,
}

/// What TLS needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files with the certificates that may vouch for a broker; none: those that the system trusts.
    pub ca: Vec<PathBuf>,
    /// What we show to brokers that ask for a certificate.
    pub client: Option<ClientCertificate>,
}

/// A certificate of our own, for brokers that want to know who connects (mutual TLS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file: the certificate, and behind it those up to the CA.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub key: PathBuf,
    /// What the key is encrypted with.
    pub passphrase: Option<Secret>,
}

/// A mechanism of SASL. Without TLS, `Plain` and `OAuthBearer` let everybody on the way read what proves us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sasl {
    /// PLAIN.
    Plain(Login),
    /// SCRAM-SHA-256.
    ScramSha256(Login),
    /// SCRAM-SHA-512.
    ScramSha512(Login),
    /// OAUTHBEARER.
    OAuthBearer(Bearer),
}

/// A user of the cluster. Name and password are sent as they are, without the normal forms of SASLprep, as brokers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

impl Sasl {
    /// As the protocol names it.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Plain(_) => "PLAIN",
            Self::ScramSha256(_) => "SCRAM-SHA-256",
            Self::ScramSha512(_) => "SCRAM-SHA-512",
            Self::OAuthBearer(_) => "OAUTHBEARER",
        }
    }
}

/// Properties of librdkafka that follow from [`Security`], by their beginnings.
const OURS: [&str; 6] = ["security.", "sasl.", "ssl.", "enable.ssl", "enable.sasl", "https."];

impl Security {
    /// What cannot be, without a look at files and secrets.
    pub fn check(&self) -> Result<()> {
        match &self.sasl {
            Some(Sasl::Plain(login) | Sasl::ScramSha256(login) | Sasl::ScramSha512(login)) if login.user.is_empty() => {
                Err(Error::config("the user of SASL has no name").code(1419))
            }
            Some(Sasl::OAuthBearer(bearer)) => bearer.check(),
            _ => Ok(()),
        }
    }

    /// Refuses properties of librdkafka that this says.
    pub fn check_properties<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let ours = |name: &&String| OURS.iter().any(|begin| name.starts_with(begin));
        match names.into_iter().find(ours) {
            None => Ok(()),
            Some(name) => {
                Err(Error::config(format!("the property {name}: TLS and SASL are no properties of librdkafka"))
                    .code(1418)
                    .next("use the security settings: they hold for all connections to the brokers"))
            }
        }
    }
}

/// A file of certificates or of a key that cannot be used.
pub(crate) fn unreadable(path: &std::path::Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::config("the file of a certificate or key cannot be used")
        .code(1413)
        .at(path.display().to_string())
        .next("name a PEM file that this process may read")
        .source(source)
}

#[cfg(test)]
mod tests;
