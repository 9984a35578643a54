//! HTTP on top of a server: hyper's protocols, this crate's stop (feature `http`).
//!
//! ```no_run
//! use gracious::{Server, web};
//!
//! async fn hello(request: web::Request) -> web::Response<String> {
//!     web::Response::new(format!("hello from {}\n", request.uri().path()))
//! }
//!
//! # #[cfg(feature = "async-std")]
//! #[async_std::main]
//! async fn main() -> std::io::Result<gracious::Report> {
//!     let server = Server::bind("127.0.0.1:8080").await?;
//!     server.serve(web::serve(hello)).await
//! }
//! # #[cfg(not(feature = "async-std"))]
//! # fn main() {}
//! ```
//!
//! HTTP/1.1 and HTTP/2 (by prior knowledge: the client begins with HTTP/2's preface) on one port,
//! on every engine. Requests and responses are those of the crate `http`, bodies those of
//! `http-body`, so everything that is made for hyper will do: [`service`] takes a hyper `Service`.
//!
//! # At a shutdown
//! From the request to stop on, the lame duck's time included, the next response of an HTTP/1
//! connection says `Connection: close`, and an HTTP/2 connection is sent GOAWAY with its next
//! request: so no client loses a request that it sends on a connection which is just being closed.
//! When the connections are asked to end, idle ones do; a request whose head has begun to arrive is
//! answered, and every response goes to the end of its body, within the
//! [deadline](crate::Builder::deadline).
//!
//! # Limits
//! [`builder`] has those of HTTP: how long a request's head may take, and a pause of its body, how
//! large a head may be, how many requests an HTTP/2 connection may have at once. Beside them
//! [`first_byte_timeout`](crate::Builder::first_byte_timeout) ends connections that say nothing,
//! [`idle_timeout`](crate::Builder::idle_timeout) those on which no byte moves, between two requests,
//! too, and [`max_age`](crate::Builder::max_age) those that are old. A client that asks with
//! `Expect: 100-continue` is told to go on when the service asks for the body.
//!
//! # Services that stay on their thread
//! [`serve_local`] and [`local_service`] take what is not `Send`, for
//! [`Server::serve_local`](crate::Server::serve_local).

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use pin_project_lite::pin_project;

use crate::connection::Connection;

mod builder;
mod io;
mod progress;
mod serving;
mod streams;
mod tracked;

pub use self::builder::Builder;
pub use self::serving::{Serving, ServingLocal};
pub use self::tracked::upgrade;

/// A request, with its body as it comes in.
pub type Request = hyper::Request<Incoming>;

pub use hyper::{Response, StatusCode};

/// What a server of HTTP offers by ALPN: `Tls::alpn(web::ALPN)`. The version that a client agrees to
/// is what its connection speaks.
#[cfg(feature = "_tls")]
pub const ALPN: [&str; 2] = ["h2", "http/1.1"];

type BoxedError = Box<dyn Error + Send + Sync>;

/// The limits of HTTP, to be set: `web::builder().head_timeout(span).serve(hello)`.
pub fn builder() -> Builder {
    Builder::default()
}

/// Makes a connection's handler of a function that answers a request: an `async fn(Request)` that
/// returns a [`Response`] or a `Result` of one.
///
/// The function is cloned for each connection; what it shares belongs in an `Arc`. An error that it
/// returns ends the connection, which then counts as failed.
pub fn serve<F, Fut>(function: F) -> impl FnOnce(Connection) -> Serving + Clone + Send + 'static
where
    F: Fn(Request) -> Fut + Clone + Send + 'static, // a hyper `Service`: `web::service`
    Fut: Future<Output: Reply<Body: Body<Data: Send> + Send>> + Send + 'static,
{
    builder().serve(function)
}

/// As [`serve`], of a hyper `Service`.
pub fn service<S>(service: S) -> impl FnOnce(Connection) -> Serving + Clone + Send + 'static
where
    S: Answering<Future: Send, Body: Body<Data: Send> + Send> + Clone + Send + 'static,
{
    builder().service(service)
}

