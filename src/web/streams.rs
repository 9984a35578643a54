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

type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What hyper hands new streams to.
#[derive(Clone, Default)]
pub(super) struct NewStreams(Arc<Mutex<Vec<Boxed>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for NewStreams {
    fn execute(&self, stream: F) {
        lock(&self.0).push(Box::pin(stream));
    }
}

impl fmt::Debug for NewStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewStreams").finish_non_exhaustive()
    }
}

/// The streams that are open.
#[derive(Debug, Default)]
pub(super) struct Streams {
    new: NewStreams,
    open: FuturesUnordered<Boxed>,
}

impl Streams {
    /// What hyper is given as its executor.
    pub(super) fn executor(&self) -> NewStreams {
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
