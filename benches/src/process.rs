//! A server seen from outside: a child process and what the kernel says about it.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::time::ClockId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::servers::Server;

/// A server in a process of its own, which is killed when this is dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    /// While it is open, the server serves.
    input: Option<ChildStdin>,
    address: SocketAddr,
    clock: ClockId,
}

impl ServerProcess {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// That it could not be started, or did not say where it listens.
    pub fn start(server: &Server) -> io::Result<Self> {
        Self::start_under(&[], server)
    }

    /// [`start`](Self::start), run by another program: `tool` is its command line.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_under(tool: &[String], server: &Server) -> io::Result<Self> {
        let program = env::current_exe()?;
        let mut command = match tool {
            [] => Command::new(program),
            [tool, args @ ..] => {
                let mut command = Command::new(tool);
                command.args(args).arg(program);
                command
            }
        };
        // One thread for each core we may use, on any runtime: they differ in their defaults.
        let threads = thread::available_parallelism()?.to_string();
        let mut child = command
            .args(["serve", server.name])
            .env("ASYNC_STD_THREAD_COUNT", &threads)
            .env("SMOL_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|err| {
                let program = command.get_program().to_string_lossy();
                io::Error::new(err.kind(), format!("{program}: {err}"))
            })?;
        let mut line = String::new();
        let output = child.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim_end().parse().map_err(|_| {
            io::Error::other(format!("{} did not say where it listens", server.name))
        })?;
        Ok(Self {
            input: child.stdin.take(),
            clock: ClockId::pid_cpu_clock_id(pid_of(&child))?,
            child,
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The time its threads have run, those included that have ended, once it has come to rest.
    ///
    /// The load has its replies before the server is done with them: it has yet to wait for the
    /// next request, or to close. And the count of a running thread lags behind, and that of one
    /// that waits for a core stands still.
    ///
    /// # Errors
    /// `TimedOut` for a server that does not come to rest.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let start = Instant::now();
        let mut last = None;
        loop {
            let asleep = self.is_asleep()?;
            let now = Duration::from(self.clock.now()?);
            if last.replace(now) == Some(now) && asleep {
                return Ok(now);
            }
            if start.elapsed() > RESTLESS {
                let message = "the server works although nobody asks it anything";
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether none of its threads has a core or waits for one.
    fn is_asleep(&self) -> io::Result<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // One that has ended since is asleep for good.
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                continue;
            };
            // The state follows the name, which may have parentheses in it.
            let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            if state.starts_with(['R', 'D']) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Its memory that is not swapped out, once it has come to rest and allocated all that it will.
    ///
    /// # Errors
    /// As [`processor_time`](Self::processor_time).
    pub fn resident_bytes(&self) -> io::Result<u64> {
        self.processor_time()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = kibibytes.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.map_or(Err(io::ErrorKind::InvalidData.into()), |number| {
            Ok(number * 1024)
        })
    }

    /// Has its threads, and those they will start, run on these cores only.
    ///
    /// # Errors
    /// Those of `sched_setaffinity`.
    pub fn move_to(&self, cores: &CpuSet) -> io::Result<()> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let id = thread?.file_name().to_str().and_then(|id| id.parse().ok());
            // Without an id it would be the calling thread that is moved.
            let id = id
                .and_then(Pid::from_raw)
                .ok_or(io::ErrorKind::InvalidData)?;
            sched_setaffinity(Some(id), cores)?;
        }
        Ok(())
    }

    /// Halts all its threads, until it is [resumed](Self::resume).
    ///
    /// # Errors
    /// Those of the signal.
    pub fn pause(&self) -> io::Result<()> {
        kill(self.pid(), Signal::SIGSTOP)?;
        // Until then, a thread may still wake up for what is sent to it.
        waitid(Id::Pid(self.pid()), WaitPidFlag::WSTOPPED)?;
        Ok(())
    }

    /// Lets it go on after a [pause](Self::pause).
    ///
    /// # Errors
    /// Those of the signal.
    pub fn resume(&self) -> io::Result<()> {
        Ok(kill(self.pid(), Signal::SIGCONT)?)
    }

    /// Ends it without a stop, by a signal that it knows nothing of.
    ///
    /// # Errors
    /// Those of the signal.
    pub fn terminate(mut self) -> io::Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    fn pid(&self) -> nix::unistd::Pid {
        pid_of(&self.child)
    }

    /// Asks it to stop, in the way that is its own.
    pub fn stop(&mut self) {
        self.input = None;
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// That it did not end well.
    pub fn wait(&mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("the server ended with {status}")))
    }

    /// Becomes readable when it has ended.
    pub(crate) fn end(&self) -> io::Result<OwnedFd> {
        Ok(pidfd_open(
            Pid::from_child(&self.child),
            PidfdFlags::empty(),
        )?)
    }
}

fn pid_of(child: &Child) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(child.id() as i32)
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended before, and how it did is of no interest any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Far beyond what anything takes that a server does after its last reply.
const RESTLESS: Duration = Duration::from_secs(10);