/// As [`serve`], of a function that need not be `Send`, nor its future and its responses: for
/// [`Server::serve_local`](crate::Server::serve_local).
///
/// ```
/// # #[cfg(target_os = "linux")]
/// # fn main() -> std::io::Result<()> { async_std::task::block_on(async {
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// use gracious::{Server, web};
///
/// let server = Server::builder().listen("127.0.0.1:0").workers(2).bind().await?;
/// # server.handle().shutdown();
/// server
///     .serve_local(|| {
///         let served = Rc::new(Cell::new(0)); // one a worker
///         web::serve_local(move |_request| {
///             served.set(served.get() + 1);
///             let text = format!("you are number {} here\n", served.get());
///             async { web::Response::new(text) }
///         })
///     })
///     .await?;
/// # Ok(()) }) }
/// # #[cfg(not(target_os = "linux"))]
/// # fn main() {}
/// ```
pub fn serve_local<F, Fut>(function: F) -> impl FnOnce(Connection) -> ServingLocal + Clone + 'static
where
    F: Fn(Request) -> Fut + Clone + 'static, // a hyper `Service`: `web::local_service`
    Fut: Future<Output: Reply> + 'static,
{
    builder().serve_local(function)
}

/// As [`serve_local`], of a hyper `Service`.
pub fn local_service<S>(service: S) -> impl FnOnce(Connection) -> ServingLocal + Clone + 'static
where
    S: Answering + Clone + 'static,
{
    builder().local_service(service)
}

/// A hyper `Service` that answers requests: what can be [served](service).
pub trait Answering:
    Service<
        Request,
        Response = Response<<Self as Answering>::Body>,
        Error: Into<BoxedError>,
        Future: 'static,
    >
{
    /// The responses' body.
    type Body: Body<Error: Into<BoxedError>> + 'static;
}

impl<S, B> Answering for S
where
    S: Service<Request, Response = Response<B>, Error: Into<BoxedError>, Future: 'static>,
    B: Body<Error: Into<BoxedError>> + 'static,
{
    type Body = B;
}

/// What a function that answers a request may return: a [`Response`], or a `Result` of one.
#[diagnostic::on_unimplemented(
    message = "a request cannot be answered with `{Self}`",
    label = "expected a function that returns a `web::Response<B>`, or a `Result` of one",
    note = "`B` is a body of the crate `http-body`, such as `String`, whose errors can be boxed, as can those of the `Result`"
)]
pub trait Reply: sealed::Sealed {
    /// The response's body.
    type Body: Body<Error: Into<BoxedError>> + 'static;

    #[doc(hidden)]
    fn into_result(self) -> Result<Response<Self::Body>, BoxedError>;
}

impl<B> Reply for Response<B>
where
    B: Body<Error: Into<BoxedError>> + 'static,
{
    type Body = B;

    fn into_result(self) -> Result<Self, BoxedError> {
        Ok(self)
    }
}

impl<B, E> Reply for Result<Response<B>, E>
where
    B: Body<Error: Into<BoxedError>> + 'static,
    E: Into<BoxedError>,
{
    type Body = B;

    fn into_result(self) -> Result<Response<B>, BoxedError> {
        self.map_err(Into::into)
    }
}

/// Keeps `Reply` to the types that it has.
mod sealed {
    pub trait Sealed {}
    impl<B> Sealed for super::Response<B> {}
    impl<B, E> Sealed for Result<super::Response<B>, E> {}
}

/// The service that [`serve`] makes of a function.
#[derive(Clone, Debug)]
pub(super) struct Function<F>(F);

impl<F, Fut> Service<Request> for Function<F>
where
    F: Fn(Request) -> Fut,
    Fut: Future<Output: Reply>,
{
    type Response = Response<<Fut::Output as Reply>::Body>;
    type Error = BoxedError;
    type Future = Replying<Fut>;

    fn call(&self, request: Request) -> Replying<Fut> {
        Replying {
            future: (self.0)(request),
        }
    }
}

pin_project! {
    /// The future of a function's reply, with its output made a `Result`.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub(super) struct Replying<Fut> {
        #[pin]
        future: Fut,
    }
}

impl<Fut: Future<Output: Reply>> Future for Replying<Fut> {
    type Output = Result<Response<<Fut::Output as Reply>::Body>, BoxedError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().future.poll(cx)).into_result())
    }
}
