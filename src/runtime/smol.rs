//! smol as a runtime.

use std::future::Future;
use std::time::Duration;

use super::Runtime;

/// smol's global executor.
///
/// It has one thread unless the environment variable `SMOL_THREADS` says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smol;

impl Runtime for Smol {
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        smol::spawn(future).detach();
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + 'static {
        super::timer(duration)
    }
}
