//! What a server listens on.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::address::{Address, Target};
use crate::config::Config;
use crate::transport::{Engine, Stream};
#[cfg(target_os = "linux")]
use crate::workers::Watched;

mod custom;
mod inherited;
pub(crate) mod set;
mod tcp;
mod unix;

use self::custom::Own;
pub use self::inherited::Adopted;
use self::tcp::Tcp;
use self::unix::Unix;

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

/// A peer's connection as its listener gives it, before anybody is told about its readiness.
pub(crate) enum Incoming {
    /// In non-blocking mode.
    Socket(crate::connection::Socket),
    Own(Box<Mutex<dyn Stream>>),
}

/// A bound listener, whatever it is.
pub(crate) trait Bound: Send {
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
pub(crate) enum Socket<L: AsFd> {
    Reactor {
        socket: Async<L>,
        /// The reactor was asked to wake us, and its answer has not been taken yet. It is taken
        /// first, so that a wait costs one accept that finds nobody, not two.
        armed: bool,
    },
    #[cfg(target_os = "linux")]
    Workers(Watched<L>),
}

impl<L: AsFd + Send + Sync + 'static> Socket<L> {
    /// `socket` is in non-blocking mode.
    fn new(socket: L, engine: &Engine) -> io::Result<Self> {
        Ok(match engine {
            Engine::Reactor => Self::Reactor {
                socket: Async::new_nonblocking(socket)?,
                armed: false,
            },
            #[cfg(target_os = "linux")]
            Engine::Workers(poller) => Self::Workers(Watched::new(socket, poller.clone())?),
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

/// What a builder was asked to listen on.
pub(crate) enum Source {
    Target(Target),
    Adopted(Adopted),
    Own(Box<dyn Bound>),
}

impl Source {
    pub(crate) fn own(listener: impl Listener) -> Self {
        Self::Own(Box::new(Own::new(listener)))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(target) => target.fmt(f),
            Self::Adopted(adopted) => adopted.fmt(f),
            Self::Own(_) => f.write_str("Own"),
        }
    }
}

/// Binds everything, in the order it was asked for, or nothing: for each address a socket, or as
/// many as there are engines.
pub(crate) async fn bind(
    sources: Vec<Source>,
    config: &Config,
    engines: &[Engine],
) -> io::Result<Vec<Vec<Box<dyn Bound>>>> {
    if sources.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "nothing to listen on: expected an address or a listener before `bind`",
        ));
    }
    // All names are resolved before the first is bound: an IPv6 socket leaves IPv4 alone if any
    // of the others asks for that port.
    let mut resolved = Vec::new();
    for source in sources {
        resolved.push(match source {
            Source::Target(target) => match target.into_address()? {
                Address::Tcp(address) => Resolved::Tcp(vec![address]),
                Address::Host(host, port) => Resolved::Tcp(tcp::resolve(host, port).await?),
                address @ (Address::Unix(_) | Address::Abstract(_)) => Resolved::Unix(address),
                address => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "cannot listen on `{address}`: expected HOST:PORT, unix:PATH or unix:@NAME"
                        ),
                    ));
                }
            },
            Source::Adopted(adopted) => Resolved::Bound(adopted.into_bound(&engines[0])?),
            Source::Own(own) => Resolved::Bound(own),
        });
    }
    let mut all: Vec<SocketAddr> = Vec::new();
    for it in &resolved {
        if let Resolved::Tcp(addresses) = it {
            all.extend(addresses);
        }
    }
    let mut bound: Vec<Vec<Box<dyn Bound>>> = Vec::new();
    for it in resolved {
        match it {
            Resolved::Tcp(addresses) => {
                for sockets in tcp::bind_all(&addresses, &all, config, engines)? {
                    let sockets = sockets.into_iter().map(|it| Box::new(it) as Box<dyn Bound>);
                    bound.push(sockets.collect());
                }
            }
            Resolved::Unix(address) => {
                let socket = Unix::bind(address, config, &engines[0]).await?;
                bound.push(vec![Box::new(socket)]);
            }
            Resolved::Bound(listener) => bound.push(vec![listener]),
        }
    }
    Ok(bound)
}

/// A source whose names are resolved.
enum Resolved {
    Tcp(Vec<SocketAddr>),
    Unix(Address),
    Bound(Box<dyn Bound>),
}

/// An error that says which address it is about.
fn cannot_listen(address: &Address, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
