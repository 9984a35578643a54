//! Peers that never pause.

use std::future::pending;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

use futures_lite::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt};
use gracious::{Address, Connection, Listener};

use super::client::{Client, eventually};

/// A client that sends lines and does not wait for the replies, but reads them as fast as they come:
/// its handler always has input, and room for output. It hangs up when this is dropped.
pub struct Flood {
    client: Client,
    /// How many bytes of replies have come.
    replies: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Begins, and waits for the first replies.
    #[track_caller]
    pub fn begin(mut client: Client) -> Self {
        client.send("a flood begins\n");
        let mut sends = client.twin();
        // Short lines: one read of the server's brings thousands, and each reply is a write.
        let lines = b"\n".repeat(64 * 1024);
        let sending = thread::spawn(move || while sends.write_all(&lines).is_ok() {});
        let mut flood = Self::reading(client);
        flood.threads.push(sending);
        flood
    }

    /// A client that only reads, from a handler that writes without end: [`write_when_asked`].
    #[track_caller]
    pub fn of_replies(mut client: Client) -> Self {
        client.send("write\n");
        Self::reading(client)
    }

    #[track_caller]
    fn reading(client: Client) -> Self {
        let mut reads = client.twin();
        let replies = Arc::new(AtomicU64::new(0));
        let read = replies.clone();
        let reading = thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                match reads.read(&mut buffer) {
                    Ok(n @ 1..) => read.fetch_add(n as u64, SeqCst),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // It has hung up, or the server has ended it.
                    Ok(0) | Err(_) => return,
                };
            }
        });
        let flood = Self {
            client,
            replies,
            threads: vec![reading],
        };
        flood.goes_on();
        flood
    }

    /// Waits until it has been served some more.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.replies.load(SeqCst);
        eventually("a client that never pauses is served", || {
            self.replies.load(SeqCst) >= before + 1000
        });
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.client.hang_up();
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// A peer that always has input, and takes all output.
pub struct Ready;

impl AsyncRead for Ready {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        buf.fill(b'\n');
        Poll::Ready(Ok(buf.len()))
    }
}

impl AsyncWrite for Ready {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A listener to which so many of them come.
pub struct ReadyPeers(pub usize);

impl Listener for ReadyPeers {
    type Io = Ready;

    async fn accept(&mut self) -> io::Result<(Ready, Address)> {
        if self.0 == 0 {
            return pending().await;
        }
        self.0 -= 1;
        Ok((Ready, Address::Custom("always ready".into())))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom("always ready".into()))
    }

    fn shut(&mut self) {}
}

/// Echoes lines, and after the line `write` writes small lines for ever.
pub async fn write_when_asked(mut conn: Connection) -> io::Result<()> {
    let mut line = String::new();
    while conn.read_line(&mut line).await? > 0 {
        if line == "write\n" {
            loop {
                conn.write_all(b"a small line\n").await?;
            }
        }
        conn.write_all(line.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
