//! Stores that object_store has no client for, through opendal: OSS, COS, OBS, TOS, B2, Swift, WebDAV, WebHDFS.
//!
//! It owns which of them there are, what their variables are called, and an adapter that makes opendal's operator an
//! [`ObjectStore`] as the rest of this crate expects one: names are taken as they are, listings hold objects only. None of
//! opendal's layers is used: repetition, time-outs and limits are ours. A big body goes in one request.
//!
//! Whether a store has create-if-absent is what its service in opendal says.

use std::fmt;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use millstream_common::Error;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use object_store_opendal::OpendalStore;
use opendal::{OperationContext, Operator, services};

use crate::open::StoreEnvironment;
use crate::options::StoreOptions;

/// Which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Alibaba Cloud.
    Oss,
    /// Tencent Cloud.
    Cos,
    /// Huawei Cloud.
    Obs,
    /// Volcano Engine.
    Tos,
    /// Backblaze, by its own protocol.
    B2,
    /// OpenStack.
    Swift,
    WebDav,
    /// WebDAV over TLS.
    WebDavs,
    /// HDFS over HTTP.
    WebHdfs,
    /// HDFS over HTTPS.
    SWebHdfs,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Oss,
        Self::Cos,
        Self::Obs,
        Self::Tos,
        Self::B2,
        Self::Swift,
        Self::WebDav,
        Self::WebDavs,
        Self::WebHdfs,
        Self::SWebHdfs,
    ];

    /// The one whose URLs have this scheme.
    pub(crate) fn of(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.scheme() == scheme)
    }

    /// The scheme of its URLs.
    pub(crate) fn scheme(self) -> &'static str {
        match self {
            Self::Oss => "oss",
            Self::Cos => "cos",
            Self::Obs => "obs",
            Self::Tos => "tos",
            Self::B2 => "b2",
            Self::Swift => "swift",
            Self::WebDav => "webdav",
            Self::WebDavs => "webdavs",
            Self::WebHdfs => "webhdfs",
            Self::SWebHdfs => "swebhdfs",
        }
    }

    /// The variables that it is configured by, for messages.
    fn variables(self) -> &'static str {
        match self {
            Self::Oss => "OSS_ENDPOINT or OSS_REGION, OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET",
            Self::Cos => "COS_ENDPOINT or TENCENTCLOUD_REGION, TENCENTCLOUD_SECRET_ID, TENCENTCLOUD_SECRET_KEY",
            Self::Obs => "OBS_ENDPOINT or OBS_REGION, HUAWEI_CLOUD_ACCESS_KEY_ID, HUAWEI_CLOUD_SECRET_ACCESS_KEY",
            Self::Tos => "TOS_ENDPOINT, TOS_REGION, TOS_ACCESS_KEY, TOS_SECRET_KEY",
            Self::B2 => "B2_APPLICATION_KEY_ID, B2_APPLICATION_KEY, B2_BUCKET_ID",
            Self::Swift => "OS_STORAGE_URL, OS_AUTH_TOKEN",
            Self::WebDav | Self::WebDavs => "WEBDAV_USERNAME and WEBDAV_PASSWORD, or WEBDAV_TOKEN",
            Self::WebHdfs | Self::SWebHdfs => "HADOOP_USER_NAME, or WEBHDFS_DELEGATION_TOKEN",
        }
    }
}

/// The error for a store whose variables do not do.
pub(crate) fn refused(kind: Kind, root: &str, e: &opendal::Error) -> Error {
    Error::config(format!("the settings of the store are not usable ({e})"))
        .code(1108)
        .at(root)
        .next(format!("check these variables: {}", kind.variables()))
}

