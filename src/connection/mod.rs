//! One peer, as its handler sees it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures_io::{AsyncBufRead, AsyncRead};

use crate::address::Address;
use crate::idle::IdleWhen;
use crate::shared::connection::ConnectionState;
use crate::socket::errors::aborted;
use crate::socket::readiness::{Waiter, flag};
use crate::socket::{Credentials, Socket};

pub(crate) mod close;
pub(crate) mod closer;
mod control;
mod lines;
#[cfg(feature = "proxy")]
pub(crate) mod proxy;
mod read;
pub(crate) mod task;
mod timeouts;
#[cfg(feature = "_tls")]
pub(crate) mod tls;
mod wind_down;
mod write;

pub use self::control::Control;
pub use self::lines::Lines;
pub use self::read::ReadHalf;
pub use self::wind_down::WindDown;
pub use self::write::WriteHalf;

/// One accepted peer: a buffered reader and a writer.
///
/// It reads and writes through the `futures-io` traits, so `futures-lite` or `futures-util` bring
/// the methods (`read_exact`, `write_all`, …). It is buffered, and owns no buffer while it waits. For
/// lines there is [`ReadHalf::lines`], which has a limit, and which a reset in the middle of a line does
/// not make panic in debug builds, as it does `read_line` of futures-lite 2.6.
///
/// # Turns
/// A peer that always has input, or room for output, leaves the other tasks of its thread their turn.
/// After 32 reads and writes, or 64 KiB, the next one wakes its task and is pending once. So it may be
/// pending where it would not have to wait, and a write moves 64 KiB at most. What is read from the
/// connection's own buffer does not count, and what a handler computes is its own affair.
///
/// # At a shutdown
/// Reads end (`Ok(0)`, and stay so) when the server drains and this connection is *idle*: everything
/// received was consumed and answered, that is, a write that was begun after it was consumed has
/// completed. Input that has arrived is always delivered first, and a connection inside a message
/// goes on. This needs no word from a handler in which requests and replies take turns. Others
/// declare themselves with [`idle_when`](Self::idle_when) or [`busy`](Self::busy): those that mostly
/// read, those that read while they answer, those that keep input in a buffer of their own.
///
/// # At its end
/// When the connection, or the last of its halves, is dropped, its end is sent, what the peer still
/// sends is read and discarded for a while, and the socket is closed: everything written arrives.
/// The server counts the connection until then.
pub struct Connection {
    /// Also stands for the write half, which has no state of its own outside `ConnectionState`.
    reader: ReadHalf,
}

/// Who ended the input of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndedBy {
    /// The peer: it sent its end.
    Peer,
    /// The drain: the connection was idle when the server was asked to stop.
    Drain,
}

impl Connection {
    pub(crate) fn new(state: Arc<ConnectionState>) -> Self {
        #[cfg(feature = "proxy")]
        let buffer = state.take_payload();
        #[cfg(not(feature = "proxy"))]
        let buffer = crate::socket::buffer::Buffer::default();
        Self {
            reader: ReadHalf { state, buffer },
        }
    }

    /// Parts the two directions, without a lock between them.
    ///
    /// Either half may go to another task and outlive the handler; the connection ends, counted by
    /// the handler's outcome, when both are gone. Dropping the write half alone sends our end and
    /// leaves the peer's side open.
    #[must_use]
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        self.reader.state.set(flag::SPLIT);
        let state = self.reader.state.clone();
        (self.reader, WriteHalf { state })
    }

    /// What was received and not consumed yet: empty when the next read may wait, which is when a
    /// handler that collects its replies flushes them.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        self.reader.buffer()
    }

    /// Puts bytes back that were read, in front of what is there.
    #[cfg(feature = "http")]
    pub(crate) fn unread(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.reader.buffer.unread(bytes) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "more was read ahead than a buffer holds",
            ));
        }
        Ok(())
    }

    /// Takes the connection out of the server: the socket, and the bytes read but not consumed.
    ///
    /// The server gives its permit to another and forgets it at once; the handler may go on, and a
    /// shutdown no longer waits for it (see [`Handle::track`](crate::Handle::track)). The socket is a second descriptor
    /// of the same connection, in non-blocking mode.
    ///
    /// # Errors
    /// `Unsupported` where the connection runs over a transport of the user's own, or through TLS; the system's
    /// error where there is no descriptor to be had. The connection is closed then, as if dropped.
    pub fn detach(self) -> io::Result<Detached> {
        let state = &self.reader.state;
        if state.has(flag::TLS) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only a plain connection can be detached: this one has TLS, whose keys stay with it",
            ));
        }
        // First what may fail. An abort leaves a detached connection alone, so one that came between
        // the mark and a failure would cut nothing, and nobody would cut the connection afterwards.
        let socket = state.transport.duplicate()?;
        if !state.readiness().detach() {
            return Err(aborted());
        }
        let detached = Detached {
            socket,
            unread: self.reader.buffer.bytes().to_vec(),
            peer: state.peer(),
        };
        state.wake(Waiter::Task);
        Ok(detached)
    }
}

