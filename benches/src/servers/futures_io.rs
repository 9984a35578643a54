//! Handlers for any stream with the traits of futures-io.

use std::io::{self, Read};
use std::net::TcpStream;

use async_io::Async;
use futures_lite::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};
use futures_lite::{AsyncWrite, AsyncWriteExt};

use crate::protocol::{BUFFER, replies};

/// The usual handler, with a buffer of its own.
pub(super) async fn read(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
}

/// The same from the connection's buffer.
#[expect(clippy::manual_async_fn, reason = "it would hold its argument twice")]
pub(super) fn fill_buf(
    mut stream: impl AsyncBufRead + AsyncWrite + Send + Unpin,
) -> impl Future<Output = io::Result<()>> + Send {
    async move {
        loop {
            let input = stream.fill_buf().await?;
            if input.is_empty() {
                return Ok(());
            }
            // As much as the others read at once.
            let input = &input[..input.len().min(BUFFER)];
            let (len, replies) = (input.len(), replies(input));
            stream.consume(len);
            stream.write_all(replies).await?;
        }
    }
}

/// Answers what came first, and ends: the server closes before its client does.
#[expect(clippy::manual_async_fn, reason = "it would hold its argument twice")]
pub(super) fn once(
    mut stream: impl AsyncBufRead + AsyncWrite + Send + Unpin,
) -> impl Future<Output = io::Result<()>> + Send {
    async move {
        let input = stream.fill_buf().await?;
        let (len, replies) = (input.len(), replies(input));
        stream.consume(len);
        stream.write_all(replies).await
    }
}

/// The same as a bare loop can do it: wait first, and read with a buffer that no wait outlives.
pub(super) async fn readable(mut stream: Async<TcpStream>) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let replies = {
            let mut buffer = [0; BUFFER];
            match stream.get_ref().read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => replies(&buffer[..len]),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => continue,
                Err(err) => return Err(err),
            }
        };
        stream.write_all(replies).await?;
    }
}
