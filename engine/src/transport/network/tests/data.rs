//! Data connections over sockets.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use millstream_common::{Env, Epoch, Execution};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::super::encode::Encoder;
use super::super::frame::PAYLOAD_BYTES_MAX;
use super::super::{Network, NetworkSettings, handshake};
use super::codec::encode;
use super::{Proxy, network, samples, soon};
use crate::element::{Barrier, BarrierKind, StreamElement};
use crate::transport::{DATA_PLACES, DATA_QUEUE, DataConnection, Transport};

/// A worker's address and what arrives there.
async fn worker() -> (String, mpsc::Receiver<DataConnection>) {
    network().listen_data().await.unwrap()
}

/// Both ends of a connection.
async fn pair() -> (mpsc::Sender<StreamElement>, DataConnection) {
    let (address, mut arrivals) = worker().await;
    let tx = network().connect_data(&address, samples::key()).await.unwrap();
    (tx, soon(arrivals.recv()).await.unwrap())
}

/// A connection that has said `hello` and got `answer` bytes back.
async fn raw(address: &str, hello: &[u8], answer: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(hello).await.unwrap();
    soon(stream.read_exact(&mut vec![0; answer])).await.unwrap();
    stream
}

/// Sends `element` until nobody has taken one for a second; how many were taken.
async fn send_until_it_stops(tx: &mpsc::Sender<StreamElement>, element: &StreamElement) -> usize {
    let env = Env::test(1);
    let mut sent = 0;
    while env.timeout(Duration::from_secs(1), "sending", tx.send(element.clone())).await.is_ok() {
        sent += 1;
        assert!(sent <= DATA_PLACES, "nothing stops the sender");
    }
    sent
}

