//! The link: both namespaces and the relay between them.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::namespace::Namespace;
use super::relay::Relay;
use super::sys;

/// A client's side and a server's, and the way between them, which takes no time at first.
#[derive(Debug)]
pub struct Link {
    pub client: Namespace,
    pub server: Namespace,
    pub relay: Relay,
    /// Whether there is IPv6 on this machine.
    pub has_v6: bool,
    /// What is measured on one link must not compete with another for the processor.
    _alone: MutexGuard<'static, ()>,
}

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

impl Link {
    /// Lays a link; where this machine cannot, it says why, so that it is seen, and returns `None`.
    ///
    /// It waits until no other link of this process is there any more.
    pub fn lay(seed: u64) -> Option<Self> {
        let linked = Self::try_lay(seed);
        if let Err(error) = &linked {
            // Not by `eprintln`, which is captured in tests that pass.
            let _ = writeln!(
                io::stderr(),
                "skipped: a link of one's own needs root, network namespaces and /dev/net/tun: {error}"
            );
        }
        linked.ok()
    }

    fn try_lay(seed: u64) -> io::Result<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        raise_descriptor_limit()?;
        let has_v6 = fs::exists("/proc/sys/net/ipv6")?;
        let device = |ours, peer, ours_v6| {
            move || {
                let device = sys::tun(DEVICE)?;
                sys::set_addresses(DEVICE, ours, peer)?;
                sys::set_queue_length(DEVICE, QUEUE_LENGTH)?;
                sys::set_up(DEVICE)?;
                if has_v6 {
                    sys::add_v6_address(DEVICE, ours_v6)?;
                }
                // Enough for all who connect within the minute that a port is kept after its use.
                fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000")?;
                Ok(device)
            }
        };
        let (client, client_device) = Namespace::new(device(CLIENT, SERVER, CLIENT_V6))?;
        let (server, server_device) = Namespace::new(device(SERVER, CLIENT, SERVER_V6))?;
        Ok(Self {
            client,
            server,
            relay: Relay::start(client_device, server_device, seed)?,
            has_v6,
            _alone: alone,
        })
    }
}

/// For thousands of clients in one process, and as many connections in a server's.
fn raise_descriptor_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?)
}

static ALONE: Mutex<()> = Mutex::new(());

const DEVICE: &str = "wan0";
/// More packets than the windows of all clients have room for.
const QUEUE_LENGTH: i32 = 20_000;
