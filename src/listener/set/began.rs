//! Whether an accept loop has begun: a server is ready when all have.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use event_listener::Event;
use futures_lite::future;

use super::ListenerSet;
use crate::sync;

/// Set, and notified, when the accept loop of a set asks its listeners for the first time, or would but for a
/// limit or a pause: its peers are queued from then on.
#[derive(Default)]
pub(super) struct Began {
    is_set: AtomicBool,
    event: Event,
}

impl ListenerSet {
    /// Runs the set's accept loop, and tells when it has begun.
    pub(crate) async fn begin(&self, accepting: impl Future<Output = ()>) {
        let mut accepting = pin!(accepting);
        let ended = future::poll_once(accepting.as_mut()).await;
        self.began.is_set.store(true, SeqCst);
        sync::notify(&self.began.event);
        if ended.is_none() {
            accepting.await;
        }
    }

    /// Whether the accept loop has begun.
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
