//! A connection whose bytes go through TLS: its handshake, and what its halves and its task do.
//!
//! What the kernel has no room for is sent by the connection's task, and by it alone: a reactor wakes
//! one waiter for room, so two that wait would wake each other for ever. A half that has to wait for
//! it tells the task, and is woken as a writer is when all is sent.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use super::timeouts::within;
use super::{Connection, Control, ReadHalf, WriteHalf};
use crate::shared::connection::ConnectionState;
use crate::socket::errors::ended_by_server;
use crate::socket::readiness::{Waiter, flag};
use crate::tls::{Tls, TlsInfo, TlsState};

impl Connection {
    /// Begins TLS on a connection that was plain so far (STARTTLS), and waits for its handshake.
    ///
    /// From here on all bytes go through it, and the connection is as one of
    /// [`Builder::listen_tls`](crate::Builder::listen_tls). Whatever the client has sent behind its last plain message
    /// is taken for the beginning of the handshake, what was read ahead, too: nothing that came in the
    /// clear is ever read as if it had come through TLS, and a client, or somebody in between, that has sent
    /// more fails the handshake.
    ///
    /// The handshake has the time of
    /// [`tls_handshake_timeout`](crate::Builder::tls_handshake_timeout). Where it fails, or the future is
    /// dropped, the connection is of no use but to be dropped.
    ///
    /// # Errors
    /// Those of the handshake: `InvalidData` where the client says what is no TLS, or cannot be agreed
    /// with, `UnexpectedEof` where it ends in the middle, `TimedOut`. `InvalidInput` on a connection with
    /// TLS, and `Unsupported` over a transport of the user's own; such a connection is as it was.
    pub async fn start_tls(&mut self, tls: impl Into<Tls>) -> io::Result<()> {
        let state = self.reader.state.clone();
        if !state.transport.finishes_at_once() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "TLS goes over TCP and Unix sockets: this connection runs over a transport of its own",
            ));
        }
        if state.has(flag::TLS) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "this connection has TLS already",
            ));
        }
        let config = tls.into().config();
        let input = std::mem::take(&mut self.reader.buffer);
        self.reader.after_consume();
        state.begin_tls(TlsState::new(config, input)?);
        let shaken = handshake(&state, false).await;
        if shaken.is_err() {
            state.server.registry.count_failed_handshake();
        }
        shaken
    }
}

/// Waits for the handshake within its time. `is_task` says that it is polled by what stands for the
/// connection's task.
pub(crate) async fn handshake(state: &ConnectionState, is_task: bool) -> io::Result<()> {
    let limit = state.server.config.tls_handshake_timeout;
    let shaken = poll_fn(|cx| poll_handshake(state, is_task, cx));
    within(state, limit, "the TLS handshake", shaken).await
}

fn poll_handshake(
    state: &ConnectionState,
    is_task: bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let Some(tls) = state.tls() else {
        return Poll::Ready(Ok(()));
    };
    if state.has(flag::ENDED_BY_SERVER) {
        return Poll::Ready(Err(ended_by_server(state.word())));
    }
    let done = tls.poll_handshake(state.wire(), cx);
    state.after_tls(&done);
    if let Poll::Ready(shaken) = done.result {
        if shaken.is_ok() {
            state.end_tls_handshake();
        }
        return Poll::Ready(shaken);
    }
    // Registered first, looked at afterwards, as every waiter does.
    state.register(Waiter::Reader, cx);
    if done.is_unsent {
        state.register(Waiter::Writer, cx);
        if is_task {
            poll_send(state, cx);
        }
    }
    let word = state.word();
    if word & flag::ENDED_BY_SERVER != 0 {
        return Poll::Ready(Err(ended_by_server(word)));
    }
    if state.transport.missed_read(word) || done.is_unsent && !tls.is_unsent() {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

/// Sends what the kernel had no room for, and arranges a wake-up for what it still has none for; for
/// the connection's task.
pub(super) fn poll_send(state: &ConnectionState, cx: &mut Context<'_>) {
    let Some(tls) = state.tls().filter(|tls| tls.is_unsent()) else {
        return;
    };
    // What is closing is its closer's, and its socket reports nothing any more.
    if state.has(flag::CLOSING) {
        return;
    }
    let mut done = tls.poll_send(state.wire(), cx);
    // This is the task: nobody has to tell it.
    done.is_unsent = false;
    state.after_tls(&done);
}

/// Reads plaintext for the read half.
pub(super) fn poll_read(
    state: &ConnectionState,
    tls: &TlsState,
    cx: &mut Context<'_>,
    buf: &mut [u8],
    look: bool,
) -> Poll<io::Result<usize>> {
    let done = tls.poll_read(state.wire(), cx, buf, look);
    state.after_tls(&done);
    done.result
}

/// Writes plaintext for the write half; the caller arranges a wake-up by [`writer_waits`].
pub(super) fn poll_write(
    state: &ConnectionState,
    tls: &TlsState,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let done = tls.poll_write(&state.transport, bufs);
    state.after_tls(&done);
    done.result
}

/// Waits until the kernel has taken all that was written.
pub(super) fn poll_flush(state: &ConnectionState, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let Some(tls) = state.tls() else {
        return Poll::Ready(Ok(()));
    };
    let done = tls.try_send(&state.transport);
    state.after_tls(&done);
    if done.result? {
        return Poll::Ready(Ok(()));
    }
    state.register(Waiter::Writer, cx);
    writer_waits(state, cx);
    Poll::Pending
}

/// Called by a half that waits for all to be sent, after it has registered its waker.
pub(super) fn writer_waits(state: &ConnectionState, cx: &Context<'_>) {
    if state.tls().is_some_and(TlsState::is_unsent) {
        state.wake_task();
    } else {
        cx.waker().wake_by_ref();
    }
}

macro_rules! tls_info {
    ($type:ty) => {
        impl $type {
            /// What was agreed on in the TLS handshake: the version, the server's name (SNI), the
            /// protocol (ALPN), the client's certificates. `None` on a connection without TLS, and
            /// before the end of its handshake.
            #[must_use]
            pub fn tls(&self) -> Option<TlsInfo> {
                self.state().tls()?.info()
            }
        }
    };
}

impl Control {
    /// As [`Connection::tls`]; `None` after the connection's end, too.
    #[must_use]
    pub fn tls(&self) -> Option<TlsInfo> {
        self.state()?.tls()?.info()
    }
}

tls_info!(Connection);
tls_info!(ReadHalf);
tls_info!(WriteHalf);
