//! The one error type. Its kind says what the caller must do next; its text says what happened, where, and what a
//! person can do about it.

use std::fmt;

/// A result with the project's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The input data is wrong. Final: a restart meets it again.
    Data,
    /// The user asked for something that cannot be. Final.
    Config,
    /// Something durable is damaged. Final.
    Corrupt,
    /// A newer generation or execution has taken over. Stop at once, touch nothing.
    Fenced,
    /// A store, connection or worker did not answer. Try again, or restart the region.
    Unavailable,
    /// The work was called off by its owner.
    Canceled,
    /// A broken invariant of ours. Final.
    Internal,
}

/// Whether the write that failed may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Applied {
    /// It surely did not.
    #[default]
    No,
    /// It may have, or may still.
    Maybe,
}

/// What happened, where, and what to do next.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    code: u16,
    applied: Applied,
    what: String,
    place: String,
    next: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with the number that users see as `MSnnnn` (docs/errors.md lists them; a number never changes its
    /// meaning).
    #[must_use]
    pub fn new(kind: ErrorKind, code: u16, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            code,
            applied: Applied::No,
            what: what.into(),
            place: String::new(),
            next: String::new(),
            source: None,
        }))
    }

    /// Wrong input data (default number 3000).
    #[must_use]
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, 3000, what)
    }

    /// A setting, argument or combination that cannot be (default number 1000).
    #[must_use]
    pub fn config(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, 1000, what)
    }

    /// Damaged durable data (default number 4000).
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, 4000, what)
    }

    /// Something does not answer (default number 2000).
    #[must_use]
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, 2000, what)
    }

    /// A newer one has taken over (default number 5000).
    #[must_use]
    pub fn fenced(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fenced, 5000, what)
    }

    /// Called off (default number 6000).
    #[must_use]
    pub fn canceled(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Canceled, 6000, what)
    }

    /// A broken invariant of ours (default number 9000).
    #[must_use]
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, 9000, what)
    }

    /// Sets the number.
    #[must_use]
    pub fn code(mut self, code: u16) -> Self {
        self.0.code = code;
        self
    }

    /// Sets where it happened: a file and line, an object, an address.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.0.place = place.into();
        self
    }

    /// Sets what a person can do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.0.next = next.into();
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says that the write may have happened all the same.
    #[must_use]
    pub fn maybe_applied(mut self) -> Self {
        self.0.applied = Applied::Maybe;
        self
    }

    /// What the caller must do next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The number behind `MS`.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.0.code
    }

    /// Whether the write may have happened all the same.
    #[must_use]
    pub fn applied(&self) -> Applied {
        self.0.applied
    }

    /// Where it happened; empty when unknown.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// What happened, without place and advice.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What a person can do next; may be empty.
    #[must_use]
    pub fn advice(&self) -> &str {
        &self.0.next
    }

    /// Whether a restart would meet the same error again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Data | ErrorKind::Config | ErrorKind::Corrupt | ErrorKind::Internal)
    }

    /// The number that stands for a kind on the wire and in records; see [`ErrorKind::from_number`].
    #[must_use]
    pub fn kind_number(&self) -> u32 {
        match self.0.kind {
            ErrorKind::Data => 1,
            ErrorKind::Config => 2,
            ErrorKind::Corrupt => 3,
            ErrorKind::Fenced => 4,
            ErrorKind::Unavailable => 5,
            ErrorKind::Canceled => 6,
            ErrorKind::Internal => 7,
        }
    }
}

impl ErrorKind {
    /// The kind behind [`Error::kind_number`]; unknown numbers are internal errors.
    #[must_use]
    pub fn from_number(n: u32) -> Self {
        match n {
            1 => Self::Data,
            2 => Self::Config,
            3 => Self::Corrupt,
            4 => Self::Fenced,
            5 => Self::Unavailable,
            6 => Self::Canceled,
            _ => Self::Internal,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)?;
        let mut cause = self.0.source.as_deref().map(|s| s as &dyn std::error::Error);
        while let Some(c) = cause {
            write!(f, ": {c}")?;
            cause = c.source();
        }
        if !self.0.place.is_empty() {
            write!(f, "; at {}", self.0.place)?;
        }
        if !self.0.next.is_empty() {
            write!(f, "; {}", self.0.next)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[MS{:04}]: {self}", self.0.kind, self.0.code)
    }
}

// The cause is printed by Display already: `source` stays empty so that nobody prints it twice.
impl std::error::Error for Error {}
