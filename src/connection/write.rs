//! The writing half, and what becomes of a connection whose halves are dropped.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker, ready};

use futures_io::AsyncWrite;

use super::Connection;
use crate::log;
use crate::shared::connection::ConnectionState;
use crate::socket::budget::{self, TURN};
use crate::socket::buffer::Buffer;
use crate::socket::errors::{aborted, ended_by_server};
use crate::socket::readiness::{HalfState, Waiter, flag, is_tls};

/// The writing half of a [`Connection`]. Dropping it sends the peer our end.
pub struct WriteHalf {
    pub(super) state: Arc<ConnectionState>,
}

/// How many slices one system call takes, on Linux and elsewhere.
const MOST_SLICES: usize = 1024;

/// Up to how many bytes in several slices are copied together. The kernel takes longer over a second
/// slice than a copy of so much does.
const GATHERED: usize = 4096;

/// Sends `buf`, or as much of it as one operation may.
// With a copy of `poll_send_slices` for one slice, which is what most writes are.
#[inline(never)]
fn poll_send(state: &ConnectionState, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
    let sends = &buf[..buf.len().min(TURN)];
    poll_send_slices(state, cx, &[IoSlice::new(sends)], buf.len())
}

/// Sends `bufs`, or as many of them as one operation may.
fn poll_send_vectored(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let whole = bufs.iter().map(|buf| buf.len()).sum();
    // A write of nothing but empty slices would move nothing, and look like an end.
    let empty = bufs.iter().take_while(|buf| buf.is_empty()).count();
    let bufs = &bufs[empty..];
    if bufs.len() > 1 && whole <= GATHERED {
        return Buffer::default().fill(|gathered| {
            let mut end = 0;
            for buf in bufs {
                gathered[end..end + buf.len()].copy_from_slice(buf);
                end += buf.len();
            }
            (0, poll_send(state, cx, &gathered[..end]))
        });
    }
    let (mut count, mut sends) = (0, 0);
    for buf in bufs.iter().take(MOST_SLICES) {
        sends += buf.len();
        if sends > TURN {
            break;
        }
        count += 1;
    }
    match bufs {
        // The first alone is more than that.
        [first, ..] if count == 0 => poll_send(state, cx, first),
        _ => poll_send_slices(state, cx, &bufs[..count], whole),
    }
}

/// Sends for the write half, of a write of `whole` bytes. There is one write half, so what it stores
/// nothing else stores.
#[inline(always)]
fn poll_send_slices(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
    whole: usize,
) -> Poll<io::Result<usize>> {
    if state.has(flag::ENDED_BY_SERVER) {
        return Poll::Ready(Err(ended_by_server(state.word())));
    }
    let waited = state.writer.has(HalfState::WAITING);
    if state.reader.has(HalfState::WAITING) && !waited {
        warn_undeclared(state);
    }
    let answerable = state.answerable();
    let sent = if budget::is_used_up() {
        budget::yield_turn(cx)
    } else {
        poll_transport(state, cx, bufs)
    };
    let sent = match sent {
        Poll::Pending => return send_waits(state, cx, waited, answerable),
        Poll::Ready(Ok(n)) => {
            budget::spend(n);
            let total = state.sent.load(Relaxed) + n as u64;
            state.sent.store(total, Relaxed);
            // A write that had to wait has recorded in `before_wait` what it answers.
            // Nor does a write of no bytes answer anything.
            let is_whole = n == whole && n > 0;
            if !waited && is_whole {
                state.mark_answered(answerable);
            } else if !waited {
                // The rest, which is yet to be written, is part of the answer.
                state.begin_answer(answerable);
            }
            state.writer.clear(if is_whole {
                HalfState::WAITING | HalfState::UNANSWERED
            } else {
                HalfState::WAITING
            });
            Ok(n)
        }
        Poll::Ready(Err(error)) => {
            state.writer.clear(HalfState::WAITING);
            Err(if state.has(flag::ABORT) {
                aborted()
            } else {
                error
            })
        }
    };
    // Also of a write that failed: it waits no longer.
    state.after_write(sent.is_ok());
    Poll::Ready(sent)
}

