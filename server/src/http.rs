//! A minimal HTTP/1.1 responder: /metrics, and nothing else. It reads no body and keeps no state.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use millstream_common::{Env, Error, Lane, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::metrics::{self, MetricsSource};
use crate::usage;

/// Connections that are served at a time; further ones wait.
const CONNECTIONS: usize = 16;

/// Serves /metrics at `address` until the process ends; gives the address it listens at.
pub async fn serve(address: &str, source: Arc<dyn MetricsSource>, env: &Env) -> Result<String> {
    let taken = |e: std::io::Error| {
        Error::unavailable("/metrics cannot be served")
            .code(2201)
            .at(address)
            .next("choose another --metrics-listen")
            .source(e)
    };
    let listener = TcpListener::bind(address).await.map_err(taken)?;
    let bound = listener.local_addr().map_err(taken)?.to_string();
    let own = env.clone();
    // Runs as long as the process.
    drop(env.spawn(Lane::Io, "metrics", async move { accept(listener, source, own).await }));
    Ok(bound)
}

async fn accept(listener: TcpListener, source: Arc<dyn MetricsSource>, env: Env) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = Arc::clone(&source);
                drop(env.spawn(Lane::Io, "metrics-connection", async move {
                    answer(stream, source).await;
                    drop(place);
                }));
            }
            Err(e) => {
                tracing::warn!("/metrics: {e}");
                // Too many open files, most likely: it passes.
                env.sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, source: Arc<dyn MetricsSource>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(respond(request.method(), request.uri().path(), source.as_ref()).await) }
    });
    let served =
        hyper::server::conn::http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    if let Err(e) = served.await {
        tracing::debug!("/metrics: {e}");
    }
}

async fn respond(method: &Method, path: &str, source: &dyn MetricsSource) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET, "/metrics") => {
            let documents = source.documents().await;
            let text = metrics::render(&usage::of_this_process(), &source.figures(), &documents);
            (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use millstream_common::env::BoxFuture;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct One;

    impl MetricsSource for One {
        fn documents(&self) -> BoxFuture<'_, Vec<Value>> {
            Box::pin(async { vec![json!({"job": "j", "id": "1", "events_in": 42})] })
        }

        fn figures(&self) -> metrics::ProcessFigures {
            metrics::ProcessFigures::default()
        }
    }

    async fn ask(address: &str, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{line}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn metrics_are_served_and_nothing_else() {
        let env = Env::test(1);
        let address = serve("127.0.0.1:0", Arc::new(One), &env).await.unwrap();
        let text = ask(&address, "GET /metrics HTTP/1.1").await;
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("millstream_events_in_total{job=\"j\",id=\"1\"} 42"),
            "{text}"
        );
        assert!(ask(&address, "POST /metrics HTTP/1.1").await.starts_with("HTTP/1.1 405"));
        assert!(ask(&address, "GET /etc/passwd HTTP/1.1").await.starts_with("HTTP/1.1 404"));
        let e = serve(&address, Arc::new(One), &env).await.unwrap_err();
        assert!(e.number() == 2201 && e.to_string().contains(&address), "{e}");
    }
}
