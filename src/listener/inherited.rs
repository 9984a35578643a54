//! Listening sockets that were made elsewhere. Others may hold the same socket, so a stop changes
//! nothing that belongs to the socket and not to our descriptor of it.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use socket2::{Domain, SockRef, Type};

use super::RawListener;
use super::tcp::Tcp;
use super::unix::Unix;
use crate::transport::Engine;

/// A listening socket that was made elsewhere, for [`Builder::adopt`](crate::Builder::adopt).
pub struct Adopted(Kind);

enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Adopted {
    /// Registers the socket with the engine.
    pub(super) fn into_raw(self, engine: &Engine) -> io::Result<Box<dyn RawListener>> {
        match &self.0 {
            Kind::Tcp(listener) => close_on_exec(listener)?,
            Kind::Unix(listener) => close_on_exec(listener)?,
        }
        Ok(match self.0 {
            Kind::Tcp(listener) => Box::new(Tcp::adopt(listener, engine)?),
            Kind::Unix(listener) => Box::new(Unix::adopt(listener, engine)?),
        })
    }
}

/// A program that this process starts does not inherit the listener: it would keep the port open.
fn close_on_exec(listener: &impl AsFd) -> io::Result<()> {
    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
    let flags = fcntl_getfd(listener)?;
    Ok(fcntl_setfd(listener, flags | FdFlags::CLOEXEC)?)
}

impl From<TcpListener> for Adopted {
    fn from(listener: TcpListener) -> Self {
        Self(Kind::Tcp(listener))
    }
}

impl From<UnixListener> for Adopted {
    fn from(listener: UnixListener) -> Self {
        Self(Kind::Unix(listener))
    }
}

/// A descriptor from elsewhere, whose kind is found out: what a supervisor or a predecessor handed
/// down.
impl TryFrom<OwnedFd> for Adopted {
    type Error = io::Error;

    /// # Errors
    /// `InvalidInput`, with what it is and what was expected, where it is no listening TCP or Unix
    /// stream socket. The descriptor is closed then.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let found = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "descriptor {} is {what}: expected a listening TCP or Unix stream socket",
                    fd.as_raw_fd()
                ),
            )
        };
        let socket = SockRef::from(&fd);
        match socket.r#type() {
            Ok(Type::STREAM) => {}
            Ok(_) => return Err(found("a socket of another type")),
            Err(_) => return Err(found("no socket")),
        }
        let is_unix = match socket.local_addr()?.domain() {
            Domain::UNIX => true,
            Domain::IPV4 | Domain::IPV6 => false,
            _ => return Err(found("a socket of another family")),
        };
        if !is_listening(&socket) {
            return Err(found("a socket that does not listen"));
        }
        Ok(Self(if is_unix {
            Kind::Unix(fd.into())
        } else {
            Kind::Tcp(fd.into())
        }))
    }
}

/// A socket that listens is no peer's, and every system but some tells it apart; where a system does
/// not, the first accept will.
fn is_listening(socket: &SockRef<'_>) -> bool {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    return socket.is_listener().unwrap_or(true);
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    socket.peer_addr().is_err()
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tcp(listener) => listener.fmt(f),
            Kind::Unix(listener) => listener.fmt(f),
        }
    }
}
