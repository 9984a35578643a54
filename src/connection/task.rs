//! The future around a handler: one hand-written state machine, since a nested `async` block would
//! hold the handler's future twice.

use std::any::Any;
use std::fmt;
use std::future::{Future, Ready};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::timeouts::{self, WAITS_FOR_QUIET};
use super::{close, closer};
use crate::log;
use crate::report::Cause;
use crate::shared::connection::ConnectionState;
use crate::shared::ledger::CloseKind;
use crate::socket::budget;
use crate::socket::errors::is_too_slow;
use crate::socket::readiness::{Waiter, flag};
use crate::workers::PoolId;

pin_project! {
    /// Drives a handler, then its connection to its end, then counts that.
    pub(crate) struct Task<F> {
        #[pin]
        handler: Handler<F>,
        // `None` once the end is counted.
        state: Option<Arc<ConnectionState>>,
    }

    impl<F> PinnedDrop for Task<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // The runtime is gone, or the server failed before this task was spawned.
            if let Some(state) = this.state.take() {
                drop_handler(this.handler.as_mut(), &state, None);
                if state.has(flag::DETACHED) {
                    finish(state, CloseKind::Detached, Cause::Detached);
                } else {
                    state.abort();
                    finish(state, CloseKind::Aborted, Cause::Aborted);
                }
            }
            if let Some(pool) = this.handler.pool() {
                if let HandlerProj::Running { .. } = this.handler.as_mut().project() {
                    // Of a connection that was detached.
                    let _panic = catch_unwind(AssertUnwindSafe(|| this.handler.end(None)));
                }
                pool.count_off();
            }
        }
    }
}

