//! TLS and SASL on a real broker: our own connections and the source, which is librdkafka's, by the same settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use millstream_common::{Env, Error, ErrorKind, Result};
use millstream_engine::source::{Source, Split, SplitReader};
use millstream_kafka::client::{At, Brokers, BrokersOptions, Isolation, TcpDial};
use millstream_kafka::security::{
    Bearer, ClientCertificate, ClientCredentials, Login, Sasl, Secret, Security, Tls, Tokens,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::sink::write_once;
use super::source::{all, fill, lines, next, options, source};
use super::support::{create_topic, run, secured, unique, variable};

/// Errors that stay are told at once, though passing ones are waited out for longer.
const AT_ONCE: Duration = Duration::from_secs(5);

pub(crate) fn login() -> Login {
    Login { user: variable("KAFKA_USER"), password: Secret::Env("KAFKA_PASSWORD".into()) }
}

pub(crate) fn tls() -> Tls {
    Tls { ca: vec![variable("KAFKA_CA").into()], client: None }
}

/// One of the files beside that of the CA.
fn beside_ca(name: &str) -> PathBuf {
    Path::new(&variable("KAFKA_CA")).with_file_name(name)
}

/// A token that nobody has signed; the test broker takes them.
fn token(env: &Env, good_s: i64) -> String {
    let now = env.wall_ms() / 1_000;
    let claims = format!(r#"{{"sub":"somebody","iat":{},"exp":{}}}"#, now - 60, now + good_s);
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims))
}

fn file(text: &str) -> (tempfile::NamedTempFile, Secret) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let secret = Secret::File(file.path().into());
    (file, secret)
}

fn only(sasl: Sasl) -> Security {
    Security { tls: None, sasl: Some(sasl) }
}

async fn topic_of_ten() -> String {
    let topic = unique("secured");
    create_topic(&topic, 1).await;
    fill(&topic, 0, 0..10, None);
    topic
}

/// A request of ours to the broker named first, and one to the leader that it names.
async fn ask(env: &Env, at: &str, security: &Security, topic: &str) -> Result<()> {
    let place = (topic.to_owned(), 0);
    let found = secured(env, at, security).offsets(&[(place.clone(), At::Latest)], Isolation::ReadCommitted).await?;
    assert_eq!(found[&place], 10);
    Ok(())
}

/// What librdkafka meets: without the requests of ours by which partitions are found.
async fn read(env: &Env, at: &str, security: &Security, topic: &str) -> Result<usize> {
    let mut reader = reader(env, at, security, topic)?;
    Ok(next(&mut *reader, 10).await?.map_or(0, |batch| batch.num_rows()))
}

