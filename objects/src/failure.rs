//! What a failed attempt means: a pure function from the backend's error to the caller's next step.
//!
//! What is expected (absent, exists already, beyond the end) is an outcome. What a person must repair is final. All
//! else is tried again, and counts as a write that may have happened unless it surely was not sent.

use std::error::Error as StdError;
use std::fmt;
use std::io::ErrorKind as IoErrorKind;

use millstream_common::Error;

use crate::limiter::Pressure;
use object_store::client::{HttpError, HttpErrorKind};

/// Which kind of store it is; advice differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Memory,
    File,
    S3,
    Gcs,
    Azure,
    /// Another one, by this scheme of its URLs.
    Bridged(&'static str),
    /// Given by the caller.
    Other,
}

/// What a failed attempt means.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The object is not there.
    Absent,
    /// Create-if-absent found an object.
    Exists,
    /// The range ends after the object; the text says more.
    BeyondEnd(String),
    /// Try again.
    Again(Trouble),
    /// A person must repair this.
    Final(Error),
}

/// Why an attempt must be repeated.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// For people.
    pub(crate) cause: String,
    /// Whether the store asks for fewer requests.
    pub(crate) pressure: Pressure,
    /// The request may have reached the store.
    pub(crate) sent: bool,
}

impl Trouble {
    pub(crate) fn sent(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), pressure: Pressure::None, sent: true }
    }
}

/// An error that the fault-injecting store made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Injected {
    /// The connection broke.
    Reset,
    /// 503 SlowDown.
    SlowDown,
    /// 409: another conditional write of the same object is under way.
    Conflict,
    /// The store cannot be reached.
    Unreachable,
    /// 404: the store has forgotten an upload in parts.
    NoSuchUpload,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "injected: connection reset",
            Self::SlowDown => "injected: 503 SlowDown",
            Self::Conflict => "injected: 409 conflict",
            Self::Unreachable => "injected: connection refused",
            Self::NoSuchUpload => "injected: 404 NoSuchUpload",
        })
    }
}

impl StdError for Injected {}

/// Decides what the error of one attempt means. `place` is the URL of the bucket or folder.
pub(crate) fn classify(error: &object_store::Error, scheme: Scheme, place: &str) -> Failure {
    use object_store::Error as E;
    if let Some(injected) = find::<Injected>(error) {
        if *injected == Injected::NoSuchUpload {
            return Failure::Absent;
        }
        return Failure::Again(Trouble {
            cause: injected.to_string(),
            pressure: if *injected == Injected::SlowDown { Pressure::Throttled } else { Pressure::None },
            sent: *injected != Injected::Unreachable,
        });
    }
    let cause = Cause::of(error);
    if let Some(bridged) = find::<opendal::Error>(error)
        && let Some(failure) = of_bridged(bridged, &cause, scheme, place)
    {
        return failure;
    }
    if cause.names_an_upload() {
        return Failure::Absent;
    }
    match error {
        E::NotFound { .. } if cause.names_the_bucket() => Failure::Final(absent_bucket(place, &cause.to_string())),
        E::NotFound { .. } => Failure::Absent,
        E::AlreadyExists { source, .. } => {
            // S3 answers 412 when the object is there, which the client wraps once more, and a bare 409 when another
            // conditional write is under way: then nobody may have won yet.
            if scheme == Scheme::S3 && !source.is::<E>() {
                Failure::Again(Trouble::sent(format!("another write of it is under way ({cause})")))
            } else {
                Failure::Exists
            }
        }
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Failure::Final(denied(scheme, place, &cause)),
        E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::InvalidPath { .. }
        | E::UnknownConfigurationKey { .. } => Failure::Final(refused(place, &error.to_string())),
        E::Precondition { .. } | E::NotModified { .. } => {
            Failure::Final(Error::internal(format!("the store met a condition that was not asked for: {cause}")))
        }
        _ => generic(error, cause, scheme, place),
    }
}

/// What an error of a store behind opendal means, when its kind says it; else the text has to.
fn of_bridged(error: &opendal::Error, cause: &Cause, scheme: Scheme, place: &str) -> Option<Failure> {
    use opendal::ErrorKind as K;
    Some(match error.kind() {
        K::RateLimited => {
            Failure::Again(Trouble { cause: cause.to_string(), pressure: Pressure::Throttled, sent: true })
        }
        K::RangeNotSatisfied => Failure::BeyondEnd(cause.to_string()),
        K::PermissionDenied => Failure::Final(denied(scheme, place, cause)),
        K::ConfigInvalid | K::Unsupported | K::NotADirectory | K::IsADirectory => {
            Failure::Final(refused(place, &cause.to_string()))
        }
        // Some of these stores know a conflict, none says it as S3 does: an object is there.
        K::AlreadyExists | K::ConditionNotMatch => Failure::Exists,
        _ => return None,
    })
}