pin_project! {
    // `pool` is repeated in both variants because there it fits the padding after the enum's tag; a
    // field beside the enum would make every task a word larger (tested below).
    #[project = HandlerProj]
    enum Handler<F> {
        Running { #[pin] future: F, pool: Option<PoolId> },
        // The handler is gone: what it came to, unless it was dropped.
        Gone { result: Option<HandlerResult>, pool: Option<PoolId> },
    }
}

impl<F> Handler<F> {
    /// The pool that counts this task, where there is one.
    fn pool(&self) -> Option<PoolId> {
        match self {
            Self::Running { pool, .. } | Self::Gone { pool, .. } => *pool,
        }
    }

    /// Drops the handler's future.
    fn end(mut self: Pin<&mut Self>, result: Option<HandlerResult>) {
        let pool = self.pool();
        self.set(Self::Gone { result, pool });
    }
}

#[derive(Clone, Copy)]
enum HandlerResult {
    Returned,
    Failed,
    Panicked,
}

impl Task<Ready<io::Result<()>>> {
    /// For a handler that panicked before it came to a future.
    pub(crate) fn panicked(state: Arc<ConnectionState>, panic: &(dyn Any + Send)) -> Self {
        log_panic(&state, panic);
        Self {
            handler: Handler::Gone {
                result: Some(HandlerResult::Panicked),
                pool: None,
            },
            state: Some(state),
        }
    }
}

#[cfg(feature = "_handshake")]
impl Task<Ready<io::Result<()>>> {
    /// For a connection that failed before it had a handler.
    pub(crate) fn failed(state: Arc<ConnectionState>, cause: Cause) -> Self {
        state.with_task_cold(|cold| cold.limit_met = Some(cause));
        Self {
            handler: Handler::Gone {
                result: Some(HandlerResult::Failed),
                pool: None,
            },
            state: Some(state),
        }
    }
}

impl<F: Future<Output = io::Result<()>>> Task<F> {
    pub(crate) fn new(state: Arc<ConnectionState>, handler: F) -> Self {
        Self {
            handler: Handler::Running {
                future: handler,
                pool: None,
            },
            state: Some(state),
        }
    }
}

impl<F> Task<F> {
    /// Has the task count itself off its pool when it is dropped.
    #[cfg(target_os = "linux")]
    pub(crate) fn counted(mut self, by: PoolId) -> Self {
        let (Handler::Running { pool, .. } | Handler::Gone { pool, .. }) = &mut self.handler;
        *pool = Some(by);
        self
    }
}

impl<F: Future<Output = io::Result<()>>> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.as_mut().project();
        let Some(state) = this.state.as_ref() else {
            // Detached: the handler goes on without a connection.
            return match this.handler.as_mut().project() {
                HandlerProj::Running { future, .. } => {
                    catch_unwind(AssertUnwindSafe(|| future.poll(cx).map(drop)))
                        .unwrap_or(Poll::Ready(()))
                }
                HandlerProj::Gone { .. } => Poll::Ready(()),
            };
        };
        state.register(Waiter::Task, cx);

        let word = state.word();
        if word & flag::DETACHED != 0 {
            end(this.state, CloseKind::Detached, Cause::Detached);
            return self.poll(cx);
        }
        if word & flag::ABORT == 0
            && (word & (flag::FIRST_BYTE_GRACE | flag::QUIET) != 0
                || state.server.config.is_timed())
        {
            state.with_task_cold(|cold| timeouts::poll(cold, state, cx));
        }
        if state.has(flag::ABORT) {
            drop_handler(this.handler.as_mut(), state, None);
            let met = state.take_task_cold().and_then(|cold| cold.limit_met);
            end(
                this.state,
                CloseKind::Aborted,
                met.unwrap_or(Cause::Aborted),
            );
            return Poll::Ready(());
        }

        if let HandlerProj::Running { future, .. } = this.handler.as_mut().project() {
            budget::begin_turn();
            let polled = state.in_handler(|| future.poll(cx));
            let result = match polled {
                Ok(Poll::Pending) => None,
                Ok(Poll::Ready(Ok(()))) => Some(HandlerResult::Returned),
                Ok(Poll::Ready(Err(error))) => {
                    log_failure(state, &error);
                    state.with_task_cold(|cold| cold.error = error.to_string());
                    Some(HandlerResult::Failed)
                }
                Err(panic) => {
                    log_panic(state, &*panic);
                    Some(HandlerResult::Panicked)
                }
            };
            if result.is_some() {
                drop_handler(this.handler.as_mut(), state, result);
            }
        }
        let result = match this.handler.project() {
            HandlerProj::Running { .. } => None,
            HandlerProj::Gone { result, .. } => *result,
        };

        let word = state.word();
        if word & flag::DETACHED != 0 {
            end(this.state, CloseKind::Detached, Cause::Detached);
            return if result.is_some() {
                Poll::Ready(())
            } else {
                Poll::Pending
            };
        }
        let halves = flag::READER | flag::WRITER;
        if word & (halves | flag::CLOSING | flag::CLOSED) == 0 {
            if close::begin(state, cx).is_ready() {
                state.set(flag::CLOSED | flag::FINISHED);
                if result.is_none() {
                    // The handler goes on without its connection, and is waited for.
                    state.transport.shutdown_both();
                }
            } else if state.set(flag::CLOSING) & flag::ABORT != 0 {
                // An abort tells the closer where it finds the flag; this one is the task's.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            } else {
                return hand_over(this.state, result);
            }
        } else if word & (flag::WRITER | flag::FINISHED | flag::CLOSING) == 0 {
            // Only TLS and a transport of the user's own come here: their end may have to wait.
            if state.poll_finish(cx).is_ready() {
                state.set(flag::FINISHED);
            }
        }
        #[cfg(feature = "_tls")]
        super::tls::poll_send(state, cx);
        let word = state.word();
        if word & flag::CLOSED == 0 {
            if word & WAITS_FOR_QUIET == WAITS_FOR_QUIET {
                // The handler may have moved bytes, and wait, since the timer was looked at above: it
                // is to fire when the connection has been quiet from then on.
                state.with_task_cold(|cold| timeouts::poll(cold, state, cx));
            }
            return Poll::Pending;
        }
        let Some(result) = result else {
            return Poll::Pending;
        };
        let (kind, cause) = result.account(state);
        end(this.state, kind, cause);
        Poll::Ready(())
    }
}

impl HandlerResult {
    /// How the connection's end is counted.
    #[inline]
    fn account(self, state: &ConnectionState) -> (CloseKind, Cause) {
        let Some(cold) = state.take_task_cold() else {
            return self.account_without_limits(state, String::new());
        };
        let (kind, cause) = self.account_without_limits(state, cold.error);
        (kind, cold.limit_met.unwrap_or(cause))
    }

