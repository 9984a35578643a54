//! What TLS adds to a connection's state; without the feature, nothing.

use std::io;
use std::task::{Context, Poll};

use super::connection::ConnectionState;
use crate::socket::readiness::is_tls;
#[cfg(feature = "_tls")]
use crate::socket::readiness::{Waiter, flag};
#[cfg(feature = "_tls")]
use crate::tls::{Done, TlsState, Wire};

impl ConnectionState {
    /// Whether the connection is inside something that concerns TLS alone.
    pub(super) fn is_inside_tls(&self) -> bool {
        #[cfg(feature = "_tls")]
        return self.tls().is_some_and(TlsState::is_busy);
        #[cfg(not(feature = "_tls"))]
        false
    }

    /// Ends our side of the conversation, in TLS and then in the transport. Where TLS has to wait for
    /// room, no wake-up is arranged.
    pub(crate) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        #[cfg(feature = "_tls")]
        if let Some(tls) = self.tls() {
            let done = tls.try_finish(&self.transport);
            self.after_tls(&done);
            // Where it fails the transport has no peer either.
            if matches!(done.result, Ok(false)) {
                return Poll::Pending;
            }
        }
        self.transport.poll_finish(cx)
    }

    /// Whether [`poll_finish`](Self::poll_finish) never has to wait.
    pub(crate) fn finishes_at_once(&self) -> bool {
        self.transport.finishes_at_once() && !is_tls(self.word())
    }
}

#[cfg(feature = "_tls")]
impl ConnectionState {
    /// The TLS that the connection's bytes go through, once it has begun.
    pub(crate) fn tls(&self) -> Option<&TlsState> {
        if !self.has(flag::TLS) {
            return None;
        }
        self.existing_tls()
    }

    /// Has all bytes go through TLS from here on, before any other is read or written; `false` where
    /// they do already.
    pub(crate) fn begin_tls(&self, tls: TlsState) -> bool {
        let is_first = self.set_tls(tls);
        self.set(flag::TLS);
        is_first
    }

    /// The TLS handshake has come to its good end.
    pub(crate) fn end_tls_handshake(&self) {
        if let Some(tls) = self.tls() {
            self.end_handshake(&tls.begun);
        }
    }

    /// What TLS runs over.
    pub(crate) fn wire(&self) -> Wire<'_> {
        Wire {
            transport: &self.transport,
            readiness: self.readiness(),
            reader: &self.reader,
        }
    }

    /// Called after an operation of a half: has the task send what is left, and tells who waited for
    /// room.
    pub(crate) fn after_tls<T>(&self, done: &Done<T>) {
        if done.is_unsent {
            self.wake_task();
        }
        if done.is_sent {
            self.wake(Waiter::Writer);
            self.after_write(false);
        }
    }
}
