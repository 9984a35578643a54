//! The orderly end of a connection: send our end, read what still comes, close.
//!
//! Closing a TCP socket with unread input resets the connection, and a reset destroys what the peer
//! has not received yet. So a socket is closed when its peer has ended, too, or when nothing came
//! after our end and the peer's kernel has acknowledged everything; a peer that still sends, or has
//! not taken everything, is read from for a while. nginx calls this a lingering close.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::future;

use crate::shared::connection::ConnectionState;
use crate::socket::buffer::Buffer;
use crate::socket::readiness::flag;

/// How often the kernel is asked whether the peer has taken everything: there is no event for it.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(128);
/// How many reads a peer that goes on sending gets at a time.
const READS: usize = 16;

/// The end of a connection under way.
pub(crate) type Lingering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Brings a connection without halves to its end.
pub(crate) fn poll_close(state: &Arc<ConnectionState>, cx: &mut Context<'_>) -> Poll<()> {
    // Most connections close at once, and allocate nothing for it.
    let found = if state.has(flag::CLOSING) {
        Found::Nothing
    } else {
        at_once(state)
    };
    if found != Found::End {
        let begin = || -> Lingering { Box::pin(linger(state.clone(), found)) };
        let closed = state.with_task_cold(|cold| {
            let lingering = cold.lingering.get_or_insert_with(begin);
            lingering.as_mut().poll(cx)
        });
        if closed.is_pending() {
            state.set(flag::CLOSING);
            return Poll::Pending;
        }
    }
    seal(state);
    Poll::Ready(())
}

/// The last act before the close of a Unix socket: lets the peer write no more, then reads what is
/// there, since input that is unread at the close turns the peer's end into a reset. In this order:
/// input that came between a last read and the close would be unread. A TCP peer has its end by then.
fn seal(state: &ConnectionState) {
    if state.transport.refuse_input() {
        while discard(state) == Found::Input {}
    }
}

/// Brings a connection as far to its end as needs no waiting.
pub(crate) fn now(state: &ConnectionState) {
    let _whatever = at_once(state);
    seal(state);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Nothing more will come, or nobody can be harmed by a close.
    End,
    /// There was something to read.
    Input,
    /// There was nothing.
    Nothing,
}

/// The end of most connections, without waiting.
fn at_once(state: &ConnectionState) -> Found {
    let word = state.word();
    if !state.transport.finishes_at_once() {
        return Found::Nothing;
    }
    if word & flag::PEER_ENDED != 0 {
        // There is nothing unread. To close our descriptor would send our end only where it is the
        // last: a forked child has a copy.
        if word & flag::FINISHED == 0 {
            let _ignored = finish(state);
        }
        return Found::End;
    }
    if word & flag::FINISHED == 0 {
        // Discard what arrived before our FIN; it does not mean that the peer goes on sending after
        // it.
        if discard(state) == Found::End {
            return Found::End;
        }
        let _ignored = finish(state);
    }
    match discard(state) {
        Found::Nothing
            if state
                .transport
                .unacknowledged()
                .is_some_and(|left| left <= 1) =>
        {
            Found::End
        }
        // The handler sent our end some time ago: this input may be older than that.
        Found::Input if word & flag::FINISHED != 0 => Found::Nothing,
        found => found,
    }
}

fn finish(state: &ConnectionState) -> io::Result<()> {
    state.set(flag::FINISHED);
    match state
        .transport
        .poll_finish(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(done) => done,
        Poll::Pending => Ok(()),
    }
}

async fn linger(state: Arc<ConnectionState>, mut found: Found) {
    let config = &state.server.config;
    if !state.transport.finishes_at_once() {
        // A transport of the user's own knows what its end takes; a failure is an end, too.
        let finished = async {
            if state.has(flag::FINISHED) {
                return;
            }
            let _ignored = poll_fn(|cx| state.transport.poll_finish(cx)).await;
        };
        let limit = config.linger.min(config.linger_total);
        return future::or(finished, state.server.clock.sleep(limit)).await;
    }
    let start = state.server.uptime();
    let (mut progress, mut look) = (start, FIRST_LOOK);
    let mut sends = found == Found::Input;
    let mut queue = state.transport.unacknowledged();
    loop {
        let now = state.server.uptime();
        let quiet = now.saturating_sub(progress);
        let total = now.saturating_sub(start);
        if quiet >= config.linger || total >= config.linger_total {
            return;
        }
        let left = (config.linger - quiet).min(config.linger_total - total);
        let mut readable = pin!(poll_fn(|cx| state.poll_readable(cx)));
        let timer = state.server.clock.sleep(look.min(left));
        let timed_out = future::or(async { readable.as_mut().await.is_err() }, async {
            timer.await;
            true
        })
        .await;
        if timed_out {
            look = (look * 2).min(LAST_LOOK);
        }
        found = discard(&state);
        let unacknowledged = state.transport.unacknowledged();
        if found == Found::Input || unacknowledged < queue {
            progress = state.server.uptime();
        }
        if found == Found::Input {
            sends = true;
            // A peer that never pauses does not keep the thread from the others.
            future::yield_now().await;
        }
        queue = unacknowledged;
        if found == Found::End || !sends && queue.is_some_and(|left| left <= 1) {
            return;
        }
    }
}

/// Reads what is there, and throws it away.
fn discard(state: &ConnectionState) -> Found {
    let mut found = Found::Nothing;
    for _ in 0..READS {
        let mut buffer = Buffer::default();
        let read = buffer.fill(|buf| {
            let read = state.transport.try_read(state.word(), buf);
            (*read.as_ref().unwrap_or(&0), read)
        });
        match read {
            Ok(0) => return Found::End,
            Ok(_) => found = Found::Input,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return found,
            // Reset, most likely: there is nobody left to wait for.
            Err(_) => return Found::End,
        }
    }
    found
}
