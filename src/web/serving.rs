//! One connection that speaks HTTP.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use futures_io::AsyncBufRead;
use hyper::server::conn::{http1, http2};
use pin_project_lite::pin_project;

use super::Answering;
use super::io::Io;
use super::streams::{NewStreams, Streams};
use super::tracked::{Tracked, UpgradeSlot};
use crate::connection::{Connection, Control};
use crate::idle::IdleWhen;

/// What every HTTP/2 connection begins with, and no HTTP/1 request.
const PREFACE: &[u8] = b"PRI";

pin_project! {
    /// The future of a connection that speaks HTTP, from [`serve`](super::serve) and
    /// [`service`](super::service).
    #[must_use = "futures do nothing unless polled"]
    pub struct Serving<S>
    where
        S: Answering,
    {
        control: Control,
        // Where a request leaves what the connection is to become.
        upgrade: UpgradeSlot,
        // A request has come since the server was asked to stop: no other will be taken.
        is_last: Arc<AtomicBool>,
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    /// What the connection speaks.
    #[project = StateProj]
    enum State<S>
    where
        S: Answering,
    {
        // The version is not known before the first bytes.
        New { connection: Option<(Connection, S)> },
        Http1 { #[pin] connection: http1::UpgradeableConnection<Io, Tracked<S>> },
        Http2 {
            #[pin]
            connection: http2::Connection<Io, Tracked<S>, NewStreams>,
            streams: Streams,
            // GOAWAY was sent.
            has_goaway: bool,
        },
        Upgraded { future: Pin<Box<dyn Future<Output = io::Result<()>> + Send>> },
    }
}

impl<S: Answering> Serving<S> {
    pub(super) fn new(connection: Connection, service: S) -> Self {
        Self {
            control: connection.control(),
            upgrade: UpgradeSlot::default(),
            is_last: Arc::default(),
            state: State::New {
                connection: Some((connection, service)),
            },
        }
    }
}

impl<S: Answering> Future for Serving<S> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::New { connection } => {
                    let Some((stream, _)) = connection else {
                        return Poll::Ready(Ok(()));
                    };
                    let is_http2 = ready!(Pin::new(stream).poll_fill_buf(cx))?.starts_with(PREFACE);
                    let Some((stream, service)) = connection.take() else {
                        return Poll::Ready(Ok(()));
                    };
                    let service = Tracked {
                        service,
                        control: this.control.clone(),
                        upgrade: this.upgrade.clone(),
                        is_last: this.is_last.clone(),
                    };
                    begin(stream, service, is_http2)
                }
                StateProj::Http1 { connection } => {
                    ready!(connection.poll(cx)).map_err(into_io)?;
                    let Some(upgrade) = this.upgrade.take() else {
                        return Poll::Ready(Ok(()));
                    };
                    let future = async move {
                        // Ready at once: the response was sent.
                        let upgraded = upgrade.on.await.map_err(into_io)?;
                        let parts = upgraded.downcast::<Io>();
                        let parts = parts.map_err(|_| io::ErrorKind::InvalidData)?;
                        let mut connection = parts.io.0;
                        connection.unread(&parts.read_buf)?;
                        (upgrade.run)(connection).await
                    };
                    State::Upgraded {
                        future: Box::pin(future),
                    }
                }
                StateProj::Http2 {
                    mut connection,
                    streams,
                    has_goaway,
                } => {
                    // Asked before the polls, so that what has arrived by the drain is taken in by
                    // them.
                    let stops = this.control.is_shutting_down() || this.is_last.load(Relaxed);
                    loop {
                        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                            return Poll::Ready(ended.map_err(into_io));
                        }
                        if !streams.poll(cx) {
                            break;
                        }
                    }
                    if *has_goaway || !(stops || this.is_last.load(Relaxed)) {
                        return Poll::Pending;
                    }
                    *has_goaway = true;
                    connection.graceful_shutdown();
                    continue;
                }
                StateProj::Upgraded { future } => return future.as_mut().poll(cx),
            };
            this.state.set(next);
        }
    }
}

/// Begins to speak HTTP/1 or HTTP/2.
fn begin<S: Answering>(stream: Connection, service: Tracked<S>, is_http2: bool) -> State<S> {
    if is_http2 {
        // Such a connection ends itself, after GOAWAY and with the last of its streams.
        stream.idle_when(IdleWhen::Never);
        let streams = Streams::default();
        let builder = http2::Builder::new(streams.executor());
        return State::Http2 {
            connection: builder.serve_connection(Io(stream), service),
            streams,
            has_goaway: false,
        };
    }
    // This counts beside the guard of each request: input that hyper has read and not answered yet,
    // such as half a head, keeps the connection busy.
    stream.idle_when(IdleWhen::Answered);
    let connection = http1::Builder::new()
        .half_close(true)
        .serve_connection(Io(stream), service)
        .with_upgrades();
    State::Http1 { connection }
}

/// The error of hyper's as an `io::Error`. Errors that a peer may cause at any time keep their
/// kind, by which the log knows not to warn of them.
fn into_io(error: hyper::Error) -> io::Error {
    use std::error::Error;
    if error.is_incomplete_message() {
        return io::Error::new(io::ErrorKind::UnexpectedEof, error);
    }
    let kind = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    io::Error::new(kind.unwrap_or(io::ErrorKind::Other), error)
}

impl<S: Answering> fmt::Debug for Serving<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving")
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}
