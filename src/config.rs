//! Every default of a server in one place, with its reason and its unit.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

#[cfg(feature = "health")]
use crate::address::Target;
use crate::idle::IdleWhen;
use crate::log;
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
#[cfg(feature = "proxy")]
use crate::proxy::ProxyProtocol;

/// Docker and most supervisors kill ten seconds after the signal; two are left for the rest.
const DEADLINE: Duration = Duration::from_secs(8);
/// A client that has just connected mostly has its first request on the way.
const FIRST_BYTE_GRACE: Duration = Duration::from_secs(1);
/// A SYN-ACK that is lost is sent again after 1 s, and the second after 2 s more; then the answer
/// needs a round trip. With 1 % of the packets lost a grace of 1 s resets one client in a thousand.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(3500);
/// A handshake takes two or three round trips; a client on a poor line gets retransmissions, too.
#[cfg(feature = "_tls")]
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// As Apache's; nginx's `lingering_timeout` is 5 s. A peer that has sent nothing for that long sends
/// nothing more.
const LINGER: Duration = Duration::from_secs(2);
/// What a slow reader may take for what is left of a large reply in the kernels' hands. nginx's
/// `lingering_time` is 30 s, but bounds only how long it reads from a peer that sends.
const LINGER_TOTAL: Duration = Duration::from_secs(60);
/// asyncio's limit of a stream's line.
const LINE_LIMIT: usize = 64 * 1024;
/// std's 128 overflows in a burst; the kernel caps it at `net.core.somaxconn` (4096).
const BACKLOG: u32 = 1024;
/// A peer that vanished without a word is noticed within two minutes.
const KEEPALIVE: Duration = Duration::from_secs(60);
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
pub(crate) const KEEPALIVE_PROBES: u32 = 6;

/// What a program takes to read its configuration and fill its caches, and then some.
#[cfg(all(feature = "handover", target_os = "linux"))]
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_per_peer: Option<usize>,
    pub(crate) reject_with: Option<Vec<u8>>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) first_byte_grace: Duration,
    pub(crate) linger: Duration,
    pub(crate) linger_total: Duration,
    pub(crate) lame_duck: Duration,
    pub(crate) handshake_grace: Duration,
    #[cfg(feature = "_tls")]
    pub(crate) tls_handshake_timeout: Option<Duration>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<Metrics>,
    #[cfg(feature = "proxy")]
    pub(crate) proxy: Option<ProxyProtocol>,
    pub(crate) spread: Duration,
    /// `None` where nothing was declared, which is `Answered`.
    pub(crate) idle_when: Option<IdleWhen>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) first_byte_timeout: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) line_limit: usize,
    pub(crate) backlog: u32,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    #[cfg(target_os = "linux")]
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) reuse_port: bool,
    #[cfg(target_os = "linux")]
    pub(crate) workers: Option<usize>,
    #[cfg(target_os = "linux")]
    pub(crate) sharded: bool,
    #[cfg(target_os = "linux")]
    pub(crate) spin: Duration,
    pub(crate) unix_mode: Option<u32>,
    pub(crate) unix_owner: Option<(Option<u32>, Option<u32>)>,
    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(crate) handover_timeout: Duration,
    #[cfg(feature = "signals")]
    pub(crate) signals: bool,
    #[cfg(feature = "systemd")]
    pub(crate) notify: bool,
    #[cfg(feature = "systemd")]
    pub(crate) store_listeners: bool,
    #[cfg(feature = "health")]
    pub(crate) health: Vec<Target>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_per_peer: None,
            reject_with: None,
            deadline: Some(DEADLINE),
            first_byte_grace: FIRST_BYTE_GRACE,
            linger: LINGER,
            linger_total: LINGER_TOTAL,
            lame_duck: Duration::ZERO,
            handshake_grace: HANDSHAKE_GRACE,
            #[cfg(feature = "_tls")]
            tls_handshake_timeout: Some(TLS_HANDSHAKE_TIMEOUT),
            #[cfg(feature = "metrics")]
            metrics: None,
            #[cfg(feature = "proxy")]
            proxy: None,
            spread: Duration::ZERO,
            idle_when: None,
            idle_timeout: None,
            first_byte_timeout: None,
            max_age: None,
            line_limit: LINE_LIMIT,
            backlog: BACKLOG,
            nodelay: true,
            keepalive: Some(KEEPALIVE),
            #[cfg(target_os = "linux")]
            user_timeout: None,
            reuse_port: false,
            #[cfg(target_os = "linux")]
            workers: None,
            #[cfg(target_os = "linux")]
            sharded: false,
            #[cfg(target_os = "linux")]
            spin: Duration::ZERO,
            unix_mode: None,
            unix_owner: None,
            #[cfg(all(feature = "handover", target_os = "linux"))]
            handover_timeout: HANDOVER_TIMEOUT,
            #[cfg(feature = "signals")]
            signals: false,
            #[cfg(feature = "systemd")]
            notify: false,
            #[cfg(feature = "systemd")]
            store_listeners: false,
            #[cfg(feature = "health")]
            health: Vec::new(),
        }
    }
}

