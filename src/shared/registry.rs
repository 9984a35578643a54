//! The tracked connections of one server, by id.
//!
//! 1. A connection is in the registry from the moment `accept` returned it until its socket is
//!    closed; the list and the ledger change together, under one lock.
//! 2. On the hot path that lock is not taken, and no code of others runs under it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_channel::Receiver;
use event_listener::Event;

use super::Shared;
use super::activity::declared_flags;
use super::connection::{Arrival, ConnectionState};
use super::events::{EventQueue, ServerEvent};
use super::id_map::IdMap;
use super::ledger::{CloseKind, Closing, Ledger};
use super::work;
use crate::lifecycle::State;
use crate::log;
use crate::report::{AcceptErrors, Cause, ConnectionInfo, Stats, Straggler, Waiting};
use crate::socket::readiness::flag;
use crate::sync::{MutexGuard, lock, notify};

#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Notified when nothing may be left.
    pub(crate) empty: Event,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    connections: IdMap<Weak<ConnectionState>>,
    pub(super) ledger: Ledger,
    pub(super) events: EventQueue,
    /// All connections were asked to end: so is each that comes now. Those of listeners that stay
    /// open through a drain are not meant.
    draining: bool,
    /// These were asked, too.
    draining_last: bool,
    /// All connections were aborted: so is each that comes now.
    aborting: bool,
}

/// A connection's way in and out.
impl Registry {
    /// Enters a peer that was accepted. From here on it is counted, wherever it ends.
    pub(crate) fn open(&self, server: &Arc<Shared>, arrival: Arrival) -> Arc<ConnectionState> {
        let accepted = server.uptime();
        let mut inner = self.inner();
        let mut flags = flag::READER | flag::WRITER | flag::QUEUED;
        flags |= declared_flags(&server.config);
        let keeps_open = server.keeps_open(arrival.address);
        if if keeps_open {
            inner.draining_last
        } else {
            inner.draining
        } {
            flags |= flag::DRAINING;
            if !server.config.first_byte_grace.is_zero() {
                flags |= flag::FIRST_BYTE_GRACE;
            }
        }
        if inner.aborting {
            flags |= flag::ABORT;
        }
        let id = inner.ledger.open(keeps_open);
        let connection = ConnectionState::new(id, server.clone(), arrival, flags, accepted);
        let connection = Arc::new(connection);
        inner.connections.push(id, Arc::downgrade(&connection));
        inner.events.opened(id, || connection.peer());
        self.unlock_and_deliver(inner);
        connection
    }

    /// Begins to count the end of a connection; `None` where that has been done. The bytes move from
    /// the connection to the ledger, so that no sum ever goes back.
    pub(crate) fn begin_close(&self, connection: &ConnectionState) -> Option<Closing> {
        let mut inner = self.inner();
        let word = connection.set(flag::COUNTED);
        if word & flag::COUNTED != 0 {
            return None;
        }
        let has_peer_permit = word & flag::HAS_PEER_PERMIT != 0;
        let closing = Closing {
            id: connection.id(),
            bytes_in: connection.received.load(Relaxed),
            bytes_out: connection.sent.load(Relaxed),
            accepted: connection.accepted(),
            has_permit: word & (flag::QUEUED | flag::APART) == 0,
            is_apart: word & flag::APART != 0,
            is_self_waiter: word & flag::SELF_WAITER != 0,
            is_last: connection.is_last(),
            peer_permit: has_peer_permit.then(|| connection.peer().ip()).flatten(),
        };
        inner.ledger.bytes_in += closing.bytes_in;
        inner.ledger.bytes_out += closing.bytes_out;
        Some(closing)
    }

