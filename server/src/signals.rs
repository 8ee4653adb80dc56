//! SIGINT and SIGTERM.

use millstream_common::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Waits for a signal that asks the process to end; gives its name.
pub async fn asked_to_end() -> Result<&'static str> {
    let listen = |kind| signal(kind).map_err(|e| Error::internal("signals cannot be waited for").code(9303).source(e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let name = millstream_common::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    };
    Ok(name)
}
