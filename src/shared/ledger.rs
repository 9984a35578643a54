//! The counts of a server, which always balance: they change together, under the registry's lock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::work::WorkList;
use crate::report::{AcceptErrors, Cause, Limited, Stats, Straggler};

/// How a connection ended, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseKind {
    Completed,
    Failed,
    Panicked,
    Aborted,
    Detached,
    Rejected,
}

/// What counting a connection's end needs of it. The connection's state is dropped before, so that
/// its socket is closed when its end is counted.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) id: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) accepted: Duration,
    pub(crate) has_permit: bool,
    /// It has given its permit to another.
    pub(crate) is_apart: bool,
    pub(super) is_self_waiter: bool,
    /// It came through a listener that stays open through a drain.
    pub(super) is_last: bool,
    /// The address whose part of `max_per_peer` it holds.
    pub(super) peer_permit: Option<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accepted: u64,
    active: u64,
    completed: u64,
    failed: u64,
    panicked: u64,
    aborted: u64,
    detached: u64,
    rejected: u64,
    peak: u64,
    pub(super) work: WorkList,
    /// Bytes of the connections that ended.
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) accept_errors: AcceptErrors,
    limited: Limited,
    #[cfg(feature = "_tls")]
    pub(super) failed_handshakes: u64,
    #[cfg(feature = "proxy")]
    failed_proxy_headers: u64,
    /// Connections that were closed although their peers had not everything, or still sent.
    pub(super) lingered_out: u64,
    /// Connections that a drain ended and whose peers sent something afterwards.
    pub(super) unserved_input: u64,
    /// How many connections come from one address; kept only where that is limited.
    per_peer: HashMap<IpAddr, usize>,
    /// Connections whose handlers wait for the server to close.
    pub(super) self_waiters: u64,
    /// Connections of listeners that stay open through a drain, and how many of them are self-waiters.
    last: u64,
    pub(super) last_self_waiters: u64,
    /// Accept loops of such listeners, which are among the acceptors, too.
    pub(super) last_acceptors: u64,
    /// Accept loops beside the server's own task. They may be about to accept a peer.
    pub(super) acceptors: u64,
    /// The server's task is gone: the last to end closes the server.
    pub(super) driver_lost: bool,
    pub(super) stragglers: Vec<Straggler>,
}

impl Ledger {
    /// Counts a connection that was accepted, `last` where its listener stays open through a drain;
    /// gives its id.
    pub(super) fn open(&mut self, last: bool) -> u64 {
        self.accepted += 1;
        self.active += 1;
        self.last += u64::from(last);
        self.peak = self.peak.max(self.active);
        self.accepted
    }

    pub(super) fn close(&mut self, closing: &Closing, kind: CloseKind, cause: &Cause) {
        self.active -= 1;
        self.last -= u64::from(closing.is_last);
        *match kind {
            CloseKind::Completed => &mut self.completed,
            CloseKind::Failed => &mut self.failed,
            CloseKind::Panicked => &mut self.panicked,
            CloseKind::Aborted => &mut self.aborted,
            CloseKind::Detached => &mut self.detached,
            CloseKind::Rejected => &mut self.rejected,
        } += 1;
        match cause {
            Cause::IdleTimeout => self.limited.idle += 1,
            Cause::FirstByteTimeout => self.limited.first_byte += 1,
            Cause::MaxAge => self.limited.age += 1,
            #[cfg(feature = "_tls")]
            Cause::Handshake(_) => self.failed_handshakes += 1,
            #[cfg(feature = "proxy")]
            Cause::ProxyHeader(_) => self.failed_proxy_headers += 1,
            _ => {}
        }
        if let Some(ip) = closing.peer_permit {
            self.release_peer_permit(ip);
        }
        if closing.is_self_waiter {
            self.self_waiters -= 1;
            self.last_self_waiters -= u64::from(closing.is_last);
        }
    }

    /// Takes one of the permits of an address; `false` where all `max` are used up.
    pub(super) fn acquire_peer_permit(&mut self, ip: IpAddr, max: usize) -> bool {
        let count = self.per_peer.entry(ip).or_default();
        let has_permit = *count < max;
        if has_permit {
            *count += 1;
        }
        has_permit
    }

    /// Takes one of the permits of an address, also above its limit.
    pub(super) fn take_peer_permit_back(&mut self, ip: IpAddr) {
        *self.per_peer.entry(ip).or_default() += 1;
    }

    pub(super) fn release_peer_permit(&mut self, ip: IpAddr) {
        if let Some(count) = self.per_peer.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_peer.remove(&ip);
            }
        }
    }

    pub(super) fn active(&self) -> u64 {
        self.active
    }

    /// Connections and tracked futures.
    pub(super) fn left(&self) -> u64 {
        self.active + self.work.len()
    }

    /// Whether nothing is left and nothing can come any more.
    pub(super) fn is_empty(&self) -> bool {
        self.left() == 0 && !self.is_accepting()
    }

    /// Whether no connection is left but those whose handlers wait for the server to close.
    pub(super) fn is_disconnected(&self) -> bool {
        self.active <= self.self_waiters && !self.is_accepting()
    }

    /// Whether nothing is left but connections and tracked work that wait for exactly that.
    pub(super) fn only_self_waiters(&self) -> bool {
        self.is_disconnected() && self.work.only_waits()
    }

    /// Whether nothing is left but what waits for that, or reads events.
    pub(super) fn only_dependents(&self) -> bool {
        self.is_disconnected() && self.work.only_depends()
    }

    /// Whether nothing is left but what listeners have accepted that stay open through a drain, and
    /// what waits for the end of the server.
    pub(super) fn only_last(&self) -> bool {
        let left = self.active - self.last;
        let waits = self.self_waiters - self.last_self_waiters;
        left <= waits && self.acceptors == self.last_acceptors && self.work.only_depends()
    }

    /// Whether an accept loop may yet accept a peer.
    pub(super) fn is_accepting(&self) -> bool {
        self.acceptors > 0
    }

    /// The counts, with the bytes of the connections that have not ended.
    pub(super) fn stats(&self, bytes_in: u64, bytes_out: u64) -> Stats {
        let errors = self.accept_errors;
        Stats {
            accepted: self.accepted,
            completed: self.completed,
            failed: self.failed,
            panicked: self.panicked,
            aborted: self.aborted,
            detached: self.detached,
            rejected: self.rejected,
            active: self.active,
            peak: self.peak,
            tracked: self.work.len(),
            dropped: self.work.dropped(),
            accept_errors: errors.peer + errors.shortage + errors.listener,
            accept_errors_by: errors,
            // The server knows it.
            shortage: false,
            limited: self.limited,
            // The server knows it.
            #[cfg(feature = "_handshake")]
            handshakes: 0,
            #[cfg(feature = "_tls")]
            failed_handshakes: self.failed_handshakes,
            #[cfg(feature = "proxy")]
            failed_proxy_headers: self.failed_proxy_headers,
            // Counted with the permits.
            closing: 0,
            lingered_out: self.lingered_out,
            unserved_input: self.unserved_input,
            bytes_in: self.bytes_in + bytes_in,
            bytes_out: self.bytes_out + bytes_out,
        }
    }
}
