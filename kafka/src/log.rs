//! What librdkafka says, in our log.

use rdkafka::config::RDKafkaLogLevel;

/// A broker that does not answer is no error of ours yet: whoever waits for it says so in time.
pub(crate) fn say(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!("librdkafka: {facility} {message}");
        }
        RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!("librdkafka: {facility} {message}"),
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!("librdkafka: {facility} {message}"),
    }
}
