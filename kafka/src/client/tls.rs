//! TLS to brokers, and what its failures mean.

use std::io;
use std::sync::Arc;

use millstream_common::{Error, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::security::{ClientCertificate, Tls, unreadable};

/// Reads the files that the settings name.
pub(crate) fn tls_config(tls: &Tls) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for path in &tls.ca {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| unreadable(path, e))?;
        }
    }
    if tls.ca.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Error::config("the system trusts no CA")
                .code(1413)
                .next("install the package ca-certificates, or name the file of a CA"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("TLS has no version").source(e))?
        .with_root_certificates(roots);
    match &tls.client {
        None => Ok(config.with_no_client_auth()),
        Some(client) => config
            .with_client_auth_cert(certificates(&client.certificate)?, private_key(client)?)
            .map_err(|e| unreadable(&client.key, e)),
    }
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<std::result::Result<_, _>>)
        .map_err(|e| unreadable(path, e))?;
    if found.is_empty() { Err(unreadable(path, "there is no certificate in it")) } else { Ok(found) }
}

fn private_key(client: &ClientCertificate) -> Result<PrivateKeyDer<'static>> {
    let path = &client.key;
    let Some(passphrase) = &client.passphrase else {
        return PrivateKeyDer::from_pem_file(path).map_err(|e| unreadable(path, e));
    };
    // Which ways of encryption there are, OpenSSL knows, as it reads the same file for librdkafka.
    let pem = std::fs::read(path).map_err(|e| unreadable(path, e))?;
    let passphrase = passphrase.read()?;
    let der = openssl::pkey::PKey::private_key_from_pem_passphrase(&pem, passphrase.as_bytes())
        .and_then(|key| key.private_key_to_pkcs8())
        .map_err(|e| unreadable(path, e).next("name the passphrase with which this key is encrypted"))?;
    Ok(PrivatePkcs8KeyDer::from(der).into())
}

/// TLS on a connection to `broker`, `HOST:PORT`, whose certificate must be for that host.
pub(super) async fn connect(tls: &Tls, broker: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(tls_config(tls)?));
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned())
        .map_err(|e| Error::config("no certificate can be for this host name").code(1414).at(broker).source(e))?;
    connector.connect(name, stream).await.map_err(|e| match refusal(broker, &e) {
        Some(refused) => refused,
        None => Error::unavailable("the broker broke off while TLS was agreed on")
            .code(2431)
            .at(broker)
            .next("if this lasts: look whether this port of the broker speaks TLS")
            .source(e),
    })
}

/// The error of a connection that fails for good, since one side refuses the other. After TLS 1.3 was agreed on, too: only then a
/// broker looks at our certificate.
pub(super) fn refusal(broker: &str, error: &io::Error) -> Option<Error> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (what, code, next) = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            "no CA that is trusted here vouches for the certificate of the broker",
            1414,
            "name the file of the CA that issued it",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            "the certificate of the broker is for another host",
            1414,
            "name the broker as its certificate does, also in its advertised.listeners",
        ),
        rustls::Error::InvalidCertificate(_) => {
            ("the certificate of the broker is not good", 1414, "give the broker another one, or compare the clocks")
        }
        rustls::Error::AlertReceived(AlertDescription::InternalError | AlertDescription::UserCanceled) => return None,
        rustls::Error::AlertReceived(_) => (
            "the broker refuses TLS with us",
            1415,
            "see its log; it may want a certificate of the client, or one of another CA",
        ),
        rustls::Error::InvalidMessage(_) | rustls::Error::PeerIncompatible(_) => (
            "the broker speaks no TLS that is understood here",
            1415,
            "look whether this port of the broker speaks TLS",
        ),
        _ => return None,
    };
    Some(Error::config(what).code(code).at(broker).next(next).source(error.clone()))
}
