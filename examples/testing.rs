//! How a handler is tested: what it says in memory, what a stop makes of it over a port of its own.
//!
//! ```sh
//! cargo run --example testing                 # in a crate, these are `#[test]`s
//! ```

mod usage;

use std::io;

use async_std::net::TcpStream;
use futures_lite::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use gracious::{Connection, Server};

async fn handler(conn: Connection) -> io::Result<()> {
    let (reader, writer) = conn.split();
    shout(reader, writer).await
}

async fn shout(
    mut reader: impl AsyncBufRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 0 {
        writer.write_all(line.to_uppercase().as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

async fn in_memory() -> io::Result<()> {
    let mut said = Vec::new();
    shout(&b"hello\nworld"[..], &mut said).await?;
    assert_eq!(said, b"HELLO\nWORLD");
    Ok(())
}

async fn over_a_port() -> io::Result<()> {
    let running = Server::bind("127.0.0.1:0").await?.spawn(handler); // a free one
    let address = running.handle().local_addrs()[0].to_string();
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"hello\nwor").await?;
    running.handle().shutdown();
    client.write_all(b"ld\n").await?;
    let mut said = String::new();
    client.read_to_string(&mut said).await?;
    assert_eq!(said, "HELLO\nWORLD\n");
    assert!(running.await?.is_clean());
    Ok(())
}

#[async_std::main]
async fn main() {
    usage::words("testing", []);
    in_memory().await.unwrap();
    over_a_port().await.unwrap();
    println!("all is well");
}
