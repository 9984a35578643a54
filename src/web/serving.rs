//! One connection that speaks HTTP.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_io::AsyncBufRead;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::server::conn::{http1, http2};
use pin_project_lite::pin_project;

use super::Answering;
use super::builder::Settings;
use super::io::Io;
use super::progress::{Progress, Watch};
use super::streams::{NewStreams, Streams};
use super::tracked::{Link, Tracked, TrackedBody, TrackedResponse};
use crate::connection::Connection;
use crate::idle::IdleWhen;

/// What every HTTP/2 connection begins with, and no HTTP/1 request.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The future of a connection that speaks HTTP, from [`serve`](super::serve) and
/// [`service`](super::service).
// A type that knows no service: what is wrong with a service would else be said again wherever the
// type is used, in terms of what hyper wants of it.
#[must_use = "futures do nothing unless polled"]
pub struct Serving(pub(super) Pin<Box<dyn Future<Output = io::Result<()>> + Send>>);

/// The future of a connection that speaks HTTP and stays on its thread, from
/// [`serve_local`](super::serve_local) and [`local_service`](super::local_service).
#[must_use = "futures do nothing unless polled"]
pub struct ServingLocal(pub(super) Pin<Box<dyn Future<Output = io::Result<()>>>>);

impl Future for Serving {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll(cx)
    }
}

impl Future for ServingLocal {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

impl fmt::Debug for ServingLocal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServingLocal").finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of a connection that speaks HTTP. `T` is the type of its streams, which says
    /// whether it can move between threads.
    pub(super) struct Conversation<S, T>
    where
        S: Answering,
    {
        progress: Arc<Progress>,
        watch: Watch,
        settings: Arc<Settings>,
        #[pin]
        state: State<S, T>,
    }
}

pin_project! {
    /// What the connection speaks.
    #[project = StateProj]
    enum State<S, T>
    where
        S: Answering,
    {
        // The version is not known before the first bytes. Those that leave it open are in `seen`.
        New { connection: Option<(Connection, S)>, seen: Vec<u8> },
        Http1 { #[pin] connection: http1::UpgradeableConnection<Io, Tracked<S>> },
        Http2 {
            #[pin]
            connection: http2::Connection<Io, Tracked<S>, NewStreams<T>>,
            streams: Streams<T>,
            // GOAWAY was sent.
            has_goaway: bool,
        },
        Upgraded { future: Pin<Box<dyn Future<Output = io::Result<()>> + Send>> },
    }
}

impl<S: Answering, T> Conversation<S, T> {
    pub(super) fn new(connection: Connection, service: S, settings: Arc<Settings>) -> Self {
        Self {
            progress: Arc::new(Progress::new(connection.control())),
            watch: Watch::new(settings.timeouts),
            settings,
            state: State::New {
                connection: Some((connection, service)),
                seen: Vec::new(),
            },
        }
    }
}

impl<S, T> Future for Conversation<S, T>
where
    S: Answering,
    T: Future<Output = ()>,
    NewStreams<T>: Http2ServerConnExec<TrackedResponse<S::Future>, TrackedBody<S::Body>>,
{
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.project();
        loop {
            let polled = match this.state.as_mut().project() {
                StateProj::New { connection, seen } => {
                    let Some((stream, _)) = connection else {
                        return Poll::Ready(Ok(()));
                    };
                    let Poll::Ready(version) = poll_version(stream, seen, this.settings, cx)?
                    else {
                        if !seen.is_empty() {
                            this.progress.has_input(false);
                        }
                        break;
                    };
                    let Some((mut stream, service)) = connection.take() else {
                        return Poll::Ready(Ok(()));
                    };
                    stream.unread(seen)?;
                    let is_http1 = matches!(version, Version::Http1);
                    let service = Tracked {
                        service,
                        link: Arc::new(Link {
                            state: stream.state().clone(),
                            progress: this.progress.clone(),
                            is_http1,
                        }),
                    };
                    let io = Io {
                        connection: stream,
                        progress: this.progress.clone(),
                        is_http1,
                    };
                    begin(io, service, version, this.settings)
                }
                StateProj::Http1 { connection } => {
                    let Poll::Ready(ended) = connection.poll(cx) else {
                        break;
                    };
                    ended.map_err(into_io)?;
                    let Some(upgrade) = this.progress.take_upgrade() else {
                        return Poll::Ready(Ok(()));
                    };
                    let future = async move {
                        // Ready at once: the response was sent.
                        let upgraded = upgrade.on.await.map_err(into_io)?;
                        let parts = upgraded.downcast::<Io>();
                        let parts = parts.map_err(|_| io::ErrorKind::InvalidData)?;
                        let mut connection = parts.io.connection;
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
                    let progress = &this.progress;
                    let stops = progress.control.is_shutting_down() || progress.is_last();
                    loop {
                        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                            return Poll::Ready(ended.map_err(into_io));
                        }
                        if !streams.poll(cx) {
                            break;
                        }
                    }
                    if *has_goaway || !(stops || progress.is_last()) {
                        return Poll::Pending;
                    }
                    *has_goaway = true;
                    connection.graceful_shutdown();
                    continue;
                }
                StateProj::Upgraded { future } => return future.as_mut().poll(cx),
            };
            this.state.set(polled);
        }
        // HTTP/1, or what is not known to be anything else.
        this.watch.poll(this.progress, cx)?;
        Poll::Pending
    }
}

