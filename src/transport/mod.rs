//! What a connection runs over: the one place that knows.
//!
//! Everything here takes `&self`, so that the two halves of a connection share a transport without
//! a lock. A transport of the user's own has one, around each single operation.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;

use crate::address::Address;
use crate::socket::readiness::{HalfState, Readiness};
use crate::socket::{Credentials, Incoming, Socket, SocketRef, Stream, Unacknowledged};
use crate::sync::lock_for_user;
#[cfg(target_os = "linux")]
use crate::workers::{Poller, Registration};

mod reactor;

pub(crate) enum Transport {
    /// TCP, with the reactor.
    Tcp(Async<TcpStream>),
    /// Unix, with the reactor.
    Unix(Async<UnixStream>),
    /// Either of them, with a worker's poller.
    #[cfg(target_os = "linux")]
    Driven(Registration),
    /// A transport of the user's own.
    Custom(Box<Mutex<dyn Stream>>),
}

/// What reports that a socket is ready.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// `async-io`, which async-std and smol share.
    Reactor,
    /// A poller of the server's own.
    #[cfg(target_os = "linux")]
    Workers(Arc<Poller>),
}

// The word, and sockets that outlive a connection, concern a poller, which there is on Linux alone.
#[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
impl Transport {
    pub(crate) fn new(incoming: Incoming, engine: Engine) -> io::Result<Self> {
        Ok(match (incoming, engine) {
            (Incoming::Custom(io), _) => Self::Custom(io),
            #[cfg(target_os = "linux")]
            (Incoming::Socket(socket), Engine::Workers(poller)) => {
                Self::Driven(Registration::new(socket, poller))
            }
            (Incoming::Socket(Socket::Tcp(stream)), Engine::Reactor) => {
                Self::Tcp(Async::new_nonblocking(stream)?)
            }
            (Incoming::Socket(Socket::Unix(stream)), Engine::Reactor) => {
                Self::Unix(Async::new_nonblocking(stream)?)
            }
        })
    }

