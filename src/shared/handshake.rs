//! What comes before a connection's handler: a PROXY header, a TLS handshake, or one after the other;
//! without these features, nothing.

use std::sync::atomic::Ordering::Acquire;
#[cfg(feature = "_handshake")]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::Shared;
use super::connection::ConnectionState;
#[cfg(feature = "_handshake")]
use crate::report::Waiting;
#[cfg(feature = "_handshake")]
use crate::socket::readiness::flag;
#[cfg(feature = "_handshake")]
use crate::sync::nanos;
#[cfg(feature = "_tls")]
use crate::tls::TlsState;

impl Shared {
    /// Whether handshakes are under way, whose connections may yet be queued.
    pub(crate) fn has_handshakes(&self) -> bool {
        #[cfg(feature = "_handshake")]
        return self.permits.handshakes() > 0;
        #[cfg(not(feature = "_handshake"))]
        false
    }

    /// Whether there may be handshakes at all.
    #[cfg(feature = "_handshake")]
    pub(crate) fn may_handshake(&self) -> bool {
        #[cfg(feature = "proxy")]
        if self.config.proxy.is_some() {
            return true;
        }
        #[cfg(feature = "_tls")]
        return self.has_tls();
        #[cfg(not(feature = "_tls"))]
        false
    }
}

impl ConnectionState {
    /// Whether the handshake goes on, and the handler is to be called afterwards.
    pub(crate) fn is_handshaking(&self) -> bool {
        #[cfg(feature = "_handshake")]
        return self.handshake().is_some();
        #[cfg(not(feature = "_handshake"))]
        false
    }

    /// What of the handshake goes on.
    #[cfg(feature = "_handshake")]
    pub(super) fn handshake(&self) -> Option<Waiting> {
        #[cfg(feature = "proxy")]
        if self.awaits_proxy_header() {
            return Some(Waiting::ProxyHeader);
        }
        #[cfg(feature = "_tls")]
        if self.tls().is_some_and(TlsState::is_handshaking) {
            return Some(Waiting::Handshake);
        }
        None
    }

    /// Whether it is known who the client is.
    pub(crate) fn is_known(&self) -> bool {
        #[cfg(feature = "proxy")]
        return !self.awaits_proxy_header();
        #[cfg(not(feature = "proxy"))]
        true
    }

    /// The uptime from which on the client could say something: that of the accept, or of the end of the
    /// handshake.
    pub(crate) fn begun(&self) -> Duration {
        let begun = self.accepted();
        #[cfg(feature = "proxy")]
        let begun = begun.max(self.proxy_header_end());
        #[cfg(feature = "_tls")]
        let begun = begun.max(self.tls().map_or(Duration::ZERO, |tls| {
            Duration::from_nanos(tls.begun.load(Acquire))
        }));
        begun
    }

    /// Whether the client has had no time for its first byte yet.
    pub(super) fn is_fresh(&self, uptime: Duration) -> bool {
        let grace = self.server.config.first_byte_grace;
        let has_time = || uptime.saturating_sub(self.begun()) < grace;
        self.received.load(Acquire) == 0 && (has_time() || self.is_handshaking())
    }

    /// A part of the handshake has come to its good end, which is recorded in `begun`.
    #[cfg(feature = "_handshake")]
    pub(super) fn end_handshake(&self, begun: &AtomicU64) {
        let now = self.server.uptime();
        // Before the look for a drain: one that comes later sees it.
        begun.store(nanos(now), SeqCst);
        self.mark_activity();
        if self.has(flag::DRAINING) && self.is_fresh(now) {
            self.set(flag::FIRST_BYTE_GRACE);
            // It ends the grace.
            self.wake_task();
        }
    }
}
