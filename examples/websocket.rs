//! A WebSocket echo. At a stop every client gets the answers it is owed, then `1001`, and why.
//!
//! ```sh
//! cargo run --example websocket               # 127.0.0.1:9001; or -- ADDRESS
//! websockets ws://127.0.0.1:9001              # of Python's package `websockets`
//! ```

mod usage;

use std::io;

use async_tungstenite::accept_async;
use async_tungstenite::tungstenite::Error;
use async_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use futures_lite::{StreamExt, future};
use gracious::{Connection, IdleWhen, Report, Server, fallible};

pub(crate) async fn echo(conn: Connection) -> Result<(), Error> {
    let control = conn.control();
    let mut socket = accept_async(conn).await?;
    // The protocol has an end of its own from here on: no read ends before it.
    control.idle_when(IdleWhen::Never);
    let mut stop = Box::pin(async {
        control.shutdown_requested().await;
        None
    });
    // In this order: what has come by the stop is answered.
    while let Some(next) = future::or(async { Some(socket.next().await) }, &mut stop).await {
        match next.transpose()? {
            Some(message) if message.is_text() || message.is_binary() => {
                socket.send(message).await?;
            }
            Some(_answered_already) => {}
            None => return Ok(()),
        }
    }
    let (code, reason) = (CloseCode::Away, "the server goes".into());
    socket.close(Some(CloseFrame { code, reason })).await?;
    // Until the client has said goodbye, too.
    while socket.next().await.transpose()?.is_some() {}
    Ok(())
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let address = &*usage::words("websocket [ADDRESS]", ["127.0.0.1:9001"])[0];
    let server = Server::builder().listen(address).stop_on_signals();
    let server = server.bind().await?;
    println!("{server}");
    server.serve(fallible(echo)).await
}
