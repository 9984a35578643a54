//! A server that lives as long as a piece of work, and is closed and drained whatever ends that.
//!
//! The work makes a request and ends before the answer is ready. It comes all the same.
//!
//! ```sh
//! cargo run --example scope -- value          # the work has a result
//! cargo run --example scope -- error          # it fails, and the `?` waits for the drain
//! cargo run --example scope -- cancel         # a timeout drops the work, and the server with it
//! cargo run --example scope -- wait           # it goes on, and Ctrl-C ends it
//! ```

mod usage;

use std::{io, time::Duration};

use async_std::{fs::File, future::timeout, net::TcpStream, task};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use gracious::{Connection, Server};

async fn answer(mut conn: Connection) -> io::Result<()> {
    conn.read_exact(&mut [0; 8]).await?;
    task::sleep(Duration::from_millis(300)).await;
    conn.write_all(b"an answer, in full").await
}

async fn work(mode: &str, mut client: TcpStream) -> io::Result<u32> {
    client.write_all(b"request\n").await?;
    match mode {
        "value" => Ok(42),
        "error" => Ok(File::open("/no/such/file").await.map(|_| 0)?),
        _ => std::future::pending().await,
    }
}

#[async_std::main]
async fn main() -> io::Result<()> {
    env_logger::init();
    let mode = &*usage::words("scope [value|error|cancel|wait]", ["value"])[0];
    let builder = Server::builder().listen("127.0.0.1:0").stop_on_signals();
    // After Ctrl-C the work may go on for so long.
    let server = builder.deadline(Duration::from_secs(1)).bind().await?;
    println!("{server}");
    let handle = server.handle();
    let mut client = TcpStream::connect(handle.local_addrs()[0].to_string()).await?;

    let serving = server.serve_until(answer, work(mode, client.clone()));
    let patience = (mode == "cancel").then_some(Duration::from_millis(100));
    let ended = timeout(patience.unwrap_or(Duration::MAX), serving).await;
    println!("{}", handle.closed().await);
    let mut reply = String::new();
    client.read_to_string(&mut reply).await?;
    println!("the client got {reply:?}");
    match ended.map_or(Ok(None), |served| served?.0.transpose())? {
        Some(value) => println!("the work gave {value}"),
        None => println!("the work was dropped"),
    }
    Ok(())
}
