//! A line server that a client can stop.
//!
//! It echoes each line; `slow` answers after two seconds; `quit` is answered with `bye` and stops
//! the server: idle clients see the end at once, the slow one gets its answer first.
//!
//! ```sh
//! cargo run --example quit                    # 127.0.0.1:8888
//! cargo run --example quit -- localhost:0 unix:/tmp/quit.sock
//! printf 'hello\nquit\n' | nc 127.0.0.1 8888
//! ```

use std::io;
use std::process::{ExitCode, Termination};
use std::time::Duration;

use futures_lite::AsyncWriteExt;
use gracious::{Connection, Server};

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

#[async_std::main]
async fn main() -> ExitCode {
    env_logger::init();
    let mut addresses: Vec<String> = std::env::args().skip(1).collect();
    if addresses.is_empty() {
        addresses.push("127.0.0.1:8888".into());
    }
    let builder = addresses
        .iter()
        .fold(Server::builder(), |builder, address| {
            builder.listen(address)
        });
    let server = match builder.stop_on_signals().bind().await {
        Ok(server) => server,
        Err(error) => {
            eprintln!("quit: {error}");
            return ExitCode::from(2);
        }
    };
    println!(
        "listening {}",
        server.to_string().trim_start_matches("bound ")
    );
    match server.serve(talk).await {
        Ok(report) => {
            println!("{report}");
            report.report()
        }
        Err(error) => {
            eprintln!("quit: {error}");
            ExitCode::FAILURE
        }
    }
}
