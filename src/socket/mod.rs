//! One connection's socket, and what can be asked of it without waiting.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;

pub(crate) mod budget;
pub(crate) mod buffer;
pub(crate) mod errors;
pub(crate) mod readiness;

/// A socket of the standard library.
#[derive(Debug)]
#[non_exhaustive]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(socket) => socket.into(),
            Socket::Unix(socket) => socket.into(),
        }
    }
}

/// The process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Credentials {
    /// Its process id.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// A peer's connection as its listener gives it, before it is registered with a reactor or a
/// poller.
pub(crate) enum Incoming {
    /// In non-blocking mode.
    Socket(Socket),
    /// What a listener of the user's own gave.
    Custom(Box<Mutex<dyn Stream>>),
}

/// A stream of the user's own, without its type.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection's socket, borrowed from its transport.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketRef<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

impl Socket {
    pub(crate) fn as_ref(&self) -> SocketRef<'_> {
        match self {
            Self::Tcp(socket) => SocketRef::Tcp(socket),
            Self::Unix(socket) => SocketRef::Unix(socket),
        }
    }
}

impl SocketRef<'_> {
    /// `shutdown(2)`: ends one direction, or both.
    pub(crate) fn shutdown(self, how: Shutdown) -> io::Result<()> {
        let done = match self {
            Self::Tcp(socket) => socket.shutdown(how),
            Self::Unix(socket) => socket.shutdown(how),
        };
        match done {
            // The peer has reset the connection already, so both directions are ended.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }

    /// Reads once; `WouldBlock` where the kernel has nothing.
    pub(crate) fn read(self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| match self {
            Self::Tcp(mut socket) => socket.read(buf),
            Self::Unix(mut socket) => socket.read(buf),
        })
    }

    pub(crate) fn local_addr(self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(socket) => socket.local_addr()?.into(),
            Self::Unix(socket) => Address::from_unix(&socket.local_addr()?),
        })
    }

    /// A second descriptor of the same socket.
    pub(crate) fn duplicate(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(socket) => Socket::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Socket::Unix(socket.try_clone()?),
        })
    }

    /// The process at the other end, as the kernel knows it; of Unix sockets only.
    pub(crate) fn credentials(self) -> io::Result<Option<Credentials>> {
        #[cfg(target_os = "linux")]
        if let Self::Unix(socket) = self {
            let found = rustix::net::sockopt::socket_peercred(socket)?;
            return Ok(Some(Credentials {
                pid: found.pid.as_raw_nonzero().get(),
                uid: found.uid.as_raw(),
                gid: found.gid.as_raw(),
            }));
        }
        Ok(None)
    }

    /// How many bytes the peer's kernel has not acknowledged yet, the end counted as one; `None`
    /// where the system does not tell.
    pub(crate) fn unacknowledged(self) -> Option<usize> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Tcp(socket) => output_queue(socket),
            #[cfg(not(target_os = "linux"))]
            Self::Tcp(_) => None,
            // What was written to a Unix socket is in the peer's receive queue, and stays there
            // when this end is closed.
            Self::Unix(_) => Some(0),
        }
    }
}

/// Calls a system call again for as long as a signal breaks it.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// How many bytes of a socket's output are not acknowledged, the FIN counted as one.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn output_queue(socket: &TcpStream) -> Option<usize> {
    use rustix::ioctl::{Getter, ioctl};
    const SIOCOUTQ: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;
    // SAFETY: on a TCP socket SIOCOUTQ, whose number is TIOCOUTQ's, stores one C int at the
    // address it is given and does nothing else, which is what this `Getter` declares.
    let queued = unsafe { ioctl(socket, Getter::<SIOCOUTQ, libc::c_int>::new()) };
    usize::try_from(queued.ok()?).ok()
}
