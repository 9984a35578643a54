//! The PROXY header of a connection, before there is a handler.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use super::timeouts::within;
use super::{Connection, Control, ReadHalf, WriteHalf};
use crate::address::Address;
use crate::log;
use crate::proxy::{ProxyHeader, parse};
use crate::shared::connection::ConnectionState;
use crate::socket::buffer::Buffer;
use crate::socket::errors::ended_by_server;
use crate::socket::readiness::{Waiter, flag};
#[cfg(feature = "_tls")]
use crate::tls::TlsState;

/// Waits for the header within its time, and keeps it and what has come behind it.
pub(crate) async fn receive_header(state: &ConnectionState) -> io::Result<()> {
    let proxies = state.server.config.proxy.as_ref();
    let limit = proxies.and_then(|it| it.timeout);
    let mut bytes = Vec::new();
    let received = poll_fn(|cx| poll_header(state, &mut bytes, cx));
    let header = within(state, limit, "the PROXY header", received).await;
    let kept = header.and_then(|(header, length)| {
        state.set_proxy_header(header);
        keep(state, &bytes[length..])
    });
    state.end_proxy_header(kept.is_ok());
    if kept.is_ok() {
        state.server.registry.publish_client(state);
        log::debug!(
            target: "gracious", conn = state.id();
            "the connection from {} is one from {}", state.socket_peer(), state.peer(),
        );
    }
    kept
}

/// Keeps what has come behind the header: the beginning of a TLS handshake, or of the conversation.
fn keep(state: &ConnectionState, payload: &[u8]) -> io::Result<()> {
    #[cfg(feature = "_tls")]
    if let Some(tls) = state.listeners_tls() {
        state.begin_tls(TlsState::new(tls.config(), Buffer::of(payload))?);
        return Ok(());
    }
    state.keep_payload(payload);
    Ok(())
}

/// Receives into `bytes` until there is a header in it.
fn poll_header(
    state: &ConnectionState,
    bytes: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<(ProxyHeader, usize)>> {
    loop {
        if state.has(flag::ENDED_BY_SERVER) {
            return Poll::Ready(Err(ended_by_server(state.word())));
        }
        let mut buffer = Buffer::default();
        let received = buffer.fill(|buf| {
            let word = state.word();
            let read = state
                .transport
                .poll_read(word, &state.reader, cx, buf, true);
            let filled = match read {
                Poll::Ready(Ok(n)) => n,
                _ => 0,
            };
            (filled, read)
        });
        match received {
            Poll::Ready(Ok(0)) => {
                let found = bytes.len();
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("expected a PROXY header, found the end after {found} bytes"),
                )));
            }
            Poll::Ready(received) => drop(received?),
            Poll::Pending => {
                // Registered first, looked at afterwards, as every waiter does.
                state.register(Waiter::Reader, cx);
                let word = state.word();
                if word & flag::ENDED_BY_SERVER != 0 || state.transport.missed_read(word) {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
        }
        bytes.extend_from_slice(buffer.bytes());
        if let Some(header) = parse(bytes)? {
            return Poll::Ready(Ok(header));
        }
    }
}

macro_rules! proxied {
    ($type:ty) => {
        impl $type {
            /// The header of the proxy that has connected for the client; `None` where none was to be
            /// sent. See [`Builder::proxy_protocol`](crate::Builder::proxy_protocol).
            #[must_use]
            pub fn proxy(&self) -> Option<ProxyHeader> {
                self.state().proxy_header().cloned()
            }

            /// The address of the peer that really connected: the proxy's, where there is one, else
            /// the same as [`peer_addr`](Self::peer_addr).
            #[must_use]
            pub fn socket_peer(&self) -> Address {
                self.state().socket_peer()
            }
        }
    };
}

impl Control {
    /// As [`Connection::proxy`]; `None` after the connection's end, too.
    #[must_use]
    pub fn proxy(&self) -> Option<ProxyHeader> {
        self.state()?.proxy_header().cloned()
    }
}

proxied!(Connection);
proxied!(ReadHalf);
proxied!(WriteHalf);
