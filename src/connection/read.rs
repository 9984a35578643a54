//! The reading half.
//!
//! 1. Input that has arrived is delivered first: a drain ends a read only after the kernel has
//!    said, *after* the request to stop, that there is nothing.
//! 2. The reader registers its waker first and looks afterwards at what a wake-up may be about: the
//!    word, and whether its connection is busy. Swapped, a change between the two acts would wake
//!    no future.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use futures_io::{AsyncBufRead, AsyncRead};

use super::lines::Lines;
use super::write::{WriteHalf, leave, leave_writer};
use super::{Connection, ReuniteError};
use crate::shared::connection::ConnectionState;
use crate::socket::budget::{self, TURN};
use crate::socket::buffer::Buffer;
use crate::socket::errors::{aborted, expired};
use crate::socket::readiness::{HalfState, Waiter, flag};

/// The reading half of a [`Connection`].
pub struct ReadHalf {
    pub(super) state: Arc<ConnectionState>,
    pub(super) buffer: Buffer,
}

/// The flags with which a read takes the long way.
const SPECIAL: u64 = flag::TLS | flag::DRAINING | flag::PEER_ENDED | flag::ENDED_BY_SERVER;

impl ReadHalf {
    /// Reads line by line; see [`Lines`].
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines::new(self)
    }

    /// What was received and not consumed yet.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Undoes [`Connection::split`].
    ///
    /// # Errors
    /// Where the halves are of two connections, with both of them.
    pub fn reunite(self, writer: WriteHalf) -> Result<Connection, ReuniteError> {
        if !Arc::ptr_eq(&self.state, &writer.state) {
            return Err(ReuniteError(self, writer));
        }
        // The flag keeps the write half's destructor from sending the peer our end.
        self.state.writer.set(HalfState::REUNITED);
        drop(writer);
        self.state.writer.clear(HalfState::REUNITED);
        self.state.clear(flag::SPLIT);
        Ok(Connection { reader: self })
    }

    /// Receives into the buffer, which is empty.
    // Not inlined: futures poll `fill_buf` once more for what it has received, and that second poll
    // is a few instructions without this.
    #[inline(never)]
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let state = &*self.state;
        let mut word = state.word();
        if is_quiet(state, word) {
            // A connection that waits needs no buffer, and the kernel is not asked.
            wait(state, cx);
            // Invariant 2.
            word = state.word();
            if is_quiet(state, word) {
                return Poll::Pending;
            }
        } else if word & SPECIAL != 0 && word & (flag::PEER_ENDED | flag::DRAIN_ENDED) != 0 {
            // Futures poll once more for an end, too.
            return Poll::Ready(Ok(0));
        }
        fill(state, &mut self.buffer, word, cx)
    }

    /// Records, after some input was consumed, if that was all.
    #[inline]
    pub(super) fn after_consume(&self) {
        if self.buffer.is_empty() {
            self.state.mark_consumed();
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
            // Into the caller's buffer, without a detour through one of our own.
            let word = this.state.word();
            ready!(poll_receive(&this.state, word, cx, buf))?
        } else {
            let bytes = this.buffer.bytes();
            let n = bytes.len().min(buf.len());
            buf[..n].copy_from_slice(&bytes[..n]);
            this.buffer.consume(n)
        };
        this.after_consume();
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
        self.after_consume();
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.state.reader.clear(HalfState::WAITING);
        self.state.clear_other_waker(Waiter::Reader);
        if self.state.has(flag::SPLIT) {
            leave(&self.state, flag::READER | flag::READER_TASK_WAKER);
        } else {
            let writer = flag::WRITER | flag::WRITER_TASK_WAKER;
            leave_writer(&self.state, flag::READER | flag::READER_TASK_WAKER | writer);
        }
    }
}

/// Receives into `buffer`, which is empty, where there may be something.
// A call of its own: what it needs of registers and stack a read that only waits need not save.
#[inline(never)]
fn fill(
    state: &ConnectionState,
    buffer: &mut Buffer,
    word: u64,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    buffer.fill(|buf| {
        let received = poll_receive(state, word, cx, buf);
        let filled = match received {
            Poll::Ready(Ok(n)) => n,
            _ => 0,
        };
        (filled, received)
    })
}

/// Whether the word says that there is nothing to read, nor anything else to be looked at.
#[inline]
fn is_quiet(state: &ConnectionState, word: u64) -> bool {
    word & SPECIAL == 0 && !state.transport.may_read(word)
}

