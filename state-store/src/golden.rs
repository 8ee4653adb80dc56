//! Golden files: what released formats look like, byte by byte. A test compares; it never writes.
//!
//! To make the file of a *new* format, run its test once, and move what it left beside the golden file (`.actual`)
//! into place. A difference in an existing file is a broken format, not a reason to replace the file.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Lines of text and bytes, in hexadecimal: `name: 01 02 ..`.
#[derive(Default)]
pub(crate) struct Golden(String);

impl Golden {
    pub(crate) fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(self.0, "{name}: {}", hex.join(" ")).unwrap();
    }

    pub(crate) fn line(&mut self, text: &str) {
        writeln!(self.0, "{text}").unwrap();
    }

    /// Compares with the file of this name under `tests/golden/`.
    pub(crate) fn compare(&self, file: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        if expected != self.0 {
            let actual = path.with_extension("actual");
            std::fs::write(&actual, &self.0).unwrap();
            let line = expected.lines().zip(self.0.lines()).find(|(a, b)| a != b);
            panic!(
                "{} differs from what this program writes, first in {line:?}; see {}",
                path.display(),
                actual.display()
            );
        }
    }

    /// The bytes that the file has under a name.
    pub(crate) fn read(file: &str, name: &str) -> Vec<u8> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))).unwrap();
        line.split(' ').map(|h| u8::from_str_radix(h, 16).unwrap()).collect()
    }
}