    #[inline]
    fn account_without_limits(self, state: &ConnectionState, error: String) -> (CloseKind, Cause) {
        match self {
            _ if state.has(flag::REJECTED) => (CloseKind::Rejected, Cause::Rejected),
            // What the handler returned may be no more than what the abort made of its reads.
            Self::Returned | Self::Failed if state.has(flag::ABORT) => {
                (CloseKind::Aborted, Cause::Aborted)
            }
            Self::Returned => {
                let cause = match state.word() {
                    word if word & flag::DRAIN_ENDED != 0 => Cause::Drain,
                    word if word & flag::PEER_ENDED != 0 => Cause::Peer,
                    _ => Cause::Handler,
                };
                (CloseKind::Completed, cause)
            }
            Self::Failed => (CloseKind::Failed, Cause::Error(error)),
            Self::Panicked => (CloseKind::Panicked, Cause::Panic),
        }
    }
}

/// Leaves the close, which has to wait for the peer, to the shard's closer. The task of a handler that
/// has ended ends with this; that of one that goes on is woken when the connection is closed.
fn hand_over(state: &mut Option<Arc<ConnectionState>>, result: Option<HandlerResult>) -> Poll<()> {
    if let Some(state) = state {
        // Nothing reads or writes that an event would concern.
        state.transport.deregister(false);
    }
    let Some(result) = result else {
        if let Some(state) = state {
            closer::hand_over(state.clone(), None);
        }
        return Poll::Pending;
    };
    // Moved: the closer, on another thread, may count the end at once, and what was kept here would
    // close the socket behind that.
    if let Some(state) = state.take() {
        let outcome = result.account(&state);
        closer::hand_over(state, Some(outcome));
    }
    Poll::Ready(())
}

fn end(state: &mut Option<Arc<ConnectionState>>, kind: CloseKind, cause: Cause) {
    if let Some(state) = state.take() {
        finish(state, kind, cause);
    }
}

/// Closes the socket, then counts the end.
pub(crate) fn finish(state: Arc<ConnectionState>, kind: CloseKind, cause: Cause) {
    state.clear_other_waker(Waiter::Task);
    // Halves that live elsewhere keep the state, and need none of the task's timers.
    drop(state.take_task_cold());
    state.transport.deregister(state.has(flag::DETACHED));
    let Some(closing) = state.server.registry.begin_close(&state) else {
        return;
    };
    log::debug!(
        target: "gracious", conn = state.id();
        "a connection from {} ended: {kind:?}, {cause:?}", state.peer(),
    );
    let server = state.server.clone();
    // A transport of the user's own may panic when it is dropped; its end is counted all the same.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(state))) {
        let (id, message) = (closing.id, message(&*panic));
        log::error!(
            target: "gracious", conn = id;
            "the transport of connection {id} panicked when it was dropped: {message}",
        );
    }
    server.close_connection(closing, kind, cause);
}

/// Drops the handler. A destructor's panic ends this connection alone, as the handler's own does.
fn drop_handler<F>(
    handler: Pin<&mut Handler<F>>,
    state: &ConnectionState,
    result: Option<HandlerResult>,
) {
    if let Err(panic) = state.in_handler(|| handler.end(result)) {
        log_panic(state, &*panic);
    }
    #[cfg(feature = "metrics")]
    state.record_handler();
}

fn log_panic(state: &ConnectionState, panic: &(dyn Any + Send)) {
    let message = message(panic);
    log::error!(
        target: "gracious", conn = state.id();
        "the handler of a connection from {} panicked: {message}", state.peer(),
    );
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("not a message")
}

fn log_failure(state: &ConnectionState, error: &io::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    // What a peer may do at any time is not worth a warning.
    let level = match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => log::Level::Debug,
        _ if is_too_slow(error) => log::Level::Debug,
        _ => log::Level::Warn,
    };
    log::log!(
        target: "gracious", level, conn = state.id();
        "the handler of a connection from {} failed: {error}", state.peer(),
    );
}

impl<F> fmt::Debug for Task<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs beside its handler's own future.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_task_adds_two_words_to_its_handler() {
        assert_eq!(size_of::<Task<[u64; 6]>>(), size_of::<[u64; 8]>());
    }
}