    /// Counts the end of a connection, whose socket is closed; `true` where the caller is the last
    /// and has to close the server. The `uptime` is asked for only where somebody listens to events.
    pub(super) fn close(
        &self,
        closing: Closing,
        kind: CloseKind,
        cause: Cause,
        uptime: impl FnOnce() -> Duration,
        give_back: impl FnOnce(),
    ) -> bool {
        let mut inner = self.inner();
        let mut age = Duration::ZERO;
        if inner.events.has_subscribers() {
            // Outside the lock: the clock is code of others.
            drop(inner);
            age = uptime().saturating_sub(closing.accepted);
            inner = self.inner();
        }
        inner.connections.remove(closing.id);
        inner.ledger.close(&closing, kind, &cause);
        // The permit is given back where the end is counted, not after: a receiver of the event that
        // says so finds it free. And not before: the next connection would be one too many.
        give_back();
        inner.events.push(|| ServerEvent::Closed {
            id: closing.id,
            cause,
            age,
            bytes_in: closing.bytes_in,
            bytes_out: closing.bytes_out,
        });
        let is_disconnected = inner.ledger.is_disconnected() || inner.ledger.only_last();
        let is_last = inner.ledger.driver_lost && inner.ledger.is_empty();
        self.unlock_and_deliver(inner);
        if is_disconnected {
            notify(&self.empty);
        }
        is_last
    }

    /// Takes one of the permits of the peer's address; `false` where all `max` are used up.
    pub(crate) fn acquire_peer_permit(&self, connection: &ConnectionState, max: usize) -> bool {
        let Some(ip) = connection.peer().ip() else {
            return true;
        };
        let mut inner = self.inner();
        let has_permit = inner.ledger.acquire_peer_permit(ip, max);
        if has_permit {
            // Under the lock, so that an end which is counted from now on gives the permit back.
            connection.set(flag::HAS_PEER_PERMIT);
        }
        has_permit
    }

    /// Gives the permit of a peer's address back before the connection ends.
    pub(crate) fn release_peer_permit(&self, connection: &ConnectionState) {
        let Some(ip) = connection.peer().ip() else {
            return;
        };
        let mut inner = self.inner();
        if connection.has(flag::COUNTED) {
            return;
        }
        if connection.clear(flag::HAS_PEER_PERMIT) & flag::HAS_PEER_PERMIT != 0 {
            inner.ledger.release_peer_permit(ip);
        }
    }

    /// Takes that permit again, also above the limit.
    pub(crate) fn take_peer_permit_back(&self, connection: &ConnectionState) {
        let Some(ip) = connection.peer().ip() else {
            return;
        };
        let mut inner = self.inner();
        if !connection.has(flag::COUNTED) {
            connection.set(flag::HAS_PEER_PERMIT);
            inner.ledger.take_peer_permit_back(ip);
        }
    }

    /// A connection was closed although its peer had not everything, or still sent.
    pub(crate) fn count_lingered_out(&self) {
        self.inner().ledger.lingered_out += 1;
    }

    /// A connection that a drain has ended was sent something afterwards.
    pub(crate) fn count_unserved_input(&self) {
        self.inner().ledger.unserved_input += 1;
    }
}

/// All connections at once.
impl Registry {
    pub(crate) fn find(&self, id: u64) -> Option<Arc<ConnectionState>> {
        self.inner().connections.get(id)?.upgrade()
    }

