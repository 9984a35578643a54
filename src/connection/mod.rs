//! One peer, as its handler sees it.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};

use futures_io::{AsyncBufRead, AsyncRead, AsyncWrite};
use futures_lite::Stream;

use crate::address::Address;
use crate::handle::Handle;
use crate::shared::connection::{Half, Record, Who, bit};
use crate::socket::buffer::Buffer;

pub(crate) mod close;
pub(crate) mod task;
pub(crate) mod timeouts;

/// One accepted peer: a buffered reader and a writer.
///
/// It reads and writes through the `futures-io` traits, so `futures-lite` or `futures-util` bring
/// the methods (`read_line`, `write_all`, …). It is buffered, and owns no buffer while it waits.
///
/// # At a shutdown
/// Reads end (`Ok(0)`, and stay so) when the server drains and this connection is *idle*: everything
/// received was consumed and answered, that is, a write that was begun after it was consumed has
/// completed. Input that has arrived is always delivered first, and a connection inside a message
/// goes on. This needs no word from a handler in which requests and replies take turns. Others
/// declare themselves with [`busy`](Self::busy) or [`manual_drain`](Self::manual_drain): those that
/// mostly read, those that read while they answer, those that keep input in a buffer of their own.
///
/// # At its end
/// When the connection, or the last of its halves, is dropped, its end is sent, what the peer still
/// sends is read and discarded for a while, and the socket is closed: everything written arrives.
/// The server counts the connection until then.
pub struct Connection {
    /// Stands for both halves: the writing one keeps all it knows in the record.
    reader: ReadHalf,
}

/// The reading half of a [`Connection`].
pub struct ReadHalf {
    record: Arc<Record>,
    buffer: Buffer,
}

/// The writing half of a [`Connection`]. Dropping it sends the peer our end.
pub struct WriteHalf {
    record: Arc<Record>,
}

/// Who ended the input of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndedBy {
    /// The peer: it sent its end.
    Peer,
    /// The drain: the connection was idle when the server was asked to stop.
    Drain,
}

impl Connection {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self {
            reader: ReadHalf {
                record,
                buffer: Buffer::default(),
            },
        }
    }

    /// Parts the two directions, without a lock between them.
    ///
    /// Either half may go to another task and outlive the handler; the connection ends, counted by
    /// the handler's outcome, when both are gone. Dropping the write half alone sends our end and
    /// leaves the peer's side open.
    #[must_use]
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        self.reader.record.set(bit::SPLIT);
        let record = self.reader.record.clone();
        (self.reader, WriteHalf { record })
    }

    /// Takes the connection out of the server: the socket, and the bytes read but not consumed.
    ///
    /// The server gives its place to another and forgets it at once; the handler may go on, and a
    /// shutdown no longer waits for it (see [`Handle::track`]). The socket is a second descriptor
    /// of the same connection, in non-blocking mode.
    ///
    /// # Errors
    /// `Unsupported` where the connection runs over a transport of the user's own; the system's
    /// error where there is no descriptor to be had. The connection is closed then, as if dropped.
    pub fn detach(self) -> io::Result<Detached> {
        let record = &self.reader.record;
        // From here on an abort leaves the socket alone; one that came first has cut it.
        if record.set(bit::DETACHED) & bit::ABORT != 0 {
            record.clear(bit::DETACHED);
            return Err(cut());
        }
        let socket = match record.transport.duplicate() {
            Ok(socket) => socket,
            Err(error) => {
                record.clear(bit::DETACHED);
                return Err(error);
            }
        };
        let detached = Detached {
            socket,
            unread: self.reader.buffer.bytes().to_vec(),
            peer: record.peer(),
        };
        record.wake(Who::Task);
        Ok(detached)
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

/// A connection that was taken out of its server.
#[derive(Debug)]
#[non_exhaustive]
pub struct Detached {
    /// The socket, in non-blocking mode.
    pub socket: Socket,
    /// What was read from it and not consumed; it comes before what the socket has.
    pub unread: Vec<u8>,
    /// The peer.
    pub peer: Address,
}

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

/// What a connection and its halves all can, but for reading and writing.
macro_rules! common {
    ($type:ty, $self:ident => $record:expr) => {
        impl $type {
            /// The id of this connection: 1 for the first of its server, and so on.
            #[must_use]
            pub fn id(&$self) -> u64 {
                $record.id
            }

            /// The peer's address.
            #[must_use]
            pub fn peer_addr(&$self) -> Address {
                $record.peer()
            }

            /// The address the peer connected to.
            ///
            /// # Errors
            /// The system's, if it does not know any more.
            pub fn local_addr(&$self) -> io::Result<Address> {
                $record.local_addr()
            }

            /// The process at the other end of a Unix socket, as it was when it connected; `None`
            /// for other transports, and where the system cannot tell.
            ///
            /// # Errors
            /// The system's.
            pub fn peer_credentials(&$self) -> io::Result<Option<Credentials>> {
                $record.transport.credentials()
            }

            /// The server's handle. This one knows its connection: see [`Handle::closed`].
            #[must_use]
            pub fn handle(&$self) -> Handle {
                Handle::inside(&$record)
            }

            /// Waits until this connection is asked to come to an end: the server drains and its
            /// door is shut, or [`Handle::close_connections`] was called, or it is being cut.
            ///
            /// The future is owned and can be dropped at any time.
            pub fn shutdown_requested(
                &$self,
            ) -> impl Future<Output = ()> + Send + Sync + 'static + use<> {
                told(Arc::downgrade(&$record))
            }

            /// Whether this connection has been asked to come to an end.
            #[must_use]
            pub fn is_shutting_down(&$self) -> bool {
                $record.has(bit::TOLD | bit::ABORT)
            }

            /// Says that the handler is inside a message for as long as the guard lives.
            ///
            /// From the first guard on, whether this connection is idle is no longer told from what
            /// was answered: it is busy while a guard lives or received input is unread.
            #[must_use = "the connection counts as busy only as long as the guard lives"]
            pub fn busy(&$self) -> Busy {
                $record.guard();
                Busy(Arc::downgrade(&$record))
            }

            /// Leaves the reaction to a drain to the handler: reads never end early. It watches
            /// [`shutdown_requested`](Self::shutdown_requested) instead.
            pub fn manual_drain(&$self) {
                $record.set(bit::MANUAL);
            }

            /// Who ended the input, once a read has said that it is at its end.
            #[must_use]
            pub fn ended_by(&$self) -> Option<EndedBy> {
                let word = $record.word();
                if word & bit::DRAIN_ENDED != 0 {
                    Some(EndedBy::Drain)
                } else if word & bit::PEER_ENDED != 0 {
                    Some(EndedBy::Peer)
                } else {
                    None
                }
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&$self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))
                    .field("id", &$record.id)
                    .field("peer", &$record.peer())
                    .finish_non_exhaustive()
            }
        }
    };
}

