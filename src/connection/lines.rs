//! The lines of a connection, bounded.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_io::AsyncBufRead;
use futures_lite::Stream;

use super::read::ReadHalf;

/// The lines of a connection, without their ends (`\n` or `\r\n`).
///
/// A line longer than [`Builder::line_limit`](crate::Builder::line_limit) is an `InvalidData` error
/// and the last one; a line that is not UTF-8 is an `InvalidData` error, and the next one follows.
/// What comes between the last line end and the peer's end is a line, too, if it is not empty.
///
/// A line that the peer breaks off with a reset is the error of that reset, and what came of the line is
/// dropped. This holds in debug builds, too, where `read_line` and `lines` of futures-lite 2.6 meet an
/// assertion of their own there, which is counted as the handler's panic; those of futures-util do not.
///
/// It is a [`Stream`] as well.
#[derive(Debug)]
pub struct Lines {
    pub(super) reader: ReadHalf,
    line: Vec<u8>,
    done: bool,
}

impl Lines {
    pub(super) fn new(reader: ReadHalf) -> Self {
        Self {
            reader,
            line: Vec::new(),
            done: false,
        }
    }

    /// The next line; `None` at the end of the input.
    ///
    /// Dropping the future loses nothing.
    // The name that async-std, tokio and asyncio's users look for; `Stream` is implemented too.
    #[allow(clippy::should_implement_trait)]
    pub async fn next(&mut self) -> Option<io::Result<String>> {
        std::future::poll_fn(|cx| self.poll_line(cx)).await
    }

    /// The reader, with the input that it has and no line has taken; half a line that is here is lost.
    #[must_use]
    pub fn into_inner(self) -> ReadHalf {
        self.reader
    }

    /// The reader, for its address, handle and guards.
    #[must_use]
    pub fn get_ref(&self) -> &ReadHalf {
        &self.reader
    }

    /// Polls for the next line.
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<String>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let limit = self.reader.state.server.config.line_limit;
        loop {
            let bytes = match ready!(Pin::new(&mut self.reader).poll_fill_buf(cx)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(error)));
                }
            };
            if bytes.is_empty() {
                self.done = true;
                let last = !self.line.is_empty();
                return Poll::Ready(last.then(|| self.take_line()));
            }
            let end = memchr::memchr(b'\n', bytes);
            let length = end.unwrap_or(bytes.len());
            if self.line.len() + length > limit {
                self.done = true;
                let message = format!("a line is longer than the limit of {limit} bytes");
                return Poll::Ready(Some(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    message,
                ))));
            }
            self.line.extend_from_slice(&bytes[..length]);
            // Not `after_consume`: half a line counts as unread until the whole is given out, so the
            // connection is busy.
            let buffer = &mut self.reader.buffer;
            buffer.consume(length + usize::from(end.is_some()));
            if end.is_some() {
                return Poll::Ready(Some(self.take_line()));
            }
        }
    }

    /// Takes the line that has been collected, without a `\r` at its end.
    fn take_line(&mut self) -> io::Result<String> {
        self.reader.after_consume();
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a line is not UTF-8"))
    }
}

impl Stream for Lines {
    type Item = io::Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_line(cx)
    }
}
