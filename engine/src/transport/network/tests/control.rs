//! Sessions and calls over gRPC.

use std::time::Duration;

use millstream_common::{Env, Lane};
use millstream_proto::control::{
    ClientReply, ClientRequest, Info, JobSpec, LeaderInfo, Ping, ToCoordinator, ToWorker, client_reply, client_request,
    to_coordinator, to_worker,
};
use millstream_proto::control::{Deploy, Hello, Welcome};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Proxy, network, soon};
use crate::transport::{Arrival, CoordinatorLink, Transport, WorkerLink};

fn hello(pid: u32) -> ToCoordinator {
    ToCoordinator { message: Some(to_coordinator::Message::Hello(Hello { pid, ..Hello::default() })) }
}

fn welcome(generation: u64) -> ToWorker {
    ToWorker { message: Some(to_worker::Message::Welcome(Welcome { generation })) }
}

fn info() -> ClientRequest {
    ClientRequest { request: Some(client_request::Request::Info(Info {})) }
}

async fn coordinator() -> (String, mpsc::Receiver<Arrival>) {
    let (address, arrivals) = network().serve_coordinator("127.0.0.1:0").await.unwrap();
    (address.to_string(), arrivals)
}

async fn worker_link(arrivals: &mut mpsc::Receiver<Arrival>) -> CoordinatorLink {
    match soon(arrivals.recv()).await {
        Some(Arrival::Worker(link)) => link,
        _ => panic!("no worker came"),
    }
}

