//! What a server's task, its connections and its handles have in common.
//!
//! Nothing here waits but in futures, and nothing needs the server's own task: so a request can be
//! made from anywhere, and a server whose runtime is gone can still be closed.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures_lite::future;

use crate::config::Config;
use crate::lifecycle::{Latch, Phase, Reason, State};
use crate::listener::{bind::Bound, set::ListenerSet};
use crate::log;
use crate::report::{Report, Stats};
use crate::runtime::{Clock, Runtime};
use crate::socket::owner::Owner;
use crate::socket::readiness::flag;
use crate::sync::{listen, lock};
use crate::transport::Engine;
#[cfg(target_os = "linux")]
use crate::workers::WorkerPools;

mod account;
mod activity;
mod addresses;
mod cold;
pub(crate) mod connection;
pub(crate) mod events;
#[cfg(all(feature = "handover", target_os = "linux"))]
mod handover;
mod handshake;
#[cfg(feature = "health")]
pub(crate) mod health;
mod id_map;
pub(crate) mod ledger;
pub(crate) mod lingering;
mod listeners;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
pub(crate) mod permits;
#[cfg(feature = "proxy")]
mod proxy;
pub(crate) mod registry;
mod self_wait;
mod tls;
mod tracking;
mod work;

use self::addresses::Addresses;
use self::connection::ConnectionState;
use self::lingering::LingeringQueues;
use self::permits::{Permits, Queue, Reservation};
use self::registry::Registry;

pub(crate) use self::cold::TaskCold;
pub(crate) use self::self_wait::SelfWait;
pub(crate) use self::work::{Name, WorkWaker};

/// How long after it was last met a shortage is taken to last: accept is tried again every second at
/// the longest, and that may be late by another.
const SHORTAGE_LASTS: Duration = Duration::from_secs(2);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) latch: Latch,
    pub(crate) registry: Registry,
    pub(crate) permits: Permits,
    /// Connections that were accepted and have no permit: by the sweep, or while the limit was
    /// lowered.
    pub(crate) queue: Queue<Arc<ConnectionState>>,
    /// Connections that are being closed and wait for their peers.
    pub(crate) lingering: LingeringQueues,
    /// What was told through the facade `metrics`, where that is asked for.
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<metrics::MetricsState>,
    addresses: Addresses,
    /// One a shard, each with an accept loop of its own; and the last, where there is one, of the
    /// listeners that stay open through a drain.
    pub(crate) listener_sets: Vec<ListenerSet>,
    /// Which set is asked first where several share a limit.
    pub(crate) next_set: AtomicUsize,
    /// When accept last met a shortage, in nanoseconds of uptime; 0 where there is enough.
    pub(crate) last_shortage: AtomicU64,
    bound_at: Instant,
    /// The process that bound the server, and the only one that acts for it.
    owner: Owner,
    /// When somebody began to serve this server; set, too, where nobody ever will.
    serving_since: OnceLock<Instant>,
    failure: Mutex<Option<io::Error>>,
    report: OnceLock<Report>,
    /// What handlers that wait for their own server are told, once only they are left.
    pub(crate) report_for_self_waiters: OnceLock<Report>,
    /// The server's own threads, where it has some.
    #[cfg(target_os = "linux")]
    pools: OnceLock<WorkerPools>,
    /// Counted up for each connection that is dealt out to a pool.
    #[cfg(target_os = "linux")]
    next_pool: AtomicUsize,
    /// Where the server is asked after its health.
    #[cfg(feature = "health")]
    pub(crate) health: OnceLock<health::Health>,
    #[cfg(all(feature = "handover", target_os = "linux"))]
    handover: handover::HandoverState,
    /// The servers that stop when this one does.
    linked: Mutex<Vec<Weak<Self>>>,
}