    /// The open connections, in the order they came. Returns strong references. Drop them soon: the
    /// socket closes with the last one.
    fn all(&self) -> Vec<Arc<ConnectionState>> {
        self.inner()
            .connections
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Asks all connections to end, and each that comes from now on, through the sweep.
    pub(crate) fn drain_all(&self, uptime: Duration) {
        {
            let mut inner = self.inner();
            (inner.draining, inner.draining_last) = (true, true);
        }
        self.drain_open(uptime);
    }

    /// Asks the connections to end, and each that comes from now on, through the sweep: all, or, where
    /// they are to be told over a `spread`, those that are busy. Gives the ids of the others. Those of
    /// listeners that stay open through a drain are not asked yet.
    pub(crate) fn drain_busy(&self, uptime: Duration, spread: Duration) -> Vec<u64> {
        self.inner().draining = true;
        let mut idle = Vec::new();
        for connection in self.all().into_iter().filter(|it| !it.is_last()) {
            if spread.is_zero() || connection.is_busy() {
                connection.notify_drain(uptime);
            } else {
                idle.push(connection.id());
            }
        }
        idle
    }

    /// Asks the open connections of one listener to end.
    pub(crate) fn drain_of(&self, address: u16, uptime: Duration) {
        let all = self.all().into_iter();
        all.filter(|it| it.address == address)
            .for_each(|it| it.notify_drain(uptime));
    }

    /// Asks the open connections to end.
    pub(crate) fn drain_open(&self, uptime: Duration) {
        for connection in self.all() {
            connection.notify_drain(uptime);
        }
    }

    /// Aborts all connections, and each that comes from now on.
    pub(crate) fn abort_all(&self) {
        self.inner().aborting = true;
        self.abort_open();
    }

    /// Aborts the open connections.
    pub(crate) fn abort_open(&self) {
        for connection in self.all() {
            connection.abort();
        }
    }

    pub(crate) fn connections(&self, uptime: Duration) -> Vec<ConnectionInfo> {
        let info = |connection: Arc<ConnectionState>| ConnectionInfo {
            id: connection.id(),
            peer: connection.peer(),
            listener: u64::from(connection.address),
            age: connection.age(uptime),
            busy: connection.is_busy(),
            waiting: connection.waiting(),
            bytes_in: connection.received.load(Relaxed),
            bytes_out: connection.sent.load(Relaxed),
        };
        self.all().into_iter().map(info).collect()
    }

    /// The open connections as stragglers, in the order they came; without those that only wait for
    /// their peers' ends.
    pub(crate) fn stragglers(&self, uptime: Duration) -> Vec<Straggler> {
        self.all()
            .iter()
            .filter(|connection| !connection.has(flag::APART))
            .map(|connection| connection.straggler(uptime))
            .collect()
    }

    /// Keeps the stragglers for the report. The first list is the longest, and stays.
    pub(crate) fn record_stragglers(&self, left: &[Straggler]) {
        let mut inner = self.inner();
        if inner.ledger.stragglers.is_empty() {
            inner.ledger.stragglers = left.to_vec();
        }
    }

    pub(super) fn recorded_stragglers(&self) -> Vec<Straggler> {
        self.inner().ledger.stragglers.clone()
    }

    /// Counts the connections that cannot be dropped as aborted: their handlers block their threads,
    /// or they wait behind one that does. Gives up the tracked work that nobody polls.
    pub(crate) fn abandon_all(&self, server: &Shared) {
        for connection in self.all() {
            let is_blocked = connection.is_in_handler();
            let Some(closing) = self.begin_close(&connection) else {
                continue;
            };
            if is_blocked {
                let mut inner = self.inner();
                let mut stragglers = inner.ledger.stragglers.iter_mut();
                if let Some(straggler) = stragglers.find(|it| it.id == connection.id()) {
                    straggler.waiting = Waiting::Blocked;
                }
            }
            server.close_connection(closing, CloseKind::Aborted, Cause::Aborted);
        }
        let waited = server.drained_for().unwrap_or_default();
        let mut inner = self.inner();
        let is_left = !inner.ledger.work.is_empty();
        let names = inner.ledger.work.give_up(waited);
        drop(inner);
        if is_left {
            log::warn!(target: "gracious", "gave up tracked work: {names}");
        }
    }

    /// The connections whose handlers a thread is in now and that the log has not named, each with
    /// its number of steps.
    #[cfg(target_os = "linux")]
    pub(crate) fn in_handlers(&self) -> Vec<(u64, u32)> {
        let mut inside = Vec::new();
        for connection in self.all() {
            if connection.is_in_handler() && !connection.has(flag::BLOCKED) {
                inside.push((connection.id(), connection.handler_steps()));
            }
        }
        inside
    }

    /// Names in the log the handlers that block their threads, once each: those that are where they
    /// were when `inside` was taken.
    #[cfg(target_os = "linux")]
    pub(crate) fn log_blocked(&self, inside: &[(u64, u32)]) {
        for &(id, steps) in inside {
            let Some(connection) = self.find(id) else {
                continue;
            };
            if steps % 2 == 1 && connection.handler_steps() == steps {
                connection.set(flag::BLOCKED);
                let peer = connection.peer();
                log::warn!(
                    target: "gracious", conn = id;
                    "the handler of a connection from {peer} blocks a thread",
                );
            }
        }
    }
}

/// The counts.
impl Registry {
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    pub(crate) fn active(&self) -> u64 {
        self.inner().ledger.active()
    }

