//! What the PROXY protocol adds to a connection's state: the header, or the wait for it.

use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::connection::ConnectionState;
use super::events::ServerEvent;
use super::registry::Registry;
use crate::proxy::{Peer, ProxyHeader};
use crate::socket::buffer::Buffer;
use crate::sync::lock;

/// The header of a proxy that has connected.
#[derive(Debug, Default)]
pub(super) struct ProxyState {
    /// The header, once it has come.
    header: OnceLock<ProxyHeader>,
    /// It has come, or will not.
    is_over: AtomicBool,
    /// The uptime, in nanoseconds, at which it had come.
    begun: AtomicU64,
    /// What has come behind it, until a connection's reader takes it.
    payload: Mutex<Vec<u8>>,
}

impl Registry {
    /// A connection's PROXY header has come.
    pub(crate) fn publish_client(&self, connection: &ConnectionState) {
        let (id, peer) = (connection.id(), connection.peer());
        let mut inner = self.inner();
        inner.events.push(|| ServerEvent::Proxied { id, peer });
        self.unlock_and_deliver(inner);
    }
}

impl ConnectionState {
    /// What becomes of this connection's peer. One that has to send a header is waited for from here on.
    pub(crate) fn judge_peer(&self) -> Peer {
        let Some(proxies) = &self.server.config.proxy else {
            return Peer::AsItIs;
        };
        let peer = proxies.judge(&self.socket_peer());
        if peer == Peer::Proxy {
            let _first = self.cold().proxy.set(Box::default());
        }
        peer
    }

    #[inline]
    fn proxy(&self) -> Option<&ProxyState> {
        self.cold.get()?.proxy.get().map(|proxy| &**proxy)
    }

    /// The header, once it has come.
    pub(crate) fn proxy_header(&self) -> Option<&ProxyHeader> {
        self.proxy()?.header.get()
    }

    /// Whether the header is waited for.
    pub(crate) fn awaits_proxy_header(&self) -> bool {
        self.proxy().is_some_and(|it| !it.is_over.load(SeqCst))
    }

    /// The uptime at which the header had come.
    pub(super) fn proxy_header_end(&self) -> Duration {
        let begun = self.proxy().map_or(0, |it| it.begun.load(Acquire));
        Duration::from_nanos(begun)
    }

    /// The header has come.
    pub(crate) fn set_proxy_header(&self, header: ProxyHeader) {
        if let Some(proxy) = self.proxy() {
            let _first = proxy.header.set(header);
        }
    }

    /// Keeps what has come behind the header for the connection's reader. It is received from here on.
    pub(crate) fn keep_payload(&self, payload: &[u8]) {
        let Some(proxy) = self.proxy().filter(|_| !payload.is_empty()) else {
            return;
        };
        *lock(&proxy.payload) = payload.to_vec();
        self.mark_received(payload.len());
    }

    /// Takes what has come behind the header, for the connection's reader.
    #[inline]
    pub(crate) fn take_payload(&self) -> Buffer {
        let Some(proxy) = self.proxy() else {
            return Buffer::default();
        };
        let payload = std::mem::take(&mut *lock(&proxy.payload));
        Buffer::of(&payload)
    }

    /// The header is waited for no longer. That what follows it has begun is recorded before: a drain
    /// finds the connection in the one or in the other.
    pub(crate) fn end_proxy_header(&self, has_come: bool) {
        let Some(proxy) = self.proxy() else {
            return;
        };
        if has_come {
            self.end_handshake(&proxy.begun);
        }
        proxy.is_over.store(true, SeqCst);
    }
}