/// A connection that was taken out of its server.
#[derive(Debug)]
#[non_exhaustive]
pub struct Detached {
    /// The socket, in non-blocking mode.
    pub socket: Socket,
    /// What was read from it and not consumed; it comes before what the socket has.
    pub unread: Vec<u8>,
    /// The peer.
    pub peer: Address,
}

/// The methods that a connection and its halves have alike; `handle` is beside `Handle`.
macro_rules! common {
    ($type:ty, $self:ident => $state:expr) => {
        impl $type {
            pub(crate) fn state(&$self) -> &Arc<ConnectionState> {
                &$state
            }

            /// The id of this connection: 1 for the first of its server, and so on.
            #[must_use]
            pub fn id(&$self) -> u64 {
                $state.id()
            }

            /// The peer's address; with [`Builder::proxy_protocol`](crate::Builder) the client's, as the
            /// proxy before this server tells it.
            #[must_use]
            pub fn peer_addr(&$self) -> Address {
                $state.peer()
            }

            /// The address the peer connected to.
            ///
            /// # Errors
            /// The system's, if it does not know any more.
            pub fn local_addr(&$self) -> io::Result<Address> {
                $state.local_addr()
            }

            /// The process at the other end of a Unix socket, as it was when it connected; `None`
            /// for other transports, and where the system cannot tell.
            ///
            /// # Errors
            /// The system's.
            pub fn peer_credentials(&$self) -> io::Result<Option<Credentials>> {
                $state.transport.credentials()
            }

            /// Waits until this connection is asked to come to an end: the server drains and its
            /// door is shut, or [`Handle::close_connections`](crate::Handle::close_connections) was called, or it is being aborted.
            ///
            /// The future is owned and can be dropped at any time.
            pub fn shutdown_requested(
                &$self,
            ) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
                drain_requested(Arc::downgrade(&$state))
            }

            /// Whether this connection has been asked to come to an end.
            #[must_use]
            pub fn is_shutting_down(&$self) -> bool {
                $state.has(flag::DRAINING | flag::ABORT)
            }

            /// Says that the handler is inside a message for as long as the guard lives.
            ///
            /// A message in several steps (SMTP's DATA, a challenge, BEGIN to COMMIT) is between two of
            /// them as idle as any: a guard across it keeps a drain from ending it there. Guards count
            /// beside whatever was [declared](Self::idle_when).
            #[must_use = "the connection counts as busy only as long as the guard lives"]
            pub fn busy(&$self) -> Busy {
                $state.begin_busy();
                Busy(Arc::downgrade(&$state))
            }

            /// Declares when this connection is idle; see [`IdleWhen`].
            pub fn idle_when(&$self, when: IdleWhen) {
                $state.idle_when(when);
            }

            /// A word with this connection that stays when the stream has moved elsewhere.
            #[must_use]
            pub fn control(&$self) -> Control {
                Control::new(&$state)
            }

            /// Who ended the input, once a read has said that it is at its end.
            #[must_use]
            pub fn ended_by(&$self) -> Option<EndedBy> {
                ended_by($state.word())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&$self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))
                    .field("id", &$state.id())
                    .field("peer", &$state.peer())
                    .finish_non_exhaustive()
            }
        }
    };
}

common!(Connection, self => self.reader.state);
common!(ReadHalf, self => self.state);
common!(WriteHalf, self => self.state);

fn ended_by(word: u64) -> Option<EndedBy> {
    if word & flag::DRAIN_ENDED != 0 {
        Some(EndedBy::Drain)
    } else if word & flag::PEER_ENDED != 0 {
        Some(EndedBy::Peer)
    } else {
        None
    }
}

async fn drain_requested(state: Weak<ConnectionState>) {
    loop {
        let requested = {
            // A connection that is gone has come to its end.
            let Some(state) = state.upgrade() else {
                return;
            };
            let requested = state.listen_for_drain();
            if state.has(flag::DRAINING | flag::ABORT) {
                return;
            }
            requested
        };
        requested.await;
    }
}

/// Says that a handler is inside a message; see [`Connection::busy`].
#[derive(Debug)]
pub struct Busy(Weak<ConnectionState>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(state) = self.0.upgrade() {
            state.end_busy();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncBufRead for Connection {
    #[inline]
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().reader).poll_fill_buf(cx)
    }

    #[inline]
    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.reader).consume(amount);
    }
}

/// The halves given to [`ReadHalf::reunite`] are not of one connection; they are given back.
pub struct ReuniteError(pub ReadHalf, pub WriteHalf);

impl fmt::Debug for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReuniteError")
            .field(&self.0)
            .field(&self.1)
            .finish()
    }
}

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (reader, writer) = (self.0.id(), self.1.id());
        write!(
            f,
            "cannot reunite the read half of connection {reader} with the write half of {writer}: \
             expected both of one connection"
        )
    }
}

impl std::error::Error for ReuniteError {}
