//! One connection's socket, and what can be asked of it without waiting.

use std::io::{self, Read};
#[cfg(feature = "_tls")]
use std::io::{IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;

pub(crate) mod budget;
pub(crate) mod buffer;
pub(crate) mod errors;
pub(crate) mod owner;
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
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {
    /// As [`SocketRef::unacknowledged`], without the end.
    fn unacknowledged(&self) -> Option<usize>;

    /// As [`SocketRef::quiet`]; `None` where the transport does not tell.
    fn quiet(&self) -> Option<Duration>;
}

/// What a peer has not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unacknowledged {
    pub(crate) bytes: usize,
    /// Our end may be lost on its way.
    pub(crate) end: bool,
}

impl Unacknowledged {
    /// Over a transport on which our end does not get lost.
    pub(crate) fn bytes(bytes: usize) -> Self {
        Self { bytes, end: false }
    }
}

/// How long a peer has to be silent at least: it may be waiting for a processor.
const SHORTEST_QUIET: Duration = Duration::from_millis(5);
/// How long a peer has to be silent whose round trips were never measured: TCP's first time-out.
const QUIET_WITHOUT_SAMPLE: Duration = Duration::from_secs(1);

/// A connection's socket, borrowed from its transport.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketRef<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

#[cfg(target_os = "linux")]
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

    /// Writes once; `WouldBlock` where the kernel has no room.
    #[cfg(feature = "_tls")]
    pub(crate) fn write(self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        uninterrupted(|| match self {
            Self::Tcp(mut socket) => socket.write_vectored(bufs),
            Self::Unix(mut socket) => socket.write_vectored(bufs),
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

    /// Once our end was sent: what the peer has not taken yet. Over TCP the peer's kernel takes it,
    /// from a Unix socket the peer itself. `None` where the system does not tell.
    #[cfg(target_os = "linux")]
    pub(crate) fn unacknowledged(self) -> Option<Unacknowledged> {
        match self {
            // The end counts as one.
            Self::Tcp(socket) => output_queue(socket).map(|queued| Unacknowledged {
                bytes: queued.saturating_sub(1),
                end: queued > 0,
            }),
            Self::Unix(socket) => output_queue(socket).map(Unacknowledged::bytes),
        }
    }

    /// Once our end was sent: what the peer has not taken yet; `None` where the system does not tell.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn unacknowledged(self) -> Option<Unacknowledged> {
        match self {
            Self::Tcp(_) => None,
            // What was written to a Unix socket is in the peer's receive queue, and stays there
            // when this end is closed.
            Self::Unix(_) => Some(Unacknowledged::bytes(0)),
        }
    }

    /// How long a peer has to be silent until nothing of what it has sent can be under way any more.
    /// A segment that is lost is sent again after a time-out of TCP's, and then needs its time for
    /// the way; from a Unix socket everything has arrived.
    pub(crate) fn quiet(self) -> Duration {
        match self {
            #[cfg(target_os = "linux")]
            Self::Tcp(socket) => retransmission(socket)
                .map_or(QUIET_WITHOUT_SAMPLE, |(timeout, round_trip)| {
                    (timeout + round_trip).max(SHORTEST_QUIET)
                }),
            #[cfg(not(target_os = "linux"))]
            Self::Tcp(_) => QUIET_WITHOUT_SAMPLE,
            Self::Unix(_) => SHORTEST_QUIET,
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

/// How many bytes of a TCP socket's output are not acknowledged, the FIN counted as one; how much of
/// a Unix socket's was not read.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn output_queue(socket: impl AsFd) -> Option<usize> {
    use rustix::ioctl::{Getter, ioctl};
    const SIOCOUTQ: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;
    // SAFETY: on a TCP or a Unix socket SIOCOUTQ, whose number is TIOCOUTQ's, stores one C int at
    // the address it is given and does nothing else, which is what this `Getter` declares.
    let queued = unsafe { ioctl(socket, Getter::<SIOCOUTQ, libc::c_int>::new()) };
    usize::try_from(queued.ok()?).ok()
}

/// After which time TCP sends a segment again, and how long a round trip takes; `None` where none was
/// measured yet.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn retransmission(socket: &TcpStream) -> Option<(Duration, Duration)> {
    use std::os::fd::AsRawFd;
    // The beginning of the kernel's `struct tcp_info`: eight bytes, then numbers of 32 bits.
    const RETRANSMISSION: usize = 2;
    const ROUND_TRIP: usize = 17;
    let mut info = [0_u32; ROUND_TRIP + 1];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: getsockopt stores at most `len` bytes at the address it is given, which is that of an
    // array of just that size, and how many it has stored in `len`, which is a `socklen_t`. Both
    // outlive the call, and any four bytes are a `u32`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    let micros = |index: usize| Duration::from_micros(u64::from(info[index]));
    (done == 0 && info[ROUND_TRIP] > 0).then(|| (micros(RETRANSMISSION), micros(ROUND_TRIP)))
}
