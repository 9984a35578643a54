//! The server that is soaked: a process in which one generation of servers follows the other.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::time::Duration;

use futures_lite::{AsyncWriteExt, future};
use gracious::{AsyncStd, Builder, Connection, Report, Running, Runtime, Server, Smol, Tls, web};

/// The engines, by name.
pub(crate) const ENGINES: [&str; 4] = ["async-std", "smol", "workers", "shards"];

/// How long a generation goes on taking clients after it was asked to stop. Its successor joins the
/// ports meanwhile.
pub(crate) const LAME_DUCK: Duration = Duration::from_millis(300);
/// Clients that never pause are cut off after that.
const DEADLINE: Duration = Duration::from_secs(3);

/// Where a generation listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) lines: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) http: SocketAddr,
}

/// Serves as `soak serve ENGINE CERTIFICATE KEY` says: `next` on standard input starts a generation and
/// stops the one before, `end` stops the last. What each came to is a line of output.
pub(crate) fn run(words: &[String]) -> io::Result<()> {
    let [engine, certificate, key] = words else {
        return Err(io::Error::other(
            "expected an engine, a certificate and a key",
        ));
    };
    // Handlers that panic are part of the load.
    std::panic::set_hook(Box::new(|_| {}));
    let tls = Tls::from_pem_files(certificate, key)?;
    match &**engine {
        "async-std" => follow(Server::builder, &tls),
        "smol" => follow(|| Server::with_runtime(Smol), &tls),
        "workers" => follow(|| Server::with_runtime(AsyncStd).workers(2), &tls),
        "shards" => follow(
            || Server::with_runtime(AsyncStd).workers(2).sharded(true),
            &tls,
        ),
        other => Err(io::Error::other(format!("no engine is called {other}"))),
    }
}

/// Has one generation follow the other.
fn follow<R: Runtime>(builder: impl Fn() -> Builder<R>, tls: &Tls) -> io::Result<()> {
    let mut ports = Ports {
        lines: ([127, 0, 0, 1], 0).into(),
        tls: ([127, 0, 0, 1], 0).into(),
        http: ([127, 0, 0, 1], 0).into(),
    };
    let mut now: Option<[Running; 2]> = None;
    for line in io::stdin().lock().lines() {
        let before = now.take();
        for running in before.iter().flatten() {
            running.handle().shutdown();
        }
        if line? == "next" {
            now = Some(future::block_on(start(&builder, &mut ports, tls))?);
            println!("listening {} {} {}", ports.lines, ports.tls, ports.http);
        }
        for running in before.into_iter().flatten() {
            say(&future::block_on(running)?);
        }
        println!("done");
    }
    Ok(())
}

/// Starts the servers of a generation, at the ports of the one before.
async fn start<R: Runtime>(
    builder: impl Fn() -> Builder<R>,
    ports: &mut Ports,
    tls: &Tls,
) -> io::Result<[Running; 2]> {
    let common = || {
        let builder = builder().reuse_port(true).deadline(DEADLINE);
        builder.lame_duck(LAME_DUCK)
    };
    let lines = common().listen(ports.lines).listen_tls(ports.tls, tls);
    let lines = lines.bind().await?;
    let http = common().listen(ports.http).bind().await?;
    let addresses = lines.local_addrs();
    let [plain, secure] = [0, 1].map(|index| addresses[index].as_tcp());
    *ports = Ports {
        lines: plain.unwrap_or(ports.lines),
        tls: secure.unwrap_or(ports.tls),
        http: http.local_addrs()[0].as_tcp().unwrap_or(ports.http),
    };
    let hello = web::serve(async |_: web::Request| web::Response::new("hello".to_owned()));
    Ok([lines.spawn(answer), http.spawn(hello)])
}

/// Answers each line as it asks: with the line, or `big N` with so many bytes, `slow` after a while,
/// `panic` with a panic.
async fn answer(conn: Connection) -> io::Result<()> {
    let (reader, mut writer) = conn.split();
    let mut lines = reader.lines();
    while let Some(line) = lines.next().await {
        let line = line?;
        if let Some(size) = line.strip_prefix("big ") {
            let size = size.parse().map_err(io::Error::other)?;
            writer.write_all(&vec![b'x'; size]).await?;
            writer.write_all(b"\n").await?;
            continue;
        }
        match &*line {
            "panic" => panic!("asked for"),
            "slow" => drop(async_io::Timer::after(Duration::from_millis(50)).await),
            _ => {}
        }
        writer.write_all(format!("{line}\n").as_bytes()).await?;
    }
    Ok(())
}

fn say(report: &Report) {
    let ends = report.completed + report.failed + report.panicked + report.aborted;
    let balanced =
        report.accepted == ends + report.detached + report.rejected && report.active == 0;
    println!(
        "report {} {} {} {} {} {}",
        report.accepted,
        report.completed,
        report.failed,
        report.panicked,
        report.aborted,
        u8::from(balanced),
    );
}
