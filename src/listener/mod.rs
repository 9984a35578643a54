//! Listeners: what a server accepts its peers from.
//!
//! [`Listener`] is what users implement; [`RawListener`] is what the accept loop and the sweep
//! know, whatever it is: TCP, Unix, or a `Listener` of the user's own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
#[cfg(any(
    feature = "systemd",
    feature = "health",
    all(feature = "handover", target_os = "linux")
))]
use std::os::fd::BorrowedFd;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;
#[cfg(all(feature = "handover", target_os = "linux"))]
use crate::config::Config;
use crate::socket::{Incoming, uninterrupted};
use crate::transport::Engine;
#[cfg(target_os = "linux")]
use crate::workers::WatchedListener;

pub(crate) mod bind;
mod change;
mod custom;
#[cfg(all(feature = "handover", target_os = "linux"))]
pub(crate) mod handover;
#[cfg(target_os = "linux")]
pub(crate) mod handshakes;
mod inherited;
pub(crate) mod set;
#[cfg(target_os = "linux")]
mod shut;
#[cfg(feature = "systemd")]
pub(crate) mod systemd;
mod tcp;
mod unix;

pub use self::inherited::Adopted;

/// A source of peers: a transport of one's own, for instance one in memory for tests.
///
/// The server calls it, and drops it, without a lock held: all that it has may use the server's
/// [`Handle`](crate::Handle). One method is called at a time, not always on the same thread. A method that
/// blocks its thread keeps the accept loop waiting and whatever else that thread has to do, but not
/// the handle, nor a deadline.
pub trait Listener: Send + 'static {
    /// One connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next peer.
    ///
    /// Dropping the future must lose no peer.
    ///
    /// # Errors
    /// An error is judged by its kind as one of `accept(2)` is: it is a peer's, and accept is
    /// called again; or a shortage of ours, and accept is called again after a pause; or the end of
    /// this listener, which stops the server.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, Address)>> + Send;

    /// Where this listener can be reached.
    ///
    /// # Errors
    /// If it cannot be told; binding fails then.
    fn local_addr(&self) -> io::Result<Address>;

    /// How many of the bytes written to `io` its peer has not taken yet; `None`, as by default, where
    /// the transport does not tell.
    ///
    /// It is asked, from time to time, when the handler is done and our end was sent (`poll_close` is
    /// done). As long as there are some, `io` is read from and not dropped, for
    /// [`linger_total`](crate::Builder::linger_total) at most. Where the transport does not tell, `io`
    /// is dropped when the peer has ended its side, too, or has sent nothing for a
    /// [`linger`](crate::Builder::linger). Answer `Some(0)` if dropping `io` destroys nothing that is
    /// under way.
    fn unacknowledged(io: &Self::Io) -> Option<usize> {
        let _does_not_tell = io;
        None
    }

    /// How long the peer of `io`, which has taken everything, has to be silent until nothing that it
    /// has sent can be under way any more; `None`, as by default, where the transport does not tell,
    /// which is then a [`linger`](crate::Builder::linger).
    ///
    /// It is asked once for a connection whose handler has returned by itself: its peer may not know
    /// yet that nobody reads what it sends. Answer zero if dropping `io` does the peer no harm.
    fn quiet(io: &Self::Io) -> Option<Duration> {
        let _does_not_tell = io;
        None
    }

    /// Lets no new peer in. Peers that are queued already are then accepted, until `accept` is
    /// pending, and the listener is dropped.
    fn shut(&mut self);
}

/// What secures the connections of a listener.
#[cfg(feature = "_tls")]
pub(crate) use crate::tls::Tls as Security;
/// Nothing can.
#[cfg(not(feature = "_tls"))]
#[derive(Clone, Debug)]
pub(crate) enum Security {}

/// What a predecessor has left.
#[cfg(all(feature = "handover", target_os = "linux"))]
pub(crate) use self::handover::{Inherited, Legacy};
/// Nothing can be.
#[cfg(not(all(feature = "handover", target_os = "linux")))]
#[derive(Debug)]
pub(crate) enum Inherited {}
/// Nothing can be.
#[cfg(not(all(feature = "handover", target_os = "linux")))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Legacy {}

/// A bound listener.
pub(crate) enum AnyListener {
    Socket(Box<dyn RawListener>),
    Custom(Arc<dyn ErasedListener>),
}

impl AnyListener {
    pub(crate) fn local_addr(&self) -> io::Result<Address> {
        match self {
            Self::Socket(listener) => listener.local_addr(),
            Self::Custom(listener) => listener.local_addr(),
        }
    }
}

/// A listener of the user's own, whatever its type. No lock is held while it is asked: its code may
/// ask the server, and may block.
pub(crate) trait ErasedListener: Send + Sync {
    /// For the accept loop that the listener belongs to: one at a time.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>>;

    /// Accepts without waiting, for another accept loop; `WouldBlock` where no peer is queued, or
    /// another thread asks.
    fn try_accept(&self) -> io::Result<(Incoming, Address)>;

