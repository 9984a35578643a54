//! How a server is configured, and made. Most of this file is the documentation of the settings;
//! the defaults, with their reasons, are in [`config`](crate::config).

use std::fmt;
use std::io;
use std::time::Duration;

use crate::address::Target;
use crate::config::Config;
#[cfg(all(feature = "handover", target_os = "linux"))]
use crate::handover::{Handover, trigger::Trigger};
use crate::idle::IdleWhen;
use crate::listener::bind::Source;
use crate::listener::{Adopted, Listener};
#[cfg(feature = "metrics")]
use crate::metrics::Metrics;
#[cfg(feature = "proxy")]
use crate::proxy::ProxyProtocol;
#[cfg(feature = "async-std")]
use crate::runtime::AsyncStd;
use crate::runtime::Runtime;
use crate::server::Server;
#[cfg(feature = "_tls")]
use crate::tls::Tls;

#[cfg(any(feature = "systemd", feature = "health"))]
mod edges;

/// Configures and binds a [`Server`].
///
/// Every setter takes the builder and gives it back. A setter that takes a duration takes `None`,
/// too, which lifts that limit or leaves that span out.
///
/// ```
/// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
/// use std::time::Duration;
///
/// use gracious::Server;
///
/// let server = Server::builder()
///     .listen("127.0.0.1:0")
///     .listen("[::1]:0")
///     .max_connections(1000)
///     .deadline(Duration::from_secs(20))
///     .bind()
///     .await?;
/// assert_eq!(server.local_addrs().len(), 2);
/// # Ok(()) }) }
/// ```
#[must_use = "a builder does nothing until `bind` is awaited"]
pub struct Builder<R> {
    pub(crate) runtime: R,
    pub(crate) sources: Vec<Source>,
    pub(crate) config: Config,
    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(crate) handover: Option<Handover>,
    #[cfg(all(feature = "handover", target_os = "linux"))]
    pub(crate) trigger: Option<Trigger>,
}

impl<R: Runtime> Builder<R> {
    pub(crate) fn new(runtime: R) -> Self {
        Self {
            runtime,
            sources: Vec::new(),
            config: Config::default(),
            #[cfg(all(feature = "handover", target_os = "linux"))]
            handover: None,
            #[cfg(all(feature = "handover", target_os = "linux"))]
            trigger: None,
        }
    }

    /// Listens on `target`, beside what was given before.
    ///
    /// A host name stands for every address it resolves to; one that this machine does not have is
    /// left out if another can be bound. Port 0 is a free port, the same for all addresses of one
    /// name. IPv6 takes IPv4 peers, too, unless the IPv4 port is asked for as well.
    ///
    /// A Unix path behind which no process listens any more is replaced; one behind which a process
    /// does, and a file that is no socket, are errors of [`bind`](Self::bind).
    pub fn listen(mut self, target: impl Into<Target>) -> Self {
        self.sources.push(Source::target(target.into()));
        self
    }

    /// Listens on `target`, beside what was given before, and keeps that open through a drain: an admin
    /// port, for instance, which tells how the drain goes.
    ///
    /// Its listener takes peers while the others are closed already, and its connections are not asked
    /// to end, until no other connection and no [tracked](crate::Handle::track) work is left. Then it is
    /// shut, swept and closed as the others were, and its connections end as others do at a drain. The
    /// [`deadline`](Self::deadline) is one for all, and an abort ends these, too. They are counted with
    /// the others, under [`max_connections`](Self::max_connections), too. On a [sharded](Self::sharded)
    /// server there is one socket for it, whose connections are dealt out in turn.
    pub fn keep_open(mut self, target: impl Into<Target>) -> Self {
        self.sources.push(Source {
            keeps_open: true,
            ..Source::target(target.into())
        });
        self
    }

