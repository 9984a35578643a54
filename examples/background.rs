//! A server in the background of other work, and its end when that is done.
//!
//! The work here is to ask the server itself a few things. Then the server is cancelled and waited
//! for: the client that is still connected sees the end, and a new one finds the port closed.
//!
//! ```sh
//! cargo run --example background
//! ```

mod usage;

use std::io;

use async_std::net::TcpStream;
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Server};

async fn shout(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let reply = line?.to_uppercase() + "!\n";
        writer.write_all(reply.as_bytes()).await?;
    }
    Ok(())
}

#[async_std::main]
async fn main() -> io::Result<()> {
    usage::words("background", []);
    env_logger::init();
    let server = Server::bind("127.0.0.1:0").await?;
    println!("{server}");
    let running = server.spawn(shout);
    let handle = running.handle();

    let address = handle.local_addrs()[0].to_string();
    let mut client = BufReader::new(TcpStream::connect(&address).await?);
    for word in ["one\n", "two\n", "three\n"] {
        client.get_mut().write_all(word.as_bytes()).await?;
        let mut reply = String::new();
        client.read_line(&mut reply).await?;
        print!("{handle}, {} active; it says {reply}", handle.active());
    }

    let report = running.shutdown().await?;
    println!("{report}");
    println!("{handle}; is_serving: {}", handle.is_serving());
    let left = client.read_to_end(&mut Vec::new()).await?;
    println!("the client reads {left} bytes more, and the end");
    match TcpStream::connect(&address).await {
        Ok(_) => println!("a new client is let in"),
        Err(error) => println!("a new client: {error}"),
    }
    Ok(())
}
