//! Avro records through a real schema registry, whose URL is in SCHEMA_REGISTRY_URL.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::env::Runtimes;
use millstream_common::{Env, ErrorKind};
use millstream_formats::avro::{AvroDecoding, AvroEncoding, SchemaRegistry, Written};
use millstream_formats::{DecodingFormat, EncodingFormat, Records};
use millstream_kafka::registry::{HttpRegistry, RegistryOptions};

#[allow(clippy::disallowed_methods)] // the tests' runner names the registry; no production code reads this
pub(crate) fn registry(env: &Env) -> Arc<HttpRegistry> {
    let url = std::env::var("SCHEMA_REGISTRY_URL").expect(
        "SCHEMA_REGISTRY_URL: run `scripts/schema-registry.sh run cargo test -p millstream-kafka --features registry`",
    );
    let options = RegistryOptions { urls: vec![url], credentials: None, request_timeout: Duration::from_secs(20) };
    Arc::new(HttpRegistry::new(env.clone(), options).unwrap())
}

/// A subject that no other test, and no run before on the same registry, has.
#[allow(clippy::disallowed_methods)] // only its being unique counts
fn subject(what: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{what}-{:x}/{}-value", now.as_micros(), std::process::id())
}

fn columns(second: DataType) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("name", second, true)]))
}

async fn written(
    batch: &RecordBatch,
    subject: &str,
    registry: Arc<HttpRegistry>,
) -> millstream_common::Result<Vec<u8>> {
    let format = AvroEncoding::new("shop.Order").unwrap().registered(subject, registry);
    let mut encoder = format.encoder(&batch.schema()).unwrap();
    encoder.before().unwrap().await?;
    assert!(encoder.before().is_none());
    let mut records = Records::default();
    encoder.encode(batch, &mut records).unwrap();
    Ok(records.iter().next().unwrap().unwrap().to_vec())
}

#[test]
fn what_is_written_through_a_registry_is_read_through_it() {
    let runtimes = Runtimes::start(1).unwrap();
    let env = runtimes.env();
    runtimes.block_on(async move {
        let (registry, subject) = (registry(&env), subject("order"));
        let ids = Arc::new(Int64Array::from(vec![7]));
        let narrow = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
        let old = RecordBatch::try_new(narrow, vec![ids.clone()]).unwrap();
        let new = RecordBatch::try_new(
            columns(DataType::Utf8),
            vec![ids.clone(), Arc::new(StringArray::from(vec![Some("x")]))],
        )
        .unwrap();
        let first = written(&old, &subject, registry.clone()).await.unwrap();
        // A column that may be null was added: registries take that as compatible.
        let second = written(&new, &subject, registry.clone()).await.unwrap();
        assert_eq!(written(&old, &subject, registry.clone()).await.unwrap(), first, "a schema keeps its id");
        assert_ne!(first[..5], second[..5]);

        let format = AvroDecoding::new(columns(DataType::Utf8), Written::Registered(registry.clone())).unwrap();
        let mut decoder = format.decoder().unwrap();
        for record in [&first, &second] {
            decoder.before(record).unwrap().await.unwrap();
            assert!(decoder.before(record).is_none());
            decoder.push(record).unwrap();
        }
        let batch = decoder.take().unwrap();
        let names: StringArray = vec![None, Some("x")].into();
        assert_eq!(batch.column(1).as_ref(), &names);
        assert!(registry.schema(u32::MAX >> 1).await.unwrap().is_none());
        let error = registry.register(&subject, r#"{"type":"nothing"}"#).await.unwrap_err();
        assert_eq!((error.kind(), error.number()), (ErrorKind::Config, 1356), "{error}");
    });
}
