//! Network namespaces.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sys;

/// A network namespace, which is gone with this and the last thread, process and socket in it.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes one with a loopback interface, and in it what `furnish` does.
    pub fn new<T: Send>(furnish: impl FnOnce() -> io::Result<T> + Send) -> io::Result<(Self, T)> {
        on_a_thread(|| {
            sys::unshare_network()?;
            sys::set_up("lo")?;
            let file = File::open("/proc/thread-self/ns/net")?;
            Ok((Self { file }, furnish()?))
        })
    }

    /// Runs something in it. What is started there, sockets and processes, stays there.
    #[track_caller]
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.file.as_fd(), network).unwrap();
            body()
        })
    }

    /// What its kernel has counted so far, by names such as `Tcp.OutRsts`.
    #[track_caller]
    pub fn counters(&self) -> Counters {
        self.run(|| {
            let mut counters = BTreeMap::new();
            for file in ["snmp", "netstat"] {
                let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
                let lines: Vec<&str> = text.lines().collect();
                // A line of names, then one of values.
                for pair in lines.chunks_exact(2) {
                    let (group, names) = pair[0].split_once(": ").unwrap();
                    let (_, values) = pair[1].split_once(": ").unwrap();
                    for (name, value) in names.split(' ').zip(values.split(' ')) {
                        let value = value.parse().unwrap_or(0);
                        counters.insert(format!("{group}.{name}"), value);
                    }
                }
            }
            Counters(counters)
        })
    }
}

fn on_a_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(body).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// The kernel's counters of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, i64>);

impl Counters {
    /// What has been counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().filter_map(|(name, count)| {
            let count = count - before.0.get(name).copied().unwrap_or(0);
            (count != 0).then(|| (name.clone(), count))
        });
        Self(grown.collect())
    }

    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Those that explain how a connection can be lost, without the zeros.
    pub fn of_losses(&self) -> String {
        let telling = LOSSES.iter().filter(|name| self.get(name) != 0);
        let telling: Vec<_> = telling
            .map(|name| format!("{name} {}", self.get(name)))
            .collect();
        telling.join(", ")
    }
}

const LOSSES: [&str; 14] = [
    "Tcp.AttemptFails",
    "Tcp.EstabResets",
    "Tcp.OutRsts",
    "Tcp.RetransSegs",
    "TcpExt.ListenOverflows",
    "TcpExt.ListenDrops",
    "TcpExt.SyncookiesSent",
    "TcpExt.SyncookiesFailed",
    "TcpExt.TCPReqQFullDrop",
    "TcpExt.TCPReqQFullDoCookies",
    "TcpExt.TCPSynRetrans",
    "TcpExt.TCPAbortOnData",
    "TcpExt.TCPAbortOnClose",
    "TcpExt.TCPAbortOnTimeout",
];