fn generic(error: &object_store::Error, cause: Cause, scheme: Scheme, place: &str) -> Failure {
    if let Some(io) = find::<std::io::Error>(error).filter(|_| scheme == Scheme::File)
        && matches!(
            io.kind(),
            IoErrorKind::PermissionDenied
                | IoErrorKind::ReadOnlyFilesystem
                | IoErrorKind::NotADirectory
                | IoErrorKind::InvalidFilename
                | IoErrorKind::Unsupported
        )
    {
        return Failure::Final(refused(place, &cause.to_string()));
    }
    if cause.is_beyond_end() {
        return Failure::BeyondEnd(cause.to_string());
    }
    let sent = find::<HttpError>(error).is_none_or(|e| e.kind() != HttpErrorKind::Connect);
    let pressed = |pressure| Failure::Again(Trouble { cause: cause.to_string(), pressure, sent });
    let again = || pressed(Pressure::None);
    match cause.status {
        Some(429 | 503) => pressed(Pressure::Throttled),
        Some(500 | 502 | 504) => pressed(Pressure::Failing),
        // S3 says 400 for a body that came too slowly or damaged and for a token that is about to be replaced.
        Some(400)
            if ["RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "ExpiredToken"]
                .contains(&cause.code.as_str()) =>
        {
            again()
        }
        // A listing gets these as they are, without a type of their own.
        Some(401 | 403) => Failure::Final(denied(scheme, place, &cause)),
        Some(404) => Failure::Final(absent_bucket(place, &cause.to_string())),
        Some(400) if cause.names_the_bucket() => Failure::Final(absent_bucket(place, &cause.to_string())),
        Some(400) if cause.names_the_credentials() => Failure::Final(denied(scheme, place, &cause)),
        // 423: WebDAV's word for a folder or object that another request is busy with.
        Some(408 | 423) => again(),
        Some(300..=499 | 501) => Failure::Final(refused(place, &cause.to_string())),
        _ if cause.message.contains("redirect without LOCATION") => Failure::Final(
            Error::config(format!("the bucket is in another region ({})", cause.message))
                .code(1103)
                .at(place)
                .next("set AWS_REGION to the bucket's region"),
        ),
        _ => again(),
    }
}

/// The bucket, container or folder is not there.
pub(crate) fn absent_bucket(place: &str, cause: &str) -> Error {
    Error::config(format!("the bucket does not exist ({cause})"))
        .code(1104)
        .at(place)
        .next("create the bucket first, or correct the URL")
}

fn denied(scheme: Scheme, place: &str, cause: &Cause) -> Error {
    let next = match scheme {
        Scheme::Gcs => {
            "check the credentials (GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SERVICE_ACCOUNT) and their permissions on the bucket"
        }
        Scheme::Azure => {
            "check the credentials (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY) and their permissions"
        }
        Scheme::Bridged(_) => "check the credentials of this store (docs/object-stores.md) and their permissions",
        _ => {
            "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) and their permissions \
             to get, put, delete and list in the bucket"
        }
    };
    Error::config(format!("the store denied access, wrong credentials or missing permission ({cause})"))
        .code(1103)
        .at(place)
        .next(next)
}

fn refused(place: &str, cause: &str) -> Error {
    Error::config(format!("the store refused the request ({cause})"))
        .code(1106)
        .at(place)
        .next("check the URL, the permissions and the settings of the store")
}

/// The first error of type `T` in the chain of causes.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut at = Some(error);
    while let Some(e) = at {
        if let Some(found) = e.downcast_ref::<T>() {
            return Some(found);
        }
        at = e.source();
    }
    None
}

/// What an error says, for people and for decisions that the error's type leaves open.
struct Cause {
    /// The HTTP status.
    status: Option<u16>,
    /// S3's word for the error; empty when there is none.
    code: String,
    message: String,
}

impl Cause {
    fn of(error: &object_store::Error) -> Self {
        // The client keeps status and body private: its text is all there is. A text that is not understood leads
        // to more attempts, never to fewer.
        let text = error.to_string();
        // The second form is opendal's.
        let after = text.split("status code: ").nth(1).or_else(|| text.split("status: ").nth(1));
        let status = after.and_then(|t| t.get(..3)).and_then(|t| t.parse().ok());
        let tag = |name: &str| {
            let (_, after) = text.split_once(&format!("<{name}>"))?;
            Some(after.split_once("</")?.0.to_owned())
        };
        let message = tag("Message").unwrap_or_else(|| match status {
            Some(_) => String::new(),
            None => root(error),
        });
        Self { status, code: tag("Code").unwrap_or_default(), message }
    }

    fn names_the_bucket(&self) -> bool {
        ["NoSuchBucket", "InvalidBucketName", "ContainerNotFound"].contains(&self.code.as_str())
    }

    /// The store does not know an upload in parts any more.
    fn names_an_upload(&self) -> bool {
        self.code == "NoSuchUpload" || self.message.contains("MultipartUpload not found")
    }

    fn names_the_credentials(&self) -> bool {
        ["InvalidAccessKeyId", "InvalidToken", "AuthorizationHeaderMalformed", "SignatureDoesNotMatch"]
            .contains(&self.code.as_str())
    }

