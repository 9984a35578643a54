//! A server that is replaced without a gap: `kill -HUP` starts the program anew, which takes the sockets
//! over. Every line is answered with the id of the process that it came to.

use std::{future::pending, io, process::Command};

use async_signal::{Signal, Signals};
use futures_lite::{AsyncWriteExt, StreamExt, future};
use gracious::{Connection, Handle, Handover, Report, Server};

mod usage;

async fn answer(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let reply = format!("{}: {}\n", std::process::id(), line?);
        writer.write_all(reply.as_bytes()).await?;
    }
    Ok(())
}

/// Starts the program anew at each SIGHUP, until a successor serves.
async fn replace(mut hangups: Signals, server: Handle) -> io::Result<Report> {
    let mut words = std::env::args_os();
    let (program, words) = (words.next().unwrap(), words.collect::<Vec<_>>());
    while hangups.next().await.is_some() {
        let mut command = Command::new(&program);
        command.args(&words);
        match server.hand_over(command).await {
            Ok(_successor) => break,
            Err(error) => eprintln!("still here: {error}"),
        }
    }
    pending().await
}

#[async_std::main]
async fn main() -> io::Result<Report> {
    let defaults = ["127.0.0.1:8888", "unix:/tmp/gracious-upgrade.sock"];
    let addresses = usage::words("upgrade [ADDRESS] [ADDRESS]", defaults);
    let hangups = Signals::new([Signal::Hup])?;
    let handover = Handover::inherit()?;
    let server = Server::builder().handover(&handover).stop_on_signals();
    let server = server.listen_named("one", &*addresses[0]);
    let server = server.listen_named("other", &*addresses[1]).bind().await?;
    let running = server.spawn(answer);
    handover.ready().await?;
    let handle = running.handle();
    println!("{}: {handle}", std::process::id());
    future::or(running, replace(hangups, handle)).await
}