    /// The socket; none of a transport of the user's own.
    fn socket(&self) -> Option<SocketRef<'_>> {
        match self {
            Self::Tcp(socket) => Some(SocketRef::Tcp(socket.get_ref())),
            Self::Unix(socket) => Some(SocketRef::Unix(socket.get_ref())),
            #[cfg(target_os = "linux")]
            Self::Driven(registration) => Some(registration.socket().as_ref()),
            Self::Custom(_) => None,
        }
    }

    /// Reads, or arranges a wake-up; `word` is the connection's as it was last seen. With `look`,
    /// `Pending` says that the kernel has nothing *now*; without, that nothing was reported since it
    /// last had nothing.
    #[inline(always)]
    pub(crate) fn poll_read(
        &self,
        word: u64,
        reader: &HalfState,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        look: bool,
    ) -> Poll<io::Result<usize>> {
        // To tell one variant from the rest takes fewer instructions than to tell all apart.
        #[cfg(target_os = "linux")]
        if let Self::Driven(registration) = self {
            return registration.poll_read(word, buf, look);
        }
        match self {
            Self::Tcp(socket) => reactor::poll_read(socket, reader, cx, buf, look),
            Self::Unix(socket) => reactor::poll_read(socket, reader, cx, buf, look),
            #[cfg(target_os = "linux")]
            Self::Driven(_) => unreachable!("its read is above"),
            Self::Custom(io) => Pin::new(&mut *lock_for_user(io)).poll_read(cx, buf),
        }
    }

    /// Writes what fits, or arranges a wake-up.
    #[inline]
    pub(crate) fn poll_write(
        &self,
        readiness: &Readiness,
        writer: &HalfState,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        #[cfg(target_os = "linux")]
        if let Self::Driven(registration) = self {
            return registration.poll_write(readiness, bufs);
        }
        match self {
            Self::Tcp(socket) => reactor::poll_write(socket, writer, cx, bufs),
            Self::Unix(socket) => reactor::poll_write(socket, writer, cx, bufs),
            #[cfg(target_os = "linux")]
            Self::Driven(_) => unreachable!("its write is above"),
            Self::Custom(io) => match bufs {
                [buf] => Pin::new(&mut *lock_for_user(io)).poll_write(cx, buf),
                bufs => Pin::new(&mut *lock_for_user(io)).poll_write_vectored(cx, bufs),
            },
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Custom(io) => Pin::new(&mut *lock_for_user(io)).poll_flush(cx),
            // What the kernel took needs no flush.
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether a look for something to read may find it. The reactor's sockets have to look.
    #[inline]
    pub(crate) fn may_read(&self, word: u64) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Driven(registration) => registration.may_read(word),
            _ => true,
        }
    }

    /// Whether an event that makes a read worth trying came between a `Pending` and the waker that
    /// was registered for it. A reactor that is handed the waker with the poll misses none.
    #[inline]
    pub(crate) fn missed_read(&self, word: u64) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Driven(registration) => registration.may_read(word),
            _ => false,
        }
    }

    /// As [`missed_read`](Self::missed_read), of a write.
    #[inline]
    pub(crate) fn missed_write(&self, word: u64) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Driven(_) => !crate::socket::readiness::is_write_blocked(word),
            _ => false,
        }
    }

    /// Begins to report events to `connection`, whose transport this is.
    pub(crate) fn register(&self, connection: Arc<dyn Any + Send + Sync>) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Driven(registration) => registration.register(connection),
            _ => Ok(()),
        }
    }

    /// Ends those reports; the socket may `outlive` its connection.
    pub(crate) fn deregister(&self, outlives: bool) {
        #[cfg(target_os = "linux")]
        if let Self::Driven(registration) = self {
            registration.deregister(outlives);
        }
    }

    /// Ends our side of the conversation: the peer reads to the end and sees it.
    pub(crate) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Custom(io) => Pin::new(&mut *lock_for_user(io)).poll_close(cx),
            _ => Poll::Ready(self.shutdown(Shutdown::Write)),
        }
    }

    /// Whether [`poll_finish`](Self::poll_finish) never has to wait.
    pub(crate) fn finishes_at_once(&self) -> bool {
        !matches!(self, Self::Custom(_))
    }

    /// Ends both directions, under whatever holds the connection.
    pub(crate) fn shutdown_both(&self) {
        // A socket that its peer has reset already is as shut as it can be.
        let _ignored = self.shutdown(Shutdown::Both);
    }

    /// Lets a Unix peer write no more; `false` for others.
    pub(crate) fn refuse_input(&self) -> bool {
        match self.socket() {
            Some(socket @ SocketRef::Unix(_)) => socket.shutdown(Shutdown::Read).is_ok(),
            _ => false,
        }
    }

    /// Reads once, if there is something. Only a transport of the user's own arranges a wake-up.
    pub(crate) fn try_read(
        &self,
        word: u64,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let read = match self {
            #[cfg(target_os = "linux")]
            Self::Driven(registration) => registration.poll_read(word, buf, true),
            Self::Custom(io) => Pin::new(&mut *lock_for_user(io)).poll_read(cx, buf),
            Self::Tcp(socket) => return SocketRef::Tcp(socket.get_ref()).read(buf),
            Self::Unix(socket) => return SocketRef::Unix(socket.get_ref()).read(buf),
        };
        match read {
            Poll::Ready(read) => read,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes once, without arranging anything; `Unsupported` of a transport of the user's own.
    #[cfg(feature = "_tls")]
    pub(crate) fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.socket() {
            Some(socket) => socket.write(bufs),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Once our end was sent: what the peer has not taken yet; `None` where nobody tells.
    pub(crate) fn unacknowledged(&self) -> Option<Unacknowledged> {
        match self {
            Self::Custom(io) => {
                let bytes = lock_for_user(io).unacknowledged();
                bytes.map(Unacknowledged::bytes)
            }
            _ => self.socket()?.unacknowledged(),
        }
    }

    /// How long a peer that has taken everything must have been silent until nothing of what it has
    /// sent can be under way any more; `None` where nobody tells.
    pub(crate) fn quiet(&self) -> Option<Duration> {
        match self {
            Self::Custom(io) => lock_for_user(io).quiet(),
            _ => self.socket().map(SocketRef::quiet),
        }
    }

    /// The address that the peer connected to, where the transport knows it.
    pub(crate) fn local_addr(&self) -> io::Result<Option<Address>> {
        self.socket().map(SocketRef::local_addr).transpose()
    }

    /// The process at the other end, as the kernel knows it; of Unix sockets only.
    pub(crate) fn credentials(&self) -> io::Result<Option<Credentials>> {
        self.socket().map_or(Ok(None), SocketRef::credentials)
    }

    /// A second descriptor of the same socket.
    pub(crate) fn duplicate(&self) -> io::Result<Socket> {
        match self.socket() {
            Some(socket) => socket.duplicate(),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only a TCP or Unix connection can be detached: this one runs over a transport of its own",
            )),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket().map_or(Ok(()), |socket| socket.shutdown(how))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
            #[cfg(target_os = "linux")]
            Self::Driven(_) => "Driven",
            Self::Custom(_) => "Custom",
        })
    }
}