    fn is_beyond_end(&self) -> bool {
        // The words of the memory and file backends, whose error types are private.
        let m = &self.message;
        self.status == Some(416)
            || m.contains("nvalid range")
            || m.contains("ange was invalid")
            || m.contains("ut of range")
            || m.contains("anted range starting at")
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.map(|s| format!("HTTP {s}")).unwrap_or_default();
        let words: Vec<_> =
            [status.as_str(), &self.code, &self.message].into_iter().filter(|w| !w.is_empty()).collect();
        f.write_str(&words.join(", "))
    }
}

/// The text of the innermost cause, after that of the outermost when a connection failed.
fn root(error: &object_store::Error) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = last.source() {
        last = next;
    }
    match find::<HttpError>(error).map(HttpError::kind) {
        Some(HttpErrorKind::Connect) => format!("cannot connect: {last}"),
        Some(HttpErrorKind::Timeout) => format!("timed out: {last}"),
        _ => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic_error(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    fn of(text: &str) -> Failure {
        classify(&generic_error(text), Scheme::S3, "s3://b")
    }

    #[test]
    fn statuses_lead_to_the_right_next_step() {
        let slow = "Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>";
        match of(slow) {
            Failure::Again(t) => {
                assert!(t.pressure == Pressure::Throttled && t.sent);
                assert_eq!(t.cause, "HTTP 503, SlowDown, Reduce your rate");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            of("status code: 429 Too Many"),
            Failure::Again(Trouble { pressure: Pressure::Throttled, .. })
        ));
        assert!(matches!(of("status code: 500 Internal"), Failure::Again(Trouble { pressure: Pressure::Failing, .. })));
        assert!(matches!(of("status code: 416 Range Not Satisfiable"), Failure::BeyondEnd(_)));
        assert!(matches!(of("status code: 400 Bad: <Code>RequestTimeout</Code>"), Failure::Again(_)));
        assert!(matches!(of("status code: 405 Method Not Allowed"), Failure::Final(_)));
        assert!(matches!(of("status code: 423 Locked"), Failure::Again(_)));
        assert!(matches!(of("words never seen"), Failure::Again(_)));
        match of("status code: 400 Bad: <Code>InvalidBucketName</Code>") {
            Failure::Final(e) => assert_eq!(e.number(), 1104),
            other => panic!("{other:?}"),
        }
        match of("status code: 400 Bad: <Code>AuthorizationHeaderMalformed</Code>") {
            Failure::Final(e) => assert_eq!(e.number(), 1103),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_409_of_s3_is_not_a_lost_race() {
        let conflict =
            object_store::Error::AlreadyExists { path: "x".into(), source: "status code: 409 Conflict".into() };
        assert!(matches!(classify(&conflict, Scheme::S3, "s3://b"), Failure::Again(_)));
        assert!(matches!(classify(&conflict, Scheme::Azure, "az://b"), Failure::Exists));
        let precondition = object_store::Error::Precondition { path: "x".into(), source: "412".into() };
        let lost = object_store::Error::AlreadyExists { path: "x".into(), source: Box::new(precondition) };
        assert!(matches!(classify(&lost, Scheme::S3, "s3://b"), Failure::Exists));
    }

    #[test]
    fn an_absent_bucket_is_not_an_absent_object() {
        let absent = |text: &str| object_store::Error::NotFound { path: "x".into(), source: text.into() };
        assert!(matches!(classify(&absent("<Code>NoSuchKey</Code>"), Scheme::S3, "s3://b"), Failure::Absent));
        match classify(&absent("<Code>NoSuchBucket</Code>"), Scheme::S3, "s3://b") {
            Failure::Final(e) => assert!(e.to_string().contains("s3://b") && e.number() == 1104),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kinds_of_opendal_lead_to_the_right_next_step() {
        use opendal::ErrorKind as K;
        let of = |kind| {
            let inner = opendal::Error::new(kind, "words");
            let error = object_store::Error::Generic { store: "opendal", source: Box::new(inner) };
            classify(&error, Scheme::Bridged("oss"), "oss://b")
        };
        assert!(matches!(of(K::RateLimited), Failure::Again(Trouble { pressure: Pressure::Throttled, .. })));
        assert!(matches!(of(K::RangeNotSatisfied), Failure::BeyondEnd(_)));
        assert!(matches!(of(K::ConditionNotMatch), Failure::Exists));
        assert!(matches!(of(K::Unexpected), Failure::Again(_)));
        match of(K::PermissionDenied) {
            Failure::Final(e) => assert!(e.number() == 1103 && e.advice().contains("object-stores.md"), "{e}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_file_system_refuses_for_good() {
        let denied = || object_store::Error::Generic {
            store: "x",
            source: Box::new(std::io::Error::from(IoErrorKind::PermissionDenied)),
        };
        assert!(matches!(classify(&denied(), Scheme::File, "file:///x"), Failure::Final(_)));
        assert!(matches!(classify(&denied(), Scheme::S3, "s3://x"), Failure::Again(_)));
        let full = object_store::Error::Generic {
            store: "x",
            source: Box::new(std::io::Error::from(IoErrorKind::StorageFull)),
        };
        assert!(matches!(classify(&full, Scheme::File, "file:///x"), Failure::Again(_)));
    }
}
