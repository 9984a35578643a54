//! Listeners: what a server accepts its peers from.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;
use crate::socket::{Incoming, uninterrupted};
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