fn reader(env: &Env, at: &str, security: &Security, topic: &str) -> Result<Box<dyn SplitReader>> {
    let mut o = options(topic);
    (o.bootstrap, o.security, o.retry_timeout) = (vec![at.to_owned()], security.clone(), Duration::from_secs(60));
    let source = source(env, o);
    let payload = format!(r#"{{"topic":"{topic}","partition":0,"start":0,"stop":10}}"#).into_bytes();
    source.reader(&Split { id: format!("{topic}/0"), payload }, None)
}

async fn works(env: &Env, at: &str, security: &Security, topic: &str) {
    let name = variable(at);
    ask(env, &name, security, topic).await.unwrap_or_else(|e| panic!("{at}, {security:?}: {e}"));
    let mut o = options(topic);
    (o.bootstrap, o.security) = (vec![name.clone()], security.clone());
    let rows = env.timeout(Duration::from_secs(20), at, all(&source(env, o))).await;
    assert_eq!(rows.unwrap_or_else(|e| panic!("{at}, {security:?}: {e}")), [lines(0..10)]);
    write_once(env, &name, security).await;
}

/// The error that both meet at once.
async fn fails(env: &Env, at: &str, security: &Security, number: u16) -> Error {
    let checked = |who: &str, e: Error| {
        assert_eq!((e.number(), e.kind()), (number, ErrorKind::Config), "{who} at {at}, {security:?}: {e}");
        e
    };
    let read = env.timeout(AT_ONCE, "librdkafka", read(env, at, security, "x")).await;
    checked("librdkafka", read.and_then(|read| read).unwrap_err());
    let asked = env.timeout(AT_ONCE, "we", ask(env, at, security, "x")).await;
    checked("we", asked.and_then(|asked| asked).unwrap_err())
}

#[test]
fn each_mechanism_over_tcp_and_over_tls() {
    run(|env| async move {
        let topic = topic_of_ten().await;
        let (_file, secret) = file(&token(&env, 600));
        let mechanisms = [
            Sasl::Plain(login()),
            Sasl::ScramSha256(login()),
            Sasl::ScramSha512(login()),
            Sasl::OAuthBearer(Bearer::Token(secret)),
        ];
        for sasl in mechanisms {
            works(&env, "KAFKA_BOOTSTRAP_SASL", &only(sasl.clone()), &topic).await;
            let both = Security { tls: Some(tls()), sasl: Some(sasl) };
            works(&env, "KAFKA_BOOTSTRAP_SASL_TLS", &both, &topic).await;
        }
    });
}

#[test]
fn tls_without_and_with_a_certificate_of_ours() {
    run(|env| async move {
        let topic = topic_of_ten().await;
        let by = |client| Security { tls: Some(Tls { client, ..tls() }), sasl: None };
        works(&env, "KAFKA_BOOTSTRAP_TLS", &by(None), &topic).await;
        let client = |key: &str, passphrase| {
            Some(ClientCertificate { certificate: beside_ca("client.pem"), key: beside_ca(key), passphrase })
        };
        works(&env, "KAFKA_BOOTSTRAP_MTLS", &by(client("client.key", None)), &topic).await;
        let passphrase = Some(Secret::Env("KAFKA_PASSWORD".into()));
        works(&env, "KAFKA_BOOTSTRAP_MTLS", &by(client("client-encrypted.key", passphrase)), &topic).await;
        // Two CAs, one of which has nothing to do with the broker.
        let two = Tls { ca: vec![beside_ca("client.pem"), beside_ca("ca.pem")], client: None };
        works(&env, "KAFKA_BOOTSTRAP_TLS", &Security { tls: Some(two), sasl: None }, &topic).await;

        let wrong = Some(Secret::Env("KAFKA_USER".into()));
        let at = variable("KAFKA_BOOTSTRAP_MTLS");
        let error = fails(&env, &at, &by(client("client-encrypted.key", wrong)), 1413).await;
        assert!(error.to_string().contains("client-encrypted.key"), "{error}");
        fails(&env, &at, &by(client("client-encrypted.key", None)), 1413).await;
    });
}

/// Brokers before Apache Kafka 3.5 cannot say so: what they answer is no TLS.
#[test]
fn a_broker_that_wants_a_certificate_of_ours_says_so() {
    run(|env| async move {
        let without = Security { tls: Some(tls()), sasl: None };
        fails(&env, &variable("KAFKA_BOOTSTRAP_MTLS"), &without, 1415).await;
    });
}

#[test]
fn a_broker_that_is_not_the_one_is_refused() {
    run(|env| async move {
        let at = variable("KAFKA_BOOTSTRAP_TLS");
        let by = |ca| Security { tls: Some(Tls { ca, client: None }), sasl: None };
        let error = fails(&env, &at, &by(vec![beside_ca("client.pem")]), 1414).await;
        assert!(error.to_string().contains("no CA that is trusted here"), "{error}");
        fails(&env, &at, &by(vec![]), 1414).await;
        let other = at.replace("127.0.0.1", "localhost");
        let error = fails(&env, &other, &by(tls().ca), 1414).await;
        assert!(error.to_string().contains("for another host"), "{error}");
    });
}

#[test]
fn credentials_that_are_refused() {
    run(|env| async move {
        let at = variable("KAFKA_BOOTSTRAP_SASL");
        let (_file, password) = file("not it");
        let wrong = Login { password, ..login() };
        let nobody = Login { user: "nobody".into(), ..login() };
        for login in [wrong, nobody] {
            for sasl in [Sasl::Plain(login.clone()), Sasl::ScramSha256(login.clone()), Sasl::ScramSha512(login)] {
                let error = fails(&env, &at, &only(sasl), 1416).await;
                assert!(!error.to_string().contains("not it"), "{error}");
            }
        }
        let (_file, forged) = file("a.b.c");
        fails(&env, &at, &only(Sasl::OAuthBearer(Bearer::Token(forged))), 1416).await;
        let (_file, expired) = file(&token(&env, -10));
        let expired = only(Sasl::OAuthBearer(Bearer::Token(expired)));
        let error = secured(&env, &at, &expired).cluster(Some(&[])).await.unwrap_err();
        assert_eq!((error.number(), error.kind()), (2432, ErrorKind::Unavailable), "{error}");
        let missing = Login { password: Secret::File("/no/such/file".into()), ..login() };
        fails(&env, &at, &only(Sasl::Plain(missing)), 1412).await;
    });
}

#[test]
fn a_port_that_speaks_otherwise_is_told() {
    run(|env| async move {
        let first = async |at: &str, security: &Security| {
            let asked = secured(&env, &variable(at), security).cluster(Some(&[])).await;
            asked.unwrap_err().number()
        };
        let scram = only(Sasl::ScramSha256(login()));
        assert_eq!(first("KAFKA_BOOTSTRAP", &scram).await, 1417);
        let encrypted = Security { tls: Some(tls()), sasl: None };
        // These may be a broker that is about to end as well.
        assert_eq!(first("KAFKA_BOOTSTRAP", &encrypted).await, 2431);
        assert_eq!(first("KAFKA_BOOTSTRAP_TLS", &Security::default()).await, 2402);
        assert_eq!(first("KAFKA_BOOTSTRAP_SASL", &Security::default()).await, 2402);
    });
}

#[test]
fn a_secret_that_was_changed_is_used_by_the_next_connection() {
    run(|env| async move {
        let topic = topic_of_ten().await;
        let (file, password) = file("old");
        let security = only(Sasl::ScramSha256(Login { password, ..login() }));
        let at = variable("KAFKA_BOOTSTRAP_SASL");
        fails(&env, &at, &security, 1416).await;
        let mut of_yesterday = reader(&env, &at, &security, &topic).unwrap();
        std::fs::write(file.path(), variable("KAFKA_PASSWORD") + "\n").unwrap();
        // librdkafka goes on with what it was given: its end is a restart of the job.
        let error = env.timeout(AT_ONCE, "librdkafka", next(&mut *of_yesterday, 10)).await.unwrap().unwrap_err();
        assert_eq!((error.number(), error.kind()), (2411, ErrorKind::Unavailable), "{error}");
        works(&env, "KAFKA_BOOTSTRAP_SASL", &security, &topic).await;
    });
}

/// The broker of the tests gives SCRAM-SHA-512 three seconds on this port, and then ends a connection that asks for more.
#[test]
fn a_connection_is_renewed_before_its_time_is_up() {
    run(|env| async move {
        let security = only(Sasl::ScramSha512(login()));
        let options = BrokersOptions {
            bootstrap: vec![variable("KAFKA_BOOTSTRAP_SASL")],
            security,
            request_timeout: Duration::from_secs(5),
            // Without another try when a connection broke.
            retry_timeout: Duration::ZERO,
        };
        let brokers = Brokers::new(env.clone(), Arc::new(TcpDial), options);
        for _ in 0..3 {
            brokers.cluster(Some(&[])).await.unwrap();
            env.sleep(Duration::from_millis(3_300)).await;
        }
    });
}

/// A token endpoint that takes one client: asked once after the other, it gives tokens that are good for so many seconds.
async fn token_endpoint(env: &Env, good_s: i64) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}/token", listener.local_addr().unwrap());
    let of_server = env.clone();
    env.spawn(millstream_common::env::Lane::Io, "a token endpoint", async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"grant_type=client_credentials&scope=a+b") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            let request = String::from_utf8(request).unwrap();
            // The id and the secret, each encoded as in a form, in base64.
            let good = request.starts_with("POST /token ") && request.contains("authorization: Basic bWU6cyUyNmVjcmV0");
            let (status, body) = match good {
                true => {
                    ("200 OK", format!(r#"{{"access_token":"{}","expires_in":{good_s}}}"#, token(&of_server, good_s)))
                }
                false => ("401 Unauthorized", r#"{"error":"invalid_client"}"#.to_owned()),
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    at
}

#[test]
fn tokens_of_an_endpoint() {
    run(|env| async move {
        let topic = topic_of_ten().await;
        let (_file, client_secret) = file("s&ecret");
        let by = |endpoint: &str, client_secret: &Secret| {
            let (client_id, scope) = ("me".into(), Some("a b".into()));
            let (endpoint, client_secret) = (endpoint.to_owned(), client_secret.clone());
            let client = ClientCredentials { endpoint, client_id, client_secret, scope };
            only(Sasl::OAuthBearer(Bearer::ClientCredentials(client)))
        };
        let endpoint = token_endpoint(&env, 600).await;
        works(&env, "KAFKA_BOOTSTRAP_SASL", &by(&endpoint, &client_secret), &topic).await;
        let (_other, wrong) = file("other");
        let error = fails(&env, &variable("KAFKA_BOOTSTRAP_SASL"), &by(&endpoint, &wrong), 1416).await;
        assert!(error.to_string().contains("invalid_client"), "{error}");

        // What is still good is given at once; the next one is fetched meanwhile.
        let tokens = Tokens::new(&env, &by(&token_endpoint(&env, 4).await, &client_secret));
        let first = tokens.token().unwrap();
        env.sleep(Duration::from_millis(1_500)).await;
        assert_eq!(tokens.token().unwrap().token, first.token);
        env.sleep(Duration::from_millis(500)).await;
        assert!(tokens.token().unwrap().lifetime_ms > first.lifetime_ms);

        let silent = by("http://127.0.0.1:1/token", &client_secret);
        let error = secured(&env, &variable("KAFKA_BOOTSTRAP_SASL"), &silent).cluster(None).await.unwrap_err();
        assert_eq!((error.number(), error.kind()), (2430, ErrorKind::Unavailable), "{error}");
    });
}
