//! The limits of HTTP, and what they are by default.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::server::conn::{http1, http2};

use super::progress::Timeouts;
use super::serving::{Conversation, Serving, ServingLocal};
use super::streams::{LocalStream, NewStreams, SendStream};
use super::{Answering, Function, Reply, Request};
use crate::connection::Connection;

/// How HTTP is served, from [`builder`](super::builder); its last call makes a connection's handler.
///
/// ```
/// use std::time::Duration;
///
/// use gracious::web;
///
/// async fn hello(_request: web::Request) -> web::Response<String> {
///     web::Response::new("hello\n".into())
/// }
///
/// let handler = web::builder()
///     .head_timeout(Duration::from_secs(5))
///     .max_streams(16)
///     .serve(hello);
/// # drop(handler);
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is served before its last call"]
pub struct Builder(Settings);

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) timeouts: Timeouts,
    pub(super) http2: bool,
    max_streams: Option<u32>,
    max_head: Option<usize>,
    http1: http1::Builder,
}

/// hyper's for HTTP/1, where it has a timer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than a mobile client changes from one network to another.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// hyper panics below.
const LEAST_HEAD: usize = 8192;

impl Default for Builder {
    fn default() -> Self {
        let mut http1 = http1::Builder::new();
        // A client that has sent all it has to say, and its end, gets its answer.
        http1.half_close(true);
        Self(Settings {
            timeouts: Timeouts {
                head: Some(HEAD_TIMEOUT),
                body: Some(BODY_TIMEOUT),
            },
            http2: true,
            max_streams: None,
            max_head: None,
            http1,
        })
    }
}

impl Builder {
    /// How long the head of an HTTP/1 request may take, from its first byte to its last: 30 s by
    /// default. A connection between two requests is not timed by this, but by
    /// [`Builder::idle_timeout`](crate::Builder::idle_timeout).
    ///
    /// At the end of that time the connection is closed, and counts as failed.
    pub fn head_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.0.timeouts.head = timeout.into();
        self
    }

    /// How long nothing of the body of an HTTP/1 request may come, while it is read: 60 s by default.
    /// It is read one piece ahead of the service, so pauses of the service do not count.
    ///
    /// At the end of that time the connection is closed, the service's future is dropped, and the
    /// connection counts as failed.
    pub fn body_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.0.timeouts.body = timeout.into();
        self
    }

    /// How many bytes the head of a request may have. By default hyper's limits hold: about 400 KiB
    /// with HTTP/1, where 8 KiB is the least that can be set, and 16 KiB with HTTP/2.
    ///
    /// A request with more is answered with status 431.
    pub fn max_head(mut self, bytes: usize) -> Self {
        self.0.max_head = Some(bytes);
        self.0.http1.max_buf_size(bytes.max(LEAST_HEAD));
        self
    }

    /// How many headers an HTTP/1 request may have: 100 by default. One with more is answered with
    /// status 431.
    pub fn max_headers(mut self, headers: usize) -> Self {
        self.0.http1.max_headers(headers);
        self
    }

    /// How many requests an HTTP/2 connection may have under way at once: 200 by default, hyper's.
    /// Its client waits with more.
    pub fn max_streams(mut self, streams: u32) -> Self {
        self.0.max_streams = Some(streams);
        self
    }

    /// Whether connections that begin with HTTP/2's preface are HTTP/2: they are by default. Where
    /// not, they are answered with status 400.
    pub fn http2(mut self, is_served: bool) -> Self {
        self.0.http2 = is_served;
        self
    }

    /// [`web::serve`](super::serve), with these limits.
    pub fn serve<F, Fut>(
        self,
        function: F,
    ) -> impl FnOnce(Connection) -> Serving + Clone + Send + 'static
    where
        F: Fn(Request) -> Fut + Clone + Send + 'static,
        Fut: Future<Output: Reply<Body: Body<Data: Send> + Send>> + Send + 'static,
    {
        self.service(Function(function))
    }

    /// [`web::service`](super::service), with these limits.
    pub fn service<S>(
        self,
        service: S,
    ) -> impl FnOnce(Connection) -> Serving + Clone + Send + 'static
    where
        S: Answering<Future: Send, Body: Body<Data: Send> + Send> + Clone + Send + 'static,
    {
        let settings = Arc::new(self.0);
        move |connection| {
            let it = Conversation::<S, SendStream>::new(connection, service, settings);
            Serving(Box::pin(it))
        }
    }

    /// [`web::serve_local`](super::serve_local), with these limits.
    pub fn serve_local<F, Fut>(
        self,
        function: F,
    ) -> impl FnOnce(Connection) -> ServingLocal + Clone + 'static
    where
        F: Fn(Request) -> Fut + Clone + 'static,
        Fut: Future<Output: Reply> + 'static,
    {
        self.local_service(Function(function))
    }

    /// [`web::local_service`](super::local_service), with these limits.
    pub fn local_service<S>(
        self,
        service: S,
    ) -> impl FnOnce(Connection) -> ServingLocal + Clone + 'static
    where
        S: Answering + Clone + 'static,
    {
        let settings = Arc::new(self.0);
        move |connection| {
            let it = Conversation::<S, LocalStream>::new(connection, service, settings);
            ServingLocal(Box::pin(it))
        }
    }
}

impl Settings {
    pub(super) fn http1(&self) -> &http1::Builder {
        &self.http1
    }

    pub(super) fn http2<T>(&self, streams: NewStreams<T>) -> http2::Builder<NewStreams<T>> {
        let mut builder = http2::Builder::new(streams);
        if let Some(streams) = self.max_streams {
            builder.max_concurrent_streams(streams);
        }
        if let Some(bytes) = self.max_head {
            builder.max_header_list_size(bytes.try_into().unwrap_or(u32::MAX));
        }
        builder
    }
}
