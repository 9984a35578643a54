//! Loops on async-std.

use std::io;

use async_io::Async;
use async_std::net::TcpListener;
use async_std::task;
use futures_lite::StreamExt;

use super::{exit_on_stop, futures_io, listener};

pub(super) fn bare() -> io::Result<()> {
    exit_on_stop();
    task::block_on(async {
        let listener = TcpListener::from(listener()?);
        let mut incoming = listener.incoming();
        while let Some(stream) = incoming.next().await {
            task::spawn(futures_io::read(stream?));
        }
        Ok(())
    })
}

pub(super) fn without_buffer() -> io::Result<()> {
    exit_on_stop();
    task::block_on(async {
        let listener = Async::new(listener()?)?;
        loop {
            task::spawn(futures_io::readable(listener.accept().await?.0));
        }
    })
}
