//! Sockets with `async-io`, the reactor that async-std and smol share.
//!
//! The reactor is asked to wake a half of a connection once for each wait, and answers once. A half
//! notes in its state that it has asked (`ARMED`), and takes the answer before it asks again: an
//! answer that is left would make the next wait end at once, with a read or a write that finds
//! nothing.

use std::io::{self, IoSlice, Read, Write};
use std::task::{Context, Poll, ready};

use async_io::Async;

use crate::socket::readiness::HalfState;
use crate::socket::uninterrupted;

/// Reads, or arranges a wake-up. With `look`, `Pending` says that the kernel has nothing *now*.
// A call of its own: inlined it would make its callers too large to be inlined themselves.
#[inline(never)]
pub(super) fn poll_read<T>(
    socket: &Async<T>,
    reader: &HalfState,
    cx: &mut Context<'_>,
    buf: &mut [u8],
    look: bool,
) -> Poll<io::Result<usize>>
where
    for<'a> &'a T: Read,
{
    if reader.has(HalfState::ARMED) && !look && arm(reader, socket.poll_readable(cx))? {
        // The reactor has no news. There may be some all the same: what comes in the very round of
        // the reactor in which it was asked is taken for older than the question. A read costs less
        // than to wait for another round.
        return match uninterrupted(|| socket.get_ref().read(buf)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            received => Poll::Ready(received),
        };
    }
    loop {
        // A read comes before every wait, also where the last one brought less than the buffer
        // holds: a peer on the same core has mostly answered by now.
        match uninterrupted(|| socket.get_ref().read(buf)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return Poll::Ready(received),
        }
        if arm(reader, socket.poll_readable(cx))? {
            return Poll::Pending;
        }
    }
}

/// Writes what fits, or arranges a wake-up.
#[inline(never)]
pub(super) fn poll_write<T>(
    socket: &Async<T>,
    writer: &HalfState,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>>
where
    for<'a> &'a T: Write,
{
    if writer.has(HalfState::ARMED) {
        ready!(socket.poll_writable(cx))?;
        writer.clear(HalfState::ARMED);
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

/// Notes and gives whether the reactor will wake this half, by the answer `ready` to the question
/// whether it is ready.
fn arm(half: &HalfState, ready: Poll<io::Result<()>>) -> io::Result<bool> {
    let pending = ready?.is_pending();
    if pending {
        half.set(HalfState::ARMED);
    } else {
        half.clear(HalfState::ARMED);
    }
    Ok(pending)
}
