//! async-std as a runtime.

use std::future::Future;
use std::time::Duration;

use super::Runtime;

/// async-std's global executor: what [`Server::bind`](crate::Server::bind) runs on.
///
/// async-std has been discontinued in favour of smol, with which it shares the reactor
/// (`async-io`); [`Smol`](crate::Smol) is the other word for the same server.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsyncStd;

impl Runtime for AsyncStd {
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Dropping the handle detaches the task.
        drop(async_std::task::spawn(future));
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        super::timer(duration)
    }
}
