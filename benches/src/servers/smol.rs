//! Loops on smol, and one that swansong stops.

use std::io;

use async_io::Async;
use futures_lite::{AsyncReadExt, AsyncWriteExt, StreamExt};
use smol::net::{TcpListener, TcpStream};
use swansong::Swansong;

use super::{exit_on_stop, futures_io, listener, on_stop};
use crate::protocol::{BUFFER, replies};

pub(super) fn bare() -> io::Result<()> {
    exit_on_stop();
    smol::block_on(async {
        let listener = TcpListener::from(Async::new(listener()?)?);
        let mut incoming = listener.incoming();
        while let Some(stream) = incoming.next().await {
            smol::spawn(futures_io::read(stream?)).detach();
        }
        Ok(())
    })
}

pub(super) fn without_buffer() -> io::Result<()> {
    exit_on_stop();
    smol::block_on(async {
        let listener = Async::new(listener()?)?;
        loop {
            smol::spawn(futures_io::readable(listener.accept().await?.0)).detach();
        }
    })
}

pub(super) fn swansong() -> io::Result<()> {
    let swansong = Swansong::new();
    on_stop({
        let swansong = swansong.clone();
        move || drop(swansong.shut_down())
    });
    smol::block_on(async {
        let listener = TcpListener::from(Async::new(listener()?)?);
        let mut incoming = swansong.interrupt(listener.incoming());
        while let Some(stream) = incoming.next().await {
            let conversation = interrupted(stream?, swansong.clone());
            smol::spawn(swansong.guarded(conversation)).detach();
        }
        drop(incoming);
        drop(listener);
        swansong.shut_down().await;
        Ok(())
    })
}

async fn interrupted(mut stream: TcpStream, swansong: Swansong) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    // Each read as a future: an interrupted `AsyncRead` would not wake up for the stop.
    while let Some(len) = swansong.interrupt(stream.read(&mut buffer)).await {
        match len? {
            0 => break,
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
    Ok(())
}