fn batch(element: Option<StreamElement>) -> RecordBatch {
    match element {
        Some(StreamElement::Batch(batch)) => batch,
        other => panic!("no batch but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_sent_comes_in_order_and_then_the_end() {
    let (tx, mut connection) = pair().await;
    assert_eq!(connection.key, samples::key());
    let barrier = |kind| StreamElement::Barrier(Barrier { epoch: Epoch(2), kind });
    let mut sent = Vec::new();
    for i in 0..60 {
        sent.push(StreamElement::Batch(samples::batch(i * 40)));
        sent.push(StreamElement::Batch(samples::numbers(i.into(), 20_000)));
        sent.push(StreamElement::Watermark(i.into()));
        sent.push(StreamElement::Idle);
        sent.push(barrier(BarrierKind::Checkpoint));
    }
    sent.push(barrier(BarrierKind::Rescale(Arc::new(samples::assignment()))));
    sent.push(barrier(BarrierKind::Last));
    let sending = sent.clone();
    let sender = async move {
        for element in sending {
            tx.send(element).await.unwrap();
        }
        // The sender is gone at once; what is queued still arrives.
    };
    let receiver = async {
        for expected in &sent {
            let came = connection.elements.recv().await.unwrap();
            match (expected, came) {
                (StreamElement::Batch(a), StreamElement::Batch(b)) => assert_eq!(*a, b),
                (a, b) => assert_eq!(format!("{a:?}"), format!("{b:?}")),
            }
        }
        assert!(connection.elements.recv().await.is_none());
    };
    soon(futures::future::join(sender, receiver)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_element_goes_at_once() {
    let (tx, mut connection) = pair().await;
    for i in 0..5 {
        tx.send(StreamElement::Watermark(i)).await.unwrap();
        let came = soon(connection.elements.recv()).await;
        assert!(matches!(came, Some(StreamElement::Watermark(t)) if t == i));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_does_not_read_stops_the_sender() {
    let (tx, mut connection) = pair().await;
    // The kernel's buffers would hold hundreds of them.
    let sent = send_until_it_stops(&tx, &StreamElement::Batch(samples::numbers(0, 1_000))).await;
    assert!(sent >= 2 * DATA_QUEUE, "{sent} went before it stopped");
    // Whoever reads sets it free again, and nothing was lost.
    let read = batch(soon(connection.elements.recv()).await);
    assert_eq!(read.num_rows(), 1_000);
    let rest = async {
        for _ in 1..sent {
            batch(connection.elements.recv().await);
        }
    };
    soon(rest).await;
    soon(tx.send(StreamElement::Idle)).await.unwrap();
    assert!(matches!(soon(connection.elements.recv()).await, Some(StreamElement::Idle)));
}

/// Grants come in while the sender has long gone, and are no reason to lose what it has sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_the_end_waits_for_a_receiver_that_comes_late() {
    let (env, (tx, mut connection)) = (Env::test(1), pair().await);
    let sent = send_until_it_stops(&tx, &StreamElement::Batch(samples::numbers(0, 50_000))).await;
    drop(tx);
    for _ in 0..sent {
        assert_eq!(batch(soon(connection.elements.recv()).await).num_rows(), 50_000);
        env.sleep(Duration::from_millis(20)).await;
    }
    assert!(soon(connection.elements.recv()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_cannot_be_closes_the_senders_queue() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(handshake::read(&mut stream).await.is_ok());
        handshake::answer(&mut stream, handshake::Answer::Taken).await.unwrap();
        stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        stream
    };
    let (_stream, tx) = soon(futures::future::join(peer, network().connect_data(&address, samples::key()))).await;
    soon(tx.unwrap().closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_seen_at_both_ends() {
    let (address, mut arrivals) = worker().await;
    let proxy = Proxy::before(&address).await;
    let tx = network().connect_data(&proxy.address, samples::key()).await.unwrap();
    let mut connection = soon(arrivals.recv()).await.unwrap();
    tx.send(StreamElement::Watermark(1)).await.unwrap();
    assert!(soon(connection.elements.recv()).await.is_some());
    proxy.cut();
    // Without a send: an idle channel must notice too.
    soon(tx.closed()).await;
    assert!(tx.send(StreamElement::Idle).await.is_err());
    assert!(soon(connection.elements.recv()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_seen_by_a_sender_that_is_stuck() {
    let (address, mut arrivals) = worker().await;
    let proxy = Proxy::before(&address).await;
    let tx = network().connect_data(&proxy.address, samples::key()).await.unwrap();
    let _unread = soon(arrivals.recv()).await.unwrap();
    // 64 MB each: it is stuck in a write, with credit left, and not for want of credit.
    send_until_it_stops(&tx, &StreamElement::Batch(samples::numbers(0, 8_000_000))).await;
    proxy.cut();
    soon(tx.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_goes_closes_the_senders_queue() {
    let (tx, connection) = pair().await;
    drop(connection);
    soon(tx.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_be_sent_closes_the_connection_behind_what_went_before() {
    let (tx, mut connection) = pair().await;
    tx.send(StreamElement::Watermark(1)).await.unwrap();
    tx.send(StreamElement::Batch(samples::dictionary())).await.unwrap();
    soon(tx.closed()).await;
    assert!(matches!(soon(connection.elements.recv()).await, Some(StreamElement::Watermark(1))));
    assert!(soon(connection.elements.recv()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_another_execution_and_damaged_ones_end_the_connection() {
    let (address, mut arrivals) = worker().await;
    let hello = handshake::encode(&samples::key()).unwrap();
    let frame =
        |execution| encode(&mut Encoder::new(Execution(execution), PAYLOAD_BYTES_MAX), &StreamElement::Watermark(5));
    let damaged = {
        let mut bytes = frame(7);
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    for second in [frame(6), damaged, frame(7)[..10].to_vec(), b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()] {
        let mut stream = raw(&address, &hello, 8).await;
        let mut connection = soon(arrivals.recv()).await.unwrap();
        stream.write_all(&frame(7)).await.unwrap();
        assert!(matches!(soon(connection.elements.recv()).await, Some(StreamElement::Watermark(5))));
        stream.write_all(&second).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(soon(connection.elements.recv()).await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_worker_is_cut_off() {
    let (address, mut arrivals) = worker().await;
    let mut stream = raw(&address, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", 0).await;
    assert!(!matches!(soon(stream.read(&mut [0; 8])).await, Ok(1..)));
    assert!(arrivals.try_recv().is_err());
    // Of another version: it is told so.
    let mut other = handshake::encode(&samples::key()).unwrap();
    other[4] = 1;
    let mut stream = raw(&address, &other, 0).await;
    let mut answer = [0; 8];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, *b"MSDX\x02\x00\x01\x00");
    let refused = handshake::read_answer(&mut b"MSDX\x03\x00\x01\x00".as_slice()).await.unwrap_err();
    assert!(refused.to_string().contains("version 3"), "{refused}");
}

/// In virtual time: nothing else happens here, so the clock runs ahead to the time-out.
#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_cut_off_after_five_seconds() {
    let env = Env::test(1);
    let network = Network::new(env.clone(), NetworkSettings::default());
    let (address, _arrivals) = network.listen_data().await.unwrap();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"MSDX").await.unwrap();
    let start = env.now();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    let waited = env.now().since(start);
    assert!(waited >= Duration::from_secs(4) && waited < Duration::from_secs(7), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_an_error_with_the_address() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let refused = network().connect_data(&unused, samples::key()).await.unwrap_err();
    assert!(refused.number() == 2151 && refused.to_string().contains(&unused), "{refused}");
    // A listener whose worker has stopped.
    let (address, arrivals) = worker().await;
    drop(arrivals);
    let gone = async {
        loop {
            match network().connect_data(&address, samples::key()).await {
                Err(error) if error.number() == 2151 => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    assert!(soon(gone).await.to_string().contains(&address));
}
