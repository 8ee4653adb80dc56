use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use millstream_common::ErrorKind;
use millstream_common::env::Runtimes;

use super::*;

/// Answers each request with the next of `answers`, whatever it is; then gives what was asked.
async fn serve(listener: TcpListener, answers: Vec<(u16, &'static str)>) -> Vec<String> {
    let mut asked = Vec::new();
    for (status, body) in answers {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, mut piece) = (Vec::new(), [0; 4096]);
        let is_whole = |request: &[u8]| {
            let text = String::from_utf8_lossy(request);
            text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
                let len = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                body.len() >= len.unwrap_or(0)
            })
        };
        while !is_whole(&request) {
            let n = stream.read(&mut piece).await.unwrap();
            request.extend_from_slice(&piece[..n]);
        }
        asked.push(String::from_utf8(request).unwrap());
        let answer =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    asked
}

fn registry(env: &Env, urls: &[String], credentials: Option<(&str, &str)>) -> HttpRegistry {
    let options = RegistryOptions {
        urls: urls.to_vec(),
        credentials: credentials.map(|(n, p)| (n.to_owned(), p.to_owned())),
        request_timeout: Duration::from_secs(10),
    };
    HttpRegistry::new(env.clone(), options).unwrap()
}

/// A registry that answers so, and what it was asked afterwards.
async fn with<T>(
    env: &Env,
    answers: Vec<(u16, &'static str)>,
    ask: impl AsyncFnOnce(&HttpRegistry) -> T,
) -> (T, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/base/", listener.local_addr().unwrap());
    let registry = registry(env, &[url], Some(("me", "secret")));
    futures::join!(ask(&registry), serve(listener, answers))
}

fn run<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Env) -> F) {
    let runtimes = Runtimes::start(1).unwrap();
    runtimes.block_on(test(runtimes.env()));
}

#[test]
fn schemas_are_asked_for_and_registered() {
    run(|env| async move {
        let answers = vec![(200, r#"{"schema":"\"int\"","references":[]}"#), (200, r#"{"id":7}"#)];
        let ((), asked) = with(&env, answers, async |registry| {
            assert_eq!(registry.schema(12).await.unwrap().unwrap(), r#""int""#);
            assert_eq!(registry.register("a/b-value", r#""int""#).await.unwrap(), 7);
        })
        .await;
        assert!(asked[0].starts_with("GET /base/schemas/ids/12 HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[0].to_lowercase().contains("\r\nauthorization: basic bwu6c2vjcmv0\r\n"), "{}", asked[0]);
        assert!(asked[1].starts_with("POST /base/subjects/a%2Fb-value/versions HTTP/1.1\r\n"), "{}", asked[1]);
        assert!(asked[1].ends_with(r#"{"schema":"\"int\""}"#), "{}", asked[1]);
    });
}

#[test]
fn refusals_say_what_to_do() {
    run(|env| async move {
        let none = r#"{"error_code":40403,"message":"Schema not found"}"#;
        let of = |error: Error| (error.kind(), error.number());
        let ((), _) = with(
            &env,
            vec![
                (404, none),
                (404, "<html>"),
                (401, ""),
                (503, r#"{"error_code":50003,"message":"no leader"}"#),
                (200, r#"{"schema":"","schemaType":"PROTOBUF"}"#),
                (200, r#"{"schema":"{}","references":[{"name":"a"}]}"#),
                (200, "hello"),
                (409, r#"{"error_code":409,"message":"type of x"}"#),
                (422, r#"{"error_code":42201,"message":"no type"}"#),
            ],
            async |registry| {
                assert_eq!(registry.schema(1).await.unwrap(), None);
                assert_eq!(of(registry.schema(1).await.unwrap_err()), (ErrorKind::Config, 1355));
                assert_eq!(of(registry.schema(1).await.unwrap_err()), (ErrorKind::Config, 1354));
                let error = registry.schema(1).await.unwrap_err();
                assert!(error.to_string().contains("no leader"), "{error}");
                assert_eq!(of(error), (ErrorKind::Unavailable, 2421));
                assert_eq!(of(registry.schema(1).await.unwrap_err()), (ErrorKind::Data, 3321));
                assert_eq!(of(registry.schema(1).await.unwrap_err()), (ErrorKind::Data, 3321));
                assert_eq!(of(registry.schema(1).await.unwrap_err()), (ErrorKind::Config, 1355));
                let error = registry.register("t-value", "{}").await.unwrap_err();
                assert!(
                    error.to_string().contains("'t-value': 409") && error.to_string().contains("type of x"),
                    "{error}"
                );
                assert_eq!(of(error), (ErrorKind::Config, 1356));
                assert_eq!(of(registry.register("t-value", "{}").await.unwrap_err()), (ErrorKind::Config, 1356));
            },
        )
        .await;
    });
}

#[test]
fn urls_are_tried_in_turn() {
    run(|env| async move {
        let listeners =
            [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let urls = listeners.each_ref().map(|l| format!("http://{}", l.local_addr().unwrap()));
        let [gone, there] = listeners;
        drop(gone);
        let down = registry(&env, &urls[..1], None).schema(1).await.unwrap_err();
        assert_eq!((down.kind(), down.number()), (ErrorKind::Unavailable, 2420));
        assert!(down.to_string().contains(&urls[0]), "{down}");
        let registry = registry(&env, &urls, None);
        let answers = vec![(200, r#"{"schema":"\"int\""}"#), (503, "")];
        let ask = async {
            assert!(registry.schema(1).await.unwrap().is_some());
            registry.schema(1).await.unwrap_err().number()
        };
        // The one that answered is asked first from now on; the last error is that of the other.
        assert_eq!(futures::join!(ask, serve(there, answers)).0, 2420);
        for url in ["ftp://host", "registry:8081", "http://me:secret@host", ""] {
            let options = RegistryOptions {
                urls: vec![url.to_owned()],
                credentials: None,
                request_timeout: Duration::from_secs(1),
            };
            let error = HttpRegistry::new(env.clone(), options).err().unwrap();
            assert!(error.number() == 1353 && !error.to_string().contains("secret"), "{error}");
        }
    });
}
