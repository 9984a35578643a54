//! Whether an accept loop has begun: a server is ready when all have.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use event_listener::Event;

use super::ListenerSet;
use crate::sync;

/// Set, and notified, when the accept loop of a set asks its listeners for the first time.
#[derive(Default)]
pub(super) struct Began {
    is_set: AtomicBool,
    event: Event,
}

impl Began {
    #[inline]
    pub(super) fn set(&self) {
        if !self.is_set.load(SeqCst) {
            self.is_set.store(true, SeqCst);
            sync::notify(&self.event);
        }
    }
}

impl ListenerSet {
    /// Whether the accept loop has asked its listeners for a peer.
    pub(crate) fn has_begun(&self) -> bool {
        self.began.is_set.load(SeqCst)
    }

    /// Waits until it has.
    #[cfg(any(feature = "systemd", all(feature = "handover", target_os = "linux")))]
    pub(crate) async fn begun(&self) {
        while !self.has_begun() {
            let begun = sync::listen(&self.began.event);
            if self.has_begun() {
                return;
            }
            begun.await;
        }
    }
}
