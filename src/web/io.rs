//! A connection as hyper reads and writes it: input is copied from the lent buffer, once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_io::{AsyncBufRead, AsyncWrite};
use hyper::rt::{Read, ReadBufCursor, Write};
use memchr::memmem;

use super::progress::Progress;
use crate::connection::Connection;

/// A connection with hyper's traits.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) connection: Connection,
    pub(super) progress: Arc<Progress>,
    pub(super) is_http1: bool,
}

/// What a head ends with. Where a peer sends something else that hyper takes, or this in two pieces,
/// hyper is given all there is.
const END: &[u8] = b"\r\n\r\n";

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut connection = Pin::new(&mut this.connection);
        let Poll::Ready(bytes) = connection.as_mut().poll_fill_buf(cx) else {
            this.progress.waits_for_input();
            return Poll::Pending;
        };
        let bytes = bytes?;
        let mut n = bytes.len().min(buf.remaining());
        if this.is_http1 && this.progress.is_before_request() {
            // One head, and no more: the next request stays in the connection's buffer, by which the
            // connection is busy, and a response knows that it is not the last.
            n = memmem::find(&bytes[..n], END).map_or(n, |at| at + END.len());
        }
        buf.put_slice(&bytes[..n]);
        connection.as_mut().consume(n);
        if n > 0 {
            let has_more = !connection.buffer().is_empty();
            this.progress.has_input(has_more);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_close(cx)
    }
}