/// Has a write wait, which `waited` before or did not, and would answer what was received up to
/// `answerable`. One that yields its turn waits, too: it makes the connection busy.
#[cold]
fn send_waits(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    waited: bool,
    answerable: u64,
) -> Poll<io::Result<usize>> {
    if !waited {
        state.before_wait(answerable);
        state.mark_activity();
    }
    state.register(Waiter::Writer, cx);
    let word = state.word();
    if word & flag::ENDED_BY_SERVER != 0 {
        return Poll::Ready(Err(ended_by_server(word)));
    }
    if is_tls(word) {
        #[cfg(feature = "_tls")]
        super::tls::writer_waits(state, cx);
    } else if state.transport.missed_write(word) {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

/// Writes to the transport, through TLS where there is that.
#[inline]
fn poll_transport(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    #[cfg(feature = "_tls")]
    if let Some(tls) = state.tls() {
        return super::tls::poll_write(state, tls, bufs);
    }
    let transport = &state.transport;
    transport.poll_write(state.readiness(), &state.writer, cx, bufs)
}

/// Flushes what the transport, or TLS, has kept.
fn poll_flush(state: &ConnectionState, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    #[cfg(feature = "_tls")]
    ready!(super::tls::poll_flush(state, cx))?;
    state.transport.poll_flush(cx)
}

/// Tells the operator, once a process and before any stop has shown it, of a protocol that writes
/// while a read of it waits and has declared nothing: a drain would take such a connection for idle
/// in the middle of a reply. Where requests and replies take turns this never happens.
#[cold]
fn warn_undeclared(state: &ConnectionState) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    let known = flag::DECLARED | flag::DRAINING | flag::REJECTED;
    if IS_TOLD.load(Relaxed) || state.has(known) || IS_TOLD.swap(true, Relaxed) {
        return;
    }
    log::warn!(
        target: "gracious", conn = state.id();
        "the handler of a connection from {} reads while it answers and has not declared when it is \
         idle: a shutdown may cut its replies; see `IdleWhen`, and the page \"Which drain is yours?\"",
        state.peer(),
    );
}

/// Sends the peer our end, which `close` of async-io's and async-std's sockets does not.
fn poll_finish(state: &ConnectionState, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let finished = state.poll_finish(cx);
    #[cfg(feature = "_tls")]
    if finished.is_pending() {
        ready!(super::tls::poll_flush(state, cx))?;
        cx.waker().wake_by_ref();
    }
    ready!(finished)?;
    state.set(flag::FINISHED);
    Poll::Ready(Ok(()))
}

/// Connections and write halves write alike.
macro_rules! writes {
    ($type:ty, $self:ident => $state:expr) => {
        impl AsyncWrite for $type {
            fn poll_write(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                poll_send(&$state, cx, buf)
            }

            fn poll_write_vectored(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                poll_send_vectored(&$state, cx, bufs)
            }

            fn poll_flush($self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                poll_flush(&$state, cx)
            }

            fn poll_close($self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                poll_finish(&$state, cx)
            }
        }
    };
}

writes!(Connection, self => self.reader.state);
writes!(WriteHalf, self => self.state);

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.state.writer.has(HalfState::REUNITED) {
            return;
        }
        leave_writer(&self.state, flag::WRITER | flag::WRITER_TASK_WAKER);
    }
}

/// Drops the write half, alone or with the read half, whose flags are among `bits`.
pub(super) fn leave_writer(state: &ConnectionState, bits: u64) {
    // A write that was waiting is never completed.
    state.writer.clear(HalfState::WAITING);
    state.clear_other_waker(Waiter::Writer);
    leave(state, bits);
}

/// Clears the flags of the halves that are dropped. The last one leaves the close to the task.
pub(super) fn leave(state: &ConnectionState, bits: u64) {
    let word = state.clear(bits) & !bits;
    if word & (flag::DETACHED | flag::WRITER) != 0 {
        return;
    }
    if word & flag::READER == 0 || !state.finishes_at_once() {
        // The task closes a connection without halves, and ends a transport whose end takes time.
        state.wake_task();
    } else if word & flag::FINISHED == 0 {
        state.set(flag::FINISHED);
        // Where it fails there is no peer to tell.
        let _ignored = state.poll_finish(&mut Context::from_waker(Waker::noop()));
    }
    if word & (flag::READER | flag::DRAINING) == flag::READER | flag::DRAINING {
        // No write makes the connection busy any more.
        state.wake(Waiter::Reader);
    }
}
