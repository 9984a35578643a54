//! The TLS of one connection: rustls between a transport and the connection's halves.
//!
//! It is no transport over a transport. What it has to send and the kernel has not taken yet is known
//! to the connection, which is busy for so long, and whose task sends it: a write is done when its
//! bytes are encrypted, and what a read makes to be sent is sent though nobody writes.
//!
//! 1. Every operation is made under the session's lock, of which there is one: the two directions
//!    share their state. Nobody is woken under it but by a reactor.
//! 2. The marks are stored under the lock, after what they tell of, and loaded without it.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use rustls::{ServerConfig, ServerConnection};

use super::TlsInfo;
use super::records::Records;
use crate::socket::budget;
use crate::socket::buffer::Buffer;
use crate::socket::readiness::{HalfState, Readiness};
use crate::sync::lock_for_user;
use crate::transport::Transport;

/// The type of a record that a handshake begins with.
const HANDSHAKE_RECORD: u8 = 22;

/// The TLS of one connection.
pub(crate) struct TlsState {
    session: Mutex<Session>,
    marks: AtomicU8,
    /// The uptime, in nanoseconds, at which the handshake ended.
    pub(crate) begun: AtomicU64,
}

/// What is known of a session without its lock.
mod mark {
    /// The handshake goes on.
    pub(super) const HANDSHAKE: u8 = 1;
    /// There is ciphertext that the kernel has not taken.
    pub(super) const UNSENT: u8 = 1 << 1;
    /// There is input that no read has been given: plaintext, whole records, or part of one.
    pub(super) const INPUT: u8 = 1 << 2;
}

struct Session {
    rustls: ServerConnection,
    /// What was received and rustls has not taken in yet.
    input: Buffer,
    /// Where in a record the input is that rustls has taken in.
    records: Records,
    /// How many bytes of plaintext rustls has for the next read.
    plaintext: usize,
    /// The answers of a reactor to the one that sends: see [`HalfState::ARMED`].
    sender: HalfState,
    /// Why there is nothing more to be read.
    failed: Option<(io::ErrorKind, String)>,
    /// Why nothing can be sent any more.
    broken: Option<(io::ErrorKind, String)>,
    /// Our end was made.
    is_finished: bool,
}

/// What a session runs over.
#[derive(Clone, Copy)]
pub(crate) struct Wire<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) readiness: &'a Readiness,
    pub(crate) reader: &'a HalfState,
}

/// What an operation on a session has come to.
pub(crate) struct Done<T> {
    pub(crate) result: T,
    /// The kernel has taken the last of the ciphertext that it had no room for.
    pub(crate) is_sent: bool,
    /// There is ciphertext for which the kernel has no room.
    pub(crate) is_unsent: bool,
}

