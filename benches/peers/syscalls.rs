//! System calls per request, counted by the kernel's tracepoints.
//!
//! A tracer that stops the server at each call would slow it down until there is always data when
//! it asks, and so spare it calls. Tracepoints only count. There are hundreds of them, and to switch
//! them on and off takes some seconds for each server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use benches::load::Load;
use benches::process::ServerProcess;
use benches::servers::Server;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::workloads::{CHURN, FIFTY_CLIENTS, Work, Workload};

/// The workloads whose calls tell something: a request, and a connection.
const COUNTED: [&str; 2] = [FIFTY_CLIENTS, CHURN];

/// Prints calls per request for those of the workloads that are counted.
pub(crate) fn print(
    servers: &[&'static Server],
    workloads: &[&'static Workload],
) -> io::Result<()> {
    if !workloads.iter().any(|it| COUNTED.contains(&it.name)) {
        let message = format!(
            "calls are counted for these workloads: {}",
            COUNTED.join("; ")
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    for workload in workloads.iter().filter(|it| COUNTED.contains(&it.name)) {
        let Work::Traffic {
            shape, requests, ..
        } = workload.work
        else {
            continue;
        };
        println!("system calls per {}, {}", workload.unit(), workload.name);
        for server in servers.iter().filter(|server| workload.suits(server)) {
            let process = ServerProcess::start(server)?;
            let mut load = Load::open(process.address(), shape)?;
            load.run(requests / 4)?;
            process.processor_time()?;
            let counting = Counting::start(&process)?;
            load.run(requests)?;
            // What follows the last reply belongs to it.
            process.processor_time()?;
            let mut calls = counting.finish()?;
            calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let per_request = |count: u64| count as f64 / requests as f64;
            let sum = per_request(calls.iter().map(|(_, count)| count).sum());
            let kinds: Vec<String> = calls
                .iter()
                .filter(|(_, count)| per_request(*count) >= 0.005)
                .map(|(name, count)| format!("{name} {:.2}", per_request(*count)))
                .collect();
            println!("  {:<26} {sum:>6.2}: {}", server.name, kinds.join(", "));
        }
    }
    Ok(())
}

/// `perf stat`, which counts until it is told to finish.
struct Counting {
    perf: Child,
}

impl Counting {
    fn start(process: &ServerProcess) -> io::Result<Self> {
        let mut perf = Command::new("perf")
            .args(["stat", "-e", "syscalls:sys_enter_*", "-x", ",", "-D", "-1"])
            .args(["--control", "fd:0,1", "-p", &process.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| io::Error::new(err.kind(), format!("perf: {err}")))?;
        let input = perf.stdin.as_mut().expect("it is piped");
        input.write_all(b"enable\n")?;
        let mut acknowledged = String::new();
        let output = perf.stdout.as_mut().expect("it is piped");
        BufReader::new(output).read_line(&mut acknowledged)?;
        if !acknowledged.starts_with("ack") {
            let mut message = String::new();
            perf.stderr
                .take()
                .expect("it is piped")
                .read_to_string(&mut message)?;
            perf.wait()?;
            return Err(io::Error::other(format!(
                "perf cannot count here: {}",
                message.trim()
            )));
        }
        Ok(Self { perf })
    }

    /// The calls by name, those left out that were not made.
    fn finish(self) -> io::Result<Vec<(String, u64)>> {
        kill(Pid::from_raw(self.perf.id() as i32), Signal::SIGINT)?;
        let output = self.perf.wait_with_output()?;
        let calls = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter_map(counted)
            .collect();
        Ok(calls)
    }
}

/// `1234,,syscalls:sys_enter_read,…`
fn counted(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split(',');
    let count = fields.next()?.parse().ok().filter(|count| *count > 0)?;
    let name = fields.nth(1)?.strip_prefix("syscalls:sys_enter_")?;
    Some((name.to_owned(), count))
}
