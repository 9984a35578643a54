//! The streams of an HTTP/2 connection, polled inside the connection's own task: so an abort drops
//! them, and a panic in one is the connection's end, as of any handler.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_lite::Stream;
use futures_util::stream::FuturesUnordered;
use hyper::rt::Executor;

use crate::sync::lock;

/// A stream that may be on any thread.
pub(super) type SendStream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream that stays on its thread.
pub(super) type LocalStream = Pin<Box<dyn Future<Output = ()>>>;

/// What hyper hands new streams to, which it has without their types: `T` is [`SendStream`] or
/// [`LocalStream`].
pub(super) struct NewStreams<T>(Arc<Mutex<Vec<T>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for NewStreams<SendStream> {
    fn execute(&self, stream: F) {
        lock(&self.0).push(Box::pin(stream));
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for NewStreams<LocalStream> {
    fn execute(&self, stream: F) {
        lock(&self.0).push(Box::pin(stream));
    }
}

// Not derived, since the streams need not be `Clone`.
impl<T> Clone for NewStreams<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for NewStreams<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewStreams").finish_non_exhaustive()
    }
}

/// The streams that are open.
#[derive(Debug)]
pub(super) struct Streams<T> {
    new: NewStreams<T>,
    open: FuturesUnordered<T>,
}

impl<T: Future<Output = ()>> Streams<T> {
    pub(super) fn new() -> Self {
        Self {
            new: NewStreams(Arc::default()),
            open: FuturesUnordered::new(),
        }
    }

    /// What hyper is given as its executor.
    pub(super) fn executor(&self) -> NewStreams<T> {
        self.new.clone()
    }

    /// Polls all streams that have something to do; gives whether any has ended or begun, after
    /// which the connection may have something to do.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        loop {
            let new = std::mem::take(&mut *lock(&self.new.0));
            if !new.is_empty() {
                has_moved = true;
                self.open.extend(new);
            }
            match Pin::new(&mut self.open).poll_next(cx) {
                Poll::Ready(Some(())) => has_moved = true,
                Poll::Ready(None) | Poll::Pending => return has_moved,
            }
        }
    }
}
