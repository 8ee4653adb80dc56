use rdkafka::ClientConfig;

use super::*;

fn login(user: &str, secret: &str) -> Login {
    Login { user: user.into(), password: secret.parse().unwrap() }
}

fn file(text: &str) -> (tempfile::NamedTempFile, Secret) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let secret = Secret::File(file.path().into());
    (file, secret)
}

fn set(security: &Security) -> Vec<(String, String)> {
    let mut config = ClientConfig::new();
    security.to_librdkafka(&mut config).unwrap();
    let names = ["security.protocol", "sasl.mechanisms", "sasl.username", "sasl.password", "ssl.ca.pem"];
    let value = |name: &&str| config.get(name).map(|value| ((*name).to_owned(), value.to_owned()));
    names.iter().filter_map(value).collect()
}

#[test]
fn a_secret_is_a_reference() {
    assert_eq!("env:NAME".parse::<Secret>().unwrap(), Secret::Env("NAME".into()));
    assert_eq!("file:/a:b".parse::<Secret>().unwrap(), Secret::File("/a:b".into()));
    for wrong in ["hunter2", "env:", "file:", "vault:x", ""] {
        let error = wrong.parse::<Secret>().unwrap_err();
        assert_eq!(error.number(), 1411);
        let text = format!("{error} {error:?}");
        assert!(text.contains("env:NAME") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_secret_is_read_each_time_without_its_line_end() {
    let (file, secret) = file("one\r\n");
    assert_eq!(secret.read().unwrap(), "one");
    std::fs::write(file.path(), " two \n\n").unwrap();
    assert_eq!(secret.read().unwrap(), " two \n");
    for wrong in ["", "\n", "a\0b"] {
        std::fs::write(file.path(), wrong).unwrap();
        assert_eq!(secret.read().unwrap_err().number(), 1412);
    }
    assert_eq!(Secret::Env("NO_SUCH_VARIABLE_HERE".into()).read().unwrap_err().number(), 1412);
    assert_eq!(Secret::File("/no/such/file".into()).read().unwrap_err().number(), 1412);
}

#[test]
fn librdkafka_is_told_the_same() {
    let (_file, password) = file("pass, word\n");
    let pairs = |them: &[(&str, &str)]| them.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect::<Vec<_>>();
    assert_eq!(set(&Security::default()), pairs(&[("security.protocol", "plaintext")]));
    let user = Login { user: "u".into(), password };
    let by = |sasl| set(&Security { tls: None, sasl: Some(sasl) });
    let with = |mechanism| {
        let (user, password) = (("sasl.username", "u"), ("sasl.password", "pass, word"));
        pairs(&[("security.protocol", "sasl_plaintext"), ("sasl.mechanisms", mechanism), user, password])
    };
    assert_eq!(by(Sasl::Plain(user.clone())), with("PLAIN"));
    assert_eq!(by(Sasl::ScramSha256(user.clone())), with("SCRAM-SHA-256"));
    assert_eq!(by(Sasl::ScramSha512(user)), with("SCRAM-SHA-512"));
    let bearer = Sasl::OAuthBearer(Bearer::Token(Secret::Env("T".into())));
    let expected = [("security.protocol", "sasl_plaintext"), ("sasl.mechanisms", "OAUTHBEARER")];
    assert_eq!(by(bearer), pairs(&expected));
}

#[test]
fn nothing_shows_a_secret() {
    let (_file, password) = file("hunter2");
    let security = Security { tls: None, sasl: Some(Sasl::Plain(Login { user: "u".into(), password })) };
    let mut config = ClientConfig::new();
    security.to_librdkafka(&mut config).unwrap();
    let shown = format!("{security:?} {config:?}");
    assert!(shown.contains("File(") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let (text, _) = file("no certificate");
    for path in [text.path(), std::path::Path::new("/no/such/file")] {
        let tls = Tls { ca: vec![path.into()], client: None };
        let error = Security { tls: Some(tls), sasl: None }.to_librdkafka(&mut ClientConfig::new()).unwrap_err();
        assert_eq!(error.number(), 1413);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let check = |sasl| Security { tls: None, sasl: Some(sasl) }.check().map_err(|e| e.number());
    assert_eq!(check(Sasl::Plain(login("", "env:P"))), Err(1419));
    assert_eq!(check(Sasl::Plain(login("u", "env:P"))), Ok(()));
    let at = |endpoint: &str| {
        let (client_id, client_secret) = ("id".into(), Secret::Env("S".into()));
        let client = ClientCredentials { endpoint: endpoint.into(), client_id, client_secret, scope: None };
        check(Sasl::OAuthBearer(Bearer::ClientCredentials(client)))
    };
    for good in ["https://id.example/token", "http://localhost:80/t", "http://127.0.0.1/t", "http://[::1]/t"] {
        assert_eq!(at(good), Ok(()), "{good}");
    }
    for wrong in ["", "id.example", "http://id.example/token", "http://localhost.example/t", "ftp://localhost/"] {
        assert_eq!(at(wrong), Err(1419), "{wrong}");
    }
    let names = |name: &str| Security::check_properties(&[name.to_owned()]).map_err(|e| e.number());
    assert_eq!(names("ssl.ca.location"), Err(1418));
    assert_eq!(names("client.id"), Ok(()));
}