common!(Connection, self => self.reader.record);
common!(ReadHalf, self => self.record);
common!(WriteHalf, self => self.record);

async fn told(record: Weak<Record>) {
    loop {
        let told = {
            // One that is gone was told all there is to tell.
            let Some(record) = record.upgrade() else {
                return;
            };
            let told = record.listen();
            if record.has(bit::TOLD | bit::ABORT) {
                return;
            }
            told
        };
        told.await;
    }
}

/// Says that a handler is inside a message; see [`Connection::busy`].
#[derive(Debug)]
pub struct Busy(Weak<Record>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(record) = self.0.upgrade() {
            record.unguard();
        }
    }
}

/// What a read has to look at closely.
const SPECIAL: u64 = bit::TOLD | bit::PEER_ENDED | bit::CUT;

impl ReadHalf {
    /// Reads line by line; see [`Lines`].
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines {
            reader: self,
            line: Vec::new(),
            done: false,
        }
    }

    /// Receives into the buffer, which is empty. A call of its own: `fill_buf` polls once more for
    /// what it has got, and that finds it with a few instructions.
    #[inline(never)]
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // A connection that waits needs no buffer.
        if self.rests(cx) {
            return Poll::Pending;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = buffer.fill(|buf| {
            let received = self.poll_receive(cx, buf);
            let filled = match received {
                Poll::Ready(Ok(n)) => n,
                _ => 0,
            };
            (filled, received)
        });
        self.buffer = buffer;
        received
    }

    /// Leaves the waker and says so, where it is known without a look that there is nothing.
    #[inline]
    fn rests(&mut self, cx: &mut Context<'_>) -> bool {
        let is_quiet = |record: &Record| {
            let word = record.word();
            word & SPECIAL == 0 && !record.transport.may_read(word)
        };
        if !is_quiet(&self.record) {
            return false;
        }
        self.wait(cx);
        // The waker is there: whoever comes from here on finds it.
        is_quiet(&self.record)
    }

    /// Receives into `buf`, with nothing in the buffer.
    #[inline(always)]
    fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let record = &*self.record;
            let word = record.word();
            if word & SPECIAL != 0 {
                return self.poll_receive_specially(cx, buf);
            }
            if !record.transport.has_turn() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let transport = &record.transport;
            let received = transport.poll_read(word, &record.reader, cx, buf, false);
            if let Poll::Ready(received) = received {
                return Poll::Ready(self.note(received));
            }
            self.wait(cx);
            let record = &*self.record;
            let word = record.word();
            if word & SPECIAL == 0 && !record.transport.missed(word, true) {
                return Poll::Pending;
            }
        }
    }

    /// The same at a drain, or where the connection was cut.
    #[cold]
    fn poll_receive_specially(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever has seen the end sees it again.
        let word = self.record.word();
        if word & (bit::PEER_ENDED | bit::DRAIN_ENDED) != 0 {
            return Poll::Ready(Ok(0));
        }
        if word & bit::ABORT != 0 {
            return Poll::Ready(Err(cut()));
        }
        // What has arrived comes first: the kernel has to say that there is nothing *now*.
        let record = &*self.record;
        let transport = &record.transport;
        let received = transport.poll_read(word, &record.reader, cx, buf, true);
        if let Poll::Ready(received) = received {
            return Poll::Ready(self.note(received));
        }
        // Whoever writes, or drops a guard, wakes this reader after it has changed what makes the
        // connection busy; so the waker has to be there before that is looked at.
        self.wait(cx);
        let word = self.record.word();
        if word & bit::ABORT != 0 {
            return Poll::Ready(Err(cut()));
        }
        if word & bit::EXPIRED != 0 {
            return Poll::Ready(Err(expired()));
        }
        if word & bit::TOLD == 0 || word & bit::MANUAL != 0 {
            return self.pend(cx);
        }
        let fresh = word & bit::GRACE != 0 && self.record.received.load(Relaxed) == 0;
        if fresh || self.record.is_busy() {
            return self.pend(cx);
        }
        self.record.reader.clear(Half::WAITS);
        self.record.set(bit::DRAIN_ENDED);
        Poll::Ready(Ok(0))
    }

    /// Waits on, unless an event came before the waker that was left for it.
    fn pend<T>(&self, cx: &Context<'_>) -> Poll<T> {
        if self.record.transport.missed(self.record.word(), true) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Accounts for what the transport said.
    #[inline(always)]
    fn note(&mut self, received: io::Result<usize>) -> io::Result<usize> {
        let record = &*self.record;
        if let Ok(bytes @ 1..) = received {
            record.receive(bytes);
            return received;
        }
        record.reader.clear(Half::WAITS);
        // The end that a cut has made is not the peer's, and an error then mostly came of it.
        if record.has(bit::ABORT) {
            return Err(cut());
        }
        if received.is_ok() {
            record.set(bit::PEER_ENDED);
        }
        received
    }

    #[inline]
    fn wait(&mut self, cx: &Context<'_>) {
        if !self.record.reader.has(Half::WAITS) {
            self.record.reader.set(Half::WAITS);
            self.record.touch();
        }
        self.record.park(Who::Reader, cx);
    }

    /// Something was consumed.
    #[inline]
    fn take(&self) {
        if self.buffer.is_empty() {
            self.record.take();
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let n = if this.buffer.is_empty() {
            // Without a detour through a buffer.
            ready!(this.poll_receive(cx, buf))?
        } else {
            let bytes = this.buffer.bytes();
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            this.buffer.consume(n)
        };
        this.take();
        Poll::Ready(Ok(n))
    }
}

impl AsyncBufRead for ReadHalf {
    #[inline]
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.buffer.is_empty() {
            ready!(this.poll_fill(cx))?;
        }
        Poll::Ready(Ok(this.buffer.bytes()))
    }

    #[inline]
    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.buffer.consume(amount);
        self.take();
    }
}

