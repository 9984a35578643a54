//! A drain, as a progress bar: Ctrl-C once to drain, twice to abort.
//!
//! Each line that a client sends is a number of seconds of work.
//!
//! ```sh
//! cargo run --example drain
//! for i in $(seq 20); do (echo $i; cat) | nc 127.0.0.1 8888 & done
//! ```

mod usage;

use std::{io, process::ExitCode, time::Duration};

use async_std::task;
use futures_lite::{AsyncWriteExt, StreamExt};
use gracious::{Connection, Handle, Server};
use indicatif::{ProgressBar, ProgressStyle};

async fn work(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let seconds = line?.trim().parse().map_err(io::Error::other)?;
        task::sleep(Duration::from_secs(seconds)).await;
        writer.write_all(b"done\n").await?;
    }
    Ok(())
}

async fn show(handle: Handle) {
    let mut progress = handle.drain_progress();
    let Some(first) = progress.next().await else {
        return;
    };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} left, {msg}");
    let bar = ProgressBar::new(first.left).with_style(style.expect("the template is well formed"));
    let mut last = Some(first);
    while let Some(now) = last {
        bar.set_position(now.left);
        // There is always one: a deadline was set.
        bar.set_message(format!("{:.0?} to go", now.time.unwrap_or_default()));
        last = progress.next().await;
    }
    bar.abandon();
}

#[async_std::main]
async fn main() -> io::Result<ExitCode> {
    usage::words("drain", []);
    let server = Server::builder().listen("127.0.0.1:8888");
    let server = server.deadline(Duration::from_secs(30)).stop_on_signals();
    let server = server.bind().await?;
    println!("{server}; Ctrl-C drains, again aborts");
    let shown = task::spawn(show(server.handle()));
    let report = server.serve(work).await?;
    shown.await;
    println!("{report}");
    Ok(report.exit_code())
}
