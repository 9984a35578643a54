//! A TCP proxy. At a stop a tunnel in use goes on, one that is quiet ends at once.
//!
//! ```sh
//! cargo run --example quit                    # the server behind it, on 127.0.0.1:8888
//! cargo run --example proxy                   # or -- UPSTREAM ADDRESS
//! nc -N 127.0.0.1 8080
//! ```

mod usage;

use std::{io, net::Shutdown, time::Duration};

use async_std::net::TcpStream;
use futures_lite::{AsyncWriteExt, future, io::copy};
use gracious::{Connection, EndedBy, IdleWhen, Report, Server};

/// A tunnel is quiet when no byte has moved for so long.
const QUIET: Duration = Duration::from_secs(1);

pub(crate) async fn tunnel(conn: Connection, upstream: String) -> io::Result<()> {
    let server = TcpStream::connect(upstream).await?;
    let (mut reader, mut writer) = conn.split();
    let up = async {
        copy(&mut reader, &server).await?;
        server.shutdown(match reader.ended_by() {
            Some(EndedBy::Drain) => Shutdown::Both, // the whole tunnel is quiet
            _ => Shutdown::Write,                   // the client may still read
        })
    };
    let down = async {
        copy(&server, &mut writer).await?;
        writer.close().await
    };
    future::try_zip(up, down).await.map(drop)
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let words = usage::words(
        "proxy [UPSTREAM] [ADDRESS]",
        ["127.0.0.1:8888", "127.0.0.1:8080"],
    );
    let builder = Server::builder().idle_when(IdleWhen::Quiet(QUIET));
    let builder = builder.listen(&*words[1]).stop_on_signals();
    let server = builder.bind().await?;
    println!("{server}");
    let upstream = words[0].clone();
    server.serve(|conn| tunnel(conn, upstream)).await
}
