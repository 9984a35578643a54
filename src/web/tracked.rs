//! A service whose requests keep their connection busy, to the end of the response's body.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::{Answering, Request};
use crate::connection::{Busy, Connection, Control};
use crate::lifecycle::Phase;
use crate::sync::lock;

type Upgraded = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// What is to become of a connection whose request was answered with `101 Switching Protocols`.
pub(super) struct Upgrade {
    pub(super) on: OnUpgrade,
    pub(super) run: Box<dyn FnOnce(Connection) -> Upgraded + Send>,
}

/// Where a request leaves its upgrade for the connection's task.
#[derive(Clone, Default)]
pub(super) struct UpgradeSlot(Arc<Mutex<Option<Upgrade>>>);

impl UpgradeSlot {
    /// Takes the upgrade that a request has left, if one has.
    pub(super) fn take(&self) -> Option<Upgrade> {
        lock(&self.0).take()
    }
}

/// Has the connection of `request` go on as another protocol, once the response was sent, which has
/// to be `101 Switching Protocols`: then `run` is called with it, in the connection's task, whose
/// outcome is that of `run`. What the client has sent by then is still to be read.
///
/// `false` where that cannot be: over HTTP/2, or where another upgrade was asked for by this
/// request.
///
/// ```
/// use futures_lite::AsyncWriteExt;
/// use gracious::web::{self, Request, Response};
///
/// async fn switch(mut request: Request) -> Response<String> {
///     let done = web::upgrade(&mut request, async |mut conn| conn.write_all(b"hello\n").await);
///     let status = if done { 101 } else { 400 };
///     Response::builder().status(status).body(String::new()).unwrap_or_default()
/// }
/// ```
pub fn upgrade<F, Fut>(request: &mut Request, run: F) -> bool
where
    F: FnOnce(Connection) -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<()>> + Send + 'static,
{
    if request.version() > Version::HTTP_11 {
        return false;
    }
    let Some(slot) = request.extensions_mut().remove::<UpgradeSlot>() else {
        return false;
    };
    let on = hyper::upgrade::on(request);
    let run = Box::new(|connection| -> Upgraded { Box::pin(run(connection)) });
    *lock(&slot.0) = Some(Upgrade { on, run });
    true
}

impl fmt::Debug for UpgradeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpgradeSlot").finish_non_exhaustive()
    }
}

/// The user's service, for one connection.
#[derive(Debug)]
pub(super) struct Tracked<S> {
    pub(super) service: S,
    pub(super) control: Control,
    pub(super) upgrade: UpgradeSlot,
    /// Set by a request that comes after the server was asked to stop: its connection takes no
    /// other.
    pub(super) is_last: Arc<AtomicBool>,
}

impl<S: Answering> Service<Request> for Tracked<S> {
    type Response = Response<TrackedBody<S::Body>>;
    type Error = S::Error;
    type Future = TrackedResponse<S::Future>;

    fn call(&self, mut request: Request) -> Self::Future {
        let busy = Some(self.control.busy());
        if is_stopping(&self.control) {
            self.is_last.store(true, Relaxed);
        }
        let is_http1 = request.version() <= Version::HTTP_11;
        if is_http1 {
            request.extensions_mut().insert(self.upgrade.clone());
        }
        TrackedResponse {
            future: self.service.call(request),
            busy,
            closes: is_http1.then(|| self.control.clone()),
        }
    }
}

/// Whether the server was asked to stop, the lame duck's time included.
fn is_stopping(control: &Control) -> bool {
    control.server().latch.phase() >= Phase::Draining || control.is_shutting_down()
}

pin_project! {
    /// The future of a response, which keeps its connection busy.
    pub(super) struct TrackedResponse<F> {
        #[pin]
        future: F,
        busy: Option<Busy>,
        // The connection, where a response can say that it is the last.
        closes: Option<Control>,
    }
}

impl<F, B, E> Future for TrackedResponse<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<TrackedBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !is_upgrade && this.closes.as_ref().is_some_and(is_stopping) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let busy = this.busy.take();
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, busy })))
    }
}

pin_project! {
    /// A response's body, which keeps its connection busy until it is dropped, with all of it
    /// handed to hyper.
    pub struct TrackedBody<B> {
        #[pin]
        body: B,
        busy: Option<Busy>,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
