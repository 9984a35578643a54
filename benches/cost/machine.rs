//! The machine: what it is, and how much of it we use.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, fs, io, thread};

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Runs this program once more on one core, which its children inherit; returns only to say why
/// it could not.
///
/// So everything that asks how many cores there are is told the truth.
pub(crate) fn start_again_pinned(args: &[String]) -> io::Error {
    let mut first = CpuSet::new();
    first.set(0);
    match (sched_setaffinity(None, &first), env::current_exe()) {
        (Ok(()), Ok(program)) => Command::new(program).args(args).exec(),
        (Err(err), _) => err.into(),
        (_, Err(err)) => err,
    }
}

/// Thousands of idle connections want a descriptor each, here and in the servers, which inherit
/// the limit.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// Machine, mode and versions, without which no figure means anything.
pub(crate) fn describe() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim())
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let compiler = Command::new("rustc").arg("--version").output();
    let compiler = compiler.map_or_else(|_| Vec::new(), |output| output.stdout);
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"));
    let lock = lock.unwrap_or_default();
    let versions: Vec<String> = [
        "gracious",
        "async-std",
        "smol",
        "async-io",
        "async-executor",
    ]
    .into_iter()
    .filter_map(|name| Some(format!("{name} {}", locked_version(&lock, name)?)))
    .collect();
    format!(
        "{}, {cores} of its cores used by servers and load together\nLinux {}, {}\n{}",
        processor.unwrap_or("unknown processor"),
        kernel.trim(),
        String::from_utf8_lossy(&compiler).trim(),
        versions.join(", "),
    )
}

fn locked_version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, package) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(package.split_once('"')?.0)
}
