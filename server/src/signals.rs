//! SIGINT and SIGTERM.

use millstream_common::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask the process to end, one after the other.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on they do not end the process by themselves.
    pub fn listen() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|e| Error::internal("signals cannot be waited for").code(9303).source(e));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one; gives its name.
    pub async fn next(&mut self) -> &'static str {
        millstream_common::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Waits for a signal that asks the process to end; gives its name.
pub async fn asked_to_end() -> Result<&'static str> {
    Ok(Signals::listen()?.next().await)
}
