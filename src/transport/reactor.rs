//! Sockets with `async-io`, the reactor that async-std and smol share.
//!
//! The reactor is asked to wake a half of a connection once for each wait, and answers once. A half
//! notes in its state that it has asked (`ARMED`), and takes the answer before it asks again: an
//! answer that is left would make the next wait end at once, with a read or a write that finds
//! nothing.

use std::io::{self, IoSlice, Read, Write};
use std::task::{Context, Poll};

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
    let write = || {
        uninterrupted(|| match bufs {
            [buf] => socket.get_ref().write(buf),
            bufs => socket.get_ref().write_vectored(bufs),
        })
    };
    if writer.has(HalfState::ARMED) && arm(writer, socket.poll_writable(cx))? {
        // As of a read: there may be room.
        return match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            written => Poll::Ready(written),
        };
    }
    loop {
        match write() {
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, mpsc};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    struct Told(mpsc::Sender<()>);

    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_writer_that_was_told_of_room_writes_at_once() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        let socket = Async::new(socket).unwrap();
        let writer = HalfState::default();
        let (tell, told) = mpsc::channel();
        let waker = Arc::new(Told(tell)).into();
        let mut cx = Context::from_waker(&waker);
        let mut write = || poll_write(&socket, &writer, &mut cx, &[IoSlice::new(&[b'.'; 4096])]);
        for round in 0..100 {
            let mut written = 0;
            while let Poll::Ready(n) = write() {
                written += n.unwrap();
            }
            // All of it, or there is no news.
            peer.read_exact(&mut vec![0; written]).unwrap();
            told.recv_timeout(Duration::from_secs(20)).unwrap();
            let wrote = write();
            assert!(matches!(wrote, Poll::Ready(Ok(4096))), "round {round}");
            peer.read_exact(&mut [0; 4096]).unwrap();
        }
    }
}
