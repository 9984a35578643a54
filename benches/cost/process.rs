//! A server seen from outside: a child process and what the kernel says about it.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

/// Runs `servers::serve`; the end of its input, when this is dropped, ends it.
pub(crate) struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    pub(crate) fn start(runtime: &str, server: &str) -> io::Result<Self> {
        // One thread for each core we may use, on either runtime: they differ in their defaults.
        let threads = thread::available_parallelism()?.to_string();
        let mut child = Command::new(env::current_exe()?)
            .args(["serve", runtime, server])
            .env("ASYNC_STD_THREAD_COUNT", &threads)
            .env("SMOL_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim_end().parse().map_err(io::Error::other)?;
        Ok(Self { child, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The time its threads have run, once they have come to rest.
    ///
    /// The load has its replies before the server is done with them: it has yet to wait for the
    /// next request, or to close. And the count of a running thread lags behind.
    pub(crate) fn processor_time(&self) -> io::Result<Duration> {
        let mut last = None;
        loop {
            let now = self.processor_time_now()?;
            if last.replace(now) == Some(now) {
                return Ok(now);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn processor_time_now(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end while we look.
            let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            nanos += first_number(&stat);
        }
        Ok(Duration::from_nanos(nanos))
    }

    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        self.processor_time()?; // At rest, it has allocated all that it will.
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(first_number(kibibytes.unwrap_or_default()) * 1024)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Closes its input first. How it ended is of no interest any more.
        let _ = self.child.wait();
    }
}

fn first_number(text: &str) -> u64 {
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse().expect("the kernel writes numbers there")
}
