//! The machine: what it is.

use std::process::Command;
use std::{fs, thread};

use serde::{Deserialize, Serialize};

/// Machine and versions, without which no figure means anything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) compiler: String,
    pub(crate) packages: Vec<String>,
}

impl Machine {
    /// This machine, with as many cores as we may use.
    pub(crate) fn here() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == "model name").then(|| value.trim().to_owned())
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let compiler = Command::new("rustc").arg("--version").output();
        let compiler = compiler.map_or_else(|_| Vec::new(), |output| output.stdout);
        let lock = include_str!("../../Cargo.lock");
        let version = |name: &&str| Some(format!("{name} {}", locked_version(lock, name)?));
        Self {
            processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
            cores: thread::available_parallelism().map_or(0, usize::from),
            kernel: format!("Linux {}", kernel.trim()),
            compiler: String::from_utf8_lossy(&compiler).trim().to_owned(),
            packages: PACKAGES.iter().filter_map(version).collect(),
        }
    }
}

/// What the servers are made of.
const PACKAGES: &[&str] = &[
    "gracious",
    "tokio",
    "tokio-util",
    "actix-server",
    "smol",
    "swansong",
    "async-std",
    "async-io",
    "async-executor",
];

fn locked_version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, package) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(package.split_once('"')?.0)
}
