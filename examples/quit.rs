//! A line server that a client can stop.
//!
//! It echoes each line, answers `slow` after two seconds, and `quit` with `bye`; then it stops:
//! idle clients see the end at once, a client that waits for an answer gets it first. Ctrl-C and
//! SIGTERM stop it, too; a second one aborts. Exit status: 0 clean, 1 connections aborted, 2 cannot
//! listen.
//!
//! ```sh
//! cargo run --example quit                    # 127.0.0.1:8888
//! cargo run --example quit -- localhost:0 unix:/tmp/quit.sock
//! printf 'hello\nquit\n' | nc 127.0.0.1 8888
//! ```

mod usage;

use std::process::ExitCode;
use std::{io, time::Duration};

use futures_lite::AsyncWriteExt;
use gracious::{Builder, Connection, Report, Server};

async fn talk(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        match line?.as_str() {
            "quit" => {
                writer.write_all(b"bye\n").await?;
                writer.handle().shutdown();
            }
            "slow" => {
                async_std::task::sleep(Duration::from_secs(2)).await;
                writer.write_all(b"done\n").await?;
            }
            text => writer.write_all(format!("{text}\n").as_bytes()).await?,
        }
    }
    Ok(())
}

async fn serve(addresses: &[String]) -> io::Result<Report> {
    let builder = addresses.iter().fold(Server::builder(), Builder::listen);
    let server = builder.stop_on_signals().bind().await?;
    let state = server.to_string(); // bound on ADDRESS, ADDRESS
    println!("{}", state.replacen("bound", "listening", 1));
    server.serve(talk).await
}

#[async_std::main]
async fn main() -> ExitCode {
    env_logger::init();
    let addresses = usage::words("quit [ADDRESS]...", ["127.0.0.1:8888"]);
    let served = serve(&addresses).await;
    match &served {
        Ok(report) => println!("{report}"),
        Err(error) => eprintln!("quit: {error}"),
    }
    served.map_or(ExitCode::from(2), |report| report.exit_code())
}
