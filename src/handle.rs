//! The way to a server from everywhere else: handlers, threads, signal tasks.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_channel::Receiver;

use crate::address::{Address, Target};
use crate::config::{warn_of_few_descriptors, zero};
use crate::connection::{Connection, Control, ReadHalf, WriteHalf};
use crate::drain;
use crate::lifecycle::{Phase, Reason, State};
use crate::listener::bind::Source;
use crate::progress::DrainProgress;
use crate::report::{ConnectionInfo, ListenerInfo, Report, Stats};
use crate::shared::connection::ConnectionState;
use crate::shared::events::ServerEvent;
use crate::shared::{Name, Shared};
#[cfg(feature = "_tls")]
use crate::tls::Tls;
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

    /// Asks one connection to come to an end, as [`close_connections`](Self::close_connections) asks
    /// all; `false` if there is none of this id.
    pub fn close_connection(&self, id: u64) -> bool {
        let found = self.shared.registry.find(id);
        if let Some(connection) = &found {
            connection.notify_drain(self.shared.uptime());
        }
        found.is_some()
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

    /// Listens on `target`, too, as [`Builder::listen`](crate::Builder::listen) would have from the
    /// beginning; gives what was bound, with the ids.
    ///
    /// The server's settings hold for it. On a [sharded](crate::Builder::sharded) server each shard
    /// gets a socket of its own for it. It is closed with the others at a stop, and is not among
    /// [`local_addrs`](Self::local_addrs), which are those of [`bind`](crate::Builder::bind). A server
    /// can listen at 65536 addresses in its life.
    ///
    /// # Errors
    /// Those of [`Builder::bind`](crate::Builder::bind); and `NotConnected` if the server is not served
    /// yet, or was asked to stop.
    pub fn add(&self, target: impl Into<Target>) -> Add {
        let source = Source::target(target.into());
        Add(Box::pin(drain::one::add(self.shared.clone(), source)))
    }

    /// [`add`](Self::add), with TLS, as [`Builder::listen_tls`](crate::Builder::listen_tls).
    #[cfg(feature = "_tls")]
    pub fn add_tls(&self, target: impl Into<Target>, tls: impl Into<Tls>) -> Add {
        let source = Source {
            tls: Some(tls.into()),
            ..Source::target(target.into())
        };
        Add(Box::pin(drain::one::add(self.shared.clone(), source)))
    }

    /// Shuts one [listener](Self::listeners), by its id, while the server goes on; `false` if there is
    /// none, or it is shut already.
    ///
    /// It is shut as all are at a stop: new peers are refused from here on, a Unix path is removed, and
    /// whoever is in its queue, or whose handshake is under way, is served before it is closed. It is
    /// among the [`listeners`](Self::listeners) until then. Its connections go on; see
    /// [`close_connections_of`](Self::close_connections_of). A listener that others may hold, an
    /// [adopted](crate::Builder::adopt) one, is swept for its [`backlog`](crate::Builder::backlog) and
    /// closed.
    ///
    /// A server whose listeners are all shut goes on for its connections, until it is asked to stop.
    /// While it is [paused](Self::pause) nobody is taken from the queue, so it stays until then.
    pub fn shut(&self, id: u64) -> bool {
        u16::try_from(id).is_ok_and(|number| drain::one::shut(&self.shared, number))
    }

    /// Asks the connections that are open now, and came through one [listener](Self::listeners), to
    /// come to an end, as [`close_connections`](Self::close_connections) asks all.
    pub fn close_connections_of(&self, listener: u64) {
        if let Ok(number) = u16::try_from(listener) {
            let uptime = self.shared.uptime();
            self.shared.registry.drain_of(number, uptime);
        }
    }

    /// Changes [`max_connections`](crate::Builder::max_connections); those inside stay. A limit above
    /// what the system allows is a warning in the log, as it is at `bind`.
    ///
    /// # Errors
    /// `InvalidInput` for a limit of 0: to take nobody, [`pause`](Self::pause).
    pub fn set_max_connections(&self, limit: impl Into<Option<usize>>) -> io::Result<()> {
        let limit = limit.into();
        if limit == Some(0) {
            return Err(zero("max_connections"));
        }
        if let Some(limit) = limit {
            warn_of_few_descriptors(limit);
        }
        self.shared.permits.set_max(limit);
        Ok(())
    }

    /// Where the server is in its life.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Whether the server takes new peers and means to go on: what a readiness probe wants to know.
    ///
    /// It is `false` from the first request to stop, before the door is shut; while the server is
    /// paused; and, although its [`state`](Self::state) is `Serving`, while it cannot accept for want of
    /// descriptors or memory ([`Stats::shortage`]), and for two seconds after it last met that.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state() == State::Serving && !self.shared.is_short()
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
    /// From inside the server it does not wait for itself: in a handler, on the handle that its
    /// connection gave, and in [tracked](Self::track) work, on any handle, it waits for all but those
    /// who wait likewise, which the report then counts as `active` and `tracked`. (That tracked work
    /// waits is seen where this future is polled in it, not in a task that it spawned.)
    ///
    /// The future is owned and can be dropped at any time; the server goes on.
    pub fn closed(&self) -> impl Future<Output = Report> + Send + 'static + use<> {
        drain::fallback::closed(self.shared.clone(), self.connection)
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

    /// Tells what has changed through the facade `metrics` now: before a page with it is made. It looks at
    /// every open connection. Nothing without [`Builder::metrics`](crate::Builder::metrics).
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) {
        self.shared.record_metrics();
    }

    /// The open connections, in the order they came.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.registry.connections(self.shared.uptime())
    }

    /// The listeners, in the order in which they were bound: those of
    /// [`local_addrs`](Self::local_addrs) first. A listener is among them until it is closed.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        self.shared.listeners()
    }

    /// How the drain goes: how many are left, and how much time.
    ///
    /// The stream begins with the drain, has an item whenever the number changes and at least ten
    /// times a second, and ends, with one of 0, when the server is closed. In [tracked](Self::track)
    /// work it ends as soon as nothing is left but what waits for the server's end, with the number of
    /// those.
    pub fn drain_progress(&self) -> DrainProgress {
        DrainProgress::new(self.shared.clone())
    }

    /// What happens from now on. Every receiver is told everything; the server never waits for one,
    /// and tells a slow one how many events it missed. The channel ends when the server is closed.
    ///
    /// A drain waits for [tracked](Self::track) work, and tracked work that reads events waits for the
    /// end of the channel. So a channel that is read in tracked work ends, with the event of the closed
    /// state, as soon as nothing is left but work that waits for the server's end. That it reads is
    /// known of work that called this method, or that an event has woken.
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
    /// connections. A stop that waited for it, or dropped it, says so in the log, while it waits, and
    /// in the [report](Report::tracked_work), by the place of this call;
    /// [`track_as`](Self::track_as) gives it a name.
    ///
    /// Work that is dropped at the deadline, by an abort, or with the runtime is counted as
    /// [`dropped`](Stats::dropped), and the report is not [clean](Report::is_clean). An owner who drops
    /// the future of this method before that does not want it any more; that is not counted.
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Tracked<F> {
        Tracked::new(&self.shared, Name::At(Location::caller()), future)
    }

    /// [`track`](Self::track), under a name for the log and the report.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
    /// # async fn flush() {}
    /// use gracious::Server;
    ///
    /// let server = Server::bind("127.0.0.1:0").await?;
    /// let handle = server.handle();
    /// let flushing = async_std::task::spawn(handle.track_as("flush", flush()));
    /// handle.shutdown();
    /// let report = server.serve(async |_conn| {}).await?; // not before `flush` is done
    /// assert!(report.is_clean() && flushing.await.is_some());
    /// # Ok(()) }) }
    /// ```
    pub fn track_as<F: Future>(&self, name: impl Into<Cow<'static, str>>, future: F) -> Tracked<F> {
        Tracked::new(&self.shared, Name::Given(name.into()), future)
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

/// The future of [`Handle::add`]: what was bound, each with its id.
///
/// It is owned. Dropped before its end it binds nothing.
#[must_use = "nothing is bound before it is awaited"]
pub struct Add(Pin<Box<dyn Future<Output = io::Result<Vec<ListenerInfo>>> + Send>>);

impl Future for Add {
    type Output = io::Result<Vec<ListenerInfo>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Add {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Add").finish_non_exhaustive()
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
