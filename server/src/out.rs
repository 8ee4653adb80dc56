//! stdout, for results alone. A reader that went away (`| head`) is no failure.

use std::io::{ErrorKind, Write};

use millstream_common::{Error, Result};

/// Writes `text` and a line feed.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written =
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::unavailable("stdout cannot be written").code(2200).source(e))
        }
        _ => Ok(()),
    }
}

/// Writes lines that end in a line feed each; false when nobody reads any more.
pub fn lines(lines: &[u8]) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(lines).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::unavailable("stdout cannot be written").code(2200).source(e)),
    }
}

/// Writes a JSON document.
pub fn print_json(document: &serde_json::Value) -> Result<()> {
    print(&document.to_string())
}

/// Writes a line to stderr; nobody is told when that fails.
pub fn note(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.write_all(b"\n"));
}
