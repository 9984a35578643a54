//! The writing half, and what becomes of a connection whose halves are dropped.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker, ready};

use futures_io::AsyncWrite;

use super::Connection;
use crate::shared::connection::ConnectionState;
use crate::socket::errors::{aborted, ended_by_server};
use crate::socket::readiness::{HalfState, Waiter, flag};

/// The writing half of a [`Connection`]. Dropping it sends the peer our end.
pub struct WriteHalf {
    pub(super) state: Arc<ConnectionState>,
}

/// Sends for the write half. There is one, so what it stores nothing else stores.
fn poll_send(
    state: &ConnectionState,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if state.has(flag::ENDED_BY_SERVER) {
        return Poll::Ready(Err(ended_by_server(state.word())));
    }
    let waited = state.writer.has(HalfState::WAITING);
    let answerable = state.answerable();
    let transport = &state.transport;
    let Poll::Ready(sent) = transport.poll_write(state.readiness(), &state.writer, cx, bufs) else {
        if !waited {
            state.before_wait(answerable);
            state.mark_activity();
        }
        state.register(Waiter::Writer, cx);
        let word = state.word();
        if word & flag::ENDED_BY_SERVER != 0 {
            return Poll::Ready(Err(ended_by_server(state.word())));
        }
        if transport.missed_write(word) {
            cx.waker().wake_by_ref();
        }
        return Poll::Pending;
    };
    let sent = match sent {
        Ok(n) => {
            let total = state.sent.load(Relaxed) + n as u64;
            state.sent.store(total, Relaxed);
            if n == 0 {
                // No byte of an answer has gone out: what was unanswered still is.
                state.writer.clear(HalfState::WAITING);
            } else {
                // A write that had to wait has recorded in `before_wait` what it answers.
                if !waited {
                    state.mark_answered(answerable);
                }
                state
                    .writer
                    .clear(HalfState::WAITING | HalfState::UNANSWERED);
            }
            state.mark_activity();
            Ok(n)
        }
        Err(error) => {
            state.writer.clear(HalfState::WAITING);
            Err(if state.has(flag::ABORT) {
                aborted()
            } else {
                error
            })
        }
    };
    // Also of a write that failed: it waits no longer.
    state.after_write();
    Poll::Ready(sent)
}

/// Sends the peer our end, which `close` of async-io's and async-std's sockets does not.
fn poll_finish(state: &ConnectionState, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    ready!(state.transport.poll_finish(cx))?;
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
                poll_send(&$state, cx, &[IoSlice::new(buf)])
            }

            fn poll_write_vectored(
                $self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                poll_send(&$state, cx, bufs)
            }

            fn poll_flush($self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                $state.transport.poll_flush(cx)
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
    if word & flag::READER == 0 || !state.transport.finishes_at_once() {
        // The task closes a connection without halves, and ends a transport whose end takes time.
        state.wake_task();
    } else if word & flag::FINISHED == 0 {
        state.set(flag::FINISHED);
        // Where it fails there is no peer to tell.
        let _ignored = state
            .transport
            .poll_finish(&mut Context::from_waker(Waker::noop()));
    }
    if word & (flag::READER | flag::DRAINING) == flag::READER | flag::DRAINING {
        // No write makes the connection busy any more.
        state.wake(Waiter::Reader);
    }
}
