//! What becomes of a server, its connections, a task and a child process when `main` is left: with
//! `end`, `early` and `error` by the work of `serve_until`, and no way leads past its drain. `drop`
//! drops the server and waits; `forget` does not, and the process takes task and answer along. The
//! child, a client that is owed a mebibyte, tells what it gets.
//!
//! ```sh
//! cargo run --example leaving_main -- end     # or: early, error, drop, forget
//! ```

mod usage;

use std::{io, io::Write, net::TcpStream, os::fd::OwnedFd, process::Command, time::Duration};

use async_std::{channel, task};
use futures_lite::AsyncWriteExt;
use gracious::{Connection, Server};

async fn answer(mut conn: Connection, begun: channel::Sender<()>) -> io::Result<()> {
    begun.send(()).await.map_err(io::Error::other)?;
    task::sleep(Duration::from_millis(500)).await;
    conn.write_all(&vec![b'.'; 1 << 20]).await
}

#[async_std::main]
async fn main() -> io::Result<()> {
    let mode = &*usage::words("leaving_main [end|early|error|drop|forget]", ["end"])[0];
    let server = Server::bind("127.0.0.1:0").await?;
    let handle = server.handle();
    let client = TcpStream::connect(handle.local_addrs()[0].to_string())?;
    let mut child = Command::new("sh");
    child.args(["-c", "echo child: $(wc -c) bytes, then the end"]);
    child.stdin(OwnedFd::from(client)).spawn()?;
    task::spawn(handle.track(async {
        task::sleep(Duration::from_millis(500)).await;
        println!("task: finished");
    }));
    let (begins, begun) = channel::bounded(1);
    let handler = |conn| answer(conn, begins);
    let work = async {
        begun.recv().await.map_err(io::Error::other)?;
        match mode {
            "early" => Ok(()),
            "error" => Err(io::Error::other("main returns this")),
            _ => writeln!(io::stdout(), "main: at its end"),
        }
    };
    if mode == "drop" || mode == "forget" {
        let running = server.spawn(handler);
        work.await?;
        drop(running);
        if mode == "drop" {
            println!("main: {}", handle.closed().await);
        }
        return Ok(());
    }
    let (result, report) = server.serve_until(handler, work).await?;
    println!("main: {report}");
    result.unwrap_or(Ok(()))
}
