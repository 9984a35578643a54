//! Whether an accept loop has begun: a server is ready when all have.

use std::future::Future;
use std::pin::pin;

use futures_lite::future;

use super::ListenerSet;

impl ListenerSet {
    /// Runs the set's accept loop, and tells when it has begun.
    pub(crate) async fn begin(&self, accepting: impl Future<Output = ()>) {
        let mut accepting = pin!(accepting);
        let ended = future::poll_once(accepting.as_mut()).await;
        self.began.set();
        if ended.is_none() {
            accepting.await;
        }
    }
}