impl Config {
    /// Whether a connection has to note when a byte moves.
    pub(crate) fn watches_idle(&self) -> bool {
        self.idle_timeout.is_some()
    }

    /// Whether a connection needs a timer from its start.
    pub(crate) fn is_timed(&self) -> bool {
        self.idle_timeout.is_some() || self.first_byte_timeout.is_some() || self.max_age.is_some()
    }

    /// What cannot be meant is an error of `bind`, not found out later.
    pub(crate) fn check(&self) -> io::Result<()> {
        let limits = [
            ("max_connections", self.max_connections),
            ("max_per_peer", self.max_per_peer),
            ("line_limit", Some(self.line_limit)),
            #[cfg(target_os = "linux")]
            ("workers", self.workers),
        ];
        for (name, limit) in limits {
            if limit == Some(0) {
                return Err(zero(name));
            }
        }
        let times = [
            ("idle_timeout", self.idle_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("max_age", self.max_age),
            #[cfg(feature = "_tls")]
            ("tls_handshake_timeout", self.tls_handshake_timeout),
            #[cfg(feature = "metrics")]
            (
                "the interval of metrics",
                self.metrics.as_ref().and_then(|it| it.every),
            ),
            #[cfg(feature = "proxy")]
            (
                "the timeout of proxy_protocol",
                self.proxy.as_ref().and_then(|it| it.timeout),
            ),
            #[cfg(target_os = "linux")]
            ("user_timeout", self.user_timeout),
        ];
        for (name, time) in times {
            if time == Some(Duration::ZERO) {
                return Err(zero(name));
            }
        }
        #[cfg(feature = "proxy")]
        self.proxy.as_ref().map_or(Ok(()), ProxyProtocol::check)?;
        #[cfg(target_os = "linux")]
        if self.sharded && self.workers.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "sharded without workers: expected `workers(n)` beside it",
            ));
        }
        Ok(())
    }
}

pub(crate) fn zero(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{name} is 0: expected something above it, or `None` for no limit"),
    )
}

/// Says in the log, if it is so, that there are fewer descriptors than `max_connections` needs. To raise
/// the limit is the program's affair.
pub(crate) fn warn_of_few_descriptors(max_connections: usize) {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = open_descriptors();
    if (max_connections as u64).saturating_add(open) <= limit {
        return;
    }
    log::warn!(
        target: "gracious",
        "max_connections is {max_connections}, but the limit of open files (RLIMIT_NOFILE) is {limit}, \
         and {open} are open already: raise it (`ulimit -n`, systemd's `LimitNOFILE=`) or lower \
         max_connections",
    );
}

/// How many descriptors this process has open, as far as the system tells.
fn open_descriptors() -> u64 {
    // One of them reads the directory.
    let counted = |open: fs::ReadDir| open.count().saturating_sub(1) as u64;
    fs::read_dir("/dev/fd").map_or(0, counted)
}
