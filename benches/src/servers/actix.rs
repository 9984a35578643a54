//! actix-server, whose connections learn of its stop by its own signal.

use std::io;
use std::pin::pin;

use actix_server::{GracefulShutdownSignal, Server};
use actix_service::fn_service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{listener, on_stop};
use crate::protocol::{BUFFER, replies};

pub(super) fn serve() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let builder = Server::build().disable_signals();
        let stopping = builder.graceful_shutdown_signal();
        let server = builder
            .listen("pong", listener()?, move || {
                let stopping = stopping.clone();
                fn_service(move |stream| read_until_stopping(stream, stopping.clone()))
            })?
            .run();
        let handle = server.handle();
        // The command is given by the call; the future waits for its end, as `server` does.
        on_stop(move || drop(handle.stop(true)));
        server.await
    })
}

async fn read_until_stopping(
    mut stream: TcpStream,
    stopping: GracefulShutdownSignal,
) -> io::Result<()> {
    let mut stopped = pin!(stopping.notified());
    let mut buffer = [0; BUFFER];
    loop {
        let len = tokio::select! {
            len = stream.read(&mut buffer) => len?,
            () = &mut stopped => return Ok(()),
        };
        match len {
            0 => return Ok(()),
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
}
