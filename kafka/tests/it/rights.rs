//! Rights that the user lacks, on a real broker: what the job is told, and that it is final.

use std::time::Duration;

use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::{CreateAclsRequest, CreateAclsResponse};
use kafka_protocol::protocol::StrBytes;
use millstream_common::{Env, Epoch, Error, Execution, Generation};
use millstream_engine::sink::Sink;
use millstream_kafka::security::{Sasl, Security};
use millstream_kafka::sink::{DeliveryGuarantee, KafkaSink, KafkaSinkOptions, LostTransactions};

use super::security::login;
use super::sink::{options, pre_commit, rows, sink, writer};
use super::support::{create_topic, read, run, secured, unique, variable};
use super::versions::ask;

/// Numbers of the protocol.
const TOPIC: i8 = 2;
const GROUP: i8 = 3;
const TRANSACTIONAL_ID: i8 = 5;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const READ: i8 = 3;
const WRITE: i8 = 4;
const DESCRIBE: i8 = 8;
const ALLOW: i8 = 3;

fn may(user: &str, operation: i8, resource: (i8, &str, i8)) -> AclCreation {
    AclCreation::default()
        .with_resource_type(resource.0)
        .with_resource_name(StrBytes::from_string(resource.1.to_owned()))
        .with_resource_pattern_type(resource.2)
        .with_principal(StrBytes::from_string(format!("User:{user}")))
        .with_host(StrBytes::from_static_str("*"))
        .with_operation(operation)
        .with_permission_type(ALLOW)
}

/// Who has no right to what is named here has none from now on; what nobody names is everybody's. The tests' own user may all.
async fn grant(rights: Vec<AclCreation>) {
    // The newest version that Apache Kafka 2.8 knows.
    let made: CreateAclsResponse = ask(&CreateAclsRequest::default().with_creations(rights), 2).await;
    for made in made.results {
        assert_eq!(made.error_code, 0, "{:?}", made.error_message);
    }
}

/// The user of the SASL ports may describe the transactional ids of this prefix, and nothing else; with `more` in the same request.
async fn may_only_describe(env: &Env, prefix: &str, more: Vec<AclCreation>) {
    let ids = (TRANSACTIONAL_ID, prefix, PREFIXED);
    let mut rights = vec![may("somebody", WRITE, ids), may(&login().user, DESCRIBE, ids)];
    rights.extend(more);
    grant(rights).await;
    // The broker hears of it soon.
    let brokers = secured(env, &variable("KAFKA_BOOTSTRAP_SASL"), &user());
    loop {
        match brokers.fence(&format!("{prefix}-9-9"), Duration::from_secs(60)).await {
            Ok(()) => env.sleep(Duration::from_millis(20)).await,
            Err(e) => break assert_eq!(e.number(), 1347, "{e}"),
        }
    }
}

fn user() -> Security {
    Security { tls: None, sasl: Some(Sasl::Plain(login())) }
}

fn of_user(options: KafkaSinkOptions) -> KafkaSinkOptions {
    KafkaSinkOptions { bootstrap: vec![variable("KAFKA_BOOTSTRAP_SASL")], security: user(), ..options }
}

async fn refusal(sink: &KafkaSink) -> Error {
    let mut writer = writer(sink, 0).await;
    match writer.write(&rows(0..3)).await {
        Ok(()) => writer.pre_commit(Epoch(1)).await.unwrap_err(),
        Err(e) => e,
    }
}

#[test]
fn a_transaction_that_is_not_allowed_is_final() {
    run(|env| async move {
        let (topic, prefix) = (unique("rights"), unique("rights"));
        create_topic(&topic, 1).await;
        // Somebody who may has written it.
        let allowed = sink(&env, options(&topic, &prefix));
        let mut writer = writer(&allowed, 1).await;
        writer.write(&rows(0..3)).await.unwrap();
        let waits = pre_commit(&mut *writer, 1).await;
        may_only_describe(&env, &prefix, vec![]).await;

        let denied = sink(&env, of_user(options(&topic, &prefix)));
        let error = refusal(&denied).await;
        assert!(error.is_final() && error.number() == 1363, "{error}");
        assert!(error.advice().contains("Write on the transactional ids"), "{error}");

        let error = denied.committer().unwrap().commit(&waits).await.unwrap_err();
        assert!(error.is_final() && error.number() == 1347, "{error}");
        assert!(error.what().contains("to end a transaction"), "{error}");
        assert!(error.advice().contains("Write on the transactional ids"), "{error}");
        assert!(read(&topic, 1).is_empty());
        allowed.committer().unwrap().commit(&waits).await.unwrap();
        assert_eq!(read(&topic, 1).len(), 3);
    });
}

#[test]
fn a_topic_that_may_not_be_written_to_is_final_and_named() {
    run(|env| async move {
        let (topic, marker, prefix) = (unique("closed"), unique("marker"), unique("closed"));
        create_topic(&topic, 1).await;
        let of_topic = (TOPIC, topic.as_str(), LITERAL);
        // All of these rights take effect together.
        let rights = vec![may("somebody", WRITE, of_topic), may(&login().user, DESCRIBE, of_topic)];
        may_only_describe(&env, &marker, rights).await;
        for guarantee in [DeliveryGuarantee::ExactlyOnce, DeliveryGuarantee::AtLeastOnce] {
            let options = KafkaSinkOptions { guarantee, ..of_user(options(&topic, &prefix)) };
            let error = refusal(&sink(&env, options)).await;
            assert!(error.is_final() && error.number() == 1363, "{guarantee:?}: {error}");
            assert!(error.place().contains(&topic), "{error}");
            assert!(error.advice().contains("Write on those that it writes to"), "{error}");
        }
    });
}

/// What is only needed when something is lost is asked for at the start.
#[test]
fn without_the_rights_to_write_again_nothing_begins() {
    run(|env| async move {
        let (topic, marker, prefix) = (unique("again"), unique("marker"), unique("again"));
        create_topic(&topic, 1).await;
        let sink =
            |lost_transactions| sink(&env, KafkaSinkOptions { lost_transactions, ..of_user(options(&topic, &prefix)) });
        let begin = async |lost| sink(lost).committer().unwrap().clean_up(Generation(1), Execution(1)).await;
        begin(LostTransactions::WriteAgain).await.unwrap();
        may_only_describe(&env, &marker, vec![may("somebody", READ, (GROUP, &prefix, PREFIXED))]).await;
        let error = begin(LostTransactions::WriteAgain).await.unwrap_err();
        assert!(error.is_final() && error.number() == 1347, "{error}");
        assert!(error.advice().contains("Read on the topics that the sink writes to, and on groups"), "{error}");
        begin(LostTransactions::Fail).await.unwrap();
    });
}