    /// How many connections are inside a message.
    #[cfg(feature = "metrics")]
    pub(crate) fn busy(&self) -> u64 {
        self.all().iter().filter(|it| it.is_busy()).count() as u64
    }

    /// How many connections and tracked futures are left.
    pub(crate) fn left(&self) -> u64 {
        self.inner().ledger.left()
    }

    /// Whether an accept loop may yet accept a peer.
    pub(crate) fn is_accepting(&self) -> bool {
        self.inner().ledger.is_accepting()
    }

    pub(crate) fn only_self_waiters(&self) -> bool {
        self.inner().ledger.only_self_waiters()
    }

    /// Whether nothing is left but what listeners have accepted that stay open through a drain, and
    /// what waits for the end of the server.
    pub(super) fn only_last(&self) -> bool {
        self.inner().ledger.only_last()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner().ledger.is_empty()
    }

    pub(crate) fn set_driver_lost(&self) {
        self.inner().ledger.driver_lost = true;
    }

    /// Whether the server's task is gone and nothing is left.
    pub(super) fn is_abandoned(&self) -> bool {
        let inner = self.inner();
        inner.ledger.driver_lost && inner.ledger.is_empty()
    }

    pub(crate) fn count_accept_error(&self, count: impl FnOnce(&mut AcceptErrors)) {
        count(&mut self.inner().ledger.accept_errors);
    }

    /// A TLS handshake that a handler began has failed.
    #[cfg(feature = "_tls")]
    pub(crate) fn count_failed_handshake(&self) {
        self.inner().ledger.failed_handshakes += 1;
    }

    /// An accept loop begins beside the server's own task, `last` where its listeners stay open
    /// through a drain.
    pub(crate) fn acceptor_started(&self, last: bool) {
        let mut inner = self.inner();
        inner.ledger.acceptors += 1;
        inner.ledger.last_acceptors += u64::from(last);
    }

    pub(crate) fn acceptor_ended(&self, last: bool) {
        let mut inner = self.inner();
        inner.ledger.acceptors -= 1;
        inner.ledger.last_acceptors -= u64::from(last);
        drop(inner);
        notify(&self.empty);
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = self.inner();
        let open: Vec<_> = inner
            .connections
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let (mut bytes_in, mut bytes_out) = (0, 0);
        // The bytes of a connection whose end was counted are in the ledger.
        for connection in open.iter().filter(|it| !it.has(flag::COUNTED)) {
            bytes_in += connection.received.load(Relaxed);
            bytes_out += connection.sent.load(Relaxed);
        }
        let stats = inner.ledger.stats(bytes_in, bytes_out);
        drop(inner);
        // After the lock: the last owner of a connection runs destructors.
        drop(open);
        stats
    }
}

/// The events.
impl Registry {
    pub(crate) fn subscribe(&self) -> Receiver<ServerEvent> {
        let work = work::polled_work(self.address());
        self.inner().events.subscribe(work)
    }

    pub(crate) fn publish(&self, state: State) {
        let mut inner = self.inner();
        inner.events.state(state);
        self.unlock_and_deliver(inner);
    }

    /// Sends the events in the queue, without the lock. Another thread that is at it already sends
    /// these, too: it looks again under the lock before it leaves off.
    #[inline]
    pub(super) fn unlock_and_deliver<'a>(&'a self, inner: MutexGuard<'a, Inner>) {
        if inner.events.has_to_send() {
            self.deliver(inner);
        }
    }

    #[cold]
    fn deliver<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) {
        let mut is_news = false;
        while inner.events.has_to_send() {
            let Inner { events, ledger, .. } = &mut *inner;
            let mut sending = events.take(|id| ledger.work.is_living(id));
            drop(inner);
            sending.send(self.address());
            inner = self.inner();
            for id in inner.events.put_back(sending) {
                is_news |= inner.ledger.work.mark_reader(id);
            }
        }
        drop(inner);
        if is_news {
            notify(&self.empty);
        }
    }
}
