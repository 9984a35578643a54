//! The way to a server from everywhere else: handlers, threads, signal tasks.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_channel::Receiver;
use futures_lite::future;

use crate::address::Address;
use crate::config::zero;
use crate::connection::{Connection, Control, ReadHalf, WriteHalf};
use crate::drain;
use crate::lifecycle::{Phase, Reason, State};
use crate::progress::DrainProgress;
use crate::report::{ConnectionInfo, ListenerInfo, Report, Stats};
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::shared::events::ServerEvent;
use crate::sync::notify;
use crate::track::Tracked;

/// A server's handle: stops it, watches it, and tells about it.
///
/// It can be cloned and sent anywhere. No method but the futures waits, so all can be called from a
/// handler, from a thread, from a task that waits for signals (not from a raw signal handler, which
/// may not take locks). A handle keeps nothing alive: a server is closed when it is, and its handles
/// then go on telling how it ended.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    /// The id of the connection whose handler asked for this handle.
    connection: Option<u64>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connection: None,
        }
    }

    fn of_connection(connection: &ConnectionState) -> Self {
        Self {
            shared: connection.server.clone(),
            connection: Some(connection.id()),
        }
    }

    /// Asks the server to stop gracefully.
    ///
    /// The listeners stop taking peers and are closed; idle connections see the end of their input,
    /// busy ones finish; what is left at the [`deadline`](crate::Builder::deadline) is aborted. It
    /// returns at once, may be called any number of times, from several threads, and before the
    /// server is served. The connections are not touched by this call: they are told when the door
    /// is shut.
    pub fn shutdown(&self) {
        self.shared.shutdown(Reason::Requested, None);
    }

    /// [`shutdown`](Self::shutdown), with a reason for the report and the log. The first is kept.
    pub fn shutdown_because(&self, reason: impl Into<Reason>) {
        self.shared.shutdown(reason.into(), None);
    }

    /// [`shutdown`](Self::shutdown), with a deadline `span` from now. The earliest deadline of all
    /// that were given holds; a lame duck's time is cut short by it.
    pub fn shutdown_within(&self, span: Duration) {
        let before = self.shared.clock.now().checked_add(span);
        self.shared.shutdown(Reason::Requested, before);
    }

    /// Ends the server now: every handler is dropped, every socket closed.
    ///
    /// The handlers' destructors have run when the server is closed, those of handlers that block
    /// their threads excepted.
    pub fn abort(&self) {
        drain::abort::abort(&self.shared, Reason::Requested);
    }

    /// Takes no new peers until [`resume`](Self::resume): they wait in the kernel's queue. Those
    /// inside are not touched. A shutdown of a paused server serves those who wait, without a lame
    /// duck's time.
    pub fn pause(&self) {
        self.shared.set_paused(true);
    }

    /// Takes new peers again.
    pub fn resume(&self) {
        self.shared.set_paused(false);
    }

    /// Asks the connections that are open now to come to an end, as a drain does: idle ones see the
    /// end of their input, busy ones finish. There is no deadline; serving goes on.
    pub fn close_connections(&self) {
        self.shared.registry.drain_open(self.shared.uptime());
    }

    /// Cuts the connections that are open now; serving goes on.
    pub fn abort_connections(&self) {
        self.shared.registry.abort_open();
    }

    /// Cuts one connection; `false` if there is none of this id.
    pub fn abort_connection(&self, id: u64) -> bool {
        let found = self.shared.registry.find(id);
        if let Some(connection) = &found {
            connection.abort();
        }
        found.is_some()
    }

    /// Changes [`max_connections`](crate::Builder::max_connections); those inside stay.
    ///
    /// # Errors
    /// `InvalidInput` for a limit of 0: to take nobody, [`pause`](Self::pause).
    pub fn set_max_connections(&self, limit: impl Into<Option<usize>>) -> io::Result<()> {
        let limit = limit.into();
        if limit == Some(0) {
            return Err(zero("max_connections"));
        }
        self.shared.permits.set_max(limit);
        Ok(())
    }

    /// Where the server is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether the server takes new peers and means to go on: it is `false` from the first request
    /// to stop, before the door is shut. What a readiness probe wants to know.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state() == State::Serving
    }

    /// Waits until somebody asks the server to stop.
    ///
    /// The future is owned and can be dropped at any time.
    pub fn shutdown_requested(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let shared = self.shared.clone();
        async move { shared.latch.reached(Phase::Draining).await }
    }

    /// Waits until the server is closed. It does not ask for it.
    ///
    /// In a handler, on the handle that its connection gave, it waits for all connections but those
    /// whose handlers wait likewise, which the report then counts as `active`; so it does not wait
    /// for itself.
    ///
    /// The future is owned and can be dropped at any time; the server goes on.
    pub fn closed(&self) -> impl Future<Output = Report> + Send + 'static + use<> {
        let shared = self.shared.clone();
        let connection = self.connection;
        async move {
            let connection = connection.and_then(|id| shared.registry.find(id));
            match connection.and_then(|connection| SelfWaiter::new(&connection)) {
                Some(waiter) => waiter.wait(&shared).await,
                None => drain::fallback::closed(shared).await,
            }
        }
    }

    /// The addresses the server was bound to, for as long as the handle lives.
    #[must_use]
    pub fn local_addrs(&self) -> &[Address] {
        self.shared.addrs()
    }

    /// How many connections are open.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.shared.registry.active()
    }

    /// The counts as of now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The open connections, in the order they came.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.registry.connections(self.shared.uptime())
    }

    /// The listeners, in the order of [`local_addrs`](Self::local_addrs); none once the door is
    /// closed.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        self.shared.listeners()
    }

    /// How the drain goes: how many are left, and how much time.
    ///
    /// The stream begins with the drain, has an item whenever the number changes and at least ten
    /// times a second, and ends, with one of 0, when the server is closed.
    pub fn drain_progress(&self) -> DrainProgress {
        DrainProgress::new(self.shared.clone())
    }

    /// What happens from now on. Every receiver is told everything; the server never waits for one,
    /// and tells a slow one how many events it missed. The channel ends when the server is closed.
    #[must_use]
    pub fn events(&self) -> Receiver<ServerEvent> {
        if self.state() == State::Closed {
            // The other end is gone already.
            return async_channel::bounded(1).1;
        }
        self.shared.registry.subscribe()
    }

    /// Ties a future to the server: a drain waits for it, an abort drops what is inside.
    ///
    /// It runs where it is polled: awaited in place, or spawned. It is counted as
    /// [`tracked`](Stats::tracked) from this call until it has ended or is dropped, apart from the
    /// connections.
    pub fn track<F: Future>(&self, future: F) -> Tracked<F> {
        Tracked::new(&self.shared, future)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("state", &self.state())
            .field("local_addrs", &self.local_addrs())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// The way from a connection to its server.
macro_rules! handle {
    ($type:ty, $self:ident => $state:expr) => {
        impl $type {
            /// The server's handle. This one knows its connection: see [`Handle::closed`].
            #[must_use]
            pub fn handle(&$self) -> Handle {
                Handle::of_connection($state)
            }
        }
    };
}

impl Control {
    /// The server's handle. This one knows its connection: see [`Handle::closed`].
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            shared: self.server().clone(),
            connection: Some(self.id()),
        }
    }
}

