//! The servers. The bare ones accept and spawn, and that is all.

use std::fmt::Display;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::{process, thread};

use async_io::Async;
use futures_lite::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};
use futures_lite::{AsyncWrite, AsyncWriteExt, StreamExt};
use gracious::{Runtime, Server};

/// Prints where it listens and serves until its input ends.
pub(crate) fn serve(runtime: &str, server: &str) -> io::Result<()> {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        // How servers stop is not measured here.
        process::exit(0);
    });
    match runtime {
        "async-std" => async_std::task::block_on(on_async_std(server)),
        #[cfg(feature = "smol")]
        "smol" => smol::block_on(on_smol(server)),
        other => Err(unknown(other)),
    }
}

async fn on_async_std(server: &str) -> io::Result<()> {
    match server {
        "bare" => {
            let listener = async_std::net::TcpListener::bind(ANY_PORT).await?;
            announce(listener.local_addr()?);
            let mut incoming = listener.incoming();
            while let Some(stream) = incoming.next().await {
                async_std::task::spawn(read(stream?));
            }
            Ok(())
        }
        "bare, no buffer" => {
            let listener = Async::<TcpListener>::bind(LOCALHOST)?;
            announce(listener.get_ref().local_addr()?);
            loop {
                async_std::task::spawn(readable(listener.accept().await?.0));
            }
        }
        gracious => on_gracious(Server::bind(ANY_PORT).await?, gracious).await,
    }
}

#[cfg(feature = "smol")]
async fn on_smol(server: &str) -> io::Result<()> {
    match server {
        "bare" => {
            let listener = smol::net::TcpListener::bind(ANY_PORT).await?;
            announce(listener.local_addr()?);
            let mut incoming = listener.incoming();
            while let Some(stream) = incoming.next().await {
                smol::spawn(read(stream?)).detach();
            }
            Ok(())
        }
        "bare, no buffer" => {
            let listener = Async::<TcpListener>::bind(LOCALHOST)?;
            announce(listener.get_ref().local_addr()?);
            loop {
                smol::spawn(readable(listener.accept().await?.0)).detach();
            }
        }
        gracious => {
            let server = Server::with_runtime(gracious::Smol).listen(ANY_PORT);
            on_gracious(server.bind().await?, gracious).await
        }
    }
}

async fn on_gracious<R: Runtime>(server: Server<R>, name: &str) -> io::Result<()> {
    announce(&server.local_addrs()[0]);
    match name {
        "gracious, read" => server.serve(read).await?,
        "gracious, fill_buf" => server.serve(fill_buf).await?,
        other => return Err(unknown(other)),
    };
    Ok(())
}

const ANY_PORT: &str = "127.0.0.1:0";
const LOCALHOST: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn announce(address: impl Display) {
    println!("{address}");
}

fn unknown(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no server called {name}"))
}

/// The usual handler, with a buffer of its own.
async fn read(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = [0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => stream.write_all(replies(&buffer[..len])).await?,
        }
    }
}

/// The same from the connection's buffer.
async fn fill_buf(mut stream: impl AsyncBufRead + AsyncWrite + Unpin) -> io::Result<()> {
    loop {
        let input = stream.fill_buf().await?;
        if input.is_empty() {
            return Ok(());
        }
        let (len, replies) = (input.len(), replies(input));
        stream.consume(len);
        stream.write_all(replies).await?;
    }
}

/// The same as a bare loop can do it: wait first, and read with a buffer that no wait outlives.
async fn readable(mut stream: Async<TcpStream>) -> io::Result<()> {
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

const BUFFER: usize = 1024;

/// One reply for each line that ends in the input, to be written at once.
fn replies(input: &[u8]) -> &'static [u8] {
    let lines = input.iter().filter(|byte| **byte == b'\n').count();
    &REPLIES[..lines * PONG.len()]
}

pub(crate) const PONG: &[u8] = b"+PONG\r\n";

/// As many replies as input of the shortest lines could ask for at a time.
static REPLIES: [u8; BUFFER * PONG.len()] = {
    let mut replies = [0; BUFFER * PONG.len()];
    let mut at = 0;
    while at < replies.len() {
        replies[at] = PONG[at % PONG.len()];
        at += 1;
    }
    replies
};
