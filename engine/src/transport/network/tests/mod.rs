//! With real sockets on loopback, except for the codec.

mod codec;
mod control;
mod data;
mod garbage;
mod samples;

use std::time::Duration;

use millstream_common::{Env, Lane, TaskHandle};
use tokio::net::{TcpListener, TcpStream};

use super::{Network, NetworkSettings};

/// Nothing on loopback takes this long.
const SOON: Duration = Duration::from_secs(20);

fn network() -> Network {
    Network::new(Env::test(1), NetworkSettings::default())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    Env::test(1).timeout(SOON, "the test", future).await.expect("it happens soon")
}

/// A hop between two processes that can be cut.
struct Proxy {
    address: String,
    task: TaskHandle,
}

impl Proxy {
    /// Passes one connection on to `target`.
    async fn before(target: &str) -> Self {
        let (listener, target) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), target.to_owned());
        let address = listener.local_addr().unwrap().to_string();
        let task = Env::test(1).spawn(Lane::Io, "proxy", async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(target).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        Self { address, task }
    }

    /// Closes both halves, whatever is on its way.
    fn cut(&self) {
        self.task.abort();
    }
}