/// Receives into `buf`; the connection's own buffer is empty. `word` is what was loaded last.
#[inline(always)]
fn poll_receive(
    state: &ConnectionState,
    mut word: u64,
    cx: &mut Context<'_>,
    buf: &mut [u8],
) -> Poll<io::Result<usize>> {
    let most = buf.len().min(TURN);
    let buf = &mut buf[..most];
    loop {
        if word & SPECIAL != 0 {
            return poll_receive_specially(state, cx, buf);
        }
        if budget::is_used_up() {
            return budget::yield_turn(cx);
        }
        let transport = &state.transport;
        let received = transport.poll_read(word, &state.reader, cx, buf, false);
        if let Poll::Ready(received) = received {
            return Poll::Ready(note(state, received));
        }
        wait(state, cx);
        word = state.word();
        if word & SPECIAL == 0 && !state.transport.missed_read(word) {
            return Poll::Pending;
        }
    }
}

/// Receives at a drain, after the peer's end, where the server has ended the connection, or
/// through TLS.
#[cold]
fn poll_receive_specially(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    buf: &mut [u8],
) -> Poll<io::Result<usize>> {
    // Once a read has said that the input is at its end, every later read says so.
    let word = state.word();
    if word & (flag::PEER_ENDED | flag::DRAIN_ENDED) != 0 {
        return Poll::Ready(Ok(0));
    }
    if word & flag::ABORT != 0 {
        return Poll::Ready(Err(aborted()));
    }
    if budget::is_used_up() {
        return budget::yield_turn(cx);
    }
    // Invariant 1: at a drain the kernel is asked in any case, whatever was reported.
    let looks = word & SPECIAL != flag::TLS;
    let received = poll_transport(state, word, cx, buf, looks);
    if let Poll::Ready(received) = received {
        return Poll::Ready(note(state, received));
    }
    // Invariant 2: the write half, or a busy guard, changes whether the connection is busy
    // first, and wakes the reader afterwards.
    wait(state, cx);
    let word = state.word();
    if word & flag::ABORT != 0 {
        return Poll::Ready(Err(aborted()));
    }
    if word & flag::EXPIRED != 0 {
        return Poll::Ready(Err(expired()));
    }
    if word & flag::DRAINING == 0 || word & flag::NEVER_IDLE != 0 {
        return keep_waiting(state, cx);
    }
    let is_fresh = word & flag::FIRST_BYTE_GRACE != 0 && state.received.load(Relaxed) == 0;
    if is_fresh || state.is_busy() {
        if word & flag::QUIET != 0 {
            // The task's timer may have fired before this wait began, and nothing else would end
            // it. A task that is in its handler looks at its timer afterwards.
            state.wake_task();
        }
        return keep_waiting(state, cx);
    }
    state.reader.clear(HalfState::WAITING);
    state.set(flag::DRAIN_ENDED);
    Poll::Ready(Ok(0))
}

/// Reads from the transport, through TLS where there is that.
fn poll_transport(
    state: &ConnectionState,
    word: u64,
    cx: &mut Context<'_>,
    buf: &mut [u8],
    look: bool,
) -> Poll<io::Result<usize>> {
    #[cfg(feature = "_tls")]
    if let Some(tls) = state.tls() {
        return super::tls::poll_read(state, tls, cx, buf, look);
    }
    let transport = &state.transport;
    transport.poll_read(word, &state.reader, cx, buf, look)
}

/// Goes on waiting. For an event that came before the waker was registered the reader is woken
/// at once.
fn keep_waiting<T>(state: &ConnectionState, cx: &Context<'_>) -> Poll<T> {
    if state.transport.missed_read(state.word()) {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

/// Counts the bytes that the transport has read, or records how the input ended.
#[inline(always)]
fn note(state: &ConnectionState, received: io::Result<usize>) -> io::Result<usize> {
    if let Ok(bytes @ 1..) = received {
        budget::spend(bytes);
        state.mark_received(bytes);
        return received;
    }
    state.reader.clear(HalfState::WAITING);
    // After an abort an end is not the peer's: the abort has shut the socket. Errors mostly
    // come of that, too.
    if state.has(flag::ABORT) {
        return Err(aborted());
    }
    if received.is_ok() {
        state.set(flag::PEER_ENDED);
    }
    received
}

/// Records that the reader waits, and registers its waker.
#[inline]
fn wait(state: &ConnectionState, cx: &Context<'_>) {
    if !state.reader.has(HalfState::WAITING) {
        state.reader.set(HalfState::WAITING);
        state.mark_activity();
    }
    state.register(Waiter::Reader, cx);
}