impl Shared {
    pub(crate) fn new(
        runtime: &impl Runtime,
        config: Config,
        bound: Vec<Bound>,
        shards: usize,
    ) -> io::Result<Self> {
        let (addresses, listeners) = Addresses::new(bound)?;
        Ok(Self {
            latch: Latch::default(),
            registry: Registry::default(),
            permits: Permits::new(config.max_connections),
            queue: Queue::default(),
            lingering: LingeringQueues::default(),
            #[cfg(feature = "metrics")]
            metrics: config.metrics.as_ref().map(metrics::MetricsState::new),
            config,
            clock: Box::new(runtime.clone()),
            addresses,
            listener_sets: ListenerSet::all(listeners.into_iter(), shards),
            next_set: AtomicUsize::new(0),
            last_shortage: AtomicU64::new(0),
            bound_at: Runtime::now(runtime),
            owner: Owner::this_process(),
            serving_since: OnceLock::new(),
            failure: Mutex::default(),
            report: OnceLock::new(),
            report_for_self_waiters: OnceLock::new(),
            #[cfg(target_os = "linux")]
            pools: OnceLock::new(),
            #[cfg(target_os = "linux")]
            next_pool: AtomicUsize::new(0),
            #[cfg(feature = "health")]
            health: OnceLock::new(),
            #[cfg(all(feature = "handover", target_os = "linux"))]
            handover: handover::HandoverState::default(),
            linked: Mutex::default(),
        })
    }

    /// How long ago the server was bound.
    pub(crate) fn uptime(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.bound_at)
    }

    pub(crate) fn state(&self) -> State {
        match self.latch.phase() {
            Phase::Bound => State::Bound,
            Phase::Serving if self.permits.is_paused() => State::Paused,
            Phase::Serving => State::Serving,
            Phase::Draining => State::Draining,
            Phase::Aborting => State::Aborting,
            Phase::Closed => State::Closed,
        }
    }

    /// Whether the server would accept and cannot, for want of descriptors or memory.
    pub(crate) fn is_short(&self) -> bool {
        let last = self.last_shortage.load(SeqCst);
        if last == 0 || self.state() != State::Serving {
            return false;
        }
        self.uptime().saturating_sub(Duration::from_nanos(last)) < SHORTAGE_LASTS
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            closing: self.permits.apart() as u64,
            shortage: self.is_short(),
            #[cfg(feature = "_handshake")]
            handshakes: self.permits.handshakes(),
            ..self.registry.stats()
        }
    }

    /// Takes the one right to serve; `false` where it is taken.
    pub(crate) fn begin_serving(&self) -> bool {
        self.serving_since.set(self.clock.now()).is_ok()
    }

    pub(crate) fn serving_since(&self) -> Option<Instant> {
        self.serving_since.get().copied()
    }

    /// The accept loops are about to begin.
    pub(crate) fn start(&self) {
        if self.latch.advance(Phase::Serving) {
            log::info!(target: "gracious", "{self}");
            self.registry.publish(self.state());
        }
    }

    /// Whether all accept loops ask their listeners for peers.
    #[cfg(feature = "health")]
    pub(crate) fn accepts_everywhere(&self) -> bool {
        self.listener_sets.iter().all(|set| set.began.is_set())
    }

    /// Waits until all accept loops ask their listeners for peers.
    #[cfg(any(feature = "systemd", all(feature = "handover", target_os = "linux")))]
    pub(crate) async fn accepting_everywhere(&self) {
        for set in &self.listener_sets {
            set.began.wait().await;
        }
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        let before = self.state();
        self.permits.set_paused(paused);
        let after = self.state();
        if before != after {
            self.registry.publish(after);
        }
    }
}

/// The threads and the listeners.
impl Shared {
    /// Has the server's tasks run on threads of its own; said before any peer is accepted.
    #[cfg(target_os = "linux")]
    pub(crate) fn set_pools(&self, pools: WorkerPools) {
        self.lingering.set_shards(pools.count());
        let _first = self.pools.set(pools);
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn pools(&self) -> Option<&WorkerPools> {
        self.pools.get()
    }

    /// What reports on the sockets of a shard's connections.
    pub(crate) fn engine(&self, shard: u16) -> Engine {
        #[cfg(target_os = "linux")]
        if let Some(pool) = self.pools().and_then(|pools| pools.get(shard)) {
            return Engine::Workers(pool.poller().clone());
        }
        let _of_all = shard;
        Engine::Reactor
    }

    /// The shard that gets the next connection which came through no shard's own socket.
    pub(crate) fn next_shard(&self) -> u16 {
        #[cfg(target_os = "linux")]
        if let Some(pools) = self.pools() {
            return pools.shard(self.next_pool.fetch_add(1, SeqCst));
        }
        0
    }

    /// Whether this process was forked from the one that bound the server, which alone acts for it.
    pub(crate) fn is_forked(&self) -> bool {
        !self.owner.is_this_process()
    }

    /// Leaves everything to the process that this one was forked from, if it was forked after the server
    /// was bound: closes the listeners' descriptors and does nothing else. `false` in the process that
    /// bound it.
    pub(crate) fn leave_to_owner(&self) -> bool {
        if !self.is_forked() {
            return false;
        }
        self.listener_sets.iter().for_each(ListenerSet::leave);
        #[cfg(feature = "health")]
        if let Some(health) = self.health.get() {
            health.listeners.leave();
        }
        true
    }
}

/// The stop.
impl Shared {
    pub(crate) fn shutdown(&self, reason: Reason, before: Option<Instant>) {
        if self.is_forked() {
            return;
        }
        if self.latch.ask(reason, self.clock.now(), before) {
            self.registry.publish(State::Draining);
            self.announce(before);
        }
    }