    /// Listens on `target` with TLS, beside what was given before; TCP or Unix.
    ///
    /// A connection's handler is called when its handshake has come to a good end. Until then the
    /// connection is counted as [active](crate::Stats::active), and has no permit of
    /// [`max_connections`](Self::max_connections) but is counted apart, up to that limit once more.
    /// What is [rejected](Self::reject_with) before its handshake is closed without the message.
    /// A handshake that fails is the end of one connection, `failed`, and counted in
    /// [`Stats::failed_handshakes`](crate::Stats::failed_handshakes), too.
    ///
    /// From then on a [`Connection`](crate::Connection) is what it is without TLS, at a stop, too: a
    /// drain lets a handshake that is under way come to its end, an incomplete record is a busy
    /// connection, and at every orderly end the peer is sent TLS's own end before that of the
    /// transport. Its counts are of plaintext. Its halves share a lock, it cannot be
    /// [detached](crate::Connection::detach), and the kernel does no encryption.
    #[cfg(feature = "_tls")]
    pub fn listen_tls(mut self, target: impl Into<Target>, tls: impl Into<Tls>) -> Self {
        self.sources.push(Source {
            tls: Some(tls.into()),
            ..Source::target(target.into())
        });
        self
    }

    /// How long a TLS handshake may take; 10 s by default. One that takes longer fails. It has the
    /// time to itself: [`first_byte_grace`](Self::first_byte_grace) and
    /// [`first_byte_timeout`](Self::first_byte_timeout) begin at its end.
    #[cfg(feature = "_tls")]
    pub fn tls_handshake_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.tls_handshake_timeout = limit.into();
        self
    }

    /// Tells the counts through the facade `metrics`, to the recorder that is installed before
    /// [`bind`](Self::bind). Not so by default.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self, metrics: impl Into<Option<Metrics>>) -> Self {
        self.config.metrics = metrics.into();
        self
    }

    /// Takes clients from proxies that tell who they are, by the PROXY protocol, at all listeners.
    ///
    /// A connection's handler is called when its header has come, and what came behind it is the first
    /// that the handler reads. From then on the client's address is that of the connection: in
    /// [`peer_addr`](crate::Connection::peer_addr), in the log, in the report, and for
    /// [`max_per_peer`](Self::max_per_peer). Where the header names no client, as that of a health check,
    /// the proxy is the peer. Bytes of the header are in no count.
    ///
    /// A header that is wrong, or does not come in time, is the end of one connection, `failed`. Until it
    /// has come there is no permit, as in a TLS handshake, which comes after it; a drain lets it come.
    #[cfg(feature = "proxy")]
    pub fn proxy_protocol(mut self, proxies: impl Into<Option<ProxyProtocol>>) -> Self {
        self.config.proxy = proxies.into();
        self
    }

    /// Takes over a socket that listens already: a `std::net::TcpListener` or a
    /// `std::os::unix::net::UnixListener`, blocking or not.
    ///
    /// Other processes may have descriptors of the same socket. So at a shutdown nothing is done to
    /// the socket, which would be done to them, too: it is not shut, and no path is removed. As
    /// many peers as [`backlog`](Self::backlog) says are accepted from its queue, then this
    /// server's descriptor is closed. If that is the last one, peers that are queued by then are
    /// reset.
    pub fn adopt(mut self, listener: impl Into<Adopted>) -> Self {
        self.sources.push(Source::adopted(listener.into()));
        self
    }

    /// Takes peers from a transport of one's own.
    pub fn listener(mut self, listener: impl Listener) -> Self {
        self.sources.push(Source::custom(listener));
        self
    }

    /// At most so many connections at once; no limit by default, since only the application knows
    /// what one costs.
    ///
    /// The surplus waits in the kernel's queue. A connection keeps its permit until its socket is
    /// closed, with one exception, so that round trips do not throttle a server that closes first:
    /// where the handler is done and its peer sends nothing, and has everything or has been sent it a
    /// moment ago, the permit is another's. As many as the limit allows may wait so for their peers'
    /// ends ([`Stats::closing`](crate::Stats::closing)), beside those with permits. A limit that the process has not descriptors enough for, by RLIMIT_NOFILE and what
    /// is open at [`bind`](Self::bind), is a warning in the log, which names the numbers. See
    /// [`Handle::set_max_connections`](crate::Handle::set_max_connections) and
    /// [`reject_with`](Self::reject_with).
    pub fn max_connections(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.config.max_connections = limit.into();
        self
    }

    /// At most so many connections at once from one IP address; the surplus is accepted and
    /// rejected. No limit by default: behind a proxy all come from one, if it does not tell their own by
    /// the PROXY protocol. Unix peers are not limited.
    pub fn max_per_peer(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.config.max_per_peer = limit.into();
        self
    }

    /// Rejects the surplus over [`max_connections`](Self::max_connections) instead of letting it
    /// wait: it is accepted, sent `message` (which may be empty) and closed cleanly. What
    /// [`max_per_peer`](Self::max_per_peer) rejects is sent the same.
    pub fn reject_with(mut self, message: impl Into<Vec<u8>>) -> Self {
        self.config.reject_with = Some(message.into());
        self
    }

    /// How long a drain may take from the moment the door is shut; 8 s by default, which is under
    /// the 10 s after which Docker kills. `None` waits for as long as it takes.
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.config.deadline = deadline.into();
        self
    }

    /// How long after its accept a connection that has not sent a byte yet may still send one at a
    /// drain; 1 s by default. It has no effect while the server serves.
    pub fn first_byte_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.config.first_byte_grace = grace.into().unwrap_or_default();
        self
    }

    /// How long the peer of a closing connection has to be silent, where it has sent what the handler
    /// has not read; 2 s by default. `None` waits for its end.
    ///
    /// It is counted from the moment at which the peer has everything that was written; until then the
    /// connection is not closed. What it sends meanwhile is read and thrown away: to close the socket
    /// would fail its writes, and might destroy what it has not read. A peer that has everything and
    /// has sent nothing is waited for only as long as a lost packet takes to be sent again (some 200 ms,
    /// by TCP's own estimate; 1 s where there is none), and one that was idle when a drain ended it
    /// until our end is acknowledged.
    pub fn linger(mut self, linger: impl Into<Option<Duration>>) -> Self {
        self.config.linger = linger.into().unwrap_or(Duration::MAX);
        self
    }

    /// How long a closing connection waits for its peer in all; 60 s by default. A drain's deadline
    /// ends it earlier.
    ///
    /// It bounds the wait for a peer that reads slowly, or not at all, and for one that goes on
    /// sending. The socket is closed then, which is counted
    /// ([`Stats::lingered_out`](crate::Stats::lingered_out)).
    pub fn linger_total(mut self, total: impl Into<Option<Duration>>) -> Self {
        self.config.linger_total = total.into().unwrap_or(Duration::MAX);
        self
    }

    /// How long, after a shutdown was asked for, peers are still accepted and served as ever, while
    /// [`Handle::is_serving`](crate::Handle::is_serving) is `false` already and a load balancer has
    /// time to look elsewhere; 0 by default. The deadline runs after it.
    pub fn lame_duck(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.config.lame_duck = span.into().unwrap_or_default();
        self
    }

    /// How long at most a listener that is shut is kept, beside the drain, for peers whose
    /// handshake was under way when it was shut; 3.5 s by default, which is two retransmissions and
    /// a round trip. Such a peer believes to be connected, and would be reset by the close.
    ///
    /// The listener is closed as soon as there are no such handshakes any more, which is mostly at
    /// once, and at the [`deadline`](Self::deadline) in any case. Until then new peers are refused,
    /// and the port cannot be bound again. `None` does not wait.
    ///
    /// It has an effect on TCP on Linux. There a listener is shut by binding it to an interface
    /// that does not exist, which takes no privilege and Linux 5.7, or else by a filter, which
    /// takes CAP_NET_ADMIN and drops the repeated SYN of a client whose SYN-ACK was lost. Where
    /// neither can be done `bind` says so in the log: the listener is swept and closed, as on other
    /// systems. The kernel does not tell of handshakes by SYN cookie, so they are not waited for;
    /// [adopted](Self::adopt) listeners are not shut.
    pub fn handshake_grace(mut self, grace: impl Into<Option<Duration>>) -> Self {
        self.config.handshake_grace = grace.into().unwrap_or_default();
        self
    }

    /// Declares when connections are idle, for all of this server: see [`IdleWhen`]. A connection
    /// may [declare](crate::Connection::idle_when) otherwise for itself.
    pub fn idle_when(mut self, when: IdleWhen) -> Self {
        self.config.idle_when = Some(when);
        self
    }

    /// Asks a connection to come to an end on which a read or a write has waited this long and no
    /// byte moved either way; none by default.
    ///
    /// It is asked as a drain would ask it: the reads of an idle one see the end of their input, so
    /// that its handler can say goodbye, and
    /// [`shutdown_requested`](crate::Connection::shutdown_requested) resolves. If it still waits a
    /// [`linger`](Self::linger) later, with no byte moved since, its reads and writes fail with
    /// `TimedOut`: half a message and then silence ends so, and a write that the peer does not
    /// take. Either is counted by what its handler returns, the first mostly as `completed`, the
    /// second as `failed`, and has the cause [`IdleTimeout`](crate::Cause::IdleTimeout).
    ///
    /// A handler at work is not timed, neither before it is asked nor after; a read that was
    /// dropped while it waited counts as waiting until the next one.
    pub fn idle_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.idle_timeout = limit.into();
        self
    }

    /// The span over which idle connections are asked to end by a drain; 0 by default, which asks
    /// all at once.
    ///
    /// Clients whose connections end in one instant come back in one instant, all to the same
    /// successor. With a span they are asked one after the other instead, evenly, oldest first.
    /// Until its turn comes a connection is served as ever; busy ones are asked at once, and end as
    /// they are done. The span is three quarters of the time that is left until the deadline at
    /// most, so that the last can end cleanly, and is over when no connection is left.
    pub fn spread(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.config.spread = span.into().unwrap_or_default();
        self
    }

    /// Ends a connection that has not sent a byte this long after its accept: its reads and writes
    /// fail with `TimedOut`. None by default, since in some protocols the server speaks first.
    pub fn first_byte_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.first_byte_timeout = limit.into();
        self
    }

    /// Asks a connection of this age to come to an end, as a drain would; one that is still there
    /// another [`deadline`](Self::deadline) later is aborted. None by default.
    pub fn max_age(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.max_age = limit.into();
        self
    }

    /// The longest line that [`Lines`](crate::Lines) gives, in bytes; 64 KiB by default, as
    /// asyncio's.
    pub fn line_limit(mut self, bytes: usize) -> Self {
        self.config.line_limit = bytes;
        self
    }

    /// How many peers may wait in the kernel's queue; 1024 by default. The kernel has a limit of
    /// its own (`net.core.somaxconn`).
    pub fn backlog(mut self, peers: u32) -> Self {
        self.config.backlog = peers;
        self
    }

    /// `TCP_NODELAY`; on by default, since a handler writes whole messages.
    pub fn nodelay(mut self, on: bool) -> Self {
        self.config.nodelay = on;
        self
    }

    /// TCP keep-alive: the first probe after this long without a byte, then every 10 s, and the
    /// connection fails after 6 without an answer; 60 s by default.
    pub fn keepalive(mut self, idle: impl Into<Option<Duration>>) -> Self {
        self.config.keepalive = idle.into();
        self
    }

    /// TCP_USER_TIMEOUT: how long what was sent may stay unacknowledged, or unsent for want of room
    /// at the peer, until the connection fails with `TimedOut`; none by default, which leaves it to
    /// the system's retransmissions, some 15 minutes.
    ///
    /// It finds out a peer that has vanished while something is on its way to it, which
    /// [`keepalive`](Self::keepalive) does not probe. It also ends the connection of a reader that
    /// merely pauses for so long, so it is not set by default; and while it is set it is what ends
    /// a silent connection whose keep-alive probes are not answered. In milliseconds, rounded up.
    /// Set on the listener and inherited by its connections; [adopted](Self::adopt) listeners keep
    /// their own. Available on Linux.
    #[cfg(target_os = "linux")]
    pub fn user_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.config.user_timeout = limit.into();
        self
    }

    /// `SO_REUSEPORT`, for several servers on one port, of one process or of several; off by
    /// default.
    ///
    /// A server that takes over from another should bind the port after the stop of the other has
    /// begun: it then gets all new peers. If it has bound it before, the kernel goes on dealing
    /// some new peers to the sockets of the server that stops, and drops their connects until these
    /// sockets are closed (see [`handshake_grace`](Self::handshake_grace)); their clients' kernels
    /// try again a second later.
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.config.reuse_port = on;
        self
    }

    /// Serves with so many threads of the server's own, instead of the runtime's; none by default.
    ///
    /// The same handlers, with the same promises, for less processor time a request: sockets are
    /// registered once, with a poller of the server's own. One thread drives; the others sleep
    /// until what there is to run would take it more than a quarter of a millisecond: measured,
    /// that is as good as anything between 0.1 and 1 ms. Handlers that only move bytes are best
    /// served by one worker, those that compute by one a core.
    ///
    /// A handler that blocks its thread is noticed within a tenth of a second: another thread takes
    /// over, and the log names the connection. Timers, files and channels of async-std and smol
    /// work in handlers as before. Available on Linux.
    #[cfg(target_os = "linux")]
    pub fn workers(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.config.workers = threads.into();
        self
    }

    /// Shards the server: each [worker](Self::workers) has a listening socket (`SO_REUSEPORT`), a
    /// poller, and connections of its own, and shares nothing with the others.
    ///
    /// The kernel deals connections out by a hash, not to the worker that is idle. So this is for
    /// many cores that are idle otherwise; on few, or busy, cores workers that share their work do
    /// better. Connections of a Unix socket, of an [adopted](Self::adopt) one and of a transport of
    /// one's own, of which there is one, are dealt out in turn. A port on which another server
    /// listens is an error as ever, unless [`reuse_port`](Self::reuse_port) is set. The handler is
    /// cloned for each worker when serving begins, and from there for every connection.
    #[cfg(target_os = "linux")]
    pub fn sharded(mut self, yes: bool) -> Self {
        self.config.sharded = yes;
        self
    }

    /// How long a [worker](Self::workers) looks for events before it sleeps; 0 by default.
    ///
    /// Some 50 µs spare a few clients the time that an idle core takes to wake up, and cost the
    /// core meanwhile: one client is answered more than three times as often where it and the
    /// server have a core each. It leaves off by itself while that finds nothing or the core is
    /// wanted elsewhere.
    #[cfg(target_os = "linux")]
    pub fn spin(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.config.spin = span.into().unwrap_or_default();
        self
    }

    /// The permission bits of the Unix sockets this server makes, in place before the first peer
    /// can connect; what the process's umask leaves by default.
    pub fn unix_mode(mut self, mode: u32) -> Self {
        self.config.unix_mode = Some(mode);
        self
    }

    /// The user and the group that own the Unix sockets this server makes, in place before the
    /// first peer can connect; the process's own by default.
    pub fn unix_owner(
        mut self,
        user: impl Into<Option<u32>>,
        group: impl Into<Option<u32>>,
    ) -> Self {
        self.config.unix_owner = Some((user.into(), group.into()));
        self
    }

    /// Lets SIGTERM and SIGINT stop this server: the first drains it, the next aborts it.
    ///
    /// They are heard from [`bind`](Self::bind) on, once for all servers of the process that asked
    /// for it. Signals that are delivered within 200 ms of the first are one: `timeout` and shells
    /// signal a process and its group. When the last of those servers is closed, the signals do
    /// again what they do by default. So does the second signal where only servers are left that
    /// are not served, and the third where one cannot be aborted.
    ///
    /// A process that was forked from this one does not stop it: there the signals do what they do
    /// by default, until it binds a server of its own.
    #[cfg(feature = "signals")]
    pub fn stop_on_signals(mut self) -> Self {
        self.config.signals = true;
        self
    }

    /// Binds every address and begins to listen; peers wait in the kernel's queue until the server
    /// is served.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed address, a limit of zero, or nothing to listen on; the
    /// system's error, with the address in its message, where one cannot be bound. Nothing stays
    /// bound then.
    pub async fn bind(self) -> io::Result<Server<R>> {
        self.config.check()?;
        #[cfg(all(feature = "handover", target_os = "linux"))]
        return self.bind_in_succession().await;
        #[cfg(not(all(feature = "handover", target_os = "linux")))]
        Server::bind_all(self.runtime, self.sources, self.config, None).await
    }
}

impl<R> fmt::Debug for Builder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            runtime: _,
            sources,
            config,
            ..
        } = self;
        f.debug_struct("Builder")
            .field("sources", sources)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "async-std")]
impl Server<AsyncStd> {
    /// Binds one address, with everything else as it is by default, on async-std.
    ///
    /// # Errors
    /// Those of [`Builder::bind`].
    pub async fn bind(target: impl Into<Target>) -> io::Result<Self> {
        Self::builder().listen(target).bind().await
    }

    /// Configures a server on async-std.
    pub fn builder() -> Builder<AsyncStd> {
        Builder::new(AsyncStd)
    }
}

impl<R: Runtime> Server<R> {
    /// Configures a server on a runtime: `Smol`, or one's own.
    // Nothing else could be constructed from a runtime alone.
    #[allow(clippy::new_ret_no_self)]
    pub fn with_runtime(runtime: R) -> Builder<R> {
        Builder::new(runtime)
    }
}