/// Both ends of a session; the coordinator goes on as long as the receiver is kept.
async fn session() -> (WorkerLink, CoordinatorLink, mpsc::Receiver<Arrival>) {
    let (address, mut arrivals) = coordinator().await;
    let worker = network().connect_coordinator(&address).await.unwrap();
    (worker, worker_link(&mut arrivals).await, arrivals)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_messages_both_ways_in_order() {
    let (mut worker, mut coordinator, _arrivals) = session().await;
    for i in 0..500 {
        worker.tx.send(hello(i)).await.unwrap();
        coordinator.tx.send(welcome(i.into())).await.unwrap();
    }
    for i in 0..500 {
        assert_eq!(soon(coordinator.rx.recv()).await, Some(hello(i)));
        assert_eq!(soon(worker.rx.recv()).await, Some(welcome(i.into())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_go() {
    let (mut worker, mut coordinator, _arrivals) = session().await;
    let spec = JobSpec { args: vec!["x".repeat(1 << 20); 40], ..JobSpec::default() };
    let deploy = Deploy { spec: Some(spec), ..Deploy::default() };
    let sent = ToWorker { message: Some(to_worker::Message::Deploy(deploy)) };
    coordinator.tx.send(sent.clone()).await.unwrap();
    assert!(soon(worker.rx.recv()).await == Some(sent));
    worker.tx.send(hello(1)).await.unwrap();
    assert_eq!(soon(coordinator.rx.recv()).await, Some(hello(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_goes_ends_the_session_behind_its_last_words() {
    let (worker, mut coordinator, _arrivals) = session().await;
    for i in 0..100 {
        worker.tx.send(hello(i)).await.unwrap();
    }
    drop(worker);
    for i in 0..100 {
        assert_eq!(soon(coordinator.rx.recv()).await, Some(hello(i)));
    }
    assert_eq!(soon(coordinator.rx.recv()).await, None);
    soon(coordinator.tx.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_goes_ends_the_session_behind_its_last_words() {
    let (mut worker, coordinator, _arrivals) = session().await;
    for i in 0..100 {
        coordinator.tx.send(welcome(i)).await.unwrap();
    }
    drop(coordinator);
    for i in 0..100 {
        assert_eq!(soon(worker.rx.recv()).await, Some(welcome(i)));
    }
    assert_eq!(soon(worker.rx.recv()).await, None);
    soon(worker.tx.closed()).await;
}

/// More than the windows of HTTP/2 hold, so that most of it still waits when the link is dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_last_words_arrive_too() {
    let text = "x".repeat(1 << 20);
    let (worker, mut coordinator, _arrivals) = session().await;
    let last = Hello { data_address: text.clone(), ..Hello::default() };
    let last = ToCoordinator { message: Some(to_coordinator::Message::Hello(last)) };
    for _ in 0..30 {
        worker.tx.try_send(last.clone()).unwrap();
    }
    drop(worker);
    for nth in 0..30 {
        assert!(soon(coordinator.rx.recv()).await.as_ref() == Some(&last), "message {nth} of the worker");
    }
    assert!(soon(coordinator.rx.recv()).await.is_none());

    let (mut worker, coordinator, _arrivals) = session().await;
    let spec = JobSpec { name: text, ..JobSpec::default() };
    let last = Deploy { spec: Some(spec), ..Deploy::default() };
    let last = ToWorker { message: Some(to_worker::Message::Deploy(last)) };
    for _ in 0..30 {
        coordinator.tx.try_send(last.clone()).unwrap();
    }
    drop(coordinator);
    for nth in 0..30 {
        assert!(soon(worker.rx.recv()).await.as_ref() == Some(&last), "message {nth} of the coordinator");
    }
    assert!(soon(worker.rx.recv()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dropped_queue_ends_all_four() {
    for dropped in 0..4 {
        let (worker, coordinator, _arrivals) = session().await;
        let (mut a, mut b, mut c, mut d) =
            (Some(worker.tx), Some(worker.rx), Some(coordinator.tx), Some(coordinator.rx));
        match dropped {
            0 => drop(a.take()),
            1 => drop(b.take()),
            2 => drop(c.take()),
            _ => drop(d.take()),
        }
        for tx in [a].into_iter().flatten() {
            soon(tx.closed()).await;
        }
        for tx in [c].into_iter().flatten() {
            soon(tx.closed()).await;
        }
        if let Some(mut rx) = b {
            assert_eq!(soon(rx.recv()).await, None);
        }
        if let Some(mut rx) = d {
            assert_eq!(soon(rx.recv()).await, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_is_seen_at_both_ends() {
    let (address, mut arrivals) = coordinator().await;
    let proxy = Proxy::before(&address).await;
    let mut worker = network().connect_coordinator(&proxy.address).await.unwrap();
    let mut link = worker_link(&mut arrivals).await;
    worker.tx.send(hello(1)).await.unwrap();
    assert_eq!(soon(link.rx.recv()).await, Some(hello(1)));
    proxy.cut();
    assert_eq!(soon(worker.rx.recv()).await, None);
    assert_eq!(soon(link.rx.recv()).await, None);
    soon(worker.tx.closed()).await;
    soon(link.tx.closed()).await;
}

/// The proxy neither passes anything on nor closes, as when a machine loses its power.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_noticed_by_pings() {
    let (address, mut arrivals) = coordinator().await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxied = proxy.local_addr().unwrap().to_string();
    let (silence, silent) = tokio::sync::oneshot::channel::<()>();
    let env = Env::test(1);
    env.spawn(Lane::Io, "proxy", async move {
        let (mut near, _) = proxy.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
        millstream_common::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => (),
            _ = silent => std::future::pending().await,
        }
    });
    let mut worker = network().connect_coordinator(&proxied).await.unwrap();
    let mut link = worker_link(&mut arrivals).await;
    worker.tx.send(hello(1)).await.unwrap();
    assert_eq!(soon(link.rx.recv()).await, Some(hello(1)));
    silence.send(()).unwrap();
    let start = env.now();
    assert_eq!(soon(worker.rx.recv()).await, None);
    assert_eq!(soon(link.rx.recv()).await, None);
    let waited = env.now().since(start);
    assert!(waited > Duration::from_secs(1) && waited < Duration::from_secs(9), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_its_answer_however_late() {
    let (address, mut arrivals) = coordinator().await;
    let env = Env::test(1);
    let answering = env.spawn(Lane::Io, "coordinator", async move {
        while let Some(arrival) = arrivals.recv().await {
            let Arrival::Client(call) = arrival else { panic!("a worker came") };
            assert_eq!(call.request, info());
            // Longer than any time-out of connecting.
            Env::test(1).sleep(Duration::from_millis(2500)).await;
            let info = LeaderInfo { generation: 4, state_url: "memory:".to_owned() };
            let _ = call.reply.send(ClientReply { reply: Some(client_reply::Reply::Info(info)) });
        }
    });
    let reply = soon(network().call(&address, info())).await.unwrap();
    assert!(matches!(reply.reply, Some(client_reply::Reply::Info(LeaderInfo { generation: 4, .. }))));
    answering.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_never_answered_fails() {
    let (address, mut arrivals) = coordinator().await;
    let dropping = async {
        match arrivals.recv().await {
            Some(Arrival::Client(call)) => drop(call),
            _ => panic!("no client came"),
        }
    };
    let network = network();
    let (reply, ()) = soon(futures::future::join(network.call(&address, info()), dropping)).await;
    let error = reply.unwrap_err();
    assert!(error.number() == 2152 && error.to_string().contains(&address), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_an_error_with_the_address() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    for error in [
        network().connect_coordinator(&unused).await.err().unwrap(),
        network().call(&unused, info()).await.unwrap_err(),
    ] {
        assert!(error.number() == 2150 && error.to_string().contains(&unused), "{error}");
    }
    assert_eq!(network().call("no address", info()).await.unwrap_err().number(), 1122);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_hangs_counts_as_away() {
    // The kernel accepts; nobody reads.
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hung.local_addr().unwrap().to_string();
    let env = Env::test(1);
    let start = env.now();
    let error = soon(network().connect_coordinator(&address)).await.err().unwrap();
    let waited = env.now().since(start);
    assert!(error.number() == 2150 || error.number() == 2001, "{error}");
    assert!(error.to_string().contains(&address) && waited < Duration::from_secs(6), "{error} after {waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_stops_frees_its_address() {
    let (address, arrivals) = coordinator().await;
    drop(arrivals);
    let again = async {
        loop {
            if let Ok(served) = network().serve_coordinator(&address).await {
                return served;
            }
            tokio::task::yield_now().await;
        }
    };
    let (bound, mut arrivals) = soon(again).await;
    assert_eq!(bound.to_string(), address);
    let mut worker = network().connect_coordinator(&address).await.unwrap();
    let link = worker_link(&mut arrivals).await;
    link.tx.send(ToWorker { message: Some(to_worker::Message::Ping(Ping {})) }).await.unwrap();
    assert!(soon(worker.rx.recv()).await.is_some());
}