    /// Says that the server was asked to stop: to the log, and to the linked servers.
    pub(crate) fn announce(&self, before: Option<Instant>) {
        let reason = self.latch.request().reason.clone();
        let reason = reason.unwrap_or(Reason::Requested);
        log::info!(target: "gracious", "shutting down: {reason}");
        for server in self.linked() {
            server.shutdown(reason.clone(), before);
        }
    }

    /// Has these servers stop when this one does. Those that are gone are forgotten: a server may be
    /// linked with many that come and go before it.
    pub(crate) fn link(&self, servers: impl Iterator<Item = Weak<Self>>) {
        let mut linked = lock(&self.linked);
        linked.retain(|server| server.strong_count() > 0);
        for server in servers {
            if !linked.iter().any(|known| known.ptr_eq(&server)) {
                linked.push(server);
            }
        }
    }

    pub(crate) fn linked(&self) -> Vec<Arc<Self>> {
        lock(&self.linked)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// How long peers are still accepted after a request: the longest of all linked servers, since
    /// all listeners are shut together.
    pub(crate) fn lame_duck(&self) -> Duration {
        let spans = self.linked().into_iter().map(|it| it.config.lame_duck);
        spans
            .chain([self.config.lame_duck])
            .max()
            .unwrap_or_default()
    }

    /// When the drain has to be over, as far as that is known yet.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let request = self.latch.request();
        request.deadline(self.config.deadline, request.shut)
    }

    /// Stops the server because a listener cannot go on.
    pub(crate) fn fail(&self, error: io::Error) {
        log::error!(target: "gracious", "a listener failed: {error}");
        self.shutdown(Reason::Listener(error.to_string()), None);
        let earlier = lock(&self.failure).replace(error);
        // Outside the lock: it may be an error of the user's own.
        drop(earlier);
    }

    pub(crate) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.failure).take()
    }
}

/// The permits: one for each connection under `max_connections`.
impl Shared {
    /// Whether the next peer may be accepted.
    pub(crate) fn has_permit(&self) -> bool {
        let rejects = self.config.reject_with.is_some();
        !self.permits.is_paused() && (rejects || !self.permits.is_full())
    }

    /// Waits until the next peer may be accepted.
    pub(crate) async fn permit(&self) {
        while !self.has_permit() {
            let released = listen(&self.permits.released);
            let returned = listen(&self.permits.returned);
            if self.has_permit() {
                return;
            }
            future::or(released, returned).await;
        }
    }

    /// Gives a connection the permit that was reserved for it.
    pub(crate) fn keep_permit(&self, connection: &ConnectionState, reservation: Reservation<'_>) {
        reservation.keep();
        connection.clear(flag::QUEUED);
    }

    /// Gives a connection its permit; `false` where there is none.
    pub(crate) fn acquire_permit(&self, connection: &ConnectionState) -> bool {
        let is_acquired = self.permits.acquire();
        if is_acquired {
            connection.clear(flag::QUEUED);
        }
        is_acquired
    }

    /// Takes a connection's permit from it.
    pub(crate) fn release_permit(&self, connection: &ConnectionState) {
        if connection.set(flag::QUEUED) & flag::QUEUED == 0 {
            self.permits.release();
        }
    }

    /// The connection that has waited longest for a permit, with one, if there is one.
    pub(crate) fn next_queued(&self) -> Option<Arc<ConnectionState>> {
        self.queue
            .pop_if(|connection| self.acquire_permit(connection))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("addrs", &self.addrs())
            .finish_non_exhaustive()
    }
}

/// The state and the addresses: `serving on 127.0.0.1:8888, unix:/run/app.sock`.
impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state())?;
        for (i, address) in self.addrs().iter().enumerate() {
            write!(f, "{}{address}", if i == 0 { " on " } else { ", " })?;
        }
        Ok(())
    }
}
