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

use crate::shared::connection::{Record, bit};
use crate::socket::buffer::Buffer;

/// How often the kernel is asked whether the peer has taken everything: there is no event for it.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(128);
/// How many reads a peer that goes on sending gets at a time.
const READS: usize = 16;

/// The end of a connection under way.
pub(crate) type Lingering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Brings a connection without halves to its end.
pub(crate) fn poll_close(record: &Arc<Record>, cx: &mut Context<'_>) -> Poll<()> {
    // Most connections close at once, and allocate nothing for it.
    let found = if record.has(bit::CLOSING) {
        Found::Nothing
    } else {
        at_once(record)
    };
    if found != Found::End {
        let begin = || -> Lingering { Box::pin(linger(record.clone(), found)) };
        let closed = record.with_extra(|extra| {
            let lingering = extra.lingering.get_or_insert_with(begin);
            lingering.as_mut().poll(cx)
        });
        if closed.is_pending() {
            record.set(bit::CLOSING);
            return Poll::Pending;
        }
    }
    seal(record);
    Poll::Ready(())
}

/// The last act before the close: nothing may come after the last look for input, because input that
/// is unread when a Unix socket is closed turns its peer's end into a reset. TCP's peer has its end
/// before that.
fn seal(record: &Record) {
    if record.transport.refuse_input() {
        while discard(record) == Found::Input {}
    }
}

/// As much of it as needs no waiting.
pub(crate) fn now(record: &Record) {
    let _whatever = at_once(record);
    seal(record);
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
fn at_once(record: &Record) -> Found {
    let word = record.word();
    if !record.transport.finishes_at_once() {
        return Found::Nothing;
    }
    if word & bit::PEER_ENDED != 0 {
        // There is nothing unread, so closing sends our end.
        return Found::End;
    }
    if word & bit::FINISHED == 0 {
        // What came before our end is not what a peer sends in spite of it.
        if discard(record) == Found::End {
            return Found::End;
        }
        let _ignored = finish(record);
    }
    match discard(record) {
        Found::Nothing
            if record
                .transport
                .unacknowledged()
                .is_some_and(|left| left <= 1) =>
        {
            Found::End
        }
        // The handler has sent our end long since: what was there may be older than that.
        Found::Input if word & bit::FINISHED != 0 => Found::Nothing,
        found => found,
    }
}

fn finish(record: &Record) -> io::Result<()> {
    record.set(bit::FINISHED);
    match record
        .transport
        .poll_finish(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(done) => done,
        Poll::Pending => Ok(()),
    }
}

async fn linger(record: Arc<Record>, mut found: Found) {
    let config = &record.server.config;
    if !record.transport.finishes_at_once() {
        // A transport of the user's own knows what its end takes; a failure is an end, too.
        let finished = async {
            if record.has(bit::FINISHED) {
                return;
            }
            let _ignored = poll_fn(|cx| record.transport.poll_finish(cx)).await;
        };
        let limit = config.linger.min(config.linger_total);
        return future::or(finished, record.server.clock.sleep(limit)).await;
    }
    let start = record.server.uptime();
    let (mut progress, mut look) = (start, FIRST_LOOK);
    let mut sends = found == Found::Input;
    let mut queue = record.transport.unacknowledged();
    loop {
        let now = record.server.uptime();
        let quiet = now.saturating_sub(progress);
        let total = now.saturating_sub(start);
        if quiet >= config.linger || total >= config.linger_total {
            return;
        }
        let left = (config.linger - quiet).min(config.linger_total - total);
        let mut readable = pin!(poll_fn(|cx| record.poll_readable(cx)));
        let timer = record.server.clock.sleep(look.min(left));
        let timed_out = future::or(async { readable.as_mut().await.is_err() }, async {
            timer.await;
            true
        })
        .await;
        if timed_out {
            look = (look * 2).min(LAST_LOOK);
        }
        found = discard(&record);
        let unacknowledged = record.transport.unacknowledged();
        if found == Found::Input || unacknowledged < queue {
            progress = record.server.uptime();
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
fn discard(record: &Record) -> Found {
    let mut found = Found::Nothing;
    for _ in 0..READS {
        let mut buffer = Buffer::default();
        let read = buffer.fill(|buf| {
            let read = record.transport.try_read(record.word(), buf);
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
