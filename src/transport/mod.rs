//! What a connection runs over: the one place that knows.
//!
//! Everything here takes `&self`, so that the two halves of a connection share a transport without
//! a lock. A transport of the user's own has one, around each single operation.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};

use crate::address::Address;
use crate::connection::{Credentials, Socket};
use crate::listener::Incoming;
use crate::shared::connection::{Half, Record};
use crate::sync::lock;
#[cfg(target_os = "linux")]
use crate::workers::{Poller, Slot};

pub(crate) enum Transport {
    Tcp(Async<TcpStream>),
    Unix(Async<UnixStream>),
    /// Either of them, with a worker's poller.
    #[cfg(target_os = "linux")]
    Slot(Slot),
    Own(Box<Mutex<dyn Stream>>),
}

/// A transport of the user's own.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Who tells that a socket is ready.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// `async-io`, which async-std and smol share.
    Reactor,
    /// A poller of the server's own.
    #[cfg(target_os = "linux")]
    Workers(Arc<Poller>),
}

// Words and sharing are a poller's affair, which there is on Linux alone.
#[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
impl Transport {
    pub(crate) fn new(incoming: Incoming, engine: Engine) -> io::Result<Self> {
        Ok(match (incoming, engine) {
            (Incoming::Own(io), _) => Self::Own(io),
            #[cfg(target_os = "linux")]
            (Incoming::Socket(socket), Engine::Workers(poller)) => {
                Self::Slot(Slot::new(socket, poller))
            }
            (Incoming::Socket(Socket::Tcp(stream)), Engine::Reactor) => {
                Self::Tcp(Async::new_nonblocking(stream)?)
            }
            (Incoming::Socket(Socket::Unix(stream)), Engine::Reactor) => {
                Self::Unix(Async::new_nonblocking(stream)?)
            }
        })
    }

    /// Reads, or arranges a wake-up; `word` is its record's as it was last seen. With `look`,
    /// `Pending` says that the kernel has nothing *now*; without, that nothing was reported since it
    /// last had nothing.
    #[inline(always)]
    pub(crate) fn poll_read(
        &self,
        word: u64,
        reader: &Half,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        look: bool,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => poll_socket_read(socket, reader, cx, buf, look),
            Self::Unix(socket) => poll_socket_read(socket, reader, cx, buf, look),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => slot.poll_read(word, buf, look),
            Self::Own(io) => Pin::new(&mut *lock(io)).poll_read(cx, buf),
        }
    }

    /// Writes what fits, or arranges a wake-up; `record` is whose transport this is.
    #[inline]
    pub(crate) fn poll_write(
        &self,
        record: &Record,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(socket) => poll_socket_write(socket, &record.writer, cx, bufs),
            Self::Unix(socket) => poll_socket_write(socket, &record.writer, cx, bufs),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => slot.poll_write(record, bufs),
            Self::Own(io) => match bufs {
                [buf] => Pin::new(&mut *lock(io)).poll_write(cx, buf),
                bufs => Pin::new(&mut *lock(io)).poll_write_vectored(cx, bufs),
            },
        }
    }

    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Own(io) => Pin::new(&mut *lock(io)).poll_flush(cx),
            // What the kernel took needs no flush.
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Whether a look for something to read may find it. One that asks a reactor has to look.
    #[inline]
    pub(crate) fn may_read(&self, word: u64) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => slot.may_read(word),
            _ => true,
        }
    }

    /// Whether an event came between a `Pending` and the waker that was left for it. A reactor
    /// that is handed the waker with the poll misses none.
    #[inline]
    pub(crate) fn missed(&self, word: u64, reader: bool) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Slot(slot) if reader => slot.may_read(word),
            #[cfg(target_os = "linux")]
            Self::Slot(_) => Slot::may_write(word),
            _ => false,
        }
    }

    /// Whether this task may go on reading, or has had its turn.
    #[inline]
    pub(crate) fn has_turn(&self) -> bool {
        match self {
            #[cfg(target_os = "linux")]
            Self::Slot(_) => crate::workers::has_turn(),
            _ => true,
        }
    }

    /// Begins to be told about the socket of `record`, whose transport this is.
    pub(crate) fn enroll(&self, record: &Arc<Record>) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => slot.poller().enroll(record, slot),
            _ => Ok(()),
        }
    }

    /// Ends that; `shared` where the socket outlives its record.
    pub(crate) fn dismiss(&self, shared: bool) {
        #[cfg(target_os = "linux")]
        if let Self::Slot(slot) = self {
            slot.poller().dismiss(slot, shared);
        }
    }

    /// Ends our side of the conversation: the peer reads to the end and sees it.
    pub(crate) fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Own(io) => Pin::new(&mut *lock(io)).poll_close(cx),
            _ => Poll::Ready(self.shutdown(Shutdown::Write)),
        }
    }

    /// Whether [`poll_finish`](Self::poll_finish) never has to wait.
    pub(crate) fn finishes_at_once(&self) -> bool {
        !matches!(self, Self::Own(_))
    }

    /// Cuts both directions, under whoever holds the connection.
    pub(crate) fn shut(&self) {
        // A socket that its peer has reset already is as shut as it can be.
        let _ignored = self.shutdown(Shutdown::Both);
    }

    /// Lets a Unix peer write no more; `false` for others.
    pub(crate) fn refuse_input(&self) -> bool {
        match self {
            Self::Unix(socket) => socket.get_ref().shutdown(Shutdown::Read).is_ok(),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => match slot.socket() {
                Socket::Unix(socket) => socket.shutdown(Shutdown::Read).is_ok(),
                Socket::Tcp(_) => false,
            },
            _ => false,
        }
    }

    /// Reads once, without arranging anything.
    pub(crate) fn try_read(&self, word: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => uninterrupted(|| socket.get_ref().read(buf)),
            Self::Unix(socket) => uninterrupted(|| socket.get_ref().read(buf)),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => match slot.poll_read(word, buf, true) {
                Poll::Ready(read) => read,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            },
            Self::Own(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits until there may be something to read.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_readable(cx),
            Self::Unix(socket) => socket.poll_readable(cx),
            _ => Poll::Pending,
        }
    }

    /// How many bytes the peer's kernel has not acknowledged yet, the end counted as one; `None`
    /// where nobody can tell.
    pub(crate) fn unacknowledged(&self) -> Option<usize> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Tcp(socket) => output_queue(socket.get_ref()),
            #[cfg(not(target_os = "linux"))]
            Self::Tcp(_) => None,
            // What was written to a Unix socket is in the peer's own queue, closed or not.
            Self::Unix(_) | Self::Own(_) => Some(0),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => match slot.socket() {
                Socket::Tcp(socket) => output_queue(socket),
                Socket::Unix(_) => Some(0),
            },
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<Option<Address>> {
        Ok(match self {
            Self::Tcp(socket) => Some(socket.get_ref().local_addr()?.into()),
            Self::Unix(socket) => Some(Address::from_unix(&socket.get_ref().local_addr()?)),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => Some(match slot.socket() {
                Socket::Tcp(socket) => socket.local_addr()?.into(),
                Socket::Unix(socket) => Address::from_unix(&socket.local_addr()?),
            }),
            Self::Own(_) => None,
        })
    }

    /// Who is at the other end, as the kernel knows it; of Unix sockets only.
    pub(crate) fn credentials(&self) -> io::Result<Option<Credentials>> {
        #[cfg(target_os = "linux")]
        {
            let socket = match self {
                Self::Unix(socket) => socket.get_ref().as_fd(),
                Self::Slot(slot) if matches!(slot.socket(), Socket::Unix(_)) => slot.as_fd(),
                _ => return Ok(None),
            };
            let found = rustix::net::sockopt::socket_peercred(socket)?;
            Ok(Some(Credentials {
                pid: found.pid.as_raw_nonzero().get(),
                uid: found.uid.as_raw(),
                gid: found.gid.as_raw(),
            }))
        }
        #[cfg(not(target_os = "linux"))]
        Ok(None)
    }

    /// A second descriptor of the same socket.
    pub(crate) fn duplicate(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(socket) => socket.get_ref().try_clone().map(Socket::Tcp),
            Self::Unix(socket) => socket.get_ref().try_clone().map(Socket::Unix),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => match slot.socket() {
                Socket::Tcp(socket) => socket.try_clone().map(Socket::Tcp),
                Socket::Unix(socket) => socket.try_clone().map(Socket::Unix),
            },
            Self::Own(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "only a TCP or Unix connection can be detached: this one runs over a transport of its own",
            )),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let done = match self {
            Self::Tcp(socket) => socket.get_ref().shutdown(how),
            Self::Unix(socket) => socket.get_ref().shutdown(how),
            #[cfg(target_os = "linux")]
            Self::Slot(slot) => match slot.socket() {
                Socket::Tcp(socket) => socket.shutdown(how),
                Socket::Unix(socket) => socket.shutdown(how),
            },
            Self::Own(_) => Ok(()),
        };
        match done {
            // The peer was faster: there is nobody left to tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Unix(_) => "Unix",
            #[cfg(target_os = "linux")]
            Self::Slot(_) => "Slot",
            Self::Own(_) => "Own",
        })
    }
}