impl TlsState {
    /// A session before its handshake; `input` is what has been received of it already.
    ///
    /// # Errors
    /// Where the configuration cannot be used.
    pub(crate) fn new(config: Arc<ServerConfig>, input: Buffer) -> io::Result<Self> {
        let rustls = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self {
            session: Mutex::new(Session {
                rustls,
                input,
                records: Records::default(),
                plaintext: 0,
                sender: HalfState::default(),
                failed: None,
                broken: None,
                is_finished: false,
            }),
            marks: AtomicU8::new(mark::HANDSHAKE),
            begun: AtomicU64::new(0),
        })
    }

    /// Whether the connection is inside something that concerns TLS: a handshake, a record, input that
    /// no read was given, output that the kernel has not taken.
    pub(crate) fn is_busy(&self) -> bool {
        self.marks.load(SeqCst) != 0
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.marks.load(SeqCst) & mark::HANDSHAKE != 0
    }

    /// Whether there is ciphertext that the kernel has not taken.
    pub(crate) fn is_unsent(&self) -> bool {
        self.marks.load(SeqCst) & mark::UNSENT != 0
    }

    /// What was agreed on in the handshake; `None` before its end.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        let session = lock_for_user(&self.session);
        (!session.rustls.is_handshaking()).then(|| TlsInfo::new(&session.rustls))
    }

    /// Whether the client has agreed to this protocol by ALPN; `None` where it has to none.
    #[cfg(feature = "http")]
    pub(crate) fn is_protocol(&self, protocol: &[u8]) -> Option<bool> {
        let session = lock_for_user(&self.session);
        session.rustls.alpn_protocol().map(|it| it == protocol)
    }

    /// Goes on with the handshake; ready at its end. What is then still to be sent the task sends.
    ///
    /// # Errors
    /// Where it cannot come to a good end. The alert, which tells the client, is sent as far as the
    /// kernel has room.
    pub(crate) fn poll_handshake(
        &self,
        wire: Wire<'_>,
        cx: &mut Context<'_>,
    ) -> Done<Poll<io::Result<()>>> {
        self.with(|session| session.handshake(wire, cx))
    }

    /// Reads plaintext, or arranges a wake-up for ciphertext; `look` as of a transport's read.
    pub(crate) fn poll_read(
        &self,
        wire: Wire<'_>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        look: bool,
    ) -> Done<Poll<io::Result<usize>>> {
        self.with(|session| {
            let read = session.read(wire, cx, buf, look);
            // An update of keys is answered, and an error told.
            let _broken = session.send(&mut Try(wire.transport));
            read
        })
    }

    /// Encrypts what a write may send at once, and sends what the kernel has room for. Pending while
    /// an earlier write's ciphertext is still to be sent; no wake-up is arranged.
    pub(crate) fn poll_write(
        &self,
        transport: &Transport,
        bufs: &[IoSlice<'_>],
    ) -> Done<Poll<io::Result<usize>>> {
        self.with(|session| {
            if !session.send(&mut Try(transport))? {
                return Poll::Pending;
            }
            if session.is_finished || session.failed.is_some() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the TLS session is at its end",
                )));
            }
            let written = session.rustls.writer().write_vectored(bufs)?;
            session.send(&mut Try(transport))?;
            Poll::Ready(Ok(written))
        })
    }

    /// Sends what the kernel has room for; gives whether that is all. No wake-up is arranged.
    pub(crate) fn try_send(&self, transport: &Transport) -> Done<io::Result<bool>> {
        self.with(|session| session.send(&mut Try(transport)))
    }

    /// As [`try_send`](Self::try_send), of the one who is to be woken when there is room: the
    /// connection's task, or its handshake.
    pub(crate) fn poll_send(&self, wire: Wire<'_>, cx: &mut Context<'_>) -> Done<io::Result<bool>> {
        self.with(|session| {
            let sender = std::mem::take(&mut session.sender);
            let sent = session.send(&mut Armed {
                wire,
                sender: &sender,
                cx,
            });
            session.sender = sender;
            sent
        })
    }

    /// Makes our end, and sends what the kernel has room for; gives whether that is all.
    pub(crate) fn try_finish(&self, transport: &Transport) -> Done<io::Result<bool>> {
        self.with(|session| {
            if !session.is_finished {
                session.is_finished = true;
                session.rustls.send_close_notify();
            }
            session.send(&mut Try(transport))
        })
    }

    /// Runs an operation under the lock, and marks what it leaves (invariant 2).
    fn with<T>(&self, operate: impl FnOnce(&mut Session) -> T) -> Done<T> {
        let mut session = self.lock();
        let result = operate(&mut session);
        let marks = session.marks();
        let before = self.marks.swap(marks, SeqCst);
        Done {
            result,
            is_sent: before & !marks & mark::UNSENT != 0,
            is_unsent: marks & mark::UNSENT != 0,
        }
    }

    /// Code of the user's may run under this lock, a resolver of certificates or a verifier, and
    /// nothing but operations on the same connection waits for it.
    fn lock(&self) -> MutexGuard<'_, Session> {
        lock_for_user(&self.session)
    }
}

impl fmt::Debug for TlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsState")
            .field("marks", &self.marks)
            .finish_non_exhaustive()
    }
}

impl Session {
    fn marks(&self) -> u8 {
        let is_alive = self.failed.is_none();
        let mut marks = 0;
        if self.rustls.is_handshaking() && is_alive && !self.is_finished {
            marks |= mark::HANDSHAKE;
        }
        if self.rustls.wants_write() && self.broken.is_none() {
            marks |= mark::UNSENT;
        }
        let has_input = !self.input.is_empty() || self.records.is_inside();
        if self.plaintext > 0 || has_input && is_alive {
            marks |= mark::INPUT;
        }
        marks
    }

