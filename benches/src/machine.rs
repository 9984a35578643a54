//! How much of the machine we use.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, io};

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Runs this program once more on one core, which its children inherit; returns only to say why
/// it could not.
///
/// So everything that asks how many cores there are is told the truth.
pub fn start_again_pinned() -> io::Error {
    match (first_core(), env::current_exe()) {
        (Ok(core), Ok(program)) => match sched_setaffinity(None, &core) {
            Ok(()) => Command::new(program).args(env::args_os().skip(1)).exec(),
            Err(err) => err.into(),
        },
        (Err(err), _) | (_, Err(err)) => err,
    }
}

/// Whether there is one core for everything.
#[must_use]
pub fn is_pinned() -> bool {
    sched_getaffinity(None).is_ok_and(|cores| cores.count() == 1)
}

/// While it exists, this thread stays on the first of the cores it may use.
#[derive(Debug)]
pub struct OnFirstCore {
    before: CpuSet,
}

impl OnFirstCore {
    /// Moves this thread there. What it starts from then on may use that core only.
    ///
    /// # Errors
    /// Those of `sched_setaffinity`.
    pub fn new() -> io::Result<Self> {
        let before = sched_getaffinity(None)?;
        sched_setaffinity(None, &first_core()?)?;
        Ok(Self { before })
    }
}

impl Drop for OnFirstCore {
    fn drop(&mut self) {
        // These were allowed before, and a thread that stays where it is does no harm.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// All cores we may use but the first.
///
/// # Errors
/// Those of `sched_getaffinity`.
pub fn other_cores() -> io::Result<CpuSet> {
    let mut cores = sched_getaffinity(None)?;
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|core| cores.is_set(*core)) {
        cores.unset(first);
    }
    Ok(cores)
}

/// The first core we may use.
fn first_core() -> io::Result<CpuSet> {
    let allowed = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core));
    let mut core = CpuSet::new();
    core.set(first.ok_or(io::ErrorKind::NotFound)?);
    Ok(core)
}

/// Thousands of connections want a descriptor each, here and in the servers, which inherit the
/// limit. Returns it.
///
/// # Errors
/// Those of `setrlimit`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}
