use super::*;

const SECRET: &str = "hunter2";

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

fn read(pairs: &[(&str, &str)]) -> Security {
    Security::from_properties(&map(pairs)).unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
}

/// The number of the error and what it says; never a secret that is written out.
fn refused(pairs: &[(&str, &str)]) -> (u16, String) {
    let error = Security::from_properties(&map(pairs)).expect_err(&format!("{pairs:?}"));
    let text = format!("{error} {error:?}");
    assert!(error.is_final() && !text.contains(SECRET), "{text}");
    (error.number(), error.to_string())
}

fn says(pairs: &[(&str, &str)], number: u16, parts: &[&str]) {
    let (found, text) = refused(pairs);
    assert_eq!(found, number, "{pairs:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{part} in {text}");
    }
}

fn login() -> Login {
    Login { user: "u".into(), password: Secret::Env("P".into()) }
}

const USER: [(&str, &str); 2] = [(USERNAME, "u"), (PASSWORD, "env:P")];

#[test]
fn each_protocol_and_mechanism_has_its_names() {
    assert_eq!(read(&[]), Security::default());
    assert_eq!(read(&[(PROTOCOL, "PLAINTEXT")]), Security::default());
    assert_eq!(read(&[(PROTOCOL, "SSL")]), Security { tls: Some(Tls::default()), sasl: None });
    for (mechanism, sasl) in [
        ("PLAIN", Sasl::Plain(login())),
        ("SCRAM-SHA-256", Sasl::ScramSha256(login())),
        ("SCRAM-SHA-512", Sasl::ScramSha512(login())),
    ] {
        for (protocol, tls) in [("SASL_PLAINTEXT", None), ("sasl_ssl", Some(Tls::default()))] {
            let given = [&[(PROTOCOL, protocol), (MECHANISM, mechanism)], &USER[..]].concat();
            assert_eq!(read(&given), Security { tls, sasl: Some(sasl.clone()) });
            assert_eq!(sasl.mechanism(), mechanism);
        }
    }
}

#[test]
fn files_of_tls() {
    let client = [(CERTIFICATE, "/c.pem"), (KEY, "/c.key")];
    let ca = [(PROTOCOL, "SSL"), (CA, "/ca.pem")];
    let tls = |passphrase| {
        let client = ClientCertificate { certificate: "/c.pem".into(), key: "/c.key".into(), passphrase };
        Security { tls: Some(Tls { ca: vec!["/ca.pem".into()], client: Some(client) }), sasl: None }
    };
    assert_eq!(read(&[&ca[..], &client].concat()), tls(None));
    let encrypted = [(KEY_PASSWORD, "file:/p")];
    assert_eq!(read(&[&ca[..], &client, &encrypted].concat()), tls(Some(Secret::File("/p".into()))));
    says(&[ca[0], client[0]], CONTRADICTION, &[KEY]);
    says(&[ca[0], client[1]], CONTRADICTION, &[CERTIFICATE]);
    says(&[ca[0], encrypted[0]], CONTRADICTION, &[KEY]);
}

#[test]
fn tokens() {
    let by = |bearer| Security { tls: Some(Tls::default()), sasl: Some(Sasl::OAuthBearer(bearer)) };
    let begin = [(PROTOCOL, "SASL_SSL"), (MECHANISM, "OAUTHBEARER")];
    let token = [(TOKEN, "file:/t")];
    assert_eq!(read(&[&begin[..], &token].concat()), by(Bearer::Token(Secret::File("/t".into()))));
    let client = [(ENDPOINT, "https://id.example/token"), (CLIENT_ID, "me"), (CLIENT_SECRET, "env:S"), (SCOPE, "a b")];
    let credentials = |scope: Option<&str>| {
        by(Bearer::ClientCredentials(ClientCredentials {
            endpoint: "https://id.example/token".into(),
            client_id: "me".into(),
            client_secret: Secret::Env("S".into()),
            scope: scope.map(str::to_owned),
        }))
    };
    assert_eq!(read(&[&begin[..], &client].concat()), credentials(Some("a b")));
    assert_eq!(read(&[&begin[..], &client[..3]].concat()), credentials(None));
    for missing in 0..3 {
        let mut some = client.to_vec();
        let (name, _) = some.remove(missing);
        says(&[&begin[..], &some].concat(), CONTRADICTION, &[name]);
    }
    says(&[&begin[..], &token, &client].concat(), CONTRADICTION, &[TOKEN]);
    says(&[&begin[..], &token, &USER].concat(), CONTRADICTION, &[USERNAME]);
    let open = [(ENDPOINT, "http://id.example/token"), client[1], client[2]];
    says(&[&begin[..], &open].concat(), 1419, &["https://"]);
}

