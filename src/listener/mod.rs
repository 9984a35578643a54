//! Listeners: what a server accepts its peers from.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::task::{Context, Poll, ready};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;
use crate::socket::Incoming;
use crate::transport::Engine;
#[cfg(target_os = "linux")]
use crate::workers::WatchedListener;

pub(crate) mod bind;
mod custom;
mod inherited;
pub(crate) mod set;
mod tcp;
mod unix;

pub use self::inherited::Adopted;

/// A source of peers: a transport of one's own, for instance one in memory for tests.
pub trait Listener: Send + 'static {
    /// One connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next peer.
    ///
    /// Dropping the future must lose no peer. An error is judged by its kind as one of `accept(2)`
    /// is: the peer's, a shortage of ours, or the end of this listener, which stops the server.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Address)>> + Send;

    /// Where this listener can be reached.
    ///
    /// # Errors
    /// If it cannot be told; binding fails then.
    fn local_addr(&self) -> io::Result<Address>;

    /// Lets no new peer in. Those that are queued already are then accepted, until `accept` is
    /// pending, and the listener is dropped.
    fn shut(&mut self);
}

/// A bound listener, whatever it is.
pub(crate) trait RawListener: Send {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>>;

    /// Accepts without waiting; `WouldBlock` where nobody is queued.
    fn try_accept(&mut self) -> io::Result<(Incoming, Address)>;

    fn local_addr(&self) -> io::Result<Address>;

    /// No new peers from here on; those queued can still be accepted.
    fn shut(&mut self);

    /// Closes the descriptor and does nothing else, in a process that was forked from the owner's. A
    /// listener of the user's own may do anything when it is dropped, so it stays as it is.
    fn leave(self: Box<Self>) {
        std::mem::forget(self);
    }

    /// How many peers wait to be accepted, where the system tells.
    fn queued(&self) -> Option<u32> {
        None
    }
}

/// A listening socket, and who tells that somebody is queued.
#[derive(Debug)]
pub(crate) enum ListeningSocket<L: AsFd> {
    Reactor {
        socket: Async<L>,
        /// The reactor was asked to wake us, and its answer has not been taken yet. It is taken
        /// first, so that a wait costs one accept that finds nobody, not two.
        armed: bool,
    },
    #[cfg(target_os = "linux")]
    Workers(WatchedListener<L>),
}

impl<L: AsFd + Send + Sync + 'static> ListeningSocket<L> {
    /// `socket` is in non-blocking mode.
    fn new(socket: L, engine: &Engine) -> io::Result<Self> {
        Ok(match engine {
            Engine::Reactor => Self::Reactor {
                socket: Async::new_nonblocking(socket)?,
                armed: false,
            },
            #[cfg(target_os = "linux")]
            Engine::Workers(poller) => Self::Workers(WatchedListener::new(socket, poller.clone())?),
        })
    }

    fn get_ref(&self) -> &L {
        match self {
            Self::Reactor { socket, .. } => socket.get_ref(),
            #[cfg(target_os = "linux")]
            Self::Workers(socket) => socket.get_ref(),
        }
    }

    /// Closes the descriptor, and leaves the poller alone, which a forked process shares with the owner:
    /// it would report this socket to nobody any more.
    #[allow(unsafe_code)]
    fn leave(self) {
        let descriptor = self.get_ref().as_fd().as_raw_fd();
        std::mem::forget(self);
        // SAFETY: the descriptor is open, and nothing else closes it: its owner is forgotten.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }

    /// One poll of accept.
    fn poll_accept<T>(
        &mut self,
        cx: &mut Context<'_>,
        accept: impl Fn(&L) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let (socket, armed) = match self {
            Self::Reactor { socket, armed } => (socket, armed),
            #[cfg(target_os = "linux")]
            Self::Workers(socket) => return socket.poll_accept(cx, accept),
        };
        loop {
            if *armed {
                ready!(socket.poll_readable(cx))?;
                *armed = false;
            }
            match accept(socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => *armed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                accepted => return Poll::Ready(accepted),
            }
        }
    }
}
