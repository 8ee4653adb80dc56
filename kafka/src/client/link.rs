//! How frames reach a broker.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::ApiKey;
use millstream_common::env::BoxFuture;
use millstream_common::kill_points::kill_point;
use millstream_common::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::tls;
use crate::security::Tls;

/// The largest answer that is taken, bytes. What we ask for is far smaller; a larger length is no answer of a broker.
const ANSWER_MAX: usize = 100 << 20;

/// What a request begins with that ends a transaction: its number.
const END_TXN: [u8; 2] = (ApiKey::EndTxn as i16).to_be_bytes();

/// A connection to one broker. One exchange at a time; after one that failed or was given up it is to be thrown away.
pub trait Link: Send {
    /// Sends a request (header and body, without its length) and gives the answer to it.
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, Result<Bytes>>;
}

/// Opens connections.
pub trait Dial: Send + Sync {
    /// A connection to `broker`, `HOST:PORT`, on which requests may be sent at once; encrypted when `tls` says how.
    fn dial<'a>(&'a self, broker: &'a str, tls: Option<&'a Tls>) -> BoxFuture<'a, Result<Box<dyn Link>>>;
}

/// TCP, with TLS on it where it is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial<'a>(&'a self, broker: &'a str, tls: Option<&'a Tls>) -> BoxFuture<'a, Result<Box<dyn Link>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(broker)
                .await
                .map_err(|e| Error::unavailable("the broker cannot be reached").code(2401).at(broker).source(e))?;
            // Requests are small and wait for their answers.
            let _ = stream.set_nodelay(true);
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(stream),
                Some(tls) => Box::new(tls::connect(tls, broker, stream).await?),
            };
            Ok(Box::new(TcpLink { broker: broker.to_owned(), stream }) as Box<dyn Link>)
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct TcpLink {
    broker: String,
    stream: Box<dyn Stream>,
}

impl Link for TcpLink {
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            let answer = exchange(&mut self.stream, &request).await;
            answer.map_err(|e| match tls::refusal(&self.broker, &e) {
                Some(refused) => refused,
                None => Error::unavailable("the connection to the broker broke")
                    .code(2402)
                    .at(self.broker.clone())
                    .next("if this lasts: look whether this port of the broker wants TLS or SASL")
                    .source(e),
            })
        })
    }
}

/// Lengths are big-endian and do not count themselves.
async fn exchange(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), request: &Bytes) -> std::io::Result<Bytes> {
    let wrong = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let len = u32::try_from(request.len()).map_err(|_| wrong("a request of more than 4 GiB"))?;
    let mut frame = BytesMut::with_capacity(4 + request.len());
    frame.put_u32(len);
    frame.extend_from_slice(request);
    stream.write_all(&frame).await?;
    stream.flush().await?;
    if request.starts_with(&END_TXN) {
        kill_point("end-sent");
    }
    let len = stream.read_u32().await? as usize;
    if len > ANSWER_MAX {
        return Err(wrong("no broker answers here: the length of the answer cannot be"));
    }
    let mut answer = vec![0; len];
    stream.read_exact(&mut answer).await?;
    Ok(answer.into())
}