#[test]
fn a_secret_that_is_written_out_is_refused_and_not_shown() {
    let scram = [(PROTOCOL, "SASL_SSL"), (MECHANISM, "SCRAM-SHA-512"), (USERNAME, "u"), (PASSWORD, SECRET)];
    says(&scram, 1411, &[PASSWORD, "env:NAME", "file:PATH"]);
    let key = [(PROTOCOL, "SSL"), (CERTIFICATE, "/c"), (KEY, "/k"), (KEY_PASSWORD, SECRET)];
    says(&key, 1411, &[KEY_PASSWORD, "env:NAME"]);
    let token = [(PROTOCOL, "SASL_SSL"), (MECHANISM, "OAUTHBEARER"), (TOKEN, SECRET)];
    says(&token, 1411, &[TOKEN, "env:NAME"]);
    let client = [
        (PROTOCOL, "SASL_SSL"),
        (MECHANISM, "OAUTHBEARER"),
        (ENDPOINT, "https://id.example"),
        (CLIENT_ID, "me"),
        (CLIENT_SECRET, SECRET),
    ];
    says(&client, 1411, &[CLIENT_SECRET, "env:NAME"]);
    // Where it does not belong, it is not shown either.
    says(&[(PASSWORD, SECRET)], CONTRADICTION, &[PASSWORD]);
    says(&[("sasl.pasword", SECRET)], UNKNOWN, &["the nearest known one is sasl.password"]);
    says(&[("sasl.jaas.config", SECRET)], UNKNOWN, &["sasl.username and sasl.password"]);
}

#[test]
fn unknown_names_are_refused_with_what_is_meant() {
    for (name, part) in [
        ("security.protocoll", "security.protocol"),
        ("sasl.mechanisms", "sasl.mechanism"),
        ("sasl.user", "sasl.username"),
        ("ssl.ca.path", "ssl.ca.location"),
        ("ssl.truststore.location", "ssl.ca.location"),
        ("ssl.keystore.password", "ssl.certificate.location and ssl.key.location"),
        ("ssl.endpoint.identification.algorithm", "leave it away"),
        ("enable.ssl.certificate.verification", "leave it away"),
        ("sasl.kerberos.service.name", "OAUTHBEARER"),
        ("linger.ms", "there are security.protocol"),
    ] {
        says(&[(PROTOCOL, "SASL_SSL"), (name, "x")], UNKNOWN, &[name, part]);
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let sasl = [(MECHANISM, "PLAIN"), USER[0], USER[1]];
    for protocol in ["PLAINTEXT", "SSL"] {
        says(&[&[(PROTOCOL, protocol)], &sasl[..]].concat(), CONTRADICTION, &[MECHANISM, protocol, "SASL_SSL"]);
    }
    says(&sasl, CONTRADICTION, &["PLAINTEXT"]);
    for protocol in ["PLAINTEXT", "SASL_PLAINTEXT"] {
        let ca = [(PROTOCOL, protocol), (CA, "/ca")];
        says(&[&ca[..], &sasl].concat(), CONTRADICTION, &[CA, protocol, "SASL_SSL"]);
    }
    fn by<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [&[(PROTOCOL, "SASL_PLAINTEXT")], more].concat()
    }
    says(&by(&USER), CONTRADICTION, &[MECHANISM]);
    says(&by(&sasl[..1]), CONTRADICTION, &[USERNAME]);
    says(&by(&sasl[..2]), CONTRADICTION, &[PASSWORD]);
    says(&by(&[&sasl[..], &[(TOKEN, "env:T")]].concat()), CONTRADICTION, &[TOKEN, "PLAIN"]);
    says(&by(&[(MECHANISM, "GSSAPI")]), VALUE, &["GSSAPI", "SCRAM-SHA-256"]);
    says(&[(PROTOCOL, "TLS")], VALUE, &["TLS", "SASL_PLAINTEXT"]);
    says(&[(PROTOCOL, "SSL"), (CA, " ")], VALUE, &[CA]);
}

#[test]
fn others_are_left_for_librdkafka() {
    let all = map(&[(PROTOCOL, "SSL"), (CA, "/ca"), ("linger.ms", "5"), ("client.id", "me")]);
    let (security, others) = Security::split_properties(&all).unwrap();
    assert_eq!(security, read(&[(PROTOCOL, "SSL"), (CA, "/ca")]));
    assert_eq!(others, map(&[("client.id", "me"), ("linger.ms", "5")]));
    Security::check_properties(others.keys()).unwrap();
    let wrong = map(&[("ssl.cipher.suites", "x"), ("linger.ms", "5")]);
    assert_eq!(Security::split_properties(&wrong).unwrap_err().number(), UNKNOWN);
}