handle!(Connection, self => self.state());
handle!(ReadHalf, self => self.state());
handle!(WriteHalf, self => self.state());

/// A handler that waits for its own server.
struct SelfWaiter {
    server: Arc<Shared>,
    id: u64,
}

impl SelfWaiter {
    /// `None` where the connection's end is counted already.
    fn new(connection: &ConnectionState) -> Option<Self> {
        let server = connection.server.clone();
        server.registry.begin_self_wait(connection).then(|| Self {
            id: connection.id(),
            server,
        })
    }

    /// Waits until no connection is left but those whose handlers wait for that.
    async fn wait(&self, shared: &Shared) -> Report {
        loop {
            let empty = shared.registry.empty.listen();
            let changed = shared.latch.listen();
            if shared.latch.phase() == Phase::Closed {
                return shared.report();
            }
            // Once only they are left it stays so: no peer is accepted any more. So all are told the
            // same.
            if shared.is_closed_to_peers() && shared.registry.only_self_waiters() {
                // Built first: the clock is code of others, which may wait for the same report.
                let report = shared.build_report();
                let _is_first = shared.report_for_self_waiters.set(report);
                notify(&shared.registry.empty);
            }
            if let Some(report) = shared.report_for_self_waiters.get() {
                return report.clone();
            }
            future::or(empty, changed).await;
        }
    }
}

impl Drop for SelfWaiter {
    fn drop(&mut self) {
        if let Some(connection) = self.server.registry.find(self.id) {
            self.server.registry.end_self_wait(&connection);
        }
    }
}