/// Sends for a write half, of which there is one: what it stores nobody else does.
fn poll_send(
    record: &Record,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if record.has(bit::CUT) {
        return Poll::Ready(Err(cut_or_expired(record)));
    }
    let waited = record.writer.has(Half::WAITS);
    let taken = record.taken();
    let transport = &record.transport;
    let Poll::Ready(sent) = transport.poll_write(record, cx, bufs) else {
        if !waited {
            record.begin_wait(taken);
            record.touch();
        }
        record.park(Who::Writer, cx);
        let word = record.word();
        if word & bit::CUT != 0 {
            return Poll::Ready(Err(cut_or_expired(record)));
        }
        if transport.missed(word, false) {
            cx.waker().wake_by_ref();
        }
        return Poll::Pending;
    };
    let sent = match sent {
        Ok(n) => {
            let total = record.sent.load(Relaxed) + n as u64;
            record.sent.store(total, Relaxed);
            // What this answers was said when it began.
            if !waited {
                record.answer(taken);
            }
            record.writer.clear(Half::WAITS | Half::OPEN);
            record.touch();
            Ok(n)
        }
        Err(error) => {
            record.writer.clear(Half::WAITS);
            Err(if record.has(bit::ABORT) { cut() } else { error })
        }
    };
    // Also where it failed: it waits no longer.
    record.written();
    Poll::Ready(sent)
}

/// Sends the peer our end, which `close` of other sockets of this world does not.
fn poll_finish(record: &Record, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(record.transport.poll_finish(cx))?;
    record.set(bit::FINISHED);
    Poll::Ready(Ok(()))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncBufRead for Connection {
    #[inline]
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().reader).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.reader).consume(amount);
    }
}