    fn handshake(&mut self, wire: Wire<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // What comes with the last of the handshake may fail, and is a matter of the reads.
            if !self.rustls.is_handshaking() {
                let _broken = self.send(&mut Try(wire.transport));
                return Poll::Ready(Ok(()));
            }
            if let Some((kind, message)) = &self.failed {
                return Poll::Ready(Err(io::Error::new(*kind, message.clone())));
            }
            self.send(&mut Try(wire.transport))?;
            if self.input.is_empty() {
                match self.receive(wire, cx, true) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => {
                        let message = "the client has ended in the middle of the TLS handshake";
                        self.failed = Some((io::ErrorKind::UnexpectedEof, message.into()));
                    }
                    Poll::Ready(received) => drop(received?),
                }
            } else if self.take_in().is_err() {
                let _broken = self.send(&mut Try(wire.transport));
            }
        }
    }

    fn read(
        &mut self,
        wire: Wire<'_>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        look: bool,
    ) -> Poll<io::Result<usize>> {
        let mut receives = 0;
        loop {
            match self.rustls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => {
                    // The client's close_notify: what it sends after that is nothing.
                    self.input = Buffer::default();
                    self.records = Records::default();
                    return Poll::Ready(Ok(0));
                }
                read => {
                    self.plaintext = self.plaintext.saturating_sub(*read.as_ref().unwrap_or(&0));
                    return Poll::Ready(read);
                }
            }
            if let Some((kind, message)) = &self.failed {
                return Poll::Ready(Err(io::Error::new(*kind, message.clone())));
            }
            if !self.input.is_empty() {
                // Why it fails is told above.
                let _failed = self.take_in();
                continue;
            }
            // The caller counts the first as its operation. Records without content for the reader
            // bring more.
            if receives > 0 {
                budget::spend(0);
                if budget::is_used_up() {
                    return budget::yield_turn(cx);
                }
            }
            receives += 1;
            match self.receive(wire, cx, look) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) if self.records.is_inside() => {
                    let message = "the peer has ended inside a TLS record";
                    self.failed = Some((io::ErrorKind::UnexpectedEof, message.into()));
                }
                // An end without a close_notify, at the end of a record, is an end.
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(received) => drop(received?),
            }
        }
    }

    /// Receives ciphertext.
    fn receive(
        &mut self,
        wire: Wire<'_>,
        cx: &mut Context<'_>,
        look: bool,
    ) -> Poll<io::Result<usize>> {
        self.input.fill(|buf| {
            let word = wire.readiness.word();
            let received = wire.transport.poll_read(word, wire.reader, cx, buf, look);
            let filled = match received {
                Poll::Ready(Ok(n)) => n,
                _ => 0,
            };
            (filled, received)
        })
    }

    /// Has rustls take in some of the input.
    fn take_in(&mut self) -> Result<(), ()> {
        let bytes = self.input.bytes();
        let is_first = self.rustls.is_handshaking() && self.rustls.protocol_version().is_none();
        let found = (is_first && !self.records.is_inside())
            .then(|| bytes.first().copied())
            .flatten();
        let start = bytes[..bytes.len().min(16)].escape_ascii().to_string();
        let taken = self.rustls.read_tls(&mut &*bytes);
        let processed = match taken {
            Ok(taken) => {
                self.records.advance(&bytes[..taken]);
                self.input.consume(taken);
                let processed = self.rustls.process_new_packets();
                if taken == 0 && processed.is_ok() {
                    // Nothing but a record of a length that cannot be is left untaken.
                    self.input = Buffer::default();
                }
                processed.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match processed {
            Ok(state) => {
                self.plaintext = state.plaintext_bytes_to_read();
                Ok(())
            }
            Err(message) => {
                let message = match found {
                    Some(first) if first != HANDSHAKE_RECORD => format!(
                        "expected a TLS handshake, found plain text that begins with \"{start}\""
                    ),
                    _ => format!("TLS: {message}"),
                };
                self.input = Buffer::default();
                self.failed = Some((io::ErrorKind::InvalidData, message));
                Err(())
            }
        }
    }

    /// Sends ciphertext; gives whether that was all.
    fn send(&mut self, to: &mut dyn Write) -> io::Result<bool> {
        if let Some((kind, message)) = &self.broken {
            return Err(io::Error::new(*kind, message.clone()));
        }
        while self.rustls.wants_write() {
            match self.rustls.write_tls(to) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => {
                    self.broken = Some((error.kind(), error.to_string()));
                    return Err(error);
                }
            }
        }
        Ok(true)
    }
}

/// Writes to a transport, without arranging anything.
struct Try<'a>(&'a Transport);

impl Write for Try<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to a transport, and arranges a wake-up where there is no room.
struct Armed<'a, 'b> {
    wire: Wire<'a>,
    sender: &'a HalfState,
    cx: &'a mut Context<'b>,
}

impl Write for Armed<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let Wire {
            transport,
            readiness,
            ..
        } = self.wire;
        match transport.poll_write(readiness, self.sender, self.cx, bufs) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