// A call of its own: it would make what calls it too large to be inlined.
#[inline(never)]
fn poll_socket_read<T>(
    socket: &Async<T>,
    reader: &Half,
    cx: &mut Context<'_>,
    buf: &mut [u8],
    look: bool,
) -> Poll<io::Result<usize>>
where
    for<'a> &'a T: Read,
{
    if reader.has(Half::ARMED) && !look && arm(reader, socket.poll_readable(cx))? {
        // Nothing, or news that `async-io` takes for old, because it came in the very round of the
        // reactor in which it was asked for: a look costs less than another round.
        return match uninterrupted(|| socket.get_ref().read(buf)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            received => Poll::Ready(received),
        };
    }
    loop {
        // Also after a short read: a peer on the same core has mostly answered by now.
        match uninterrupted(|| socket.get_ref().read(buf)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return Poll::Ready(received),
        }
        if arm(reader, socket.poll_readable(cx))? {
            return Poll::Pending;
        }
    }
}

#[inline(never)]
fn poll_socket_write<T>(
    socket: &Async<T>,
    writer: &Half,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>>
where
    for<'a> &'a T: Write,
{
    if writer.has(Half::ARMED) {
        ready!(socket.poll_writable(cx))?;
        writer.clear(Half::ARMED);
    }
    loop {
        let written = uninterrupted(|| match bufs {
            [buf] => socket.get_ref().write(buf),
            bufs => socket.get_ref().write_vectored(bufs),
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
        if arm(writer, socket.poll_writable(cx))? {
            return Poll::Pending;
        }
    }
}

/// Notes whether the reactor will wake us, and says so.
fn arm(half: &Half, ready: Poll<io::Result<()>>) -> io::Result<bool> {
    let pending = ready?.is_pending();
    if pending {
        half.set(Half::ARMED);
    } else {
        half.clear(Half::ARMED);
    }
    Ok(pending)
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

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