/// Makes the client of `kind` for `place`: a bucket, a container, or a host with its port.
pub(crate) fn open(
    kind: Kind,
    place: &str,
    options: &StoreOptions,
    variables: &StoreEnvironment,
) -> opendal::Result<Bridge> {
    let variables = Variables(variables);
    let operator = match kind {
        Kind::Oss | Kind::Cos | Kind::Obs | Kind::Tos => cloud(kind, place, variables)?,
        _ => protocol(kind, place, variables)?,
    };
    let client = reqwest::Client::builder().connect_timeout(options.connect_timeout).build().map_err(|e| {
        opendal::Error::new(opendal::ErrorKind::ConfigInvalid, "no HTTP client can be made").set_source(e)
    })?;
    let transport = opendal::HttpTransporter::new(opendal_http_transport_reqwest::ReqwestTransport::new(client));
    Ok(Bridge::new(operator.with_context(OperationContext::new().with_http_transport(transport))))
}

/// The variables of a process.
#[derive(Clone, Copy)]
struct Variables<'a>(&'a StoreEnvironment);

impl<'a> Variables<'a> {
    fn first(self, names: &[&str]) -> Option<&'a str> {
        names.iter().find_map(|name| self.0.get(*name)).map(String::as_str)
    }

    /// The first that is set; else an empty value, which leaves a setting of a builder as it was.
    fn value(self, names: &[&str]) -> &'a str {
        self.first(names).unwrap_or_default()
    }

    /// An endpoint that was named, or that of the region.
    fn endpoint(self, name: &str, regions: &[&str], of_region: impl Fn(&str) -> String) -> String {
        self.first(&[name]).map(str::to_owned).or_else(|| self.first(regions).map(of_region)).unwrap_or_default()
    }
}

/// The clouds with a region each.
fn cloud(kind: Kind, bucket: &str, v: Variables<'_>) -> opendal::Result<Operator> {
    match kind {
        Kind::Oss => Operator::new(
            services::Oss::default()
                .bucket(bucket)
                .endpoint(&v.endpoint("OSS_ENDPOINT", &["OSS_REGION"], |r| format!("https://oss-{r}.aliyuncs.com")))
                .access_key_id(v.value(&["OSS_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_ID"]))
                .access_key_secret(v.value(&["OSS_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"]))
                .security_token(v.value(&["OSS_SESSION_TOKEN", "ALIBABA_CLOUD_SECURITY_TOKEN"])),
        ),
        Kind::Cos => Operator::new(
            services::Cos::default()
                .bucket(bucket)
                .endpoint(&v.endpoint("COS_ENDPOINT", &["TENCENTCLOUD_REGION", "COS_REGION"], |r| {
                    format!("https://cos.{r}.myqcloud.com")
                }))
                .secret_id(v.value(&["TENCENTCLOUD_SECRET_ID", "COS_SECRET_ID"]))
                .secret_key(v.value(&["TENCENTCLOUD_SECRET_KEY", "COS_SECRET_KEY"]))
                .security_token(v.value(&["TENCENTCLOUD_SECURITY_TOKEN", "TENCENTCLOUD_TOKEN"])),
        ),
        Kind::Obs => Operator::new(
            services::Obs::default()
                .bucket(bucket)
                .endpoint(
                    &v.endpoint("OBS_ENDPOINT", &["OBS_REGION"], |r| format!("https://obs.{r}.myhuaweicloud.com")),
                )
                .access_key_id(v.value(&["HUAWEI_CLOUD_ACCESS_KEY_ID", "OBS_ACCESS_KEY_ID"]))
                .secret_access_key(v.value(&["HUAWEI_CLOUD_SECRET_ACCESS_KEY", "OBS_SECRET_ACCESS_KEY"])),
        ),
        _ => Operator::new(
            services::Tos::default()
                .bucket(bucket)
                .endpoint(&v.endpoint("TOS_ENDPOINT", &["TOS_REGION"], |r| format!("https://tos-{r}.volces.com")))
                .region(v.value(&["TOS_REGION"]))
                .access_key_id(v.value(&["TOS_ACCESS_KEY", "TOS_ACCESS_KEY_ID"]))
                .secret_access_key(v.value(&["TOS_SECRET_KEY", "TOS_SECRET_ACCESS_KEY"]))
                .security_token(v.value(&["TOS_SECURITY_TOKEN"])),
        ),
    }
}