#[derive(Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

/// Looks at the first bytes for the version. What has arrived of HTTP/2's preface, as long as that is
/// not whole, is kept in `seen`: the connection's buffer receives when it is empty.
fn poll_version(
    stream: &mut Connection,
    seen: &mut Vec<u8>,
    settings: &Settings,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Version>> {
    let agreed = agreed(stream);
    loop {
        // A client that has agreed to a version in its TLS handshake speaks first, too: until then it
        // is idle.
        let bytes = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))?;
        let awaited = &PREFACE[seen.len()..];
        if !settings.http2 || bytes.is_empty() {
            return Poll::Ready(Ok(Version::Http1));
        }
        if let Some(agreed) = agreed {
            return Poll::Ready(Ok(agreed));
        }
        if bytes.starts_with(awaited) {
            return Poll::Ready(Ok(Version::Http2));
        }
        if !awaited.starts_with(bytes) {
            return Poll::Ready(Ok(Version::Http1));
        }
        seen.extend(bytes);
        let len = bytes.len();
        Pin::new(&mut *stream).consume(len);
    }
}

/// The version that the client has agreed to in its TLS handshake, if it has to one.
fn agreed(stream: &Connection) -> Option<Version> {
    #[cfg(feature = "_tls")]
    return match stream.state().tls()?.is_protocol(b"h2")? {
        true => Some(Version::Http2),
        false => Some(Version::Http1),
    };
    #[cfg(not(feature = "_tls"))]
    {
        let _plain = stream;
        None
    }
}

/// Begins to speak HTTP/1 or HTTP/2.
fn begin<S, T>(io: Io, service: Tracked<S>, version: Version, settings: &Settings) -> State<S, T>
where
    S: Answering,
    T: Future<Output = ()>,
    NewStreams<T>: Http2ServerConnExec<TrackedResponse<S::Future>, TrackedBody<S::Body>>,
{
    match version {
        Version::Http1 => {
            // This counts beside the guard of each request: input that hyper has read and not
            // answered yet, such as half a head, keeps the connection busy.
            io.connection.idle_when(IdleWhen::Answered);
            let connection = settings.http1().serve_connection(io, service);
            State::Http1 {
                connection: connection.with_upgrades(),
            }
        }
        Version::Http2 => {
            // Such a connection ends itself, after GOAWAY and with the last of its streams.
            io.connection.idle_when(IdleWhen::Never);
            let streams = Streams::new();
            let builder = settings.http2(streams.executor());
            State::Http2 {
                connection: builder.serve_connection(io, service),
                streams,
                has_goaway: false,
            }
        }
    }
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
