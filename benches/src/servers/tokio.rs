//! Loops on tokio, and one with what tokio-util has for a graceful stop.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{exit_on_stop, listener, on_stop};
use crate::protocol::{BUFFER, replies};

pub(super) fn multi_thread() -> io::Result<()> {
    exit_on_stop();
    bare(Builder::new_multi_thread().enable_io().build()?, read)
}

/// Its server closes before the client does.
pub(super) fn once() -> io::Result<()> {
    exit_on_stop();
    bare(
        Builder::new_multi_thread().enable_io().build()?,
        answer_once,
    )
}

pub(super) fn current_thread() -> io::Result<()> {
    exit_on_stop();
    bare(Builder::new_current_thread().enable_io().build()?, read)
}

fn bare<Fut>(runtime: Runtime, handler: fn(TcpStream) -> Fut) -> io::Result<()>
where
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener()?)?;
        // A task of the workers, as connections are; `block_on` has the main thread.
        tokio::spawn(async move {
            loop {
                tokio::spawn(handler(listener.accept().await?.0));
            }
        })
        .await?
    })
}

pub(super) fn tracked() -> io::Result<()> {
    let stop = CancellationToken::new();
    on_stop({
        let stop = stop.clone();
        move || stop.cancel()
    });
    let runtime = Builder::new_multi_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener()?)?;
        tokio::spawn(async move {
            let connections = TaskTracker::new();
            while let Some(stream) = stop.run_until_cancelled(listener.accept()).await {
                connections.spawn(read_until_cancelled(stream?.0, stop.clone()));
            }
            drop(listener);
            connections.close();
            connections.wait().await;
            Ok(())
        })
        .await?
    })
}

/// The usual handler.
async fn read(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
}

async fn answer_once(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    let len = stream.read(&mut buffer).await?;
    stream.write_all(replies(&buffer[..len])).await
}

async fn read_until_cancelled(mut stream: TcpStream, stop: CancellationToken) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        let len = tokio::select! {
            len = stream.read(&mut buffer) => len?,
            () = stop.cancelled() => return Ok(()),
        };
        match len {
            0 => return Ok(()),
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
}
