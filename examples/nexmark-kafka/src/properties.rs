//! `--kafka-property NAME=VALUE`: TLS and SASL by name, and properties of librdkafka.

use std::collections::BTreeMap;
use std::path::Path;

use millstream_common::{Error, Result};
use millstream_engine::dataflow::usage_error;
use millstream_jobs::args::absolute;
use millstream_kafka::security::{Secret, Security};

const NAME: &str = "kafka-property";

/// How brokers are reached, by source and sink alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaProperties {
    pub security: Security,
    /// For librdkafka.
    pub others: BTreeMap<String, String>,
}

impl KafkaProperties {
    /// What was typed. It may be a secret at the wrong place, and is in no error: not even what clap would say.
    pub fn parse(typed: &[String]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for property in typed {
            let (name, value) = property
                .split_once('=')
                .filter(|(name, _)| !name.is_empty())
                .ok_or_else(|| usage_error(format!("a --{NAME} is not of the form NAME=VALUE")))?;
            if all.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(usage_error(format!("--{NAME} {name} is given twice")));
            }
        }
        let (security, others) = Security::split_properties(&all).map_err(of_argument)?;
        Ok(Self { security, others })
    }

    /// Files that are meant from `folder`, as the arguments that name them.
    pub fn absolutised(typed: &[String], folder: &Path) -> Vec<String> {
        let path = |name: &str, value: &str| match value.parse() {
            Ok(Secret::File(path)) => Some(format!("file:{}", absolute(path.to_str()?, folder))),
            Ok(Secret::Env(_)) => None,
            Err(_) => (name.starts_with("ssl.") && name.ends_with(".location")).then(|| absolute(value, folder)),
        };
        let made = |property: &String| {
            let (name, value) = property.split_once('=')?;
            Some(format!("{name}={}", path(name, value)?))
        };
        typed.iter().map(|property| made(property).unwrap_or_else(|| property.clone())).collect()
    }
}

fn of_argument(error: Error) -> Error {
    let place = format!("--{NAME} {}", error.place());
    error.at(place.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(properties: &[&str]) -> Vec<String> {
        properties.iter().map(|p| (*p).to_owned()).collect()
    }

    #[test]
    fn security_and_properties_of_librdkafka_go_their_ways() {
        let parsed = KafkaProperties::parse(&typed(&["security.protocol=SSL", "linger.ms=7", "x=a=b"])).unwrap();
        assert!(parsed.security.tls.is_some() && parsed.security.sasl.is_none());
        let others = [("linger.ms", "7"), ("x", "a=b")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(parsed.others, others.into());
    }

    #[test]
    fn a_refusal_shows_no_value() {
        let sasl = ["security.protocol=SASL_SSL", "sasl.mechanism=PLAIN", "sasl.username=u", "sasl.password=hunter2"];
        let wrong: [(u16, &[&str]); 4] =
            [(1002, &["hunter2"]), (1002, &["=hunter2"]), (1002, &["a=hunter2", "a=hunter2"]), (1411, &sasl)];
        for (number, properties) in wrong {
            let error = KafkaProperties::parse(&typed(properties)).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(error.number() == number && !text.contains("hunter2"), "{text}");
            assert!(text.contains("--kafka-property"), "{text}");
        }
    }

    #[test]
    fn files_are_meant_from_a_folder() {
        let given = [
            "ssl.ca.location=ca.pem",
            "sasl.password=file:p",
            "sasl.password=env:P",
            "ssl.key.location=/k",
            "client.id=x",
        ];
        let made = KafkaProperties::absolutised(&typed(&given), Path::new("/here"));
        let due = [
            "ssl.ca.location=/here/ca.pem",
            "sasl.password=file:/here/p",
            "sasl.password=env:P",
            "ssl.key.location=/k",
            "client.id=x",
        ];
        assert_eq!(made, typed(&due));
    }
}