/// The others, each with a protocol of its own.
fn protocol(kind: Kind, place: &str, v: Variables<'_>) -> opendal::Result<Operator> {
    match kind {
        Kind::B2 => Operator::new(
            services::B2::default()
                .bucket(place)
                .bucket_id(v.value(&["B2_BUCKET_ID"]))
                .application_key_id(v.value(&["B2_APPLICATION_KEY_ID"]))
                .application_key(v.value(&["B2_APPLICATION_KEY"])),
        ),
        Kind::Swift => Operator::new(
            services::Swift::default()
                .container(place)
                .endpoint(v.value(&["OS_STORAGE_URL", "SWIFT_ENDPOINT"]))
                .token(v.value(&["OS_AUTH_TOKEN", "SWIFT_TOKEN"])),
        ),
        Kind::WebDav | Kind::WebDavs => Operator::new(
            services::Webdav::default()
                .endpoint(&format!("{}://{place}", if kind == Kind::WebDav { "http" } else { "https" }))
                .username(v.value(&["WEBDAV_USERNAME"]))
                .password(v.value(&["WEBDAV_PASSWORD"]))
                .token(v.value(&["WEBDAV_TOKEN"])),
        ),
        _ => Operator::new(
            services::Webhdfs::default()
                .endpoint(&format!("{}://{place}", if kind == Kind::WebHdfs { "http" } else { "https" }))
                .user_name(v.value(&["HADOOP_USER_NAME"]))
                .delegation(v.value(&["WEBHDFS_DELEGATION_TOKEN"])),
        ),
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    operator: Operator,
    inner: OpendalStore,
}

impl Bridge {
    fn new(operator: Operator) -> Self {
        Self { inner: OpendalStore::new(operator.clone()), operator }
    }

    /// Whether the store honours create-if-absent, by its own word.
    pub(crate) fn creates_if_absent(&self) -> bool {
        self.operator.info().capability().write_with_if_not_exists
    }

    fn listing(&self, prefix: Option<&Path>, after: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let folder = prefix.filter(|p| !p.as_ref().is_empty()).map_or(String::new(), |p| format!("{p}/"));
        let capability = self.operator.info().capability();
        let after = after.filter(|_| capability.list_with_start_after).map(|after| after.as_ref().to_owned());
        let operator = self.operator.clone();
        let found = async move {
            let options = opendal::options::ListOptions { recursive: true, start_after: after, ..Default::default() };
            let names = operator.lister_options(&folder, options).await.map_err(|e| generic(&folder, e))?;
            Ok::<_, object_store::Error>(names.map_err(move |e| generic(&folder, e)))
        };
        stream::once(found)
            .try_flatten()
            .try_filter_map(|entry| async move {
                let meta = entry.metadata();
                if !meta.is_file() {
                    return Ok(None);
                }
                let location = Path::parse(entry.path())?;
                let last_modified = Default::default();
                Ok(Some(ObjectMeta {
                    location,
                    last_modified,
                    size: meta.content_length(),
                    e_tag: None,
                    version: None,
                }))
            })
            .boxed()
    }
}

fn generic(path: &str, e: opendal::Error) -> object_store::Error {
    match e.kind() {
        opendal::ErrorKind::NotFound => object_store::Error::NotFound { path: path.to_owned(), source: Box::new(e) },
        _ => object_store::Error::Generic { store: "opendal", source: Box::new(e) },
    }
}

/// `location` for a client that takes a percent sign for the start of an escape.
fn escaped(location: &Path) -> Result<Path> {
    match location.as_ref().contains('%') {
        true => Ok(Path::parse(location.as_ref().replace('%', "%25"))?),
        false => Ok(location.clone()),
    }
}

impl fmt::Display for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Bridge {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(&escaped(location)?, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(&escaped(location)?, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(&escaped(location)?, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations.and_then(|l| async move { escaped(&l) }).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, None)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        // The caller drops what some services list besides.
        self.listing(prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(&escaped(from)?, &escaped(to)?, options).await
    }
}