/// Connections and write halves write alike.
macro_rules! writes {
    ($type:ty, $self:ident => $record:expr) => {
        impl AsyncWrite for $type {
            fn poll_write(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                poll_send(&$record, cx, &[IoSlice::new(buf)])
            }

            fn poll_write_vectored(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                poll_send(&$record, cx, bufs)
            }

            fn poll_flush($self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                $record.transport.poll_flush(cx)
            }

            fn poll_close($self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                poll_finish(&$record, cx)
            }
        }
    };
}

writes!(Connection, self => self.reader.record);
writes!(WriteHalf, self => self.record);

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.record.reader.clear(Half::WAITS);
        self.record.unpark_away(Who::Reader);
        if self.record.has(bit::SPLIT) {
            leave(&self.record, bit::READER | bit::READER_HOME);
        } else {
            let writer = bit::WRITER | bit::WRITER_HOME;
            leave_writer(&self.record, bit::READER | bit::READER_HOME | writer);
        }
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        leave_writer(&self.record, bit::WRITER | bit::WRITER_HOME);
    }
}

fn leave_writer(record: &Record, bits: u64) {
    // A write that was waiting will not be completed.
    record.writer.clear(Half::WAITS);
    record.unpark_away(Who::Writer);
    leave(record, bits);
}

/// A half is gone. The last one leaves the close to the task.
fn leave(record: &Record, bits: u64) {
    let word = record.clear(bits) & !bits;
    if word & (bit::DETACHED | bit::WRITER) != 0 {
        return;
    }
    if word & bit::READER == 0 || !record.transport.finishes_at_once() {
        // The task closes what has no halves, and ends a transport that takes its time.
        record.wake_task();
    } else if word & bit::FINISHED == 0 {
        record.set(bit::FINISHED);
        // Where it fails there is no peer to tell.
        let _ignored = record
            .transport
            .poll_finish(&mut Context::from_waker(Waker::noop()));
    }
    if word & (bit::READER | bit::TOLD) == bit::READER | bit::TOLD {
        // Nothing is being written any more.
        record.wake(Who::Reader);
    }
}

/// The lines of a connection, without their ends (`\n` or `\r\n`).
///
/// A line longer than [`Builder::line_limit`](crate::Builder::line_limit) is an `InvalidData` error
/// and the last one; a line that is not UTF-8 is an `InvalidData` error, and the next one follows.
/// What comes between the last line end and the peer's end is a line, too, if it is not empty.
///
/// It is a [`Stream`] as well.
#[derive(Debug)]
pub struct Lines {
    reader: ReadHalf,
    line: Vec<u8>,
    done: bool,
}

impl Lines {
    /// The next line; `None` at the end of the input.
    ///
    /// Dropping the future loses nothing.
    // The name that async-std, tokio and asyncio's users look for; `Stream` is implemented too.
    #[allow(clippy::should_implement_trait)]
    pub async fn next(&mut self) -> Option<io::Result<String>> {
        std::future::poll_fn(|cx| self.poll_line(cx)).await
    }

    /// The reader, with what it has read and not given out; half a line held here is lost.
    #[must_use]
    pub fn into_inner(self) -> ReadHalf {
        self.reader
    }

    /// The reader, for its address, handle and guards.
    #[must_use]
    pub fn get_ref(&self) -> &ReadHalf {
        &self.reader
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<String>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let limit = self.reader.record.server.config.line_limit;
        loop {
            let bytes = match ready!(Pin::new(&mut self.reader).poll_fill_buf(cx)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if bytes.is_empty() {
                self.done = true;
                let last = !self.line.is_empty();
                return Poll::Ready(last.then(|| self.take_line()));
            }
            let end = memchr::memchr(b'\n', bytes);
            let length = end.unwrap_or(bytes.len());
            if self.line.len() + length > limit {
                self.done = true;
                let message = format!("a line is longer than the limit of {limit} bytes");
                return Poll::Ready(Some(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    message,
                ))));
            }
            self.line.extend_from_slice(&bytes[..length]);
            // Half a line is unread still, as far as the drain is concerned: it is taken whole.
            let buffer = &mut self.reader.buffer;
            buffer.consume(length + usize::from(end.is_some()));
            if end.is_some() {
                return Poll::Ready(Some(self.take_line()));
            }
        }
    }

    fn take_line(&mut self) -> io::Result<String> {
        self.reader.take();
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a line is not UTF-8"))
    }
}

impl Stream for Lines {
    type Item = io::Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_line(cx)
    }
}

fn cut() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the server cut the connection",
    )
}

fn expired() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the connection reached a time limit of the server",
    )
}

fn cut_or_expired(record: &Record) -> io::Error {
    if record.has(bit::ABORT) {
        cut()
    } else {
        expired()
    }
}
