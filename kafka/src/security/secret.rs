//! Passwords and tokens by reference.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use millstream_common::{Error, Result};

/// Where a password, token or passphrase is: never the thing itself, so that no setting, log or error shows it.
///
/// Written `env:NAME` (a variable of the environment of the process that connects) or `file:PATH` (a file there, without the
/// line end behind its text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// A variable of the environment.
    Env(String),
    /// A file.
    File(PathBuf),
}

impl FromStr for Secret {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            // The text is not shown: it may be the secret.
            _ => Err(Error::config("a secret is written out, and not where it is")
                .code(1411)
                .next("write env:NAME for a variable of the environment, or file:PATH")),
        }
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Secret {
    /// What it is now.
    pub(crate) fn read(&self) -> Result<String> {
        let wrong = |what: String| Error::config(what).code(1412).at(self.to_string());
        let mut text = match self {
            // The user names the variable in a setting; no behaviour hangs on any other.
            #[allow(clippy::disallowed_methods)]
            Self::Env(name) => std::env::var(name).map_err(|e| {
                // The error of a variable that is not UTF-8 would show it.
                wrong("the secret cannot be read".into()).source(match e {
                    std::env::VarError::NotPresent => "there is no such variable",
                    std::env::VarError::NotUnicode(_) => "it is not UTF-8",
                })
            })?,
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|e| wrong("the secret cannot be read".into()).source(e))?
            }
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err(wrong("the secret is empty".into()));
        }
        if text.contains('\0') {
            return Err(wrong("the secret has a byte 0".into()));
        }
        Ok(text)
    }
}
