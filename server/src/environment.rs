//! The one place that reads environment variables, the folder a command was typed in, and the size of the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use millstream_common::{Error, Result};

use crate::address;
use crate::failure::COMMAND_USAGE;

/// The variable that names the coordinator.
const COORDINATOR: &str = "MILLSTREAM_COORDINATOR";

/// What the process was started with.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

/// Variables with these beginnings are kept; no other part of the environment is looked at.
const PREFIXES: [&str; 23] = [
    "MILLSTREAM_",
    "NO_COLOR",
    "SSL_CERT_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    // Of object stores: docs/object-stores.md.
    "AWS_",
    "GOOGLE_",
    "AZURE_",
    "IDENTITY_ENDPOINT",
    "OSS_",
    "ALIBABA_CLOUD_",
    "COS_",
    "TENCENTCLOUD_",
    "OBS_",
    "HUAWEI_CLOUD_",
    "TOS_",
    "B2_",
    "OS_STORAGE_URL",
    "OS_AUTH_TOKEN",
    "SWIFT_",
    "WEBDAV_",
    "WEBHDFS_",
    "HADOOP_USER_NAME",
];

impl Environment {
    /// Reads the variables of this process.
    #[must_use]
    pub fn read() -> Self {
        // `vars_os`: a variable that is no UTF-8 is none of ours.
        let text = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::from_pairs(text)
    }

    /// Those of `pairs` that concern us. For tests.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |key: &str| PREFIXES.iter().any(|p| key.starts_with(p)) || key == "HOME";
        Self { variables: pairs.into_iter().filter(|(k, v)| ours(k) && !v.is_empty()).collect() }
    }

    /// All of them.
    #[must_use]
    pub fn variables(&self) -> &BTreeMap<String, String> {
        &self.variables
    }

    /// One of them; `None` when it is not set or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Addresses of the coordinator: the option, else `MILLSTREAM_COORDINATOR`, else the default. The parser of the
    /// command line has seen to the form of the option, nobody to that of the variable.
    pub fn coordinators(&self, option: Option<&str>) -> Result<Vec<String>> {
        let text = option.or_else(|| self.get(COORDINATOR)).unwrap_or("127.0.0.1:6123");
        address::coordinators(text).map_err(|why| {
            let error = Error::config(format!("an address of a coordinator is malformed: {why}")).code(COMMAND_USAGE);
            if option.is_none() { error.at(format!("the variable {COORDINATOR}")) } else { error }
        })?;
        Ok(address::list(text))
    }
}

/// The folder that relative paths are meant from.
pub fn current_folder() -> Result<PathBuf> {
    std::env::current_dir().map_err(|e| {
        Error::config("the folder the command was typed in cannot be found").next("change to one that exists").source(e)
    })
}

/// How many cores the process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// RAM that the process may use, bytes: the machine's, or that of its control group when it is less. 2 GiB when neither
/// can be found out.
#[must_use]
pub fn ram_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|t| total_of_meminfo(&t));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    [machine, group].into_iter().flatten().min().unwrap_or(2 << 30)
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::from_pairs(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn only_our_variables_are_kept() {
        let e = environment(&[("AWS_REGION", "x"), ("PATH", "/bin"), ("MILLSTREAM_LOG", "debug"), ("AWS_PROFILE", "")]);
        assert_eq!(e.variables().keys().collect::<Vec<_>>(), ["AWS_REGION", "MILLSTREAM_LOG"]);
    }

    #[test]
    fn the_option_wins_over_the_variable() {
        let e = environment(&[("MILLSTREAM_COORDINATOR", "a:1, b:2")]);
        assert_eq!(e.coordinators(None).unwrap(), ["a:1", "b:2"]);
        assert_eq!(e.coordinators(Some("http://c:3")).unwrap(), ["c:3"]);
        assert_eq!(Environment::default().coordinators(None).unwrap(), ["127.0.0.1:6123"]);
        let e = environment(&[("MILLSTREAM_COORDINATOR", "foo")]).coordinators(None).unwrap_err();
        assert!(e.number() == COMMAND_USAGE && e.place().contains("MILLSTREAM_COORDINATOR"), "{e}");
    }

    #[test]
    fn the_machine_has_cores_and_ram() {
        assert!(cores() >= 1 && ram_bytes() > 64 << 20);
        assert_eq!(total_of_meminfo("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(total_of_meminfo("nothing"), None);
    }
}
