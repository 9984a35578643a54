//! A loop on tokio, with what tokio-util has for a graceful stop.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_lite::io::{AsyncBufRead, AsyncRead};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::rig::handler::talk;
use crate::rig::server::{Account, Config, Kind, listener, on_stop, tell};

pub(crate) const TRACKED: Kind = Kind::new("tokio", tracked);

fn tracked(config: Config) -> io::Result<()> {
    let stop = CancellationToken::new();
    on_stop({
        let stop = stop.clone();
        move || stop.cancel()
    });
    Runtime::new()?.block_on(async {
        let listener = TcpListener::from_std(listener(&config)?)?;
        tell("address", config.address);
        let (mut account, connections) = (Account::default(), TaskTracker::new());
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            account.accepted += 1;
            connections.spawn(converse(accepted?.0, stop.clone()));
        }
        drop(listener);
        let start = Instant::now();
        connections.close();
        // The tracker tells no more than how many are left.
        let ended = timeout(config.deadline, connections.wait()).await;
        account.aborted = ended.map_or(connections.len() as u64, |()| 0);
        account.completed = account.accepted - account.aborted;
        account.drain = start.elapsed();
        tell("account", account);
        Ok(())
    })
}

async fn converse(stream: TcpStream, stop: CancellationToken) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let reader = UntilCancelled {
        reader: BufReader::new(reader).compat(),
        cancelled: Box::pin(stop.clone().cancelled_owned()),
    };
    talk(reader, writer.compat_write(), || stop.is_cancelled()).await
}

/// Ends when the stop comes and there is nothing to read, as a `select!` around a read would.
struct UntilCancelled<R> {
    reader: R,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<R: AsyncBufRead + Unpin> AsyncBufRead for UntilCancelled<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        // Asked twice, since what the first answer borrows could not be left again.
        if Pin::new(&mut this.reader).poll_fill_buf(cx)?.is_pending() {
            return this.cancelled.as_mut().poll(cx).map(|()| Ok(&[][..]));
        }
        Pin::new(&mut this.reader).poll_fill_buf(cx)
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.get_mut().reader).consume(amount);
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for UntilCancelled<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().reader).poll_read(cx, buffer)
    }
}
