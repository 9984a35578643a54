//! The soaked server seen from outside.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::server::Ports;

/// A server process, killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Soaked {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What the kernel says of the process at one time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Seconds since the start.
    pub(crate) at: f64,
    pub(crate) mebibytes: f64,
    pub(crate) descriptors: f64,
    pub(crate) threads: f64,
}

/// What a server came to, in the order of its line of output.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account {
    pub(crate) accepted: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) panicked: u64,
    pub(crate) aborted: u64,
    pub(crate) balanced: bool,
}

impl Soaked {
    pub(crate) fn start(engine: &str, certificate: &Path, key: &Path) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", engine])
            .args([certificate, key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            input: input.ok_or(io::ErrorKind::BrokenPipe)?,
            output: BufReader::new(output.ok_or(io::ErrorKind::BrokenPipe)?),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order, and waits until it is done: gives where the next generation listens, and what
    /// the one before came to.
    pub(crate) fn order(&mut self, word: &str) -> io::Result<(Option<Ports>, Vec<Account>)> {
        writeln!(self.input, "{word}")?;
        let (mut ports, mut accounts) = (None, Vec::new());
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            let words: Vec<_> = line.split_whitespace().collect();
            let invalid = |_| io::ErrorKind::InvalidData;
            match words[..] {
                ["listening", lines, tls, http] => {
                    let [lines, tls, http] = [lines, tls, http].map(str::parse);
                    ports = Some(Ports {
                        lines: lines.map_err(invalid)?,
                        tls: tls.map_err(invalid)?,
                        http: http.map_err(invalid)?,
                    });
                }
                ["report", ref numbers @ ..] => {
                    let numbers: Vec<u64> =
                        numbers.iter().filter_map(|it| it.parse().ok()).collect();
                    let [accepted, completed, failed, panicked, aborted, balanced] = numbers[..]
                    else {
                        return Err(io::ErrorKind::InvalidData.into());
                    };
                    accounts.push(Account {
                        accepted,
                        completed,
                        failed,
                        panicked,
                        aborted,
                        balanced: balanced == 1,
                    });
                }
                ["done"] => return Ok((ports, accounts)),
                _ => {}
            }
            line.clear();
        }
        Err(io::Error::other("the server is gone"))
    }
}

impl Sample {
    pub(crate) fn of(process: u32, at: f64) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            number.unwrap_or(0.0)
        };
        Ok(Self {
            at,
            mebibytes: number("VmRSS:") / 1024.0,
            threads: number("Threads:"),
            descriptors: fs::read_dir(format!("/proc/{process}/fd"))?.count() as f64,
        })
    }
}

impl Drop for Soaked {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