    /// Accepts without waiting, for a stop: where another thread asks, it is given a moment to be done.
    fn sweep(&self) -> io::Result<(Incoming, Address)>;

    fn local_addr(&self) -> io::Result<Address>;

    /// No new peers from here on, or from when a thread that asks is done; those queued can still be
    /// accepted.
    fn shut(&self);
}

/// A listening socket, on which a call is a system call: it is made under a lock.
pub(crate) trait RawListener: Send {
    /// Polls for the next peer.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Incoming, Address)>>;

    /// Accepts without waiting; `WouldBlock` where no peer is queued.
    fn try_accept(&mut self) -> io::Result<(Incoming, Address)>;

    /// The address that the listener is bound to, with the port that the system gave it.
    fn local_addr(&self) -> io::Result<Address>;

    /// Refuses new peers from here on, if there is a means to; peers that are queued can still be
    /// accepted.
    ///
    /// # Errors
    /// What the operator should know of; it is logged when no lock is held any more.
    fn shut(&mut self) -> io::Result<()>;

    /// Whether new peers are refused, so that the queue comes to an end.
    fn is_shut(&self) -> bool;

    /// The address whose handshakes under way the kernel has to be asked for: of a TCP listener
    /// that is shut.
    fn handshakes_at(&self) -> Option<SocketAddr> {
        None
    }

    /// Ends the listening, before the descriptor is closed.
    fn end(&mut self) {}

    /// The socket, for a supervisor to hold for a successor; `None` of one that was adopted from others.
    #[cfg(any(feature = "systemd", feature = "health"))]
    fn lend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// A supervisor holds the socket, too: its queue is a successor's. A stop closes the descriptor
    /// without having shut the socket, which would be done to the successor's, and without a sweep, and
    /// leaves the path of a Unix socket where it is.
    #[cfg(feature = "systemd")]
    fn keep(&mut self);

    /// Whether a supervisor holds the socket for a successor.
    fn is_kept(&self) -> bool {
        false
    }

    /// Closes the descriptor and does nothing else, in a process that was forked from the owner's.
    fn leave(self: Box<Self>);

    /// The listening socket.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// The file of a Unix socket that this listener has made.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn inode(&self) -> Option<handover::Inode> {
        None
    }

    /// The path of a Unix socket is another process's from here on.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn forget_path(&mut self) {}

    /// The socket, which was adopted, is nobody else's from here on: it may be shut, its path is removed
    /// with it, if there is one, and these settings hold for its peers.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    fn own(&mut self, inode: Option<handover::Inode>, config: &Config);

    /// How many peers wait to be accepted, where the system tells.
    fn queued(&self) -> Option<u32> {
        None
    }
}

/// A listening socket with what reports that a peer is queued.
#[derive(Debug)]
pub(crate) enum ListeningSocket<L: AsFd> {
    /// `async-io`, the reactor of the runtimes.
    Reactor {
        socket: Async<L>,
        /// The reactor was asked to wake the accept loop, and its answer has not been taken yet.
        /// The answer is taken before the next accept: a wait then costs one accept that finds the
        /// queue empty, not two.
        armed: bool,
    },
    /// A worker's poller.
    #[cfg(target_os = "linux")]
    Workers(WatchedListener<L>),
}

impl<L: AsFd + Send + Sync + 'static> ListeningSocket<L> {
    /// Registers `socket`, which is in non-blocking mode, with the engine.
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

    /// The socket of the standard library.
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

    /// Polls for the next peer, with `accept` for the system call.
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
        let accept = || uninterrupted(|| accept(socket.get_ref()));
        if *armed {
            *armed = socket.poll_readable(cx)?.is_pending();
            if *armed {
                // Nothing, or news that `async-io` takes for old, because it came in the very round of
                // the reactor in which it was asked for. Where the executor is never idle that can be
                // so in one round after the other, and no peer would be let in.
                return match accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                    accepted => Poll::Ready(accepted),
                };
            }
        }
        loop {
            match accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return Poll::Ready(accepted),
            }
            *armed = socket.poll_readable(cx)?.is_pending();
            if *armed {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    struct Told(mpsc::Sender<()>);

    impl Wake for Told {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }

    /// Else it is polled once more for each peer, a round of the executor later, and beside tasks that
    /// never pause again and again.
    #[test]
    fn a_peer_that_was_told_of_is_accepted_at_once() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let mut listener = ListeningSocket::new(socket, &Engine::Reactor).unwrap();
        let (tell, told) = mpsc::channel();
        let waker = std::sync::Arc::new(Told(tell)).into();
        let mut cx = Context::from_waker(&waker);
        for peer in 0..100 {
            assert!(
                listener
                    .poll_accept(&mut cx, TcpListener::accept)
                    .is_pending()
            );
            let _client = TcpStream::connect(address).unwrap();
            told.recv_timeout(Duration::from_secs(20)).unwrap();
            let accepted = listener.poll_accept(&mut cx, TcpListener::accept);
            assert!(matches!(accepted, Poll::Ready(Ok(_))), "peer {peer}");
        }
    }
}
