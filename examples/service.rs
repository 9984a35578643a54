//! A service of systemd: started by a connection, or with listeners that outlive its restarts.
//!
//! ```sh
//! cargo build --example service --features systemd
//! systemd-socket-activate -l 8888 target/debug/examples/service
//! ```
//!
//! The units are in [systemd/](systemd).

mod usage;

use std::io;

use futures_lite::AsyncWriteExt;
use gracious::{Connection, Report, Server};

#[async_std::main]
async fn main() -> io::Result<Report> {
    env_logger::init();
    let words = usage::words("service [ADDRESS]", [""]);
    let builder = Server::builder().stop_on_signals().notify();
    let builder = match words[0].as_str() {
        // What the `.socket` unit listens on.
        "" => builder.listen_systemd(),
        // What this service listens on itself; systemd holds it from one process to the next.
        address => builder.listen(address).store_listeners(),
    };
    let server = builder.bind().await?;
    println!("{server}");
    server.serve(talk).await
}

async fn talk(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        writer.write_all(format!("{}\n", line?).as_bytes()).await?;
    }
    Ok(())
}
