//! The controls of one connection, which stay when its stream has moved into a protocol.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use super::wind_down::WindDown;
use super::{Busy, EndedBy, drain_requested, ended_by};
use crate::address::Address;
use crate::idle::IdleWhen;
use crate::shared::Shared;
use crate::shared::connection::ConnectionState;
use crate::socket::readiness::flag;

/// The controls of one connection, from [`Connection::control`](super::Connection::control): all of
/// its methods but reading and writing.
///
/// It can be cloned and sent anywhere, and stays when the connection has moved into a protocol such
/// as hyper's, rustls' or tungstenite's. It keeps nothing alive: after the connection's end its
/// [`id`](Self::id) and [`peer_addr`](Self::peer_addr) are still known, and everything else does
/// nothing.
#[derive(Clone)]
pub struct Control {
    // Weak, since a strong reference would keep the socket open; what has to be known afterwards
    // stands beside it.
    state: Weak<ConnectionState>,
    server: Arc<Shared>,
    id: u64,
    peer: Address,
}

impl Control {
    pub(super) fn new(state: &Arc<ConnectionState>) -> Self {
        Self {
            state: Arc::downgrade(state),
            server: state.server.clone(),
            id: state.id(),
            peer: state.peer(),
        }
    }

    /// The state of the connection's server.
    pub(crate) fn server(&self) -> &Arc<Shared> {
        &self.server
    }

    /// The connection's state; `None` after its end.
    pub(super) fn state(&self) -> Option<Arc<ConnectionState>> {
        self.state.upgrade()
    }

    /// The id of the connection: 1 for the first of its server, and so on.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The peer's address, as [`Connection::peer_addr`](super::Connection::peer_addr).
    #[must_use]
    pub fn peer_addr(&self) -> Address {
        self.peer.clone()
    }

    /// The address the peer connected to.
    ///
    /// # Errors
    /// `NotConnected` after the connection's end; the system's, if it does not know any more.
    pub fn local_addr(&self) -> io::Result<Address> {
        match self.state() {
            Some(state) => state.local_addr(),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Waits until the connection is asked to come to an end, or has come to it.
    ///
    /// The future is owned and can be dropped at any time.
    pub fn shutdown_requested(&self) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
        drain_requested(self.state.clone())
    }

    /// Whether the connection has been asked to come to an end, or has come to it.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.state()
            .is_none_or(|state| state.has(flag::DRAINING | flag::ABORT))
    }

    /// Says that the connection is inside a message for as long as the guard lives; nothing after
    /// its end.
    #[must_use = "the connection counts as busy only as long as the guard lives"]
    pub fn busy(&self) -> Busy {
        if let Some(state) = self.state() {
            state.begin_busy();
        }
        Busy(self.state.clone())
    }

    /// Declares when the connection is idle; see [`IdleWhen`].
    pub fn idle_when(&self, when: IdleWhen) {
        if let Some(state) = self.state() {
            state.idle_when(when);
        }
    }

    /// Who ended the input, once a read has said that it is at its end; `None` after the
    /// connection's end.
    #[must_use]
    pub fn ended_by(&self) -> Option<EndedBy> {
        ended_by(self.state()?.word())
    }

    /// Asks this connection to come to an end, as a drain does: if it is idle it sees the end of
    /// its input, if it is busy it finishes. It returns at once; the others, and the server, go on.
    pub fn request_shutdown(&self) {
        if let Some(state) = self.state() {
            state.notify_drain(self.server.uptime());
        }
    }

    /// Aborts this connection: its handler is dropped, its socket closed. It returns at once.
    pub fn abort(&self) {
        if let Some(state) = self.state() {
            state.abort();
        }
    }

    /// Bytes read from the peer so far; `None` after the connection's end.
    #[must_use]
    pub fn bytes_in(&self) -> Option<u64> {
        Some(self.state()?.received.load(Relaxed))
    }

    /// Bytes written to the peer so far; `None` after the connection's end.
    #[must_use]
    pub fn bytes_out(&self) -> Option<u64> {
        Some(self.state()?.sent.load(Relaxed))
    }

    /// Drives a protocol's own future to its end, and calls `on_drain` with it, once, when the
    /// connection is asked to come to an end: `|http2| http2.graceful_shutdown()`.
    ///
    /// It declares [`IdleWhen::Never`]: the protocol ends by itself. The future is polled once more
    /// after the drain before `on_drain` is called, so that what has arrived by then is seen. Await
    /// the result in the connection's handler, or anywhere else. Dropping it drops the future.
    ///
    /// It is for HTTP/2, WebSocket and protocols of one's own. It is not for HTTP/1 of hyper, whose
    /// `graceful_shutdown` closes a connection with a first request on its way or half a head read:
    /// declare `Answered` there, with a guard a request.
    pub fn wind_down<F, D>(&self, future: F, on_drain: D) -> WindDown<F, D>
    where
        F: Future,
        D: FnOnce(Pin<&mut F>),
    {
        self.idle_when(IdleWhen::Never);
        WindDown::new(self.state.clone(), future, on_drain)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
