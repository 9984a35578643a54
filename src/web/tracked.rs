//! A service whose requests keep their connection busy, to the end of the response's body.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode, Version};
use pin_project_lite::pin_project;

use super::progress::Progress;
use super::{Answering, Request};
use crate::connection::{Busy, Connection};

type Upgraded = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// What is to become of a connection whose request was answered with `101 Switching Protocols`.
pub(super) struct Upgrade {
    pub(super) on: OnUpgrade,
    pub(super) run: Box<dyn FnOnce(Connection) -> Upgraded + Send>,
}

/// What a request that asks for an upgrade brings with it: where to leave what is to become.
#[derive(Clone)]
struct UpgradeSlot(Arc<Progress>);

/// Has the connection of `request` go on as another protocol, once the response was sent, which has
/// to be `101 Switching Protocols`: then `run` is called with it, in the connection's task, whose
/// outcome is that of `run`. What the client has sent by then is still to be read.
///
/// `false` where that cannot be: over HTTP/2, where the client has not asked for an upgrade, or where
/// this was called for the same request before.
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
    slot.0.set_upgrade(Upgrade { on, run });
    true
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

/// The user's service, for one connection.
#[derive(Debug)]
pub(super) struct Tracked<S> {
    pub(super) service: S,
    pub(super) progress: Arc<Progress>,
}

impl<S: Answering> Service<Request> for Tracked<S> {
    type Response = Response<TrackedBody<S::Body>>;
    type Error = S::Error;
    type Future = TrackedResponse<S::Future>;

    fn call(&self, mut request: Request) -> Self::Future {
        let exchange = Exchange {
            _busy: self.progress.control.busy(),
            is_http1: request.version() <= Version::HTTP_11,
            progress: self.progress.clone(),
        };
        self.progress.begins_request();
        // Into a map of the request's, which is not allocated for nothing.
        let asks = request.headers().contains_key(UPGRADE) || request.method() == Method::CONNECT;
        if exchange.is_http1 && asks {
            let slot = UpgradeSlot(self.progress.clone());
            request.extensions_mut().insert(slot);
        }
        TrackedResponse {
            future: self.service.call(request),
            exchange: Some(exchange),
        }
    }
}

/// A request and its response: the connection is busy for as long as this lives.
struct Exchange {
    progress: Arc<Progress>,
    is_http1: bool,
    _busy: Busy,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.progress.ends_request();
    }
}

pin_project! {
    /// The future of a response, which keeps its connection busy.
    pub(super) struct TrackedResponse<F> {
        #[pin]
        future: F,
        exchange: Option<Exchange>,
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
        let exchange = this.exchange.take();
        let is_last = |it: &Exchange| it.is_http1 && it.progress.is_last_response();
        if !is_upgrade && exchange.as_ref().is_some_and(is_last) {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, exchange })))
    }
}

pin_project! {
    /// A response's body, which keeps its connection busy until it is dropped, with all of it
    /// handed to hyper.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: B,
        exchange: Option<Exchange>,
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
