//! The clients of object_store's own: S3, Google Cloud Storage, Azure.
//!
//! It applies the variables that its caller hands over, as the clients' documentation and the vendors' tools name them,
//! and switches the clients' repetition and time-outs off, since ours are above them. Without credentials among the
//! variables each client looks where its vendor's libraries do: web identity, container and instance metadata for S3;
//! the file of application default credentials and the metadata server for Google; client secret, workload identity,
//! the command line tool and the instance's identity for Azure.

use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::multipart::MultipartStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use crate::failure::Scheme;
use crate::open::StoreEnvironment;
use crate::options::StoreOptions;

/// A client that was made.
pub(crate) struct Client {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) uploads: Arc<dyn MultipartStore>,
    pub(crate) scheme: Scheme,
}

impl Client {
    fn new<B: ObjectStore + MultipartStore>(built: B, scheme: Scheme) -> Self {
        let built = Arc::new(built);
        Self { store: built.clone(), uploads: built, scheme }
    }
}

/// One attempt, no time-out: what is above repeats and gives up.
fn once(options: &StoreOptions) -> (ClientOptions, RetryConfig) {
    let retry = RetryConfig { max_retries: 0, retry_timeout: options.retry_timeout, backoff: BackoffConfig::default() };
    (ClientOptions::new().with_timeout_disabled().with_connect_timeout(options.connect_timeout), retry)
}

pub(crate) fn s3(bucket: &str, options: &StoreOptions, variables: &StoreEnvironment) -> object_store::Result<Client> {
    let (client, retry) = once(options);
    let mut builder = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
    if is_plain(first(variables, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])) {
        // Said once, in the endpoint. Nobody needs certificates then: a machine without any will do.
        builder = builder
            .with_allow_http(true)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::NoSystemCertificates), "true");
    }
    for (key, value) in keys::<AmazonS3ConfigKey>("AWS_", variables) {
        builder = builder.with_config(key, value);
    }
    // Not open to settings: commits rest on it.
    let builder = builder.with_conditional_put(S3ConditionalPut::ETagMatch).with_bucket_name(bucket);
    Ok(Client::new(builder.build()?, Scheme::S3))
}

pub(crate) fn google(
    bucket: &str,
    options: &StoreOptions,
    variables: &StoreEnvironment,
) -> object_store::Result<Client> {
    let (client, retry) = once(options);
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client).with_retry(retry);
    if is_plain(variables.get("GOOGLE_BASE_URL")) {
        builder = builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
    }
    for (key, value) in keys::<GoogleConfigKey>("GOOGLE_", variables) {
        builder = builder.with_config(key, value);
    }
    Ok(Client::new(builder.with_bucket_name(bucket).build()?, Scheme::Gcs))
}

/// `place`: the container, or a whole URL that names account and container.
pub(crate) fn azure(
    place: AzurePlace<'_>,
    options: &StoreOptions,
    variables: &StoreEnvironment,
) -> object_store::Result<Client> {
    let (client, retry) = once(options);
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client).with_retry(retry);
    // What the vendor's tools write, in the words of this client; its own words below win.
    if let Some(text) = variables.get("AZURE_STORAGE_CONNECTION_STRING") {
        for (key, value) in of_connection_string(text) {
            builder = builder.with_config(key, value);
        }
    }
    let aliases = [
        ("AZURE_STORAGE_ACCOUNT", AzureConfigKey::AccountName),
        ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey),
        ("IDENTITY_ENDPOINT", AzureConfigKey::MsiEndpoint),
    ];
    for (name, key) in aliases {
        if let Some(value) = variables.get(name) {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in keys::<AzureConfigKey>("AZURE_", variables) {
        builder = builder.with_config(key, value);
    }
    if is_plain(builder.get_config_value(&AzureConfigKey::Endpoint).as_ref()) {
        builder = builder.with_allow_http(true);
    }
    let builder = match place {
        AzurePlace::Container(name) => builder.with_container_name(name),
        AzurePlace::Url(url) => builder.with_url(url),
    };
    Ok(Client::new(builder.build()?, Scheme::Azure))
}

/// How a URL names a container of Azure.
pub(crate) enum AzurePlace<'a> {
    /// `az://container/prefix`: the account is in the variables.
    Container(&'a str),
    /// `abfss://container@account.dfs.core.windows.net/prefix`
    Url(&'a str),
}

/// The parts of `AccountName=..;AccountKey=..;BlobEndpoint=..`; those without a meaning here are passed over.
fn of_connection_string(text: &str) -> Vec<(AzureConfigKey, String)> {
    let parts: Vec<(&str, &str)> = text.split(';').filter_map(|part| part.trim().split_once('=')).collect();
    let part =
        |name: &str| parts.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| (*value).to_owned());
    let account = part("AccountName");
    let endpoint = part("BlobEndpoint").or_else(|| {
        let (protocol, suffix) = (part("DefaultEndpointsProtocol").unwrap_or("https".into()), part("EndpointSuffix")?);
        Some(format!("{protocol}://{}.blob.{suffix}", account.as_ref()?))
    });
    [
        (AzureConfigKey::AccountName, account),
        (AzureConfigKey::AccessKey, part("AccountKey")),
        (AzureConfigKey::SasKey, part("SharedAccessSignature")),
        (AzureConfigKey::Endpoint, endpoint.map(|e| e.trim_end_matches('/').to_owned())),
        (AzureConfigKey::UseEmulator, part("UseDevelopmentStorage")),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

fn first<'a>(variables: &'a StoreEnvironment, names: &[&str]) -> Option<&'a String> {
    names.iter().find_map(|name| variables.get(*name))
}

/// Whether an endpoint was named that is not protected: naming it is all the permission that it takes.
fn is_plain(endpoint: Option<&String>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

/// The variables that begin with `start` and that the client knows.
fn keys<K: FromStr>(start: &str, variables: &StoreEnvironment) -> Vec<(K, String)> {
    variables
        .iter()
        .filter(|(name, _)| name.starts_with(start))
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_says_account_key_and_endpoint() {
        let text =
            "DefaultEndpointsProtocol=http;AccountName=dev;AccountKey=a2V5PT0=;BlobEndpoint=http://127.0.0.1:1/dev/;";
        let got = of_connection_string(text);
        let value = |key| got.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str());
        assert_eq!(value(AzureConfigKey::AccountName), Some("dev"));
        assert_eq!(value(AzureConfigKey::AccessKey), Some("a2V5PT0="));
        assert_eq!(value(AzureConfigKey::Endpoint), Some("http://127.0.0.1:1/dev"));
        let cloud = of_connection_string("AccountName=x;EndpointSuffix=core.windows.net");
        assert!(cloud.contains(&(AzureConfigKey::Endpoint, "https://x.blob.core.windows.net".into())), "{cloud:?}");
        assert!(of_connection_string("nonsense").is_empty());
    }
}
