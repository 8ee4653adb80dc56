//! A broker of Apache Kafka, started and killed by `scripts/kafka.sh`, and its own tools.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_common::{Error, Result};

use crate::binary::{Binary, Running, words};
use crate::outside::{cpu_seconds, wait_for};

/// How long the broker may take for anything.
const LIMIT: Duration = Duration::from_secs(180);

/// A real broker in a folder of its own; stopped, and its folder removed by whoever made that, when this ends.
#[derive(Debug)]
pub struct Broker {
    bash: Binary,
    script: PathBuf,
    folder: PathBuf,
    /// `HOST:PORT`.
    pub address: String,
}

/// A record as the console consumer prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// The number of its partition.
    pub partition: u32,
    /// `null` when it has none.
    pub key: String,
    /// `null` for a tombstone.
    pub value: String,
}

impl Broker {
    /// Starts one. `script`: `scripts/kafka.sh`.
    pub fn start(script: &Path, folder: &Path) -> Result<Self> {
        let bash = Binary::find(Some(Path::new("/bin/bash")))?;
        let script = script.canonicalize().map_err(|e| {
            Error::config("there is no script that starts a broker")
                .at(script.display().to_string())
                .next("run the bench in the folder of the repository, or name the script by --kafka")
                .source(e)
        })?;
        let mut broker = Self { bash, script, folder: folder.join("kafka"), address: String::new() };
        let said = broker.call(&format!("start {}", broker.folder.display()))?;
        let address = said.lines().find_map(|l| l.strip_prefix("export KAFKA_BOOTSTRAP="));
        broker.address = address.unwrap_or_default().to_owned();
        Ok(broker)
    }

    /// Ends it as `kill -9` does, and gives the process that starts it again at the same port.
    pub fn kill_and_restart(&self) -> Result<Running> {
        self.call(&format!("kill {}", self.folder.display()))?;
        self.begin(&words(&format!("start {}", self.folder.display())))
    }

    /// Makes a topic.
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<()> {
        let create = format!(
            "tool topics --bootstrap-server {} --create --topic {name} --partitions {partitions} --config retention.ms=-1",
            self.address
        );
        self.call(&create).map(drop)
    }

    /// CPU seconds that it has used since its start.
    pub fn cpu_seconds(&self) -> Result<f64> {
        // Where the script keeps the number of its process.
        let file = self.folder.join("kafka.pid");
        let process = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        process.and_then(cpu_seconds).ok_or_else(|| {
            Error::unavailable("the broker is not there to be asked for its CPU time").at(file.display().to_string())
        })
    }

    /// All committed records of a topic, as Kafka's console consumer reads them.
    pub fn consume(&self, topic: &str) -> Result<Vec<Printed>> {
        let mut consume = words(&format!(
            "tool consume --bootstrap-server {} --topic {topic} --from-beginning --isolation-level read_committed \
             --timeout-ms 10000 --property print.partition=true --property print.key=true",
            self.address
        ));
        consume.push("--property".into());
        consume.push("key.separator=\u{1}".into());
        let mut all = vec![self.script.display().to_string()];
        all.extend(consume);
        let text = self.bash.call(&all)?;
        text.lines().filter(|l| !l.is_empty()).map(printed).collect()
    }

    fn call(&self, text: &str) -> Result<String> {
        let mut all = vec![self.script.display().to_string()];
        all.extend(words(text));
        self.bash.call(&all)
    }

    fn begin(&self, arguments: &[String]) -> Result<Running> {
        let mut all = vec![self.script.display().to_string()];
        all.extend(arguments.iter().cloned());
        self.bash.start(&all, &self.folder.with_extension("log"))
    }

    /// Waits for a start to be over.
    pub fn wait(&self, mut starting: Running) -> Result<()> {
        let done = wait_for(LIMIT, Duration::from_millis(20), || Ok(starting.has_ended()?.then_some(())))?;
        done.ok_or_else(|| Error::unavailable(format!("the broker has not started within {LIMIT:?}")))?;
        starting.finish(LIMIT)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Its folder is going. An old broker has a ZooKeeper, which outlives it until it is stopped.
        for how in ["kill", "stop"] {
            let _ = self.call(&format!("{how} {}", self.folder.display()));
        }
    }
}

/// `Partition:1␁KEY␁VALUE`.
fn printed(line: &str) -> Result<Printed> {
    let mut parts = line.splitn(3, '\u{1}');
    let partition = parts.next().and_then(|p| p.strip_prefix("Partition:")).and_then(|p| p.parse().ok());
    match (partition, parts.next(), parts.next()) {
        (Some(partition), Some(key), Some(value)) => {
            Ok(Printed { partition, key: key.to_owned(), value: value.to_owned() })
        }
        _ => Err(Error::internal(format!("the console consumer printed something else: {line:.200}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_consumer_prints_is_read() {
        let p = printed("Partition:3\u{1}{\"a\":1}\u{1}null").unwrap();
        assert_eq!((p.partition, p.key.as_str(), p.value.as_str()), (3, "{\"a\":1}", "null"));
        assert!(printed("Processed a total of 3 messages").is_err());
    }
}
