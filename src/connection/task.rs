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

use crate::accept::spawn::PoolId;
use crate::connection::close::{Lingering, poll_close};
use crate::connection::timeouts::Limits;
use crate::report::Cause;
use crate::shared::connection::{Record, Who, bit};
use crate::shared::registry::Ending;

pin_project! {
    /// Drives a handler, then its connection to its end, then enters that into the ledger.
    pub(crate) struct Task<F> {
        #[pin]
        handler: Handler<F>,
        // `None` once the end is in the ledger.
        record: Option<Arc<Record>>,
    }

    impl<F> PinnedDrop for Task<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // The runtime is gone, or the server gave this task up before it was spawned.
            if let Some(record) = this.record.take() {
                drop_handler(this.handler.as_mut(), &record, None);
                if record.has(bit::DETACHED) {
                    finish(record, Ending::Detached, Cause::Detached);
                } else {
                    record.abort();
                    finish(record, Ending::Aborted, Cause::Aborted);
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
    // The pool fills what would be lost beside the discriminant.
    #[project = HandlerProj]
    enum Handler<F> {
        Running { #[pin] future: F, pool: Option<PoolId> },
        // How it ended, unless it was dropped.
        Gone { ended: Option<Ended>, pool: Option<PoolId> },
    }
}

impl<F> Handler<F> {
    /// The pool that counts this task.
    fn pool(&self) -> Option<PoolId> {
        match self {
            Self::Running { pool, .. } | Self::Gone { pool, .. } => *pool,
        }
    }

    /// Drops the future.
    fn end(mut self: Pin<&mut Self>, ended: Option<Ended>) {
        let pool = self.pool();
        self.set(Self::Gone { ended, pool });
    }
}

/// What few connections need, and none while its handler serves without limits.
#[derive(Default)]
pub(crate) struct Extra {
    limits: Limits,
    pub(crate) lingering: Option<Lingering>,
    /// What the handler failed with.
    error: String,
}

#[derive(Clone, Copy)]
enum Ended {
    Returned,
    Failed,
    Panicked,
}

impl Task<Ready<io::Result<()>>> {
    /// For a handler that panicked before it came to a future.
    pub(crate) fn panicked(record: Arc<Record>, panic: &(dyn Any + Send)) -> Self {
        log_panic(&record, panic);
        Self {
            handler: Handler::Gone {
                ended: Some(Ended::Panicked),
                pool: None,
            },
            record: Some(record),
        }
    }
}

impl<F: Future<Output = io::Result<()>>> Task<F> {
    pub(crate) fn new(record: Arc<Record>, handler: F) -> Self {
        Self {
            handler: Handler::Running {
                future: handler,
                pool: None,
            },
            record: Some(record),
        }
    }
}

impl<F> Task<F> {
    /// Has it count itself off when it is dropped.
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
        let Some(record) = this.record.as_ref() else {
            // Detached: what is left of the handler is nobody's connection.
            return match this.handler.as_mut().project() {
                HandlerProj::Running { future, .. } => {
                    catch_unwind(AssertUnwindSafe(|| future.poll(cx).map(drop)))
                        .unwrap_or(Poll::Ready(()))
                }
                HandlerProj::Gone { .. } => Poll::Ready(()),
            };
        };
        record.park(Who::Task, cx);

        let word = record.word();
        if word & bit::DETACHED != 0 {
            end(this.record, Ending::Detached, Cause::Detached);
            return self.poll(cx);
        }
        if word & bit::ABORT == 0 && (word & bit::GRACE != 0 || record.server.config.is_timed()) {
            record.with_extra(|extra| extra.limits.poll(record, cx));
        }
        if record.has(bit::ABORT) {
            drop_handler(this.handler.as_mut(), record, None);
            let met = record.take_extra().and_then(|extra| extra.limits.met);
            end(this.record, Ending::Aborted, met.unwrap_or(Cause::Aborted));
            return Poll::Ready(());
        }

        if let HandlerProj::Running { future, .. } = this.handler.as_mut().project() {
            let polled = record.handle(|| future.poll(cx));
            let ended = match polled {
                Ok(Poll::Pending) => None,
                Ok(Poll::Ready(Ok(()))) => Some(Ended::Returned),
                Ok(Poll::Ready(Err(error))) => {
                    log_failure(record, &error);
                    record.with_extra(|extra| extra.error = error.to_string());
                    Some(Ended::Failed)
                }
                Err(panic) => {
                    log_panic(record, &*panic);
                    Some(Ended::Panicked)
                }
            };
            if ended.is_some() {
                drop_handler(this.handler.as_mut(), record, ended);
            }
        }
        let ended = match this.handler.project() {
            HandlerProj::Running { .. } => None,
            HandlerProj::Gone { ended, .. } => *ended,
        };

        let word = record.word();
        if word & bit::DETACHED != 0 {
            end(this.record, Ending::Detached, Cause::Detached);
            return if ended.is_some() {
                Poll::Ready(())
            } else {
                Poll::Pending
            };
        }
        if word & (bit::READER | bit::WRITER) == 0 && word & bit::CLOSED == 0 {
            if poll_close(record, cx).is_pending() {
                return Poll::Pending;
            }
            record.set(bit::CLOSED | bit::FINISHED);
            if ended.is_none() {
                // Under a handler that goes on, which is what is waited for now.
                record.transport.shut();
            }
        } else if word & (bit::WRITER | bit::FINISHED) == 0 {
            // Only a transport of the user's own gets here: its end may have to wait.
            if record.transport.poll_finish(cx).is_ready() {
                record.set(bit::FINISHED);
            }
        }
        if !record.has(bit::CLOSED) {
            return Poll::Pending;
        }
        let Some(ended) = ended else {
            return Poll::Pending;
        };
        let extra = record.take_extra().map(|extra| *extra).unwrap_or_default();
        let (ending, cause) = ended.account(record, extra.error);
        end(this.record, ending, extra.limits.met.unwrap_or(cause));
        Poll::Ready(())
    }
}

impl Ended {
    fn account(self, record: &Record, error: String) -> (Ending, Cause) {
        match self {
            _ if record.has(bit::REJECTED) => (Ending::Rejected, Cause::Rejected),
            // What it returned may be no more than what the cut made of its reads.
            Self::Returned | Self::Failed if record.has(bit::ABORT) => {
                (Ending::Aborted, Cause::Aborted)
            }
            Self::Returned => {
                let cause = match record.word() {
                    word if word & bit::DRAIN_ENDED != 0 => Cause::Drain,
                    word if word & bit::PEER_ENDED != 0 => Cause::Peer,
                    _ => Cause::Handler,
                };
                (Ending::Completed, cause)
            }
            Self::Failed => (Ending::Failed, Cause::Error(error)),
            Self::Panicked => (Ending::Panicked, Cause::Panic),
        }
    }
}

fn end(record: &mut Option<Arc<Record>>, ending: Ending, cause: Cause) {
    if let Some(record) = record.take() {
        finish(record, ending, cause);
    }
}

/// Closes the socket, then counts the end.
pub(crate) fn finish(record: Arc<Record>, ending: Ending, cause: Cause) {
    record.unpark_away(Who::Task);
    // A connection that lingers knows itself.
    drop(record.take_extra());
    record.transport.dismiss(record.has(bit::DETACHED));
    let Some(entry) = record.server.group.begin_end(&record) else {
        return;
    };
    log::debug!(
        target: "gracious", conn = record.id, peer:% = record.peer();
        "connection {} from {} ended: {ending:?}, {cause:?}", record.id, record.peer(),
    );
    let server = record.server.clone();
    drop(record);
    server.close_connection(entry, ending, cause);
}

/// A destructor's panic is that connection's affair, as the handler's own.
fn drop_handler<F>(handler: Pin<&mut Handler<F>>, record: &Record, ended: Option<Ended>) {
    if let Err(panic) = record.handle(|| handler.end(ended)) {
        log_panic(record, &*panic);
    }
}

fn log_panic(record: &Record, panic: &(dyn Any + Send)) {
    let message = message(panic);
    log::error!(
        target: "gracious", conn = record.id, peer:% = record.peer();
        "the handler of connection {} from {} panicked: {message}", record.id, record.peer(),
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

fn log_failure(record: &Record, error: &io::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    // What a peer does at any time is no news to the operator.
    let level = match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => log::Level::Debug,
        _ => log::Level::Warn,
    };
    log::log!(
        target: "gracious", level, conn = record.id, peer:% = record.peer(), error:% = error;
        "the handler of connection {} from {} failed: {error}", record.id, record.peer(),
    );
}

impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extra").finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for Task<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("record", &self.record)
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
